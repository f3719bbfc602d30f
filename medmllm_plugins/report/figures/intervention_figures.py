"""Curves of interventions beside those of probes: where the class can be read, is used, and is restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.report.figures.figure_style import INK, MUTED, Drawing, finish, series_style
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.subjects import Subject
from medmllm_plugins.results.interchange_records import Interchange
from medmllm_plugins.results.patch_records import TwinPatching
from medmllm_plugins.results.probe_records import ProbeAnalysis

MOST_MODELS: Final = 4
_DASHED: Final = (0, (5, 2))
_LOOK: Final[Mapping[str, tuple[str, Any]]] = {
    "image": ("o", "-"),
    "last": ("s", _DASHED),
    "all": ("^", (0, (6, 2, 1, 2))),
}
"""Marker and dashes of the tokens whose states are read or put in; the colour is that of the model."""
_NAMES: Final = {"image": "image tokens", "last": "last token", "all": "all tokens"}
_CONTROLS: Final = "controls (same class, noise)"
_CONTROL_LINE: Final[dict[str, Any]] = {"color": MUTED, "linewidth": 0.9, "linestyle": (0, (1, 2))}
_TITLES: Final = ("readable by a probe", "used (interchange)", "from the twin")
_ENDS: Final = {"vision": 0, "connector": 1, "llm.embed": 2}
"""Positions of what comes before the blocks of the LLM."""


@dataclass(frozen=True, slots=True)
class InterventionEvidence:
    """What interventions and probes show of one model."""

    subject: Subject
    probing: ProbeAnalysis | None
    exchanged: Interchange | None
    patched: TwinPatching | None


def interventions(evidence: InterventionEvidence, dataset: DatasetRuns, figure_number: int) -> Drawing:
    """Draw three panels of one model below each other: probes, interchange, and patching with a twin."""
    figure = Figure(figsize=(4.2, 6.6), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    layers = _layers(evidence)
    at = {name: index for index, name in enumerate(layers)}
    for panel, title, draw in zip(panels, _TITLES, (_draw_probes, _draw_interchange, _draw_patching), strict=True):
        draw(panel, evidence, at)
        panel.set_title(title)
        panel.grid(visible=False, axis="x")
    _label_layers(panels[-1], layers)
    labels = {label for panel in panels for label in panel.get_legend_handles_labels()[1]}
    samples = [sample for sample in _samples() if sample.get_label() in labels]
    figure.legend(handles=samples, loc="outside lower center", ncols=2)
    records = (evidence.exchanged, evidence.patched)
    return finish(
        figure,
        f"{dataset.name}.interventions.{evidence.subject.number + 1}",
        macro="intervention_curves",
        number=figure_number,
        data_set=dataset.title,
        model=evidence.subject.label,
        results=" ".join(record.headline for record in records if record is not None),
    )


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


def _layers(evidence: InterventionEvidence) -> list[str]:
    """Return the layers of a row in the order in which an image passes them."""
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


def _draw_probes(axes: Axes, evidence: InterventionEvidence, at: Mapping[str, int]) -> None:
    axes.set_ylim(0, 103)
    axes.set_ylabel("accuracy, percent")
    probing = evidence.probing
    if probing is None:
        _say(axes, "no med_probe run")
        return
    for pooling, tokens in (("mean", "image"), ("last", "last")):
        points = [point for point in probing.curve(pooling) if point.read]
        tower = [point for point in points if point.part == "vision"]
        shown = [(at["vision"], tower[-1].accuracy)] if tower else []
        shown += [(at[point.layer], point.accuracy) for point in points if point.layer in at]
        _draw(axes, shown, tokens, evidence)


def _draw_interchange(axes: Axes, evidence: InterventionEvidence, at: Mapping[str, int]) -> None:
    axes.set_ylim(-8, 108)
    axes.set_ylabel("effect, percent")
    if evidence.exchanged is None:
        _say(axes, "no interchange")
        return
    if not any(known(point.effect) for point in evidence.exchanged.points):
        _say(axes, "label scores do not\nseparate the classes")
        return
    for tokens in ("image", "last"):
        by_donor: dict[str, list[tuple[int, Estimate]]] = {}
        for point in evidence.exchanged.points:
            if point.tokens == tokens or (tokens == "image" and point.layer == "connector"):
                by_donor.setdefault(point.donor, []).append((at[point.layer], point.effect))
        _draw(axes, by_donor.get("other class", []), tokens, evidence)
        for donor in ("same class", "noise"):
            line = sorted((x, 100 * effect.value) for x, effect in by_donor.get(donor, []) if known(effect))
            axes.plot([x for x, _ in line], [y for _, y in line], label=_CONTROLS, **_CONTROL_LINE)


def _draw_patching(axes: Axes, evidence: InterventionEvidence, at: Mapping[str, int]) -> None:
    axes.set_ylim(-8, 108)
    axes.set_ylabel("restored, percent")
    if evidence.patched is None:
        _say(axes, "no twin")
        return
    for tokens in ("image", "last", "all"):
        points = [
            (at[point.layer], point.effect)
            for point in evidence.patched.points
            if point.direction == "restore"
            and point.layer in at
            and (point.tokens == tokens or (tokens == "image" and point.layer in ("vision", "connector")))
            and not (tokens == "all" and point.layer in ("vision", "connector"))
        ]
        _draw(axes, points, tokens, evidence)


def _draw(axes: Axes, points: Sequence[tuple[int, Estimate]], tokens: str, evidence: InterventionEvidence) -> None:
    """Draw values with their intervals as a band."""
    shown = sorted(((x, figure) for x, figure in points if known(figure)), key=lambda point: point[0])
    if not shown:
        return
    marker, line = _LOOK[tokens]
    colour = series_style(evidence.subject.number)["color"]
    x = [at for at, _ in shown]
    axes.plot(
        x,
        [100 * figure.value for _, figure in shown],
        color=colour,
        marker=marker,
        markersize=3.5,
        linestyle=line,
        label=_NAMES[tokens],
    )
    low, high = ([100 * getattr(figure, end) for _, figure in shown] for end in ("low", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)


def _samples() -> list[Line2D]:
    """Return the lines of the legend: black, since each row has the colour of its model."""
    tokens = [
        Line2D([], [], color=INK, marker=marker, markersize=3.5, linestyle=line, label=_NAMES[name])
        for name, (marker, line) in _LOOK.items()
    ]
    return [*tokens, Line2D([], [], label=_CONTROLS, **_CONTROL_LINE)]


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)


def _label_layers(axes: Axes, layers: Sequence[str]) -> None:
    step = max(1, -(-len(layers) // 10))
    shown = [index for index in range(len(layers)) if index % step == 0 or index == len(layers) - 1]
    axes.set_xticks(shown, [layers[index].removeprefix("llm.") for index in shown], rotation=90, fontsize=7.5)
    axes.set_xlim(-0.5, len(layers) - 0.5)
