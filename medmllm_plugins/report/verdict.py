"""The verdict: how good, against what, and which failure modes the evidence supports, in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate, known
from medmllm_plugins.metrics.readability import DEMO_NOTE, unreadable
from medmllm_plugins.plugins.specs import DEMO
from medmllm_plugins.report.formatting import interval, percent, points, turned
from medmllm_plugins.report.run_collection import Cell, DataPart, Subject
from medmllm_plugins.report.run_pairs import NO_GAP, Gap, Key, Wanted, groups_of, hits_of, key, paired, unlike
from medmllm_plugins.results.probe_records import PROVEN, TITLES, Effect, ProbeAnalysis
from medmllm_plugins.utils.json_values import clean, mapping, number
from medmllm_plugins.utils.plain_text import listed

BLIND_BASELINES: Final = {"majority_class": "always answering the commonest class", "always_no": "always answering no"}
_PHANTOMS: Final = "phantoms"
"""Layout of the sets that the demo checkpoint was trained on."""


@dataclass(frozen=True, slots=True)
class BaselineComparison:
    """What a model is held against.

    Attributes:
        name: of the blind baseline, or of the reference classifier; empty without one.
        accuracy: its accuracy, of its own questions.
        gap: answers less that, paired; unknown where the two cannot be paired.
        reached: its accuracy over the questions that both answered, which the gap is over.
        shared: number of these.
        why: why it cannot be held against the model, where that is so.
    """

    name: str = ""
    accuracy: Estimate = UNKNOWN
    gap: Estimate = UNKNOWN
    reached: float = float("nan")
    shared: int = 0
    why: str = ""

    @property
    def compared(self) -> bool:
        """Whether there is one, and the model can be held against it."""
        return bool(self.name) and not self.why


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one model is worth on one data set.

    Attributes:
        subject: the model.
        title: of the data set.
        cell: the task that it rests on.
        sentence: the verdict.
        accuracy: of the answers.
        questions: number of questions that it is of.
        blind: the blind baseline.
        reference: the reference classifier.
        probed: the task whose probes it rests on; empty without probes.
        supported: failure modes that the evidence supports, the named one first.
        named: the mode that losses are charged to first.
        proven: whether the scores show that it is the words' fault, where the mapping is named.
        undecided: modes of which one cannot tell.
        unread: what to say of answers of which too few could be read; empty where enough were.
    """

    subject: Subject
    title: str
    cell: Cell
    sentence: str
    accuracy: Estimate
    questions: int
    blind: BaselineComparison
    reference: BaselineComparison
    probed: str
    supported: tuple[Effect, ...]
    named: str | None
    proven: bool
    undecided: tuple[str, ...]
    unread: str = ""


def verdicts(part: DataPart) -> list[Verdict]:
    """One verdict a model that has figures on a data set."""
    mains = [cell for one in part.models if (cell := part.main(one)) is not None]
    gaps = paired(_wanted(mains, part.references))
    return [_verdict(part, cell, gaps) for cell in mains]


def reference_verdict(part: DataPart, cell: Cell) -> Verdict:
    """How good a reference classifier is itself, for a data set on which no model was run."""
    return _verdict(part, cell, paired(_wanted([cell], [])))


def _wanted(mains: Iterable[Cell], references: Sequence[Cell]) -> dict[str, Wanted]:
    """What is to be paired: each cell with its blind baseline, and with the references on the same data."""
    wanted: dict[str, Wanted] = {}
    theirs = {id(one): hits_of(one) for one in references}
    for cell in mains:
        hits, groups = hits_of(cell), groups_of(cell)
        wanted[_name(cell)] = (hits, _constant(cell), groups)
        for one in references:
            if not unlike(cell, one, by_question=True):
                wanted[_name(cell, one)] = (hits, theirs[id(one)], groups)
    return wanted


