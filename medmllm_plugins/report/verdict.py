"""The verdict: how good, against what, and which failure modes the evidence supports, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np

from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import RESAMPLES, Estimate, bootstrap
from medmllm_plugins.metrics.intervals import estimate as interval_around
from medmllm_plugins.report.gathering import Cell, DataPart, Subject
from medmllm_plugins.report.probing import TITLES, Effect
from medmllm_plugins.report.text import (
    UNKNOWN,
    interval,
    known,
    listed,
    mapping,
    number,
    percent,
    points,
    quantity,
    turned,
)

Key: TypeAlias = tuple[str, str, str]
"""A row's document, finding and variant."""
BLIND_BASELINES: Final = {"majority_class": "always answering the commonest class", "always_no": "always answering no"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one model is worth on one data set.

    Attributes:
        subject: the model.
        title: of the data set.
        cell: the task that it rests on.
        sentence: the verdict.
        accuracy: of the answers.
        blind: name of the blind baseline.
        blind_accuracy: its accuracy.
        over_blind: answers less that, paired.
        reference: name of the reference classifier; empty without one.
        reference_accuracy: its accuracy on the same documents.
        over_reference: answers less that, paired.
        shared: documents on which the two are compared.
        probed: the task whose probes it rests on; empty without probes.
        supported: failure modes that the evidence supports, the named one first.
        named: the mode that losses are charged to first.
        undecided: modes of which one cannot tell.
    """

    subject: Subject
    title: str
    cell: Cell
    sentence: str
    accuracy: Estimate
    blind: str
    blind_accuracy: float
    over_blind: Estimate
    reference: str
    reference_accuracy: float
    over_reference: Estimate
    shared: int
    probed: str
    supported: tuple[Effect, ...]
    named: str | None
    undecided: tuple[str, ...]


def verdicts(part: DataPart) -> list[Verdict]:
    """One verdict a model that has figures on a data set."""
    mains = [cell for one in part.models if (cell := part.main(one)) is not None]
    reference = part.reference
    wanted: dict[str, tuple[Mapping[Key, float], Mapping[Key, float], Mapping[Key, str]]] = {}
    for cell in mains:
        hits, groups = hits_of(cell), groups_of(cell)
        constant = _constant(cell)
        wanted[f"blind {cell.subject.number}"] = (hits, constant, groups)
        if reference is not None:
            wanted[f"reference {cell.subject.number}"] = (hits, hits_of(reference), groups)
    gaps = paired(wanted)
    return [_verdict(part, cell, reference, gaps) for cell in mains]


def hits_of(cell: Cell) -> dict[Key, float]:
    """1 for each row that was answered rightly, else 0."""
    return {key(one): float(one.predicted == one.label) for one in cell.task.outcomes}


def groups_of(cell: Cell) -> dict[Key, str]:
    """The group of each row."""
    return {key(one): one.group for one in cell.task.outcomes}


def key(outcome: object) -> Key:
    """What tells a row from the others, in any run on the same data."""
    document = getattr(outcome, "document", None) or getattr(outcome, "id", "")
    return str(document), str(getattr(outcome, "finding", None) or ""), str(getattr(outcome, "variant", "") or "")


def paired(
    wanted: Mapping[str, tuple[Mapping[Key, float], Mapping[Key, float], Mapping[Key, str]]],
) -> dict[str, tuple[Estimate, float, int]]:
    """Differences between two sets of rows, over the rows that both have, with clustered intervals.

    Comparisons over the same rows share their resamples, which is what makes a page of many models fast.

    Args:
        wanted: by name: values of the first, values of the second, and the rows' groups.

    Returns:
        By name: first less second, mean of the second, and the number of rows that both have; no entry without rows.
    """
    batches: dict[tuple[Key, ...], list[str]] = {}
    for name, (first, second, _) in wanted.items():
        shared = tuple(sorted(first.keys() & second.keys()))
        if shared:
            batches.setdefault(shared, []).append(name)
    found: dict[str, tuple[Estimate, float, int]] = {}
    for shared, names in batches.items():
        by_group = wanted[names[0]][2]
        groups, group = np.unique([by_group[one] for one in shared], return_inverse=True)
        rows: Floats = np.array([[wanted[name][0][one] - wanted[name][1][one] for one in shared] for name in names])
        values, drawn = _resampled(rows, group.astype(np.intp))
        for place, name in enumerate(names):
            gap = interval_around(float(values[place]), drawn[:, place], groups=len(groups))
            found[name] = gap, float(np.mean([wanted[name][1][one] for one in shared])), len(shared)
    return found


def _resampled(rows: Floats, group: Ints) -> tuple[Floats, Floats]:
    values, drawn = bootstrap(
        lambda weights: {"": (rows @ weights / weights.sum(0)).T}, group, resamples=RESAMPLES, seed=0, cells=len(rows)
    )
    return values[""], drawn[""]


def blind_baseline(cell: Cell) -> tuple[str, float]:
    """Name and accuracy of answering without looking; an empty name where it is not known."""
    told = mapping(cell.task.metrics.get("baselines"))
    if not told:
        variants = mapping(cell.task.metrics.get("variants"))
        told = mapping(mapping(next(iter(variants.values()), {})).get("baselines"))
    for name in BLIND_BASELINES:
        value = number(mapping(told.get(name)).get("accuracy"))
        if known(value):
            return name, value
    return "", float("nan")


def _constant(cell: Cell) -> dict[Key, float]:
    """Hits of the blind baseline, row by row."""
    name, _ = blind_baseline(cell)
    labels = [one.label for one in cell.task.outcomes]
    if not labels or not name:
        return {}
    answer = "no" if name == "always_no" else max(cell.task.labels or sorted(set(labels)), key=labels.count)
    return {key(one): float(one.label == answer) for one in cell.task.outcomes}


def _verdict(
    part: DataPart, cell: Cell, reference: Cell | None, gaps: Mapping[str, tuple[Estimate, float, int]]
) -> Verdict:
    subject = cell.subject
    name, value = blind_baseline(cell)
    nothing = (UNKNOWN, float("nan"), 0)
    over_blind, _, _ = gaps.get(f"blind {subject.number}", nothing)
    over_reference, reference_accuracy, shared = gaps.get(f"reference {subject.number}", nothing)
    reference_name = "" if reference is None else reference.subject.label
    probed = _probed(part, subject)
    probing = probed.task.probing if probed else None
    if not known(over_reference) and probing is not None and known(probing.reference):
        # Its run is not at hand, but the diagnosis was held against it.
        reference_name, reference_accuracy = probing.reference_name, probing.reference.value
        over_reference = Estimate(probing.answer.value - probing.reference.value, float("nan"), float("nan"))
        shared = 0
    accuracy = cell.metrics.get("accuracy", UNKNOWN)
    told = Verdict(
        subject=subject,
        title=part.title,
        cell=cell,
        sentence="",
        accuracy=accuracy,
        blind=BLIND_BASELINES.get(name, ""),
        blind_accuracy=value,
        over_blind=over_blind,
        reference=reference_name if known(over_reference) else "",
        reference_accuracy=reference_accuracy,
        over_reference=over_reference,
        shared=shared,
        probed=probed.task.name if probed else "",
        supported=tuple(probing.supported()) if probing else (),
        named=probing.named if probing else None,
        undecided=tuple(probing.undecided()) if probing else (),
    )
    return replace(told, sentence=_sentence(told, len(cell.task.outcomes)))


def _probed(part: DataPart, subject: Subject) -> Cell | None:
    found = [cell for cell in part.of(subject) if cell.task.probing is not None]
    return min(found, key=lambda cell: (not cell.task.plain, cell.task.name)) if found else None


def _sentence(one: Verdict, rows: int) -> str:
    sample = f"the {rows:,} documents of " if one.cell.task.attributions is not None else ""
    explained = " that were explained" if sample else ""
    first = (
        f"On {sample}{one.title}{explained}, {one.subject.label} answers {percent(one.accuracy.value)} of the "
        f"questions rightly ({interval(one.accuracy)})"
    )
    against = []
    if one.blind:
        against.append(_against(one.over_blind, one.accuracy.value - one.blind_accuracy, one.blind, one.blind_accuracy))
    if one.reference:
        what = f"the reference classifier {one.reference}"
        if 0 < one.shared < rows:
            what += f", on the {one.shared:,} questions that both answered"
        against.append(_against(one.over_reference, one.over_reference.value, what, one.reference_accuracy))
    beside = "" if one.reference else "; no reference classifier was run"
    return f"{', '.join([first, *filter(None, [listed(against)])])}{beside}; {_modes(one)}."


def _against(gap: Estimate, value: float, what: str, reached: float) -> str:
    """One comparison: a difference only where its interval leaves out zero."""
    side = "above" if value > 0 else "below"
    if not known(gap.low):
        return f"{points(value)} {side} {what} at {percent(reached)}"
    if gap.low <= 0 <= gap.high:
        told = f"{points(gap.value)} {side}, {interval(gap, signed=True)}"
        return f"not told apart from {what} at {percent(reached)} ({told})"
    return f"{points(gap.value)} ({interval(gap if value > 0 else turned(gap))}) {side} {what} at {percent(reached)}"


def _modes(one: Verdict) -> str:
    if not one.probed:
        return "without probes (med_probe) nothing is known of where it fails"
    if not one.supported:
        rest = f", and one cannot tell of {listed(list(one.undecided))}" if one.undecided else ""
        return f"of the four failure modes the evidence supports none{rest}"
    told = [
        f"{TITLES[effect.mode]} ({points(effect.loss.value)} lost, {interval(effect.loss)})" for effect in one.supported
    ]
    name = f", and charges it to the {one.named} first" if len(told) > 1 and one.named else ""
    return f"of the four failure modes the evidence supports {listed(told)}{name}"


def overview(part: DataPart, found: Sequence[Verdict]) -> str:
    """One sentence on all models of a data set; that of the model where there is one only."""
    ranked = sorted((one for one in found if known(one.accuracy)), key=lambda one: -one.accuracy.value)
    if not ranked:
        return f"On {part.title}, no run has figures of its answers yet."
    if len(ranked) == 1:
        return ranked[0].sentence
    best, last = ranked[0], ranked[-1]
    parts = [
        f"Of {len(ranked)} models on {part.title}, {best.subject.label} answers most questions rightly, "
        f"{percent(best.accuracy.value)} ({interval(best.accuracy)}), and {last.subject.label} fewest, "
        f"{percent(last.accuracy.value)} ({interval(last.accuracy)})"
    ]
    above = sum(one.over_blind.low > 0 for one in ranked)
    parts.append(f"{above} of them {'is' if above == 1 else 'are'} above {best.blind or 'a blind answer'}")
    if reference := [one for one in ranked if one.reference]:
        count = sum(one.over_reference.low > 0 for one in reference)
        below = sum(one.over_reference.high < 0 for one in reference)
        parts.append(
            f"{count or 'none'} above and {below or 'none'} below the reference classifier {reference[0].reference} "
            f"({percent(reference[0].reference_accuracy)})"
        )
    probed = [one for one in ranked if one.probed]
    if not probed:
        parts.append("without probes nothing is known of where they fail")
    else:
        counted = [(mode, sum(mode in {e.mode for e in one.supported} for one in probed)) for mode in TITLES]
        told = [f"{TITLES[mode]} in {count}" for mode, count in counted if count]
        parts.append(
            f"of the {quantity(len(probed), 'model')} that {'was' if len(probed) == 1 else 'were'} probed, the "
            f"evidence supports {listed(told) if told else 'no failure mode in any'}"
        )
    return "; ".join(parts) + "."
