"""What the probes of a run tell, read from ``TASK.probes.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.utils.json_values import clean, mapping, number, sequence

RANDOM_ENCODER = "control.random_encoder."
"""Begins the names of layers of the encoder with random weights."""
PIXELS = "control.pixels"
MODES = ("vision", "connector", "comprehension", "mapping")
TITLES = {
    "vision": "quality limitation in visual representation",
    "connector": "fidelity loss in connector projection",
    "comprehension": "comprehension deficit in LLM reasoning",
    "mapping": "misalignment of semantic mapping",
}
"""The four failure modes of "Lost in the Hype" (arXiv:2604.08333), as ``probes/diagnosis.py`` names them."""
PROVEN = ("permuted", "decoding")
"""Kinds of mapping that show the words to be at fault, as ``probes/analysis.py`` has them."""
READINGS = {
    "scores": "label that scores highest, instead of the text",
    "relabelled": "answers renamed (best relabelling)",
    "permuted": "highest-scoring label renamed",
    "blank": "scores less those of a blank image (prior removed)",
    "offsets": "scores plus fitted class offsets (prior removed)",
    "affine": "affine map of the scores",
}
"""Re-readings of the words, in the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Point:
    """One layer and pooling of the curves; see :class:`medmllm_plugins.probes.curves.Point`."""

    layer: str
    part: str
    pooling: str
    width: int
    read: bool
    accuracy: Estimate
    balanced: Estimate
    control: Estimate
    selectivity: Estimate
    label_permutation: float
    label_permutation_high: float
    p_holm: float


@dataclass(frozen=True, slots=True)
class Effect:
    """One failure mode: what is lost, and whether the evidence supports it."""

    mode: str
    loss: Estimate
    verdict: str
    why: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class ModuleHealth:
    """The Feature Health Score of one module and pooling."""

    module: str
    pooling: str
    score: Estimate


@dataclass(frozen=True, slots=True)
class MappingRecord:
    """The semantic mapping.

    Attributes:
        kind: how features and words part.
        answer: accuracy of the answers.
        probe: accuracy of the probe on the last token at the end of the LLM.
        gap: probe less answers.
        readings: accuracy and gain of each re-reading, by name.
        relabelling: for each answered class the class it is renamed to; empty without a renaming.
        agreement: documents by true class, the probe's class and the answered class (the last: not parsed).
        lens: accuracy of the words read off each layer of ``lens_layers``.
        lens_layers: names of the layers.
    """

    kind: str
    answer: Estimate
    probe: Estimate
    gap: Estimate
    readings: Mapping[str, tuple[Estimate, Estimate]]
    relabelling: tuple[int, ...]
    agreement: tuple[tuple[tuple[int, ...], ...], ...]
    lens: tuple[Estimate, ...]
    lens_layers: tuple[str, ...]

    def pairs(self) -> list[list[int]]:
        """Documents by the probe's class (rows) and the answered class (columns), over all true classes."""
        if not self.agreement:
            return []
        rows, columns = len(self.agreement[0]), len(self.agreement[0][0])
        return [
            [sum(by_truth[row][column] for by_truth in self.agreement) for column in range(columns)]
            for row in range(rows)
        ]


@dataclass(frozen=True, slots=True)
class Probing:
    """All that the probes of one task tell."""

    headline: str
    labels: tuple[str, ...]
    counts: Mapping[str, int]
    groups: int
    chance: float
    majority: float
    answer: Estimate
    reference: Estimate
    reference_name: str
    named: str | None
    effects: tuple[Effect, ...]
    health: tuple[ModuleHealth, ...]
    best: Point | None
    mapping: MappingRecord | None
    points: tuple[Point, ...]
    options: Mapping[str, Any]
    warnings: tuple[str, ...]

    def curve(self, pooling: str) -> list[Point]:
        """The layers of tower, connector and LLM in order, at one pooling (the tower's and connector's are ``mean``)."""
        return [one for one in self.points if one.part != "control" and one.pooling == pooling]

    def layers(self) -> list[tuple[str, str]]:
        """Names and parts of the layers in the order in which an image passes them, floors left out."""
        found = {one.layer: one.part for one in self.points if one.part != "control"}
        return list(found.items())

    def supported(self) -> list[Effect]:
        """The failure modes that the evidence supports, the named one first."""
        found = [one for one in self.effects if one.verdict == "supported"]
        return sorted(found, key=lambda one: one.mode != self.named)

    def undecided(self) -> list[str]:
        """The failure modes of which one cannot tell."""
        return [one.mode for one in self.effects if one.verdict == "cannot tell"]


