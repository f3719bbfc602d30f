"""The overview of a data set: the best model, whether it is better than chance, and which failure modes occur."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.report.run_pairs import Difference, comparable_groups
from medmllm_plugins.report.templating import text
from medmllm_plugins.report.verdict import Verdict, reference_verdict
from medmllm_plugins.results.probe_records import HANDOVER, TITLES
from medmllm_plugins.utils.plain_text import listed, quantity

_MAX_NAMED: Final = 3
"""Number of models that are named in a sentence; of more, the number is given."""


@dataclass(frozen=True, slots=True)
class RankedGroup:
    """Models that may be ranked together, the best first.

    Attributes:
        about: what they were asked about.
        alike: names of the models without a clear difference from the best.
        better: names of those that are better than it on the questions that both answered.
        unpaired: names of those that share no question with it.
        rivals: number of all these.
    """

    verdicts: Sequence[Verdict]
    about: str
    labels: str
    alike: str
    better: str
    unpaired: str
    rivals: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """The models of a data set with metrics, by falling accuracy.

    Attributes:
        ranked: those whose answers could be read.
        unread: the others, which have no place in a ranking: they would be last for the form of their answers.
        groups: the ranked models by what they were asked about.
    """

    ranked: Sequence[Verdict]
    unread: Sequence[Verdict]
    groups: Sequence[RankedGroup]


def ranking(verdicts: Sequence[Verdict], pairs: Sequence[Difference]) -> Ranking:
    """Rank the models of a data set."""
    scored = sorted(
        (verdict for verdict in verdicts if known(verdict.accuracy)), key=lambda verdict: -verdict.accuracy.value
    )
    ranked = [verdict for verdict in scored if not verdict.unread]
    return Ranking(ranked, [verdict for verdict in scored if verdict.unread], _groups(ranked, pairs))


def overview(dataset: DatasetRuns, verdicts: Sequence[Verdict], pairs: Sequence[Difference]) -> str:
    """Return the overview of all models in words; with a single model, its verdict."""
    order = ranking(verdicts, pairs)
    ranked, unread = order.ranked, order.unread
    if not ranked and not unread:
        return _without_models(dataset)
    if not ranked or len(ranked) + len(unread) == 1:
        return " ".join(verdict.sentence for verdict in (*ranked, *unread))
    if len(ranked) == 1:
        return f"{ranked[0].sentence} {text('verdict.txt.jinja', 'not_ranked', verdicts=unread)}"
    references = [verdict.reference for verdict in ranked]
    obstacles = {(reference.name, reference.obstacle): reference for reference in references if reference.obstacle}
    supported: list[str] = [mode for verdict in ranked for mode in _modes(verdict)]
    supported += [HANDOVER for verdict in ranked if verdict.diagnosis.named == HANDOVER]
    return text(
        "verdict.txt.jinja",
        "overview",
        ranked=ranked,
        unread=unread,
        groups=order.groups,
        references=references,
        obstacles=obstacles.values(),
        modes=[(mode, supported.count(mode)) for mode in (*TITLES, HANDOVER) if mode in supported],
    )


def _modes(verdict: Verdict) -> tuple[str, ...]:
    """Return the failure modes of a model: those that patching with a twin shows, else those that probes support."""
    diagnosis = verdict.diagnosis
    if diagnosis.uncertain:
        return ()
    return diagnosis.patched or tuple(effect.mode for effect in diagnosis.charged)


def _without_models(dataset: DatasetRuns) -> str:
    """Return the overview of a data set on which no model has metrics."""
    verdict = best_reference(dataset)
    if verdict is None:
        return text("verdict.txt.jinja", "no_metrics")
    return text("verdict.txt.jinja", "references_only", models=dataset.models, verdict=verdict)


def best_reference(dataset: DatasetRuns) -> Verdict | None:
    """Return the verdict on the most accurate reference classifier; ``None`` if none has metrics."""
    scored = [result for result in dataset.main_results(blind=True) if known(result.metrics.get("accuracy"))]
    scored = [result for result in scored if result.subject.reference]
    if not scored:
        return None
    best = min(scored, key=lambda result: (result.subject.blind, -result.metrics["accuracy"].value))
    return reference_verdict(dataset, best)


def _groups(ranked: Sequence[Verdict], pairs: Sequence[Difference]) -> list[RankedGroup]:
    """Group models that were asked about the same classes of the same data."""
    verdict_of = {id(verdict.result): verdict for verdict in ranked}
    groups = comparable_groups([verdict.result for verdict in ranked])
    return [
        _ranked_group([verdict_of[id(result)] for result in group], _about(group[0], groups), pairs) for group in groups
    ]


def _ranked_group(verdicts: Sequence[Verdict], about: str, pairs: Sequence[Difference]) -> RankedGroup:
    best = verdicts[0].result
    alike, better, unpaired = [], [], []
    for pair in pairs:
        if best is not pair.first and best is not pair.second:
            continue
        other = pair.second if best is pair.first else pair.first
        difference = pair.seen_from(best)
        if not known(difference.low):
            unpaired.append(other.subject.label)
        elif difference.low <= 0 <= difference.high:
            alike.append(other.subject.label)
        elif difference.high < 0:
            better.append(other.subject.label)
    labels = _names([verdict.subject.label for verdict in verdicts])
    rivals = len(alike) + len(better) + len(unpaired)
    return RankedGroup(verdicts, about, labels, _names(alike), _names(better), _names(unpaired), rivals)


def _about(result: TaskResult, groups: Sequence[Sequence[TaskResult]]) -> str:
    """Return what the models of a group were asked about, as far as it distinguishes the group from the others."""
    classes = set(result.answers)
    if [len(set(group[0].answers)) for group in groups].count(len(classes)) == 1:
        return quantity(len(classes), "class", "classes").capitalize()
    if sum(set(group[0].answers) == classes for group in groups) == 1:
        return cut(listed(result.answers), 120)
    return f"Data {result.fingerprint[:8] or 'without a fingerprint'}"


def _names(labels: Sequence[str]) -> str:
    return listed(labels) if len(labels) <= _MAX_NAMED else f"{len(labels)} others"