def _name(cell: Cell, reference: Cell | None = None) -> str:
    return f"{cell.subject.number} {'blind' if reference is None else reference.subject.number}"


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
    labels = [clean(one.label) for one in cell.task.outcomes]
    if not labels or not name:
        return {}
    answer = "no" if name == "always_no" else _commonest(cell, labels)
    return {key(one): float(label == answer) for one, label in zip(cell.task.outcomes, labels, strict=True)}


def _commonest(cell: Cell, labels: Sequence[str]) -> str:
    """The commonest class: as the metrics have it, since the rows on record may be fewer than those scored."""
    told = cell.task.metrics
    if not told.get("majority"):
        told = mapping(next(iter(mapping(told.get("variants")).values()), {}))
    return clean(told.get("majority") or max(cell.task.labels or sorted(set(labels)), key=labels.count))


def _verdict(part: DataPart, cell: Cell, gaps: Mapping[str, Gap]) -> Verdict:
    subject = cell.subject
    probed = _probed(part, subject)
    probing = probed.task.probing if probed else None
    told = Verdict(
        subject=subject,
        title=part.title,
        cell=cell,
        sentence="",
        accuracy=cell.metrics.get("accuracy", UNKNOWN),
        questions=questions_of(cell),
        blind=_blind(cell, gaps),
        reference=BaselineComparison() if subject.reference else _reference(part, cell, probing, gaps),
        probed=probed.task.name if probed else "",
        supported=tuple(probing.diagnosis.supported) if probing else (),
        named=probing.diagnosis.named if probing else None,
        proven=bool(probing and probing.mapping and probing.mapping.kind in PROVEN),
        undecided=tuple(probing.diagnosis.undecided) if probing else (),
        unread=_unread(part, cell),
    )
    return replace(told, sentence=_sentence(told))


def _unread(part: DataPart, cell: Cell) -> str:
    """What to say where too few answers of a cell could be read, and of the demo why."""
    unread = unreadable(cell.task.metrics)
    if unread is None:
        return ""
    is_demo = cell.run.model.get("pretrained") == DEMO and (part.spec is None or part.spec.layout != _PHANTOMS)
    return unread.sentences(DEMO_NOTE if is_demo else "")


def questions_of(cell: Cell) -> int:
    """Number of questions that the metrics of a cell are of; that of its rows where they do not tell."""
    told = number(cell.task.metrics.get("n"))
    return int(told) if known(told) else len(cell.task.outcomes)


def _blind(cell: Cell, gaps: Mapping[str, Gap]) -> BaselineComparison:
    name, value = blind_baseline(cell)
    accuracy = Estimate(value, float("nan"), float("nan"))
    return BaselineComparison(BLIND_BASELINES.get(name, ""), accuracy, *gaps.get(_name(cell), NO_GAP))


def _reference(
    part: DataPart, cell: Cell, probing: ProbeAnalysis | None, gaps: Mapping[str, Gap]
) -> BaselineComparison:
    """The best reference classifier that shares questions with a model; else why there is none."""
    for one in part.references:
        if gap := gaps.get(_name(cell, one)):
            return BaselineComparison(one.subject.label, one.metrics.get("accuracy", UNKNOWN), *gap)
    if probing is not None and known(probing.reference):
        # Its run is not at hand, but the diagnosis was held against it.
        gap_ = Estimate(probing.answer.value - probing.reference.value, float("nan"), float("nan"))
        return BaselineComparison(probing.reference_name, probing.reference, gap_, probing.reference.value)
    for one in part.references:
        return BaselineComparison(one.subject.label, one.metrics.get("accuracy", UNKNOWN), why=_why_apart(cell, one))
    return BaselineComparison()


def _why_apart(cell: Cell, reference: Cell) -> str:
    """Why a reference classifier shares no question with a model."""
    if not reference.task.scored:
        return "its run has no figures"
    if why := unlike(cell, reference, by_question=True):
        return why
    if not reference.task.outcomes:
        return "its scored answers are not on record"
    if not cell.task.outcomes:
        return "the model's scored answers are not on record"
    return "the two have no question in common"