def read_probing(told: Any) -> Probing:
    """Read an analysis.

    Args:
        told: the JSON of ``TASK.probes.json``.

    Raises:
        DataError: it is something else, or holds no curves.
    """
    if not isinstance(told, Mapping) or "medmllm_probes" not in told:
        raise DataError("expected an analysis of probes with the key 'medmllm_probes', found something else")
    points = tuple(_point(one) for one in sequence(told.get("points")) if isinstance(one, Mapping))
    if not points:
        raise DataError("expected the curves under 'points', found none; run `medmllm diagnose RUN_DIR`")
    diagnosis, best = mapping(told.get("diagnosis")), told.get("best")
    named = diagnosis.get("named")
    return Probing(
        headline=clean(told.get("headline") or ""),
        labels=tuple(map(clean, sequence(told.get("labels")))),
        counts={clean(fold): int(count) for fold, count in mapping(told.get("counts")).items() if known(number(count))},
        groups=_whole(told.get("groups")),
        chance=number(told.get("chance")),
        majority=number(told.get("majority")),
        answer=Estimate.from_dict(told.get("answer")),
        reference=Estimate.from_dict(told.get("reference")),
        reference_name=clean(told.get("reference_name") or ""),
        named=named if named in MODES else None,
        effects=tuple(
            Effect(
                mode=str(one.get("mode")),
                loss=Estimate.from_dict(one.get("loss")),
                verdict=clean(one.get("verdict")),
                why=clean(one.get("why") or ""),
                before=clean(one.get("before") or ""),
                after=clean(one.get("after") or ""),
            )
            for one in sequence(diagnosis.get("effects"))
            if isinstance(one, Mapping) and one.get("mode") in MODES
        ),
        health=tuple(
            ModuleHealth(clean(one.get("module")), clean(one.get("pooling")), Estimate.from_dict(one.get("interval")))
            for one in sequence(told.get("health"))
            if isinstance(one, Mapping)
        ),
        best=_point(best) if isinstance(best, Mapping) else None,
        mapping=_mapping(told["mapping"]) if isinstance(told.get("mapping"), Mapping) else None,
        points=points,
        options=mapping(told.get("options")),
        warnings=tuple(map(clean, sequence(told.get("warnings")))),
    )


def _point(told: Mapping[str, Any]) -> Point:
    return Point(
        layer=clean(told.get("layer")),
        part=clean(told.get("part")),
        pooling=clean(told.get("pooling")),
        width=_whole(told.get("width")),
        read=bool(told.get("read", True)),
        accuracy=Estimate.from_dict(told.get("accuracy")),
        balanced=Estimate.from_dict(told.get("balanced")),
        control=Estimate.from_dict(told.get("control")),
        selectivity=Estimate.from_dict(told.get("selectivity")),
        label_permutation=number(told.get("label_permutation")),
        label_permutation_high=number(told.get("label_permutation_high")),
        p_holm=number(told.get("p_holm")),
    )


def _mapping(told: Mapping[str, Any]) -> MappingRecord:
    readings = mapping(told.get("readings"))
    layers = tuple(map(clean, sequence(told.get("lens_layers"))))
    lens = tuple(Estimate.from_dict(one) for one in sequence(told.get("lens")))
    return MappingRecord(
        kind=clean(told.get("kind") or "cannot tell"),
        answer=Estimate.from_dict(told.get("answer")),
        probe=Estimate.from_dict(told.get("probe")),
        gap=Estimate.from_dict(told.get("mapping_gap")),
        readings={
            name: (Estimate.from_dict(readings[name].get("accuracy")), Estimate.from_dict(readings[name].get("gain")))
            for name in READINGS
            if isinstance(readings.get(name), Mapping)
        },
        relabelling=_counts(told.get("relabelling")) or (),
        agreement=_cube(told.get("agreement")),
        # Accuracies without the names of their layers cannot be drawn.
        lens=lens if len(lens) == len(layers) else (),
        lens_layers=layers if len(lens) == len(layers) else (),
    )


def _cube(told: Any) -> tuple[tuple[tuple[int, ...], ...], ...]:
    cube = [[_counts(row) for row in sequence(by_truth)] for by_truth in sequence(told)]
    rows = [row for by_truth in cube for row in by_truth]
    whole = [row for row in rows if row]
    even = len({len(by_truth) for by_truth in cube}) == 1 and len({len(row) for row in whole}) == 1
    if not even or len(whole) < len(rows):
        return ()
    each = len(cube[0])
    return tuple(tuple(whole[start : start + each]) for start in range(0, len(whole), each))


def _counts(told: Any) -> tuple[int, ...] | None:
    """Whole numbers from JSON; ``None`` where one of them is none."""
    found = [number(one) for one in sequence(told)]
    return tuple(map(int, found)) if all(map(known, found)) else None


def _whole(told: Any) -> int:
    found = number(told)
    return int(found) if known(found) else 0
