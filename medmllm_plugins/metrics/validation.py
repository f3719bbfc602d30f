"""What must hold of outcomes and options before anything is computed from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.metrics.outcomes import UNPARSED, Outcome

_NAMED = 20


def check_options(labels: tuple[str, ...], positive: str | None, resamples: int, seed: int) -> None:
    """Refuse options that make no sense.

    Raises:
        OptionError: one of them.
    """
    if len(labels) < 2 or len(set(labels)) < len(labels) or set(labels) & set(UNPARSED):
        raise OptionError(
            f"Expected argument `labels` to be at least two different class names, none of them in {list(UNPARSED)}, "
            f"got {list(labels)}."
        )
    if positive is not None and positive not in labels:
        raise OptionError(f"Expected argument `positive` to be None or one of {list(labels)}, got {positive!r}.")
    if resamples < 1:
        raise OptionError(f"Expected argument `resamples` to be at least 1, got {resamples!r}.")
    if seed < 0:
        raise OptionError(f"Expected argument `seed` to be 0 or more, got {seed!r}.")


def check_outcomes(outcomes: Sequence[Outcome], labels: Sequence[str]) -> None:
    """Refuse outcomes that cannot be counted.

    Raises:
        DataError: there are none, an id occurs twice, a class is not in ``labels``, or scores are not one a class.
    """
    if not outcomes:
        raise DataError("Expected at least one scored document, got none. Does the evaluated fold hold documents?")
    if repeated := [identifier for identifier, times in Counter(o.id for o in outcomes).items() if times > 1]:
        raise DataError(
            f"Expected every document id once, got {len(repeated)} more than once: {_first(sorted(repeated))}. "
            "Score each document a single time."
        )
    known = set(labels)
    for role, strangers in {
        "true": [(o.id, o.label) for o in outcomes if o.label not in known],
        "predicted": [(o.id, o.predicted) for o in outcomes if o.predicted is not None and o.predicted not in known],
    }.items():
        if strangers:
            raise DataError(
                f"Expected every {role} class to be one of {list(labels)}, got another in {len(strangers)} documents "
                f"(id, class): {_first(sorted(strangers))}. Use the class names of the data set's declaration."
            )
    if odd := [(o.id, len(o.scores)) for o in outcomes if o.scores is not None and len(o.scores) != len(labels)]:
        raise DataError(
            f"Expected {len(labels)} scores a document, one a class, got another number in {len(odd)} documents "
            f"(id, scores): {_first(sorted(odd))}. Score the labels in the order {list(labels)}."
        )


def _first(items: Sequence[object]) -> str:
    return ", ".join(map(repr, items[:_NAMED])) + (", …" if len(items) > _NAMED else "")
