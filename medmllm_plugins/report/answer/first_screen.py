"""What the first screen of the page says about one data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medmllm_plugins.report.answer.headline import headline
from medmllm_plugins.report.answer.next_step import NextStep, next_steps
from medmllm_plugins.report.answer.strip_rows import StripRow, strip_rows
from medmllm_plugins.report.answer.trust_chips import TrustChip, trust_chips
from medmllm_plugins.report.overview import ranking
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.run_pairs import Difference, ImageControl
from medmllm_plugins.report.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer about one data set.

    Attributes:
        headline: the result in one sentence.
        strip: rows of the dot strip, the highest accuracy first.
        chips: whether the result can be trusted, cautions first.
        steps: the next step for each model, first that of the best one that was probed.
    """

    headline: str
    strip: tuple[StripRow, ...]
    chips: tuple[TrustChip, ...]
    steps: tuple[NextStep, ...]


def build_answer(
    dataset: DatasetRuns,
    verdicts: Sequence[Verdict],
    pairs: Sequence[Difference],
    controls: Sequence[ImageControl],
) -> Answer:
    """Build the answer about one data set."""
    order = ranking(verdicts, pairs)
    ranked = [*order.ranked, *order.unread]
    return Answer(
        headline=headline(dataset, order),
        strip=tuple(strip_rows(dataset, order, controls)),
        chips=trust_chips(dataset, ranked, controls),
        steps=next_steps(dataset, ranked),
    )
