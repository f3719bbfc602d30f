"""Values of the intervention figure: what can be read, is used, and is restored by layer; drawn twice, see figures/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.subjects import Subject
from medmllm_plugins.results.interchange_records import Interchange
from medmllm_plugins.results.patch_records import TwinPatching
from medmllm_plugins.results.probe_records import ProbeAnalysis

MOST_MODELS: Final = 4
TOKENS: Final[Mapping[str, str]] = {"image": "image tokens", "last": "last token", "all": "all tokens"}
"""Tokens whose states are read or put in, with their names on the page."""
CONTROLS: Final = "controls (same class, noise)"
_ENDS: Final = {"vision": 0, "connector": 1, "llm.embed": 2}
"""Positions of what comes before the blocks of the LLM."""
_EFFECTS: Final = (-8.0, 108.0)


@dataclass(frozen=True, slots=True)
class InterventionEvidence:
    """What interventions and probes show of one model."""

    subject: Subject
    probing: ProbeAnalysis | None
    exchanged: Interchange | None
    patched: TwinPatching | None


@dataclass(frozen=True, slots=True)
class EffectLine:
    """A curve over the layers, in percent; values without an interval have it at NaN.

    Attributes:
        tokens: a key of ``TOKENS``, or ``""`` for a control.
        x: positions of layers, ascending.
        values: accuracies or effects.
        low: lower ends of the 95% intervals.
        high: upper ends.
    """

    tokens: str
    x: tuple[int, ...]
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EffectPanel:
    """One of the panels.

    Attributes:
        title: what its values show.
        quantity: what is on the vertical axis, in percent.
        limits: ends of that axis.
        lines: curves of the model.
        controls: curves of controls.
        note: why there are no curves; empty where there are.
    """

    title: str
    quantity: str
    limits: tuple[float, float]
    lines: tuple[EffectLine, ...] = ()
    controls: tuple[EffectLine, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class EffectCurves:
    """All panels of one model over the same layers, in the order in which an image passes them."""

    layers: tuple[str, ...]
    panels: tuple[EffectPanel, ...]

    @property
    def tokens(self) -> set[str]:
        """Keys of ``TOKENS`` that have a curve."""
        return {line.tokens for panel in self.panels for line in panel.lines}


def intervention_evidence(dataset: DatasetRuns) -> list[InterventionEvidence]:
    """Return the models whose states were exchanged, with what else is known of them."""
    exchanged = {result.subject.number: (result.subject, record) for result, record in reversed(dataset.exchanged())}
    patched = {result.subject.number: (result.subject, record) for result, record in reversed(dataset.patched())}
    probed = {result.subject.number: probing for result, probing in reversed(dataset.probed())}
    return [
        InterventionEvidence(
            (exchanged.get(number) or patched[number])[0],
            probed.get(number),
            exchanged[number][1] if number in exchanged else None,
            patched[number][1] if number in patched else None,
        )
        for number in sorted({*exchanged, *patched})[:MOST_MODELS]
    ]


def effect_curves(evidence: InterventionEvidence) -> EffectCurves:
    """Return the panels of one model: probes, interchange, and patching with a twin."""
    layers = _layers(evidence)
    at = {name: index for index, name in enumerate(layers)}
    panels = (_probe_panel(evidence, at), _interchange_panel(evidence, at), _patching_panel(evidence, at))
    return EffectCurves(tuple(layers), panels)


def _layers(evidence: InterventionEvidence) -> list[str]:
    names: set[str] = set()
    if evidence.exchanged is not None:
        names |= {point.layer for point in evidence.exchanged.points}
    if evidence.patched is not None:
        names |= {point.layer for point in evidence.patched.points} - {"connector alone"}
    if evidence.probing is not None:
        names |= {"vision", "connector"}
        names |= {name for name, part in evidence.probing.layers() if part == "llm" and name != "llm.embed"}

    def order(name: str) -> tuple[int, int, str]:
        return (_ENDS.get(name, len(_ENDS)), name == "llm.norm", name)

    return sorted(names, key=order)


def _probe_panel(evidence: InterventionEvidence, at: Mapping[str, int]) -> EffectPanel:
    title, quantity, limits = "readable by a probe", "accuracy", (0.0, 103.0)
    if (probing := evidence.probing) is None:
        return EffectPanel(title, quantity, limits, note="no med_probe run")
    lines = []
    for pooling, tokens in (("mean", "image"), ("last", "last")):
        points = [point for point in probing.curve(pooling) if point.read]
        tower = [point for point in points if point.part == "vision"]
        accuracies = [(at["vision"], tower[-1].accuracy)] if tower else []
        accuracies += [(at[point.layer], point.accuracy) for point in points if point.layer in at]
        lines += _line(tokens, accuracies)
    return EffectPanel(title, quantity, limits, tuple(lines))


def _interchange_panel(evidence: InterventionEvidence, at: Mapping[str, int]) -> EffectPanel:
    title, quantity = "used (interchange)", "effect"
    if evidence.exchanged is None:
        return EffectPanel(title, quantity, _EFFECTS, note="no interchange")
    if not any(known(point.effect) for point in evidence.exchanged.points):
        return EffectPanel(title, quantity, _EFFECTS, note="label scores do not\nseparate the classes")
    lines: list[EffectLine] = []
    controls: list[EffectLine] = []
    for tokens in ("image", "last"):
        by_donor: dict[str, list[tuple[int, Estimate]]] = {}
        for point in evidence.exchanged.points:
            if point.tokens == tokens or (tokens == "image" and point.layer == "connector"):
                by_donor.setdefault(point.donor, []).append((at[point.layer], point.effect))
        lines += _line(tokens, by_donor.get("other class", []))
        for donor in ("same class", "noise"):
            controls += _line("", by_donor.get(donor, []))
    return EffectPanel(title, quantity, _EFFECTS, tuple(lines), tuple(controls))


def _patching_panel(evidence: InterventionEvidence, at: Mapping[str, int]) -> EffectPanel:
    title, quantity = "from the twin", "restored"
    if evidence.patched is None:
        return EffectPanel(title, quantity, _EFFECTS, note="no twin")
    lines: list[EffectLine] = []
    for tokens in TOKENS:
        points = [
            (at[point.layer], point.effect)
            for point in evidence.patched.points
            if point.direction == "restore"
            and point.layer in at
            and (point.tokens == tokens or (tokens == "image" and point.layer in ("vision", "connector")))
            and not (tokens == "all" and point.layer in ("vision", "connector"))
        ]
        lines += _line(tokens, points)
    return EffectPanel(title, quantity, _EFFECTS, tuple(lines))


def _line(tokens: str, points: Sequence[tuple[int, Estimate]]) -> list[EffectLine]:
    """Return the known values as a curve; nothing where none is known."""
    drawn = sorted(((x, estimate) for x, estimate in points if known(estimate)), key=lambda point: point[0])
    if not drawn:
        return []
    x, estimates = zip(*drawn, strict=True)
    values, low, high = (
        tuple(100 * getattr(estimate, name) for estimate in estimates) for name in ("value", "low", "high")
    )
    return [EffectLine(tokens, x, values, low, high)]
