"""Compare probes and answers on the same documents with the border of their images shown and masked.

The probes are those of the stages' ends, fitted on unmasked train images. The model saw the masked images in the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from medmllm_plugins.data.core.documents import MASKED
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import (
    RESAMPLES,
    SHARE,
    bootstrap,
    effective_groups,
    estimate,
    size_inflation,
)
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.paired_difference import paired_difference
from medmllm_plugins.probes.fitting import Site, fit_probes
from medmllm_plugins.probes.labelled_features import LabelledFeatures
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.results.feature_store import FeatureStore
from medmllm_plugins.results.shortcut_records import ANSWERS, MaskedCheck


def masked_answers(
    store: FeatureStore, outcomes: Sequence[Outcome], read: Callable[[str, str], str | None], *, seed: int = 0
) -> MaskedCheck | None:
    """Compare the answers about masked and unmasked images.

    Args:
        store: the features, whose index holds the answers about masked images.
        outcomes: the scored answers about unmasked images.
        read: returns the class in the answer to a document, from the document's id and the answer's text.
        seed: of the bootstrap resamples.

    Returns:
        ``None`` where no masked images were shown.
    """
    index = store.index[store.index["fold"].astype(str) == MASKED]
    if index.empty:
        return None
    predicted = {outcome.id: outcome.predicted for outcome in outcomes}
    hits = np.zeros((2, len(index)))
    columns = (index[name].astype(str) for name in ("id", "document", "label", "answer"))
    for row, (name, document, label, answer) in enumerate(zip(*columns, strict=True)):
        # Where an outcome is missing, :func:`medmllm_plugins.probes.analysis.analyse` says so.
        shown = predicted.get(name.removesuffix(f" | {MASKED}"))
        hits[:, row] = shown == label, read(document, answer) == label
    group = np.unique(index["group"].astype(str).to_numpy(), return_inverse=True)[1]
    return _compare(ANSWERS, "", hits, group, seed)


def masked_probes(
    store: FeatureStore,
    labelled: LabelledFeatures,
    options: Options,
    sites: Sequence[Site],
    device: torch.device | None = None,
) -> list[MaskedCheck]:
    """Compare the probes of the stages' ends on masked and unmasked images.

    Args:
        store: the features, those of masked images among them.
        labelled: the documents.
        options: how probes are fitted.
        sites: the ends of the stages.
        device: where to fit.

    Returns:
        A comparison for each site; none where no masked images were shown.
    """
    masked = np.flatnonzero(store.index["fold"].astype(str) == MASKED).astype(np.intp)
    if not len(masked):
        return []
    documents = store.index["document"].astype(str).to_numpy()
    row_of = {documents[row]: row for row in labelled.rows["test"]}
    unmasked = np.array([row_of[name] for name in documents[masked]], dtype=np.intp)
    both = replace(labelled, rows={**labelled.rows, "test": np.concatenate([unmasked, masked])})
    layers = tuple(dict.fromkeys(site.layer for site in sites))
    plain = replace(options, width=0, layers=layers, poolings=(), permutations=0, controls=0, repeats=0)
    fitted = fit_probes(store, both, plain, device)
    group = np.unique(labelled.group[masked], return_inverse=True)[1]
    checks = []
    for site in sites:
        hits = fitted.test[fitted.index_of(site.layer, site.pooling)] == both.of("test")
        checks.append(_compare(site.layer, site.pooling, hits.reshape(2, -1).astype(float), group, options.seed))
    return checks


def _compare(layer: str, pooling: str, hits: Floats, group: Ints, seed: int) -> MaskedCheck:
    """Compare which documents (2, n) are classified correctly without and with the mask."""
    values, resampled = bootstrap(
        lambda weights: {"accuracy": (hits @ weights / weights.sum(0)).T}, group, resamples=RESAMPLES, seed=seed
    )
    shown, masked = (
        estimate(float(value), column, groups=effective_groups(group), bounds=SHARE, inflation=float(inflation))
        for value, column, inflation in zip(
            values["accuracy"], resampled["accuracy"].T, size_inflation(hits, group), strict=True
        )
    )
    return MaskedCheck(
        layer=layer,
        pooling=pooling,
        n=hits.shape[1],
        groups=int(group.max()) + 1,
        shown=shown,
        masked=masked,
        drop=paired_difference(hits[0] - hits[1], resampled["accuracy"] @ (1.0, -1.0), group),
    )
