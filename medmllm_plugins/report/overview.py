"""One sentence on all models of a data set: who is best, whether that is more than chance, and what fails."""

from __future__ import annotations

from collections.abc import Sequence

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.formatting import cut, interval, percent
from medmllm_plugins.report.run_collection import Cell, DataPart
from medmllm_plugins.report.run_pairs import Difference, leagues
from medmllm_plugins.report.verdict import Verdict, apart, over_blind, reference_verdict
from medmllm_plugins.results.probe_records import TITLES
from medmllm_plugins.utils.plain_text import listed, quantity

_NAMED = 3
"""So many models are named in a row; of more the number is given."""


def overview(part: DataPart, found: Sequence[Verdict], pairs: Sequence[Difference]) -> str:
    """One sentence on all models of a data set; that of the model where there is one only.

    Args:
        part: the data set.
        found: the verdicts on its models.
        pairs: its models held against each other.
    """
    scored = sorted((one for one in found if known(one.accuracy)), key=lambda one: -one.accuracy.value)
    if not scored:
        return _without_models(part)
    if len(scored) == 1:
        return scored[0].sentence
    # One whose answers could not be read has no place in a ranking: it would stand last for the form of its answers.
    unread, ranked = [one for one in scored if one.unread], [one for one in scored if not one.unread]
    if not ranked:
        return " ".join(one.sentence for one in scored)
    first = ranked[0].sentence if len(ranked) == 1 else f"{'; '.join(_all(part, ranked, pairs))}."
    return " ".join([first, *(f"Not ranked: {one.subject.label}. {one.unread}" for one in unread)])


def _all(part: DataPart, ranked: Sequence[Verdict], pairs: Sequence[Difference]) -> list[str]:
    return [_ranking(part, ranked, pairs), *_above(ranked), *_modes(ranked)]


def _without_models(part: DataPart) -> str:
    """The sentence of a data set on which no model has figures."""
    scored = [cell for one in part.subjects if one.reference and (cell := part.main(one)) is not None]
    scored = [cell for cell in scored if known(cell.metrics.get("accuracy"))]
    if not scored:
        return f"On {part.title}, no run has figures of its answers yet."
    first = "no model has figures of its answers yet" if part.models else "no model was run"
    best = min(scored, key=lambda cell: (cell.subject.blind, -cell.metrics["accuracy"].value))
    told = reference_verdict(part, best)
    return (
        f"On {part.title}, {first}; the reference classifier {best.subject.label} answers "
        f"{percent(told.accuracy.value)} of the questions rightly ({interval(told.accuracy)}){over_blind(told)}."
    )


def _ranking(part: DataPart, ranked: Sequence[Verdict], pairs: Sequence[Difference]) -> str:
    """Who is best; only among models that were asked about the same classes of the same data."""
    groups = leagues([one.cell for one in ranked])
    by_cell = {id(one.cell): one for one in ranked}
    if len(groups) == 1:
        return f"Of {len(ranked)} models on {part.title}, {_best(ranked, pairs)}"
    told = [f"{_about(group[0], groups)} {_best([by_cell[id(cell)] for cell in group], pairs)}" for group in groups]
    return (
        f"On {part.title}, {len(ranked)} models were not asked about the same classes of the same data, and are not "
        f"ranked together: {'; '.join(told)}"
    )


def _about(cell: Cell, groups: Sequence[Sequence[Cell]]) -> str:
    """What the models of a group were asked about, as far as that tells it from the others."""
    counts = [len(set(group[0].answers)) for group in groups]
    if counts.count(len(set(cell.answers))) == 1:
        return f"about {quantity(len(set(cell.answers)), 'class', 'classes')}"
    if sum(set(group[0].answers) == set(cell.answers) for group in groups) == 1:
        return f"about {cut(listed(list(cell.answers)), 120)}"
    return f"on data {cell.fingerprint[:8] or 'without a fingerprint'}"


def _best(ranked: Sequence[Verdict], pairs: Sequence[Difference]) -> str:
    """Best and worst of a group, and from whom the best is not told apart."""
    best, last = ranked[0], ranked[-1]
    if len(ranked) == 1:
        return f"{best.subject.label} answers {percent(best.accuracy.value)} rightly ({interval(best.accuracy)})"
    if best.accuracy.value == last.accuracy.value:
        labels = _names([one.subject.label for one in ranked])
        return (
            f"{labels} answer equally many questions rightly, {percent(best.accuracy.value)}{_told_apart(best, pairs)}"
        )
    return (
        f"{best.subject.label} answers most questions rightly, {percent(best.accuracy.value)} "
        f"({interval(best.accuracy)}){_told_apart(best, pairs)}, and {last.subject.label} fewest, "
        f"{percent(last.accuracy.value)} ({interval(last.accuracy)})"
    )


def _told_apart(best: Verdict, pairs: Sequence[Difference]) -> str:
    """From which models the best is not told apart over the questions that both answered."""
    alike, less, alone, apart_ = [], [], [], 0
    for pair in pairs:
        if best.cell is not pair.first and best.cell is not pair.second:
            continue
        other = pair.second if best.cell is pair.first else pair.first
        gap = pair.seen_from(best.cell)
        if not known(gap.low):
            alone.append(other.subject.label)
        elif gap.low <= 0 <= gap.high:
            alike.append(other.subject.label)
        elif gap.high < 0:
            less.append(other.subject.label)
        else:
            apart_ += 1
    told = []
    if alike:
        told.append(f"not told apart from {_names(alike)}")
    if less:
        told.append(f"below {_names(less)} on the questions that both answered")
    if alone:
        told.append(f"not paired with {_names(alone)}")
    if not told:
        told.append("told apart from each of the others" if apart_ > 1 else "told apart from the other")
    return f", {listed(told)}"


def _names(labels: list[str]) -> str:
    return listed(labels) if len(labels) <= _NAMED else f"{len(labels)} others"


def _above(ranked: Sequence[Verdict]) -> list[str]:
    """How many models are above a blind answer and above the reference classifier."""
    above = sum(one.blind.gap.low > 0 for one in ranked)
    told = [
        f"{above or 'none'} of them {'is' if above < 2 else 'are'} above {ranked[0].blind.name or 'a blind answer'}"
    ]
    held = [one for one in ranked if one.reference.compared]
    if held:
        count = sum(one.reference.gap.low > 0 for one in held)
        below = sum(one.reference.gap.high < 0 for one in held)
        names = list(dict.fromkeys(one.reference.name for one in held))
        name = f"the reference classifier {names[0]}" if len(names) == 1 else "their reference classifiers"
        reached = {round(one.reference.reached, 6) for one in held}
        at = f" ({percent(held[0].reference.reached)})" if len(reached) == 1 else ""
        told.append(f"{count or 'none'} above and {below or 'none'} below {name}{at}")
    apart_ = [one.reference for one in ranked if one.reference.why]
    return [*told, *dict.fromkeys(apart(one) for one in apart_)]


def _modes(ranked: Sequence[Verdict]) -> list[str]:
    """Which failure modes the evidence supports, and in how many."""
    probed = [one for one in ranked if one.probed]
    if not probed:
        return ["without probes nothing is known of where they fail"]
    counted = [(mode, sum(mode in {e.mode for e in one.supported} for one in probed)) for mode in TITLES]
    told = [f"{TITLES[mode]} in {count}" for mode, count in counted if count]
    return [
        f"of the {quantity(len(probed), 'model')} that {'was' if len(probed) == 1 else 'were'} probed, the evidence "
        f"supports {listed(told) if told else 'no failure mode in any'}"
    ]
