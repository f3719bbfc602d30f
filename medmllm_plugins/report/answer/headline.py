"""The headline of a data set: one sentence of at most 25 words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from medmllm_plugins.report.answer.coverage import coverage
from medmllm_plugins.report.overview import Ranking, best_reference
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.templating import text
from medmllm_plugins.report.verdict import Verdict

MAX_WORDS: Final = 25
"""A reader takes in a sentence of this length at once; a name counts as one word."""
MAX_NAME: Final = 40
"""Characters of a model's name in the headline."""


def headline(dataset: DatasetRuns, order: Ranking) -> str:
    """Return the result of a data set in one sentence."""
    ranked, unread = order.ranked, order.unread
    if not ranked and not unread:
        reference = best_reference(dataset)
        if reference is None:
            return text("answer.txt.jinja", "no_metrics")
        return _words("only_reference", [reference], models=len(dataset.models))
    if not ranked:
        return _words("unread", unread)
    if len(order.groups) > 1:
        return _words("not_comparable", ranked)
    if len(ranked) == 1:
        return _words("one_model", ranked, not_ranked=[verdict.subject.label for verdict in unread])
    (group,) = order.groups
    clear = group.rivals == 0
    if len(ranked) == 2:
        return _words("two_models", ranked, clear=clear, not_ranked=len(unread))
    return _words("several_models", ranked, clear=clear, rivals=group.rivals, not_ranked=len(unread))


def _words(macro: str, verdicts: Sequence[Verdict], **values: object) -> str:
    return text(
        "answer.txt.jinja",
        macro,
        verdicts=verdicts,
        covered=coverage(verdicts[0].result),
        length=MAX_NAME,
        **values,
    )