def _probed(part: DataPart, subject: Subject) -> Cell | None:
    found = [cell for cell in part.of(subject) if cell.task.probing is not None]
    return min(found, key=lambda cell: (not cell.task.plain, cell.task.name)) if found else None


def _sentence(one: Verdict) -> str:
    if one.unread:
        # A gap to a blind answer or a classifier would be read as a finding about the model.
        modes = _modes(one)
        return f"{one.subject.label} on {one.title}: {one.unread} {modes[0].upper()}{modes[1:]}."
    against = [_against(one, one.blind)] if one.blind.name else []
    beside = "; no reference classifier was run"
    if one.reference.why:
        beside = f"; {apart(one.reference)}"
    elif one.reference.name:
        beside = ""
        against.append(_against(one, one.reference, "the reference classifier "))
    return f"{', '.join([_opening(one), *filter(None, [listed(against)])])}{beside}; {_modes(one)}."


def _opening(one: Verdict) -> str:
    return (
        f"On {one.title}, {one.subject.label} answers {percent(one.accuracy.value)} of the questions rightly "
        f"({interval(one.accuracy)})"
    )


def over_blind(one: Verdict) -> str:
    """The part of a sentence that holds a verdict against answering without looking; empty where that is not known."""
    return f", {_against(one, one.blind)}" if one.blind.name else ""


def apart(one: BaselineComparison) -> str:
    """The part of a sentence on a reference classifier that a model cannot be held against."""
    there = f" ({percent(one.accuracy.value)} of its own questions, {interval(one.accuracy)})"
    return f"the reference classifier {one.name}{there if known(one.accuracy) else ''} is not compared: {one.why}"


def _against(one: Verdict, other: BaselineComparison, what: str = "") -> str:
    """One comparison: a difference only where its interval leaves out zero.

    A gap is over the questions that both answered. Where these are not all, it is said what both reach on them, so that
    the numbers of the sentence go together.
    """
    gap, reached = other.gap, other.reached
    if not known(gap):
        reached = other.accuracy.value
        gap = Estimate(one.accuracy.value - reached, float("nan"), float("nan"))
    what, where = f"{what}{other.name} at {percent(reached)}", _where(one, other, reached + gap.value)
    side = "above" if gap.value > 0 else "below"
    if known(gap.low) and gap.low <= 0 <= gap.high:
        told = [f"{points(gap.value)} {side}", interval(gap, signed=True), *where]
        return f"not told apart from {what} ({', '.join(told)})"
    size = f" ({interval(gap if gap.value > 0 else turned(gap))})" if known(gap.low) else ""
    return f"{points(gap.value)}{size} {side} {what}{f' ({where[0]})' if where else ''}"


def _where(one: Verdict, other: BaselineComparison, own: float) -> list[str]:
    """On which questions a comparison rests, and what the model reaches on them, where it was asked others too."""
    if other.shared and other.shared != one.questions:
        which = "are on record" if other is one.blind else "both answered"
        return [f"on the {other.shared:,} of {one.questions:,} questions that {which}, {percent(own)} of them rightly"]
    if not other.shared and abs(own - one.accuracy.value) > 0.0005:
        return [f"on the questions of the diagnosis, {percent(own)} of them rightly"]
    return []


def _modes(one: Verdict) -> str:
    if not one.probed:
        return "without probes (med_probe) nothing is known of where it fails"
    if not one.supported:
        rest = f", and one cannot tell of {listed(list(one.undecided))}" if one.undecided else ""
        return f"of the four failure modes the evidence supports none{rest}"
    told = [
        f"{TITLES[effect.mode]} ({points(effect.loss.value)} lost, {interval(effect.loss)})" for effect in one.supported
    ]
    found = f"of the four failure modes the evidence supports {listed(told)}"
    if one.named is None:
        return f"{found}, but charges what is lost to no single stage, as one before may be to blame"
    if len(told) > 1:
        found += f", and charges it to the {one.named} first"
    if one.named == "mapping" and not one.proven:
        found += "; probes cannot tell it from a stage before that hands the image over in a form the next cannot read"
    return found
