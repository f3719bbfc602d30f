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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.usable_information import class_log_frequencies, information_of_probabilities
from medmllm_plugins.probes.curves import BootstrapFigures, Figure
from medmllm_plugins.probes.fitting import LAST_LAYER, ProbePredictions, Refits, Site, balanced_accuracy
from medmllm_plugins.probes.labelled_features import LabelledFeatures
from medmllm_plugins.prompts.feature_options import CLS, LAST, MEAN
from medmllm_plugins.results.probe_records import CONTROL

ANSWER: Final = "answer"
SCORES: Final = "label scores"
"""The label that scores highest."""
REFERENCE: Final = "reference"
MAJORITY: Final = "most common class"
LEVEL: Final = 0.05
"""A site, or another classifier, whose p-value is above this counts as knowing nothing of the class."""
_AFTER_ALL_SITES: Final = -1


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What a site, the label scores, the answers or a reference show of the class on the test fold."""

    name: str
    accuracy: Figure
    balanced: Figure
    bits: Figure


@dataclass(frozen=True, slots=True)
class ChainSites:
    """The sites that the chain is measured at, as indices of the fitted sites; chosen on the validation fold.

    Attributes:
        ends: the stages' own ends: tower (the better of mean and class token), connector, and LLM.
        credited: the site that shows most of the class at or after each of these ends; -1 for the label scores.
        control: the best control features.
    """

    ends: tuple[int, int, int]
    credited: tuple[int, int, int]
    control: int

    @property
    def fitted(self) -> tuple[int, ...]:
        """The sites whose probes the verdicts rest on."""
        return tuple(sorted({*self.ends, *self.credited, self.control} - {_AFTER_ALL_SITES}))


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """What each stage shows.

    Attributes:
        reference: the reference classifier; ``None`` without one, or if it is no better than the control features.
        ends: tower, connector and LLM at their own ends.
        credited: tower, connector and LLM as credited, and the answers. Accuracies never rise along it.
        bits: the usable information of these four; it never rises either.
        control: the best control features.
        last_probe: the probe on the last token at the end of the LLM.
        groups: number of groups in the test fold.
    """

    reference: Evidence | None
    ends: tuple[Evidence, Evidence, Evidence]
    credited: tuple[Evidence, Evidence, Evidence, Evidence]
    bits: tuple[Figure, Figure, Figure, Figure]
    control: Evidence
    majority: Evidence
    groups: int

    def without_reference(self) -> Chain:
        """Return the same chain without the reference classifier."""
        return Chain(None, self.ends, self.credited, self.bits, self.control, self.majority, self.groups)


def site_name(site: Site) -> str:
    """Return text such as ``connector (mean)``."""
    return f"{site.layer} ({site.pooling})"


def one_standard_error(differences: Floats, group: Ints) -> Floats:
    """Return the standard error of the means of differences (..., n) between documents of the groups (n,).

    It is clustered by group, and infinite with fewer than two groups.
    """
    groups = int(group.max()) + 1
    if groups < 2:
        return np.full(differences.shape[:-1], math.inf)
    member = group[:, None] == np.arange(groups)
    residuals = (differences - differences.mean(-1, keepdims=True)) @ member
    error: Floats = np.sqrt((residuals**2).sum(-1) * groups / (groups - 1)) / len(group)
    return error


def tied_with_best(hits: Floats, group: Ints) -> Ints:
    """Return which of F classifiers are within one standard error of the most accurate on the validation fold.

    The standard error is that of the paired difference, clustered by group.

    Args:
        hits: (F, v) 1 where a document is classified correctly, else 0.
        group: (v,) group of each document, from 0.

    Returns:
        Indices in order; the most accurate is among them.
    """
    differences = hits[hits.mean(1).argmax()] - hits
    ties: Ints = np.flatnonzero(differences.mean(1) <= one_standard_error(differences, group) + 1e-12).astype(np.intp)
    return ties


def choose_sites(fitted: ProbePredictions, labelled: LabelledFeatures, scored: Floats | None) -> ChainSites:
    """Choose the sites of the chain on the validation fold.

    ``scored`` (v,) is 1 where the label that scores highest is correct; ``None`` without scores.
    """
    truth, group = labelled.of("validation"), labelled.groups_of("validation")
    hits = (fitted.validation == truth).astype(np.float64)
    tower, connector, end, llm = _stage_sites(fitted.sites)

    def most_accurate(indices: Sequence[int]) -> int:
        return max(indices, key=lambda index: hits[index].mean())

    def last_of_best(indices: Sequence[int]) -> int:
        rows = [hits[index] for index in indices] + ([] if scored is None else [scored])
        last = int(tied_with_best(np.array(rows), group)[-1])
        return indices[last] if last < len(indices) else _AFTER_ALL_SITES

    controls = [index for index, site in enumerate(fitted.sites) if site.part == CONTROL]
    return ChainSites(
        ends=(most_accurate(tower), connector, end),
        credited=(last_of_best([*tower, connector, *llm]), last_of_best([connector, *llm]), last_of_best([end])),
        control=most_accurate(controls),
    )


def _stage_sites(sites: Sequence[Site]) -> tuple[list[int], int, int, list[int]]:
    """Return the ends of the tower, the connector, the end of the LLM, and all sites of the LLM, by index."""
    tower = [index for index, site in enumerate(sites) if site.part == "vision" and site.read]
    last_layer = sites[tower[-1]].layer
    ends = [index for index in tower if sites[index].layer == last_layer and sites[index].pooling in (MEAN, CLS)]
    connector = next(i for i, site in enumerate(sites) if site.part == "connector" and site.pooling == MEAN)
    llm = [index for index, site in enumerate(sites) if site.part == "llm" and site.read and site.pooling != "answer"]
    end = next(index for index in llm if (sites[index].layer, sites[index].pooling) == (LAST_LAYER, LAST))
    return ends, connector, end, llm


def build_chain(
    fitted: ProbePredictions,
    labelled: LabelledFeatures,
    figures: BootstrapFigures,
    sites: ChainSites,
    p_values: Mapping[str, float],
    site_p_values: tuple[Floats, Floats],
    refits: Refits | None,
    repeats: Floats,
) -> Chain:
    """Measure the chain on the test fold.

    Args:
        figures: of the sites and of the classifiers ``answer``, ``most common class`` and, where they exist, ``label
            scores`` and ``reference``.
        sites: the sites that were chosen.
        p_values: of the classifiers, by name.
        site_p_values: see :func:`~medmllm_plugins.probes.curves.site_p_values`.
        refits: of the probes at ``sites.fitted``, whose variation is added to the resamples; ``None`` for none.
        repeats: accuracies (R, F) on further divisions into folds. If there are any, accuracies are means over all
            divisions, and the variation between divisions is added instead.
    """
    deviations = _deviations(fitted, labelled, sites, refits)
    majority = Evidence(
        MAJORITY,
        figures.figure(MAJORITY),
        figures.figure(f"{MAJORITY}:balanced"),
        figures.figure(f"{MAJORITY}:bits"),
    )
    p, p_holm = site_p_values

    def site_evidence(index: int) -> Evidence:
        accuracy, balanced, bits = (figures.figure(name, index) for name in ("probe", "balanced", "bits"))
        if len(repeats):
            divisions = np.array([accuracy.value, *repeats[:, index]])
            accuracy = accuracy.shifted(_centred(divisions), float(divisions.mean()))
        elif index in deviations:
            changes = deviations[index]
            accuracy, balanced, bits = (
                figure.shifted(change, figure.value)
                for figure, change in zip((accuracy, balanced, bits), changes, strict=True)
            )
        return Evidence(site_name(fitted.sites[index]), accuracy, balanced, bits)

    def classifier_evidence(name: str) -> Evidence:
        return Evidence(name, figures.figure(name), figures.figure(f"{name}:balanced"), figures.figure(f"{name}:bits"))

    def shown(index: int) -> Evidence:
        if index == _AFTER_ALL_SITES:
            return classifier_evidence(SCORES) if p_values[SCORES] <= LEVEL else majority
        site_p = p[index] if math.isnan(p_holm[index]) else p_holm[index]
        return site_evidence(index) if site_p <= LEVEL else majority

    answer = classifier_evidence(ANSWER)
    credited, bits = [answer], [answer.bits]
    for index in reversed(sites.credited):
        own = shown(index)
        credited.append(own if own.accuracy.value > credited[-1].accuracy.value else credited[-1])
        bits.append(bits[-1] if bits[-1].value >= own.bits.value else own.bits)
    understood, connector, tower = credited[1:]
    ends = tuple(map(site_evidence, sites.ends))
    return Chain(
        reference=classifier_evidence(REFERENCE) if REFERENCE in figures.values else None,
        ends=(ends[0], ends[1], ends[2]),
        credited=(tower, connector, understood, answer),
        bits=(bits[3], bits[2], bits[1], bits[0]),
        control=shown(sites.control),
        majority=majority,
        groups=figures.groups,
    )


def _deviations(
    fitted: ProbePredictions, labelled: LabelledFeatures, sites: ChainSites, refits: Refits | None
) -> dict[int, tuple[Floats, Floats, Floats]]:
    """Return how accuracy, balanced accuracy and bits of the refits, (R,) each, differ from their means, by site."""
    if refits is None or len(refits.test) < 2:
        return {}
    truth = labelled.of("test")
    log_frequencies = class_log_frequencies(labelled.of("train"), len(labelled.labels))
    accuracy = (refits.test == truth).mean(-1)
    balanced = balanced_accuracy(refits.test, truth)
    bits = information_of_probabilities(refits.test_log_p, truth, log_frequencies).mean(-1)
    figures: Callable[[int], tuple[Floats, Floats, Floats]] = lambda column: (
        _centred(accuracy[:, column]),
        _centred(balanced[:, column]),
        _centred(bits[:, column]),
    )
    return {index: figures(column) for column, index in enumerate(sites.fitted)}


def _centred(values: Floats) -> Floats:
    """Return deviations from the mean, (R,), whose variance is the unbiased one."""
    deviations: Floats = (values - values.mean()) * math.sqrt(len(values) / (len(values) - 1))
    return deviations
