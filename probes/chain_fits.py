"""The probes that the verdicts rest on: their sites, fits, refits, and fits on half of the train documents.

They are fitted on features as they are, whatever width the curves are projected to: a random projection keeps less of
the class in a wide layer than in a narrow one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.probes.curves import site_p_values
from medmllm_plugins.probes.fitting import LAST_LAYER, ProbePredictions, Refits, Site, fit_probes, refit_probes
from medmllm_plugins.probes.labelled_features import LabelledFeatures, half_groups, resample_groups, resplit
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.prompts.feature_options import CLS, LAST, MEAN
from medmllm_plugins.results.feature_store import FeatureStore
from medmllm_plugins.results.probe_records import CONTROL

AFTER_ALL_SITES: Final = -1
"""In place of a site's index: the label that scores highest."""


@dataclass(frozen=True, slots=True)
class ChosenSites:
    """The sites that the chain is measured at, as indices; chosen on the validation fold.

    Attributes:
        ends: the stages' own ends: tower (the better of mean and class token), connector, and LLM.
        credited: the site that shows most of the class at or after each of these ends; -1 for the label scores.
        control: the best control features.
    """

    ends: tuple[int, int, int]
    credited: tuple[int, int, int]
    control: int

    @property
    def indices(self) -> tuple[int, ...]:
        """All sites, without the label scores."""
        return tuple(sorted({*self.ends, *self.credited, self.control} - {AFTER_ALL_SITES}))

    def renumbered(self, index_of: Callable[[int], int]) -> ChosenSites:
        """Return the same sites under other indices."""

        def renumber(index: int) -> int:
            return index if index == AFTER_ALL_SITES else index_of(index)

        tower, connector, llm = map(renumber, self.ends)
        from_tower, from_connector, from_llm = map(renumber, self.credited)
        return ChosenSites((tower, connector, llm), (from_tower, from_connector, from_llm), renumber(self.control))


@dataclass(frozen=True, slots=True, eq=False)
class ChainFits:
    """Probes at the S sites of the chain.

    Attributes:
        sites: the sites.
        chosen: what they were chosen for, as indices of ``sites``.
        test: (S, t) predicted classes.
        test_log_p: (S, t, K) float32, log probabilities in nats; NaN if the probe has none.
        p_values: (S,) by permutation of the test labels, after Holm's correction for sites of the model.
        refits: fits on resamples of the train groups; ``None`` for none.
        half: (S, t) share of the probes fitted on half of the train groups that are correct; ``None`` for none.
        repeats: (R, S) accuracies on further divisions into folds; R may be 0.
    """

    sites: tuple[Site, ...]
    chosen: ChosenSites
    test: Ints
    test_log_p: npt.NDArray[np.float32]
    p_values: Floats
    refits: Refits | None
    half: Floats | None
    repeats: Floats


def site_name(site: Site) -> str:
    """Return text such as ``connector (mean)``."""
    return f"{site.layer} ({site.pooling})"


def fit_chain(
    store: FeatureStore,
    labelled: LabelledFeatures,
    options: Options,
    fitted: ProbePredictions,
    site_p: tuple[Floats, Floats],
    scored: Floats | None,
    device: torch.device | None,
) -> ChainFits:
    """Choose the sites of the chain and fit their probes.

    Args:
        store: the features.
        labelled: the documents.
        options: how probes are fitted.
        fitted: the probes of all sites.
        site_p: their p-values, see :func:`~medmllm_plugins.probes.curves.site_p_values`.
        scored: (v,) 1 where the label that scores highest is correct; ``None`` without scores.
        device: where to fit.
    """
    chosen = _choose_sites(fitted, labelled, scored)
    sites = tuple(fitted.sites[index] for index in chosen.indices)
    layers = tuple({site.layer: None for site in sites})
    plain = replace(options, width=0, layers=layers, poolings=(), permutations=0, controls=0, repeats=0)
    full = fit_probes(store, labelled, plain, device) if options.width else fitted
    columns = [full.index_of(site.layer, site.pooling) for site in sites]
    p, p_holm = site_p_values(full, labelled, seed=options.seed) if options.width else site_p

    def accuracies(divided: LabelledFeatures) -> Floats:
        refitted = fit_probes(store, divided, plain, device)
        rows = [refitted.index_of(site.layer, site.pooling) for site in sites]
        means: Floats = (refitted.test[rows] == divided.of("test")).mean(1)
        return means

    repeats = [accuracies(resplit(labelled, store, options.seed + 1 + repeat)) for repeat in range(options.repeats)]
    chain_sites = tuple(full.sites[column] for column in columns)
    refits, half = None, None
    if options.refits:
        generator = np.random.default_rng((options.seed, 2))
        train = labelled.of("train"), labelled.groups_of("train")
        drawn = [draw(*train, options.refits, generator) for draw in (resample_groups, half_groups)]
        both = refit_probes(store, labelled, plain, chain_sites, np.concatenate(drawn), device)
        refits = Refits(chain_sites, both.test[: options.refits], both.test_log_p[: options.refits])
        half = (both.test[options.refits :] == labelled.of("test")).mean(0)
    return ChainFits(
        sites=chain_sites,
        chosen=chosen.renumbered(chosen.indices.index),
        test=full.test[columns],
        test_log_p=full.test_log_p[columns],
        p_values=np.where(np.isnan(p_holm), p, p_holm)[columns],
        refits=refits,
        half=half,
        repeats=np.array(repeats).reshape(options.repeats, len(sites)),
    )


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


def _choose_sites(fitted: ProbePredictions, labelled: LabelledFeatures, scored: Floats | None) -> ChosenSites:
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
        return indices[last] if last < len(indices) else AFTER_ALL_SITES

    controls = [index for index, site in enumerate(fitted.sites) if site.part == CONTROL]
    return ChosenSites(
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
