"""What attributions a run holds, read from ``attributions/TASK/index.json``; every field of it may be missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.utils.json_values import clean, mapping, number, sequence

FOLDER: Final = "attributions"
INDEX: Final = "index.json"
GAINS: Final = {
    "deletion_gain": "deletion over random order",
    "insertion_gain": "insertion over random order",
    "stability": "stability under noise",
    "inside": "mass inside the mask",
    "pointing": "pointing game",
    "completeness_gap": "completeness gap",
}
"""Figures of a method at a layer that have an interval, with what they are called."""
CHECKS: Final = (
    "completeness_gap",
    "deletion",
    "deletion_random",
    "insertion",
    "insertion_random",
    "stability",
    "inside",
    "area",
)
"""Numbers under a picture, in this order."""


@dataclass(frozen=True, slots=True)
class Method:
    """An attribution method, whose it is, and whether Captum's code computes it.

    ``captum`` is ``None`` where the index does not tell, as those of before this was noted.
    """

    name: str
    summary: str
    citation: str
    captum: bool | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One attribution of one document.

    Attributes:
        id: the row's id.
        document: the document's.
        label: the true class.
        predicted: the answered class; empty where the answer was not parsed.
        answer: what the model wrote.
        hit: whether it is right.
        target: what is explained: a label, or the answer itself.
        value: the label's log-odds, or the answer's log-probability.
        of_answer: whether it is the answer that is explained.
        method: the method's name.
        layer: ``"pixels"``, ``"vision.05"``, ``"connector"``, ``"llm.03"`` or ``"prompt"``.
        original: file of the picture that the model was shown.
        heat: file of the attribution, to lay over it.
        overlay: file of both in one.
        slices: a volume's slices stand below each other in the files, so many of equal height.
        scale: attribution at the ends of the colours.
        tokens: the prompt's tokens with their attributions.
        checks: the checks' numbers by name; NaN where there is none.
        pointing: whether the largest attribution lies inside the mask.
    """

    id: str
    document: str
    label: str
    predicted: str
    answer: str
    hit: bool
    target: str
    value: float
    of_answer: bool
    method: str
    layer: str
    original: Path | None
    heat: Path | None
    overlay: Path | None
    slices: int
    scale: tuple[float, float]
    tokens: tuple[tuple[str, float], ...]
    checks: Mapping[str, float]
    pointing: bool | None


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """A method at a layer over all documents: how it stood the checks.

    Attributes:
        method: its name.
        layer: where.
        n: documents.
        figures: by the names of :data:`GAINS`.
        area: mean share of the picture that the mask takes, against which ``inside`` is to be read.
        randomisation: what was made random, and how like the attribution still was, in the order of the cascade.
        failed: sentences on the checks that were not stood.
        how: what is explained, against which baseline, in how many steps.
        unchecked: checks that were not made.
        apart: ``how`` where the method has several rows at this layer; else empty.
    """

    method: str
    layer: str
    n: int
    figures: Mapping[str, Estimate]
    area: float
    randomisation: tuple[tuple[str, float], ...]
    failed: tuple[str, ...]
    how: str = ""
    unchecked: tuple[str, ...] = ()
    apart: str = ""


@dataclass(frozen=True, slots=True)
class Attributions:
    """All attributions of one task."""

    methods: tuple[Method, ...]
    labels: tuple[str, ...]
    entries: tuple[Entry, ...]
    summary: tuple[MethodSummary, ...]
    warnings: tuple[str, ...]


