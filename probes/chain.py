"""The chain of stages: what is known of the class at the end of each, credited with what later stages show.

The features of a stage are computed from those of the stage before, so no stage can know more of the image than any
earlier one. A probe may well read more from a later stage, because the class is easier to read there. Each stage is
therefore credited with the best of its own end and all later sites, the label scores and the answers. The site is
chosen on the validation fold: the last of those within one standard error of the best, so that a later stage counts as
worse only on evidence. A site whose probe fails its permutation test counts as knowing nothing.

Source: Cover and Thomas, "Elements of Information Theory", 2006, section 2.8 (data processing inequality).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.usable_information import class_log_frequencies, information_of_probabilities
from medmllm_plugins.probes.chain_fits import AFTER_ALL_SITES, ChainFits, site_name
from medmllm_plugins.probes.curves import Classifier, Figure, bootstrap_figures, permutation_p_values
from medmllm_plugins.probes.fitting import balanced_accuracy
from medmllm_plugins.probes.labelled_features import LabelledFeatures

ANSWER: Final = "answer"
SCORES: Final = "label scores"
"""The label that scores highest."""
REFERENCE: Final = "reference"
MAJORITY: Final = "most common class"
_SIGNIFICANT: Final = 1.645
"""Standard errors that a learning curve must rise by, one-sided at the level of 5%."""
_AHEAD: Final = 1 / (math.sqrt(2) - 1)
"""How far the limit lies beyond the accuracy with all train groups, in multiples of the rise from half of them, if the
distance to the limit falls as the square root of the number of documents."""
LEVEL: Final = 0.05
"""A site, or another classifier, whose p-value is above this counts as knowing nothing of the class."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What a site, the label scores, the answers or a reference show of the class on the test fold.

    Attributes:
        name: a site's name, ``answer``, ``label scores``, ``reference`` or ``most common class``.
        accuracy: the accuracy.
        limit: for a probe, the accuracy that its learning curve points to; the same as ``accuracy`` for others.
        rising: whether the learning curve rises significantly.
        balanced: balanced accuracy.
        bits: usable information, in bits per document.
        correct: (t,) 1 for each test document that is classified correctly, else 0.
    """

    name: str
    accuracy: Figure
    limit: Figure
    rising: bool
    balanced: Figure
    bits: Figure
    correct: Floats

    def loss_to(self, after: Evidence) -> Figure:
        """Return the accuracy lost from here to later evidence, as far as learning curves do not explain it.

        A probe of a wider layer needs more documents to become as good. Where a learning curve rises significantly, the
        loss is therefore the smaller of the difference in accuracy and the difference of the limits, on each resample.
        """
        plain = self.accuracy - after.accuracy
        if not (self.rising or after.rising):
            return plain
        limit = (self.limit if self.rising else self.accuracy) - (after.limit if after.rising else after.accuracy)
        return Figure(min(plain.value, limit.value), np.minimum(plain.resampled, limit.resampled))


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """What each stage shows.

    Attributes:
        reference: the reference classifier; ``None`` without one, or if it is no better than the control features.
        ends: tower, connector and LLM at their own ends.
        credited: tower, connector and LLM as credited, and the answers. Accuracies never rise along it.
        bits: the usable information of these four; it never rises either.
        control: the best control features.
        group: (t,) index of the group of each test document.
        groups: number of groups in the test fold.
        effective_groups: number of groups of equal size that vary as much.
        answer_p: p-value of the answers by permutation of the test labels.
    """

    reference: Evidence | None
    ends: tuple[Evidence, Evidence, Evidence]
    credited: tuple[Evidence, Evidence, Evidence, Evidence]
    bits: tuple[Figure, Figure, Figure, Figure]
    control: Evidence
    majority: Evidence
    group: Ints
    groups: int
    effective_groups: float
    answer_p: float


def build_chain(
    labelled: LabelledFeatures,
    fits: ChainFits,
    classifiers: Mapping[str, Classifier],
    *,
    seed: int = 0,
) -> Chain:
    """Measure the chain on the test fold.

    Args:
        labelled: the documents.
        fits: the probes at the chosen sites.
        classifiers: ``answer``, ``most common class`` and, where they exist, ``label scores`` and ``reference``.
        seed: of resamples and permutations.
    """
    truth = labelled.of("test")
    log_frequencies = class_log_frequencies(labelled.of("train"), len(labelled.labels))
    bits = information_of_probabilities(fits.test_log_p, truth, log_frequencies)
    names = [site_name(site) for site in fits.sites]
    probes = {name: Classifier(*pair) for name, *pair in zip(names, fits.test, bits, strict=True)}
    everything = {**classifiers, **probes}
    halves = {} if fits.half is None else {f"{name}:half": row for name, row in zip(names, fits.half, strict=True)}
    figures = bootstrap_figures(labelled, everything, rows=halves, seed=seed)
    predicted = np.stack([entry.predicted for entry in classifiers.values()])
    p = dict(zip(classifiers, permutation_p_values(predicted, labelled, seed=seed), strict=True))
    deviations = _deviations(fits, truth, log_frequencies)

    def evidence(name: str) -> Evidence:
        accuracy, balanced, information = (figures.figure(f"{name}{suffix}") for suffix in ("", ":balanced", ":bits"))
        limit, rising = accuracy, False
        if name in probes:
            column = names.index(name)
            if halves:
                rise = accuracy - figures.figure(f"{name}:half")
                limit = Figure(accuracy.value + _AHEAD * rise.value, accuracy.resampled + _AHEAD * rise.resampled)
                rising = rise.value > _SIGNIFICANT * float(rise.resampled.std())
            if len(fits.repeats):
                divisions = np.array([accuracy.value, *fits.repeats[:, column]])
                change, shift = _centred(divisions), float(divisions.mean()) - accuracy.value
                accuracy, limit = (figure.shifted(change, figure.value + shift) for figure in (accuracy, limit))
            elif deviations is not None:
                change, balanced_change, bits_change = (array[:, column] for array in deviations)
                accuracy, limit = (figure.shifted(change, figure.value) for figure in (accuracy, limit))
                balanced = balanced.shifted(balanced_change, balanced.value)
                information = information.shifted(bits_change, information.value)
        correct = (everything[name].predicted == truth).astype(np.float64)
        return Evidence(name, accuracy, limit, rising, balanced, information, correct)

    majority, answer = evidence(MAJORITY), evidence(ANSWER)

    def shown(index: int) -> Evidence:
        if index == AFTER_ALL_SITES:
            return evidence(SCORES) if p[SCORES] <= LEVEL else majority
        return evidence(names[index]) if fits.p_values[index] <= LEVEL else majority

    credited, information = [answer], [answer.bits]
    for index in reversed(fits.chosen.credited):
        own = shown(index)
        credited.append(own if own.accuracy.value > credited[-1].accuracy.value else credited[-1])
        information.append(information[-1] if information[-1].value >= own.bits.value else own.bits)
    understood, connector, tower = credited[1:]
    tower_end, connector_end, llm_end = (evidence(names[index]) for index in fits.chosen.ends)
    return Chain(
        reference=evidence(REFERENCE) if REFERENCE in classifiers else None,
        ends=(tower_end, connector_end, llm_end),
        credited=(tower, connector, understood, answer),
        bits=(information[3], information[2], information[1], information[0]),
        control=shown(fits.chosen.control),
        majority=majority,
        group=labelled.groups_of("test"),
        groups=figures.groups,
        effective_groups=figures.effective_groups,
        answer_p=float(p[ANSWER]),
    )


def _deviations(fits: ChainFits, truth: Ints, log_frequencies: Floats) -> tuple[Floats, Floats, Floats] | None:
    """Return how accuracy, balanced accuracy and bits of the refits differ from their means, (R, S) each."""
    if fits.refits is None or len(fits.refits.test) < 2:
        return None
    bits = information_of_probabilities(fits.refits.test_log_p, truth, log_frequencies).mean(-1)
    accuracy = (fits.refits.test == truth).mean(-1)
    return _centred(accuracy), _centred(balanced_accuracy(fits.refits.test, truth)), _centred(bits)


def _centred(values: Floats) -> Floats:
    """Return deviations from the mean over the first axis, (R, ...), whose variance is the unbiased one."""
    deviations: Floats = (values - values.mean(0)) * math.sqrt(len(values) / (len(values) - 1))
    return deviations
