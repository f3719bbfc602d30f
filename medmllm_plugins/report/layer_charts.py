"""Layer charts: curves of a model's probes along its layers, and what controls reach at each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.report.display_names import CONTROLS, CURVES
from medmllm_plugins.report.run_collection import TaskResult
from medmllm_plugins.results.probe_records import (
    BORDER,
    CENTRE,
    CONTROL,
    CORNERS,
    MODULES,
    PIXELS,
    RANDOM_ENCODER,
    ProbeAnalysis,
    ProbePoint,
)

WIDTH: Final = 100.0
"""Width of a chart, in units of its axis."""
_CONNECTOR: Final = 14.0
_ANSWER: Final = 17.0
_LEAST: Final = 0.3
"""Least share of the rest that the vision tower and the LLM have, so that there is room for their names."""
_MARGIN: Final = 2.5
"""Space between a border and the first or last layer of a module."""
_FEATURES: Final = {"pixels": PIXELS, "border": BORDER, "corners": CORNERS, "centre": CENTRE}
_IN_BAND: Final = ("task", "permutation", "random", "pixels", "border", "corners")
"""Controls of the band. The centre of the image is not among them, since findings are there."""


@dataclass(frozen=True, slots=True)
class Module:
    """A part of the model on the axis: its name, and where it starts and ends."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve in parts: it does not cross the borders of modules.

    Attributes:
        name: pooling of a curve of probes, or name of a control.
        parts: position and probe of each layer, one list for each module.
    """

    name: str
    parts: tuple[tuple[tuple[float, ProbePoint], ...], ...]

    @property
    def title(self) -> str:
        """Its name in words."""
        return CURVES.get(self.name, self.name)


@dataclass(frozen=True, slots=True)
class ControlCurve:
    """What one control reaches along the layers, as positions and shares of 1, one list for each module."""

    name: str
    parts: tuple[tuple[tuple[float, float], ...], ...]

    @property
    def title(self) -> str:
        """Its name in words."""
        return CONTROLS[self.name]


@dataclass(frozen=True, slots=True)
class LayerChart:
    """All that a chart of one model shows.

    Attributes:
        positions: position of each layer.
        modules: vision tower, connector and LLM, as far as they were probed; then the answer.
        curves: probes by pooling: mean token, last token, class token.
        controls: each control that was measured, and the logit lens.
        band: the highest control at each layer, as positions and shares of 1, one list for each module.
        best: position and probe that is best on the validation fold; ``None`` if it is not on the chart.
        answer: position of the answer.
    """

    result: TaskResult
    probing: ProbeAnalysis
    positions: Mapping[str, float]
    modules: tuple[Module, ...]
    curves: tuple[Curve, ...]
    controls: tuple[ControlCurve, ...]
    band: tuple[tuple[tuple[float, float], ...], ...]
    best: tuple[float, ProbePoint] | None

    @property
    def answer(self) -> float:
        """Position of the answer."""
        return self.modules[-1].start + (self.modules[-1].end - self.modules[-1].start) / 2


def layer_chart(result: TaskResult, probing: ProbeAnalysis) -> LayerChart:
    """Collect what the chart of a probed model shows."""
    layers = [(name, part) for name, part in probing.layers() if part in MODULES]
    modules, positions = _axis(layers)
    parts = [[name for name, _ in members] for _, members in groupby(layers, key=lambda layer: layer[1])]
    values = _control_values(probing, [name for name, _ in layers])

    def along(reached: Mapping[str, float]) -> tuple[tuple[tuple[float, float], ...], ...]:
        rows = (tuple((positions[name], reached[name]) for name in part if name in reached) for part in parts)
        return tuple(row for row in rows if row)

    band = {
        name: max(
            (probing.majority if known(probing.majority) else 0.0),
            *(values[control][name] for control in _IN_BAND if name in values.get(control, {})),
            0.0,
        )
        for name in positions
    }
    best = probing.best
    return LayerChart(
        result=result,
        probing=probing,
        positions=positions,
        modules=modules,
        curves=tuple(_curves(probing, positions)),
        controls=tuple(ControlCurve(name, along(reached)) for name, reached in values.items() if along(reached)),
        band=along(band),
        best=(positions[best.layer], best) if best.layer in positions and known(best.accuracy) else None,
    )


def _axis(layers: Sequence[tuple[str, str]]) -> tuple[tuple[Module, ...], dict[str, float]]:
    """Return the modules with the answer, and the position of each layer.

    Layers of one module stand at equal distances. Connector and answer have fixed widths; vision tower and LLM share
    the rest by their numbers of layers, but a tower of few layers still has room for its name.
    """
    members = {part: [name for name, _ in group] for part, group in groupby(layers, key=lambda layer: layer[1])}
    rest = WIDTH - _ANSWER - (_CONNECTOR if "connector" in members else 0)
    long = {part: len(names) for part, names in members.items() if part != "connector"}
    shares = {part: count / sum(long.values()) for part, count in long.items()}
    if len(shares) == 2:
        least = {part: min(max(share, _LEAST), 1 - _LEAST) for part, share in shares.items()}
        shares = least
    positions: dict[str, float] = {}
    modules: list[Module] = []
    x = 0.0
    for part, names in members.items():
        width = _CONNECTOR if part == "connector" else rest * shares[part]
        inner = width - 2 * _MARGIN
        steps = len(names) - 1
        for index, name in enumerate(names):
            positions[name] = x + _MARGIN + inner * (index / steps if steps else 0.5)
        modules.append(Module(part, x, x + width))
        x += width
    modules.append(Module("answer", x, WIDTH))
    return tuple(modules), positions


def _curves(probing: ProbeAnalysis, positions: Mapping[str, float]) -> list[Curve]:
    curves = []
    for pooling in CURVES:
        points = [point for point in probing.curve(pooling) if point.layer in positions and known(point.accuracy)]
        parts = groupby(points, key=lambda point: point.part)
        curve = Curve(pooling, tuple(tuple((positions[point.layer], point) for point in part) for _, part in parts))
        if curve.parts:
            curves.append(curve)
    return curves


def _control_values(probing: ProbeAnalysis, layers: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return what each control reaches at each layer; of several poolings, the highest."""
    values: dict[str, dict[str, float]] = {name: {} for name in CONTROLS}

    def raise_to(control: str, layer: str, reached: float) -> None:
        if math.isfinite(reached):
            values[control][layer] = max(reached, values[control].get(layer, 0.0))

    for point in probing.points:
        if point.part == CONTROL:
            if point.layer.startswith(RANDOM_ENCODER):
                raise_to("random", point.layer.removeprefix(RANDOM_ENCODER), point.accuracy.value)
            for control, feature in _FEATURES.items():
                if point.layer == feature:
                    for layer in layers:
                        raise_to(control, layer, point.accuracy.value)
        elif point.pooling in CURVES:
            raise_to("task", point.layer, point.control.value)
            raise_to("permutation", point.layer, point.label_permutation_high)
    if probing.mapping is not None:
        lens: Sequence[Estimate] = probing.mapping.lens
        for layer, accuracy in zip(probing.mapping.lens_layers, lens, strict=True):
            raise_to("lens", layer, accuracy.value)
    return {name: reached for name, reached in values.items() if reached}