def read_attributions(told: Any, folder: Path) -> Attributions:
    """Read an index of attributions.

    Args:
        told: its JSON.
        folder: where it lies; its pictures are named relative to it, and one outside of it is left out.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(told, Mapping) or "medmllm_attributions" not in told:
        raise DataError("expected an index with the key 'medmllm_attributions', found something else")
    reader = _Pictures(folder)
    entries = tuple(_entry(one, reader) for one in sequence(told.get("entries")) if isinstance(one, Mapping))
    warnings = [clean(one) for one in sequence(told.get("warnings"))]
    if reader.missing:
        warnings.append(
            f"{len(reader.missing)} pictures of the index are not in {folder.name}, such as {reader.missing[0]!r}."
        )
    return Attributions(
        methods=tuple(
            Method(
                clean(one.get("name")),
                clean(one.get("summary") or ""),
                clean(one.get("citation") or ""),
                captum if isinstance(captum := one.get("captum"), bool) else None,
            )
            for one in sequence(told.get("methods"))
            if isinstance(one, Mapping)
        ),
        labels=tuple(map(clean, sequence(told.get("labels")))),
        entries=entries,
        summary=_told_apart([_summary(one) for one in sequence(told.get("summary")) if isinstance(one, Mapping)]),
        warnings=tuple(warnings),
    )


class _Pictures:
    """Finds the files that an index names, and notes those that are not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self.missing: list[str] = []

    def __call__(self, name: Any) -> Path | None:
        if not isinstance(name, str) or not name:
            return None
        try:
            path = (self._folder / name).resolve()
            if path.is_relative_to(self._folder) and path.is_file():
                return path
        except (OSError, ValueError):
            pass  # a name that no file can have
        self.missing.append(clean(name)[:80])
        return None


def _entry(told: Mapping[str, Any], picture: _Pictures) -> Entry:
    checks = mapping(told.get("checks"))
    pointing = checks.get("pointing")
    slices = number(told.get("slices"))
    scale = [number(end) for end in sequence(told.get("scale"))]
    return Entry(
        id=clean(told.get("id") or ""),
        document=clean(told.get("document") or told.get("id") or ""),
        label=clean(told.get("label") or ""),
        predicted=clean(told.get("predicted") or ""),
        answer=clean(told.get("answer") or ""),
        hit=bool(told.get("hit")),
        target=clean(told.get("target") or ""),
        value=number(told.get("value")),
        of_answer=told.get("mode") == "answer",
        method=clean(told.get("method") or "unnamed"),
        layer=clean(told.get("layer") or "pixels"),
        original=picture(told.get("original")),
        heat=picture(told.get("heat")),
        overlay=picture(told.get("overlay")),
        slices=max(1, int(slices)) if known(slices) else 1,
        scale=(scale[0], scale[1]) if len(scale) == 2 else (float("nan"), float("nan")),
        tokens=tuple(
            (clean(one.get("text") or ""), number(one.get("value")))
            for one in sequence(told.get("tokens"))
            if isinstance(one, Mapping)
        ),
        checks={name: number(checks.get(name)) for name in CHECKS},
        pointing=pointing if isinstance(pointing, bool) else None,
    )


def _summary(told: Mapping[str, Any]) -> MethodSummary:
    count = number(told.get("n"))
    return MethodSummary(
        method=clean(told.get("method") or "unnamed"),
        layer=clean(told.get("layer") or "pixels"),
        n=int(count) if known(count) else 0,
        figures={name: Estimate.from_dict(told.get(name)) for name in GAINS},
        area=number(told.get("area")),
        randomisation=tuple(
            (clean(one.get("randomised") or ""), number(one.get("similarity")))
            for one in sequence(told.get("randomisation"))
            if isinstance(one, Mapping)
        ),
        failed=tuple(map(clean, sequence(told.get("failed")))),
        unchecked=tuple(clean(one) for one in sequence(told.get("unchecked"))),
        how=", ".join(clean(told[name]) for name in ("mode", "baseline", "steps") if told.get(name) is not None),
    )


def _told_apart(rows: Sequence[MethodSummary]) -> tuple[MethodSummary, ...]:
    """Rows of one method at one layer bear their settings in figures where there are several."""
    count = Counter((one.method, one.layer) for one in rows)
    return tuple(replace(one, apart=one.how) if count[one.method, one.layer] > 1 else one for one in rows)
