"""Check the headers of a set of DICOM files: patients in several groups, films, burned-in text.

Identifiers are compared as digests with a random key for each process; neither are logged, kept or returned.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.readers.dicom_attributes import Attributes
from medmllm_plugins.data.readers.dicom_elements import Selection, read_elements
from medmllm_plugins.data.readers.image_reader import may_be_dicom
from medmllm_plugins.errors import DataError
from medmllm_plugins.utils.regular_files import open_regular

_IDENTIFIERS: Final = {"series": "SeriesInstanceUID", "studies": "StudyInstanceUID", "patients": "PatientID"}
_SELECTION: Final = Selection("NumberOfFrames", "BurnedInAnnotation", *_IDENTIFIERS.values())
_KEY: Final = secrets.token_bytes(32)


@dataclass(frozen=True, slots=True)
class _Facts:
    frames: int
    burned_in: bool
    identifiers: dict[str, bytes]


def dicom_warnings(folder: Path, documents: Sequence[Document], *, frame: str | None) -> list[str]:
    """Return warnings about the DICOM files of a set, one sentence each.

    Documents that are no DICOM are passed over. ``frame`` is the option of that name, ``""`` in a set of volumes.
    """
    records = [(document, _read_facts(folder / document.image)) for document in documents]
    facts = [(document, fact) for document, fact in records if fact is not None]
    sentences = []
    films = sum(fact.frames > 1 for _, fact in facts)
    if films and frame is None:
        sentences.append(
            f"{films} of {len(facts)} DICOM files are films of several frames, of which the middle one is shown. "
            "Choose with frame=first, middle, all (up to 9 in one picture) or a number."
        )
    if burned := sum(fact.burned_in for _, fact in facts):
        sentences.append(
            f"{burned} of {len(facts)} DICOM documents state that text is burned into their pixels, which may name the "
            "patient or the diagnosis. Check them, and black the text out."
        )
    return sentences + _divided(facts)


def _divided(facts: Sequence[tuple[Document, _Facts]]) -> list[str]:
    """Count series, studies and patients whose documents are in several groups."""
    counts = {}
    crossing = 0
    for name in _IDENTIFIERS:
        members: dict[bytes, list[Document]] = defaultdict(list)
        for document, fact in facts:
            if name in fact.identifiers:
                members[fact.identifiers[name]].append(document)
        if len(members) < 2:  # one identifier for all comes from anonymisation
            continue
        divided = [several for several in members.values() if len({document.group for document in several}) > 1]
        crossing = max(crossing, sum(len({document.fold for document in several}) > 1 for several in divided))
        if divided:
            counts[name] = f"{len(divided)} of {len(members)} {name}"
    if not counts:
        return []
    where = f"and {crossing or 'none'} of them in several folds"
    if crossing:
        where += ", so that a test fold may show patients of the train fold"
    return [
        f"By the identifiers in the DICOM headers, {', '.join(counts.values())} have documents in several groups, "
        f"{where}. Give a column of patients as the group (--group COLUMN)."
    ]


def _read_facts(path: Path) -> _Facts | None:
    """Read the header of a file; ``None`` if it is no DICOM or can no longer be read."""
    if path.is_dir():
        files = (file for file in sorted(path.iterdir()) if file.is_file() and may_be_dicom(file))
        path = next(files, path)
    if not path.is_file() or not may_be_dicom(path):
        return None
    try:
        with open_regular(path) as opened:
            values = read_elements(path, opened, _SELECTION)[0].values
    except DataError:  # the error comes when the file is read again
        return None
    attributes = Attributes(path, values, "<")
    frames = attributes.text("NumberOfFrames")
    identifiers = {
        name: hashlib.blake2b(identifier, key=_KEY, digest_size=16).digest()
        for name, keyword in _IDENTIFIERS.items()
        if (identifier := attributes.raw(keyword).strip(b" \0"))
    }
    burned_in = attributes.text("BurnedInAnnotation").upper() == "YES"
    return _Facts(int(frames) if frames.isdecimal() else 1, burned_in, identifiers)
