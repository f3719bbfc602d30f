"""What a benchmark is asked, and the one record it gives back."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import Comparison, Times
from medmllm_plugins.utils.environment import package_versions


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asked for, checked and complete.

    Attributes:
        name: of the benchmark.
        device: ``"cpu"`` or ``"cuda"``.
        size: size of the model; ``None`` where there is none.
        repeats: timed runs of each side.
    """

    name: str
    device: str
    size: str | None
    repeats: int


@dataclass(frozen=True, slots=True)
class Target:
    """What the ratio is to be.

    Attributes:
        sense: ``"at least"`` or ``"at most"``.
        ratio: the bound; it counts as met.
    """

    sense: str
    ratio: float

    def met(self, ratio: float) -> bool:
        """Whether ``ratio`` is within the bound."""
        return ratio >= self.ratio if self.sense == "at least" else ratio <= self.ratio


@dataclass(frozen=True, slots=True)
class Record:
    """The result of one benchmark.

    Attributes:
        settings: how it ran.
        sides: name of each side and what it is; the ratio is the first side's median over the second's.
        comparison: the times.
        target: what the ratio is to be; ``None`` where nothing is promised for this device and size.
        details: further facts of this benchmark, fit for JSON.
        unit: of what was measured: ``"s"`` for times, ``"mb"`` for memory in 10^6 bytes.
    """

    settings: Settings
    sides: tuple[tuple[str, str], tuple[str, str]]
    comparison: Comparison
    target: Target | None
    details: Mapping[str, Any]
    unit: str = "s"

    @property
    def met(self) -> bool | None:
        """Whether the target is met; ``None`` where there is none."""
        return None if self.target is None else self.target.met(self.comparison.ratio)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON takes it, its keys as docs/benchmarks.md lists them."""
        target = self.target
        times = (self.comparison.numerator, self.comparison.denominator)
        return {
            "name": self.settings.name,
            "ratio": self.comparison.ratio,
            "ratio_spread": list(self.comparison.ratio_spread),
            "target": None if target is None else {"sense": target.sense, "ratio": target.ratio},
            "met": self.met,
            "sides": {
                name: {"what": what, **_side(side, self.unit)}
                for (name, what), side in zip(self.sides, times, strict=True)
            },
            "repeats": self.settings.repeats,
            "device": self.settings.device,
            "size": self.settings.size,
            "details": dict(self.details),
            "machine": _machine(),
            "versions": package_versions(),
        }

    def to_text(self) -> str:
        """The record in a few lines for people."""
        (first, _), (second, _) = self.sides
        settings, (low, high) = self.settings, self.comparison.ratio_spread
        where = ", ".join(filter(None, (settings.size, settings.device, f"{settings.repeats} rounds")))
        verdict = "no target"
        if self.target is not None:
            verdict = f"target {self.target.sense} {self.target.ratio:g}: {'met' if self.met else 'MISSED'}"
        lines = [
            f"{settings.name} ({where}): {first} / {second} = {self.comparison.ratio:.2f} "
            f"[{low:.2f} to {high:.2f}], {verdict}"
        ]
        width = max(len(name) for name, _ in self.sides)
        for (name, what), side in zip(
            self.sides, (self.comparison.numerator, self.comparison.denominator), strict=True
        ):
            low, high = side.spread
            lines.append(f"    {name:<{width}}  median {side.median:.4g} {self.unit} [{low:.4g} to {high:.4g}]  {what}")
        facts = {**self.details, **_machine()}
        lines.append("    " + ", ".join(f"{key} {_shown(value)}" for key, value in facts.items()))
        return "\n".join(lines)


def _side(times: Times, unit: str) -> dict[str, Any]:
    low, high = times.spread
    told = {"median": times.median, "min": low, "max": high, "runs": list(times.seconds)}
    return {f"{name}_{unit}": value for name, value in told.items()}


def _machine() -> dict[str, Any]:
    """What the times depend on besides the settings.

    The load is that of the last minute: near or above the number of CPUs, others were at work too.
    """
    return {"architecture": platform.machine(), "cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
