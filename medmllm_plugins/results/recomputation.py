"""The figures of a task computed again from its scored answers, to see whether its files agree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from medmllm_plugins.errors import shown
from medmllm_plugins.metrics.intervals import RESAMPLES
from medmllm_plugins.metrics.multilabel import summarise_findings
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.prompt_variants import summarise_variants
from medmllm_plugins.metrics.readability import AnySummary
from medmllm_plugins.metrics.summary import METRICS_FORMAT, summarise
from medmllm_plugins.results.manifest import TaskEntry

YES_NO: Final = ("yes", "no")
"""Classes of a question about one finding."""
_DRAWN: Final = frozenset({"low", "high", "resamples", "seed", "interval", METRICS_FORMAT})
"""Keys that depend on the bootstrap resamples, which are not drawn again, or on the version of the format."""
_TOLERANCE: Final = 1e-6
_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Classes:
    """What is needed of a task to score its outcomes.

    Attributes:
        labels: the classes in order; of a multi-label set the findings.
        kind: ``"multiclass"``, ``"ordinal"`` or ``"multilabel"``.
        positive: the class whose sensitivity is reported, if there is one.
        varied: whether each document is asked about in several ways.
        orders: the order in which each variant lists the classes, where that is what varies.
    """

    labels: tuple[str, ...]
    kind: str = "multiclass"
    positive: str | None = None
    varied: bool = False
    orders: Mapping[str, tuple[str, ...]] | None = None

    @property
    def answers(self) -> tuple[str, ...]:
        """The classes that an outcome may have."""
        return YES_NO if self.kind == "multilabel" else self.labels

    @classmethod
    def of_task(cls, task: TaskEntry, metrics: Mapping[str, Any]) -> Classes | None:
        """Read them from what the manifest holds of a task, else from its metrics; ``None`` where neither has them."""
        variants = metrics.get("variants")
        parts = (
            [part for part in variants.values() if isinstance(part, Mapping)] if isinstance(variants, Mapping) else []
        )
        by_metrics = [metrics, *parts]
        labels = task.labels or next((read for part in by_metrics if (read := _texts(part.get("labels")))), ())
        if not labels:
            return None
        kind = task.kind or metrics.get("kind")
        if not kind:
            figures = [part.get("metrics") for part in by_metrics]
            kind = (
                "ordinal"
                if any(isinstance(values, Mapping) and "kappa" in values for values in figures)
                else "multiclass"
            )
        positive = task.positive if task.labels else next((part.get("positive") for part in by_metrics[::-1]), None)
        varied = bool(parts) or (task.settings is not None and task.settings.varied != "")
        return cls(labels, str(kind), positive if isinstance(positive, str) else None, varied, task.orders or None)


def recompute(outcomes: Sequence[Outcome], classes: Classes, *, resamples: int = RESAMPLES) -> AnySummary:
    """Compute every figure of a task again from all its rows.

    Raises:
        DataError: the outcomes do not go with the classes.
        OptionError: the classes are none that outcomes can be scored by.
    """
    if classes.kind == "multilabel":
        return summarise_findings(outcomes, classes.labels, resamples=resamples)
    if classes.varied:
        return summarise_variants(
            outcomes, classes.labels, classes.positive, kind=classes.kind, orders=classes.orders, resamples=resamples
        )
    return summarise(outcomes, classes.labels, classes.positive, kind=classes.kind, resamples=resamples)


def disagreements(stored: Mapping[str, Any], outcomes: Sequence[Outcome], classes: Classes) -> list[str]:
    """Say where a task's ``metrics.json`` holds other figures than its outcomes give; intervals are left out.

    Returns:
        ``"metrics.accuracy.value is 0.9, the answers give 0.85"`` and the like, headline figures first.

    Raises:
        DataError, OptionError: see :func:`recompute`.
    """
    computed = recompute(outcomes, classes, resamples=1).to_dict()
    if classes.varied and not classes.orders:
        computed.pop("positions", None)  # which needs the order of the options
        stored = {name: value for name, value in stored.items() if name != "positions"}
    differences = list(_differences(stored, computed, ()))
    differences.sort(key=lambda difference: difference[0][:1] != ("metrics",))
    return [f"{'.'.join(path)} is {left}, the answers give {right}" for path, left, right in differences]


def format_differences(differences: Sequence[str]) -> str:
    """Return the first differences as one text, and how many more there are."""
    more = len(differences) - _NAMED
    return "; ".join(differences[:_NAMED]) + (f"; and {more:,} more" if more > 0 else "")


def _differences(stored: Any, computed: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    if isinstance(computed, Mapping):
        if not isinstance(stored, Mapping):
            yield path, shown(stored), "figures by name"
            return
        for name in sorted({*computed, *map(str, stored)} - _DRAWN):
            if name not in stored or name not in computed:
                sides = [shown(side[name]) if name in side else "nothing" for side in (stored, computed)]
                yield (*path, name), sides[0], sides[1]
            else:
                yield from _differences(stored[name], computed[name], (*path, name))
    elif isinstance(computed, list | tuple):
        if not isinstance(stored, list) or len(stored) != len(computed):
            yield path, shown(stored), f"a list of {len(computed)}"
            return
        for index, pair in enumerate(zip(stored, computed, strict=True)):
            yield from _differences(*pair, (*path, str(index)))
    elif not _same(stored, computed):
        yield path, shown(stored), shown(computed)


def _same(stored: Any, computed: Any) -> bool:
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (stored, computed)]
    if not all(numbers):
        return type(stored) is type(computed) and bool(stored == computed)
    try:
        return math.isclose(stored, computed, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    except OverflowError:  # JSON bounds no integer
        return False


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and value and all(isinstance(text, str) for text in value):
        return tuple(value)
    return ()
