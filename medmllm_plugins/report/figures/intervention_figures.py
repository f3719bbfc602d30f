"""Curves of interventions beside those of probes: where the class can be read, is used, and is restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.report.figures.figure_style import MUTED, SERIES, Drawing, finish
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.subjects import Subject
from medmllm_plugins.results.interchange_records import Interchange
from medmllm_plugins.results.patch_records import TwinPatching
from medmllm_plugins.results.probe_records import ProbeAnalysis

MOST_MODELS: Final = 4
_DASHED: Final = (0, (5, 2))
_LOOK: Final[Mapping[str, tuple[str, str, Any]]] = {
    "image": (SERIES[0], "o", "-"),
    "last": (SERIES[1], "s", _DASHED),
    "all": (SERIES[3], "^", (0, (6, 2, 1, 2))),
}
"""Colour, marker and dashes of the tokens whose states are read or put in."""
_NAMES: Final = {"image": "image tokens", "last": "last token", "all": "all tokens"}
_TITLES: Final = ("readable by a probe", "used (interchange)", "from the twin")
_ENDS: Final = {"vision": 0, "connector": 1, "llm.embed": 2}
"""Positions of what comes before the blocks of the LLM."""


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What is known of one model."""

    subject: Subject
    probing: ProbeAnalysis | None
    exchanged: Interchange | None
    patched: TwinPatching | None


def interventions(dataset: DatasetRuns, figure_number: int) -> Drawing | None:
    """Draw a row of three panels for each model: probes, interchange, and patching with a twin."""
    rows = _evidence(dataset)[:MOST_MODELS]
    if not rows:
        return None
    figure = Figure(figsize=(7.6, 2.5 * len(rows) + 0.7), layout="constrained")
    panels = figure.subplots(len(rows), 3, squeeze=False)
    for row, (evidence, axes) in enumerate(zip(rows, panels, strict=True)):
        layers = _layers(evidence)
        for panel, draw in zip(axes, (_draw_probes, _draw_interchange, _draw_patching), strict=True):
            draw(panel, evidence, {name: index for index, name in enumerate(layers)})
            _label_layers(panel, layers)
        if len(rows) > 1:
            axes[0].set_ylabel(f"{cut(evidence.subject.label, 24)}\n{axes[0].get_ylabel()}")
        if row == 0:
            for panel, title in zip(axes, _TITLES, strict=True):
                panel.set_title(title)
    handles = {
        label: handle for panel in panels.flat for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    return finish(
        figure,
        f"{dataset.name}.interventions",
        macro="intervention_curves",
        number=figure_number,
        data_set=dataset.title,
        models=[_summary(evidence) for evidence in rows],
    )


def _evidence(dataset: DatasetRuns) -> list[_Evidence]:
    """Return the models whose states were exchanged, with what else is known of them."""
    exchanged = {result.subject.number: (result.subject, record) for result, record in reversed(dataset.exchanged())}
    patched = {result.subject.number: (result.subject, record) for result, record in reversed(dataset.patched())}
    probed = {result.subject.number: probing for result, probing in reversed(dataset.probed())}
    numbers = sorted({*exchanged, *patched})
    return [
        _Evidence(
            (exchanged.get(number) or patched[number])[0],
            probed.get(number),
            exchanged[number][1] if number in exchanged else None,
            patched[number][1] if number in patched else None,
        )
        for number in numbers
    ]


def _layers(evidence: _Evidence) -> list[str]:
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


def _draw_probes(axes: Axes, evidence: _Evidence, at: Mapping[str, int]) -> None:
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
        _draw(axes, shown, tokens, scale=100)


def _draw_interchange(axes: Axes, evidence: _Evidence, at: Mapping[str, int]) -> None:
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
        _draw(axes, by_donor.get("other class", []), tokens, scale=100)
        for donor in ("same class", "noise"):
            line = sorted((x, 100 * effect.value) for x, effect in by_donor.get(donor, []) if known(effect))
            options: dict[str, Any] = {"color": MUTED, "linewidth": 0.9, "linestyle": (0, (1, 2))}
            axes.plot([x for x, _ in line], [y for _, y in line], label="controls (same class, noise)", **options)


def _draw_patching(axes: Axes, evidence: _Evidence, at: Mapping[str, int]) -> None:
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
        _draw(axes, points, tokens, scale=100)


def _draw(axes: Axes, points: Sequence[tuple[int, Estimate]], tokens: str, *, scale: float) -> None:
    """Draw values with their intervals as a band."""
    shown = sorted(((x, figure) for x, figure in points if known(figure)), key=lambda point: point[0])
    if not shown:
        return
    colour, marker, line = _LOOK[tokens]
    x = [at for at, _ in shown]
    axes.plot(
        x,
        [scale * figure.value for _, figure in shown],
        color=colour,
        marker=marker,
        markersize=3.5,
        linestyle=line,
        label=_NAMES[tokens],
    )
    low, high = ([scale * getattr(figure, end) for _, figure in shown] for end in ("low", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)


def _label_layers(axes: Axes, layers: Sequence[str]) -> None:
    step = max(1, -(-len(layers) // 10))
    shown = [index for index in range(len(layers)) if index % step == 0 or index == len(layers) - 1]
    axes.set_xticks(shown, [layers[index].removeprefix("llm.") for index in shown], rotation=90, fontsize=7.5)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.grid(visible=False, axis="x")


def _summary(evidence: _Evidence) -> tuple[str, str]:
    """Return the model, and the results of its interventions in words."""
    sentences = [some.headline for some in (evidence.exchanged, evidence.patched) if some is not None]
    return evidence.subject.label, " ".join(sentences)
