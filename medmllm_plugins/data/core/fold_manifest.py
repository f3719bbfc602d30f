"""Fold manifests: which document is in which group and fold, with a hash by which two machines can compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from medmllm_plugins.data.core.documents import FOLDS, Document
from medmllm_plugins.errors import DataError, one_line, shown
from medmllm_plugins.utils.record import VersionedRecord

_COLUMNS: Final = ("id", "image", "label", "group", "fold", "attributes")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldManifest(VersionedRecord):
    """Which document of a data set is in which group and fold: the content of ``DATASET.folds.json``.

    Attributes:
        dataset: the data set's name.
        fingerprint: fingerprint of the data.
        hash: SHA-256 over id, label, group and fold of all documents, by which two machines compare their folds.
        columns: names of the values of each document.
        documents: one list of values for each document, in the order of their ids.
    """

    FORMAT: ClassVar[str] = "medmllm_folds"

    dataset: str
    fingerprint: str
    hash: str
    columns: tuple[str, ...] = _COLUMNS
    documents: tuple[Any, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Return the documents as mappings from column to value; damaged ones are left out."""
        usable = [row for row in self.documents if isinstance(row, list) and len(row) == len(self.columns)]
        return [dict(zip(self.columns, row, strict=True)) for row in usable]


def folds_hash(documents: Iterable[Document]) -> str:
    """Return the SHA-256, in hexadecimal, over id, label, group and fold of all documents in the order of their ids."""
    digest = hashlib.sha256()
    for document in sorted(documents, key=lambda document: document.id):
        # repr quotes and escapes, so that no two rows read alike.
        digest.update(repr((document.id, document.labels, document.group, document.fold)).encode())
    return digest.hexdigest()


def to_json(name: str, fingerprint: str, documents: Sequence[Document]) -> str:
    """Return a manifest as JSON text, one document a line, in the order of their ids."""
    rows = [
        json.dumps(
            [document.id, document.image, document.label, document.group, document.fold, dict(document.attributes)],
            ensure_ascii=False,
        )
        for document in sorted(documents, key=lambda document: document.id)
    ]
    head = {
        FoldManifest.FORMAT: FoldManifest.VERSION,
        "dataset": name,
        "fingerprint": fingerprint,
        "hash": folds_hash(documents),
        "columns": list(_COLUMNS),
    }
    body = ",\n    ".join(rows)
    return f'{json.dumps(head, indent=2, ensure_ascii=False)[:-2]},\n  "documents": [\n    {body}\n  ]\n}}\n'


def read(path: Path) -> tuple[dict[str, Any], tuple[Document, ...]]:
    """Read a manifest back.

    Returns:
        Its head (``dataset``, ``fingerprint``, ``hash``) and its documents.

    Raises:
        DataError: the file is no manifest of this version, or its hash does not fit its documents.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content[FoldManifest.FORMAT] != FoldManifest.VERSION:
            raise ValueError(f"version {content[FoldManifest.FORMAT]!r}")
        documents = tuple(
            Document(
                identifier,
                image,
                tuple(label) if isinstance(label, list) else label,
                group,
                fold,
                tuple((str(column), str(text)) for column, text in dict(attributes).items()),
            )
            for identifier, image, label, group, fold, attributes in content["documents"]
        )
        if unknown := {document.fold for document in documents} - set(FOLDS):
            raise ValueError(f"folds {sorted(unknown)}")
        if folds_hash(documents) != content["hash"]:
            raise ValueError("documents that its hash does not fit")
        head = {key: content[key] for key in ("dataset", "fingerprint", "hash")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: expected a fold manifest of version {FoldManifest.VERSION}, got {shown(one_line(error))}. "
            "Remove the file: it is made again."
        ) from error
    return head, documents
