"""Fit the probes of all sites, reading features from the store a block at a time so that memory stays bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medmllm_plugins.errors import OptionError
from medmllm_plugins.metrics.classification import Ints
from medmllm_plugins.probes.control_labels import draw_control_labels, image_types, permute_labels
from medmllm_plugins.probes.labelled_features import LabelledFeatures
from medmllm_plugins.probes.probe_methods import (
    FittedProbe,
    Probe,
    ProbeData,
    load_probe,
    log_probabilities,
    refit,
)
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.prompts.feature_options import CLS, LAST, MEAN
from medmllm_plugins.results.feature_store import FeatureSource, StoredLayer
from medmllm_plugins.results.probe_records import CONTROL, PIXELS
from medmllm_plugins.utils.progress import Progress

LAST_LAYER = "llm.norm"
"""The layer at the end of the LLM."""
_IMAGE_WIDTH = 64
"""Dimensions that images are projected to before they are divided into types."""
_MAX_SPREAD = 10.0
"""No feature enters a probe with more than this many times the standard deviation of the median feature."""
BLOCK_BYTES = 64 * 2**20
"""Bytes of features in memory at a time; at least one layer."""

_Fitted = TypeVar("_Fitted")


@dataclass(frozen=True, slots=True)
class Site:
    """A layer and a pooling; ``width`` is the number of features that the probe is fitted on."""

    layer: str
    part: str
    pooling: str
    width: int
    read: bool


@dataclass(frozen=True, slots=True, eq=False)
class ProbePredictions:
    """Predictions of the probes at F sites, and how they were fitted.

    Attributes:
        validation: (F, v) predicted classes of the validation fold.
        test: (F, t) predicted classes of the test fold.
        validation_log_p: (F, v, K) float32, log probabilities of the classes in nats; NaN if the probe has none.
        test_log_p: (F, t, K) float32, likewise.
        validation_loss: (F,) mean log loss on the validation fold, in nats.
        strength: (F,) chosen inverse L2 strength; NaN if the probe has none.
        gradient_norm: (F,) at the solution, see :func:`medmllm_plugins.probes.logistic.solve`; NaN if unknown.
        control: (F, t) float32, fraction of the control tasks whose class is predicted; NaN without control tasks.
        label_permutation: (F, R) balanced accuracies of probes of permuted labels, on the test fold's permuted labels.
        types: number of image types of the control task; with fewer than two there is no control task.
        warnings: how many fits raised each warning.
    """

    sites: tuple[Site, ...]
    validation: Ints
    test: Ints
    validation_log_p: npt.NDArray[np.float32]
    test_log_p: npt.NDArray[np.float32]
    validation_loss: npt.NDArray[np.float64]
    strength: npt.NDArray[np.float64]
    gradient_norm: npt.NDArray[np.float64]
    control: npt.NDArray[np.float32]
    label_permutation: npt.NDArray[np.float64]
    types: int
    warnings: Mapping[str, int]

    def index_of(self, layer: str, pooling: str) -> int:
        """Return the index of a site in :attr:`sites`, or -1."""
        return next((i for i, site in enumerate(self.sites) if (site.layer, site.pooling) == (layer, pooling)), -1)


@dataclass(frozen=True, slots=True, eq=False)
class _LabelSets:
    """Label sets by fold, (P, n) each: the real labels, then the control tasks, then the permuted labels."""

    train: Ints
    validation: Ints
    test: Ints
    control_tasks: int
    types: int


def select_sites(store: FeatureSource, options: Options) -> tuple[Site, ...]:
    """Return the sites to fit in the store's order, control features last.

    Raises:
        OptionError: the store does not contain a requested pooling or layer.
    """
    layers = store.header.layers
    stored = {pooling for layer in layers for pooling in layer.poolings}
    if unknown := sorted(set(options.poolings) - stored):
        raise OptionError(
            f"Expected argument `poolings` to be among {sorted(stored)}, which the store contains, got {unknown}."
        )
    if unknown := sorted(set(options.layers) - {layer.name for layer in layers}):
        raise OptionError(f"Expected argument `layers` to be among {[layer.name for layer in layers]}, got {unknown}.")
    needed = stage_ends(layers)
    return tuple(
        Site(layer.name, layer.part, pooling, options.width or width, layer.read)
        for layer in layers
        for pooling, width in zip(layer.poolings, layer.widths, strict=True)
        if (layer.name, pooling) in needed
        or (
            (not options.layers or layer.name in options.layers)
            and (not options.poolings or pooling in options.poolings)
        )
    )


def stage_ends(layers: Sequence[StoredLayer]) -> frozenset[tuple[str, str]]:
    """Return the layers and poolings at the ends of tower, connector and LLM, and the control features."""
    tower = [layer.name for layer in layers if layer.part == "vision" and layer.read][-1:]
    ends = {(name, pooling) for name in tower for pooling in (MEAN, CLS)}
    controls = {(layer.name, pooling) for layer in layers if layer.part == CONTROL for pooling in layer.poolings}
    return frozenset(ends | controls | {("connector", MEAN), (LAST_LAYER, LAST)})


def fit_probes(
    store: FeatureSource,
    labelled: LabelledFeatures,
    options: Options,
    device: torch.device | None = None,
    probe: Probe | None = None,
) -> ProbePredictions:
    """Fit a probe at every site to the real labels, the control tasks and permuted labels.

    The penalty is chosen on the validation fold, for the real labels and for each control task separately; probes of
    permuted labels take that of the real ones. The test fold is used once, at the end.

    The device is a CUDA device if there is one, by default; the probe is that of the options.

    Raises:
        DataError: features are not finite, or cannot be read.
    """
    sites = select_sites(store, options)
    device = device or _default_device()
    labels = _make_label_sets(store, labelled, options)
    probe = probe or load_probe(options.protocol)
    warnings: Counter[str] = Counter()
    results: dict[int, _SiteResult] = {}
    progress = Progress(f"{store.header.task}: fitting probes", len(sites), "sites")
    with progress:
        for indices in _blocks(sites, labelled):
            features = _BlockFeatures(store, labelled, [sites[index] for index in indices], options, device)
            block_results, raised = _fit_sites(probe, features, labels)
            results |= zip(indices, block_results, strict=True)
            warnings.update(raised)
            progress.update(len(indices))
    in_order = [results[index] for index in range(len(sites))]
    stacked: dict[str, Any] = {
        part.name: np.array([getattr(result, part.name) for result in in_order]) for part in fields(_SiteResult)
    }
    return ProbePredictions(sites=sites, types=labels.types, warnings=warnings, **stacked)


def _fit_sites(probe: Probe, features: _BlockFeatures, labels: _LabelSets) -> tuple[list[_SiteResult], list[str]]:
    """Fit the sites of one block, and return their results and the warnings of the fits."""
    data = features.probe_data(labels.train, labels.validation, control_tasks=labels.control_tasks)
    log_p = partial(log_probabilities, classes=data.classes)
    predicted, test_log_p = [], []
    with fit_block(probe, data) as block:
        for rows in features.test():
            predicted.append(block.apply(lambda fitted, part: fitted.predict(part), rows).astype(np.int16))
            test_log_p.append(block.apply(log_p, rows))
        validation_log_p = block.apply(log_p, data.validation)
    by_site = zip(
        _figures_by_layer(block.fitted),
        np.concatenate(predicted, axis=2),
        validation_log_p,
        np.concatenate(test_log_p, axis=1),
        strict=True,
    )
    return [_evaluate(*site, labels) for site in by_site], [text for part in block.fitted for text in part.warnings]


@dataclass(frozen=True, slots=True, eq=False)
class Refits:
    """Predictions of probes of the real labels, fitted on R resamples of the train fold's groups at S sites.

    Attributes:
        sites: the sites.
        test: (R, S, t) predicted classes of the test fold.
        test_log_p: (R, S, t, K) float32, log probabilities of the classes in nats; NaN if the probe has none.
    """

    sites: tuple[Site, ...]
    test: Ints
    test_log_p: npt.NDArray[np.float32]


def refit_probes(
    store: FeatureSource,
    labelled: LabelledFeatures,
    options: Options,
    sites: Sequence[Site],
    drawn: Ints,
    device: torch.device | None = None,
) -> Refits:
    """Fit the probes of sites on resamples or parts of the train fold, to see how much depends on its documents.

    The penalty is chosen on the validation fold again each time, by the same rule.

    Args:
        store: the features.
        labelled: the documents.
        options: protocol, grid, width and seed.
        sites: S sites, such as those of :attr:`ProbePredictions.sites`.
        drawn: (R, N) how often each train document was drawn, see :func:`resample_groups` and :func:`half_groups`.
        device: a CUDA device if there is one, by default.

    Raises:
        DataError: features are not finite, or cannot be read.
    """
    device = device or _default_device()
    probe = load_probe(options.protocol)
    row_weights = torch.from_numpy(drawn).to(device)
    documents = len(labelled.rows["test"])
    test = np.empty((len(drawn), len(sites), documents), dtype=np.intp)
    test_log_p = np.empty((*test.shape, len(labelled.labels)), dtype=np.float32)
    for indices in _blocks(sites, labelled):
        features = _BlockFeatures(store, labelled, [sites[index] for index in indices], options, device)
        data = features.probe_data(labelled.of("train")[None], labelled.of("validation")[None], control_tasks=0)
        start = 0
        with fit_block(partial(refit, probe, row_weights=row_weights), data) as block:
            for rows in features.test():
                at = slice(start, start := start + rows.shape[1])
                test[:, indices, at] = block.apply(lambda fitted, part: fitted.predict(part), rows).swapaxes(0, 1)
                test_log_p[:, indices, at] = block.apply(lambda fitted, part: fitted.log_p(part), rows).swapaxes(0, 1)
    return Refits(tuple(sites), test, test_log_p)


class _BlockFeatures:
    """Features of L sites of one width, as their probes take them."""

    def __init__(
        self,
        store: FeatureSource,
        labelled: LabelledFeatures,
        sites: Sequence[Site],
        options: Options,
        device: torch.device,
    ) -> None:
        self._store, self._sites, self._labelled, self._options, self._device = store, sites, labelled, options, device
        train = [store.features(site.layer, site.pooling, labelled.rows["train"]) for site in sites]
        self._transforms = [_transform(features, options) for features in train]
        self._train = self._transformed(train)

    def probe_data(self, train_labels: Ints, validation_labels: Ints, *, control_tasks: int) -> ProbeData:
        """Return the features of the train and validation folds, with label sets (P, N) and (P, V)."""
        rows = self._labelled.rows
        return ProbeData(
            train=self._train,
            validation=self._read(rows["validation"]),
            train_labels=torch.from_numpy(train_labels).to(self._device),
            validation_labels=torch.from_numpy(validation_labels).to(self._device),
            control_tasks=control_tasks,
            classes=len(self._labelled.labels),
            strengths=self._options.strengths,
            seed=self._options.seed,
            validation_groups=torch.from_numpy(self._labelled.groups_of("validation")).to(self._device),
        )

    def test(self) -> Iterator[Tensor]:
        """Yield the features of the test fold in parts (L, T, D), because it may be far larger than the others."""
        rows = self._labelled.rows["test"]
        at_once = max(1, BLOCK_BYTES // (4 * len(self._sites) * self._sites[0].width))
        for start in range(0, len(rows), at_once):
            yield self._read(rows[start : start + at_once])

    def _read(self, rows: Ints) -> Tensor:
        return self._transformed([self._store.features(site.layer, site.pooling, rows) for site in self._sites])

    def _transformed(self, features: Sequence[npt.NDArray[np.float32]]) -> Tensor:
        pairs = zip(features, self._transforms, strict=True)
        transformed = [rows * matrix if matrix.ndim == 1 else rows @ matrix for rows, matrix in pairs]
        return torch.from_numpy(np.stack(transformed)).to(self._device)


class FittedBlock(Generic[_Fitted]):
    """What was fitted to the L layers of a block, one for each share of them, and the threads that apply it."""

    def __init__(self, fitted: Sequence[_Fitted], pool: ThreadPoolExecutor) -> None:
        self.fitted, self._pool = fitted, pool

    def apply(self, function: Callable[[_Fitted, Tensor], Tensor], features: Tensor) -> npt.NDArray[Any]:
        """Apply a function of a share and its features to features (L, T, D), and return the results (L, ...)."""
        results = self._pool.map(function, self.fitted, torch.tensor_split(features, len(self.fitted)))
        return np.concatenate([result.cpu().numpy() for result in results])


@contextmanager
def fit_block(fit: Callable[[ProbeData], _Fitted], data: ProbeData) -> Iterator[FittedBlock[_Fitted]]:
    """Fit the layers of a block; on a CPU, each core fits a share of them.

    Matrix products this small gain little from several cores each, and decompositions become slower.
    """
    layers, threads = len(data.train), torch.get_num_threads()
    shares = 1 if data.train.device.type != "cpu" else min(threads, layers)
    folds = (torch.tensor_split(features, shares) for features in (data.train, data.validation))
    parts = [replace(data, train=train, validation=validation) for train, validation in zip(*folds, strict=True)]
    torch.set_num_threads(1 if shares > 1 else threads)
    try:
        with ThreadPoolExecutor(shares, thread_name_prefix="medmllm-probes") as pool:
            yield FittedBlock(list(pool.map(fit, parts)), pool)
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True, eq=False)
class _SiteResult:
    """Predictions and figures of the probes of one site; see :class:`ProbePredictions`."""

    validation: Ints
    test: Ints
    validation_log_p: npt.NDArray[np.float32]
    test_log_p: npt.NDArray[np.float32]
    validation_loss: float
    strength: float
    gradient_norm: float
    control: npt.NDArray[np.float32]
    label_permutation: npt.NDArray[np.float64]


def _figures_by_layer(fitted: Sequence[FittedProbe]) -> Iterator[tuple[Ints, float, float, float]]:
    """Yield each layer's predictions of the validation fold, their loss, the strength and the norm of the gradient."""
    for part in fitted:
        unknown = torch.full_like(part.validation_loss, float("nan"))
        strength = unknown if part.strength is None else part.strength
        norm = unknown if part.gradient_norm is None else part.gradient_norm
        figures = zip(part.validation_loss.tolist(), strength.tolist(), norm.tolist(), strict=True)
        yield from (
            (validation, *figure) for validation, figure in zip(part.validation.cpu().numpy(), figures, strict=True)
        )


def _evaluate(
    figures: tuple[Ints, float, float, float],
    predicted: npt.NDArray[np.int16],
    validation_log_p: npt.NDArray[np.float32],
    test_log_p: npt.NDArray[np.float32],
    labels: _LabelSets,
) -> _SiteResult:
    """Compare a site's predictions of the test fold, (P, t), with the label sets."""
    real, real_and_control = 1, 1 + labels.control_tasks
    test = predicted[0].astype(np.intp)
    control = np.full(len(test), np.nan, dtype=np.float32)
    if labels.control_tasks:
        hits = predicted[real:real_and_control] == labels.test[real:real_and_control]
        control = hits.mean(0, dtype=np.float32)
    permuted = predicted[real_and_control:]
    permutation = balanced_accuracy(permuted, labels.test[real_and_control:]) if len(permuted) else np.empty(0)
    validation, loss, strength, norm = figures
    return _SiteResult(validation, test, validation_log_p, test_log_p, loss, strength, norm, control, permutation)


def balanced_accuracy(predicted: Ints | npt.NDArray[np.int16], truth: Ints) -> npt.NDArray[np.float64]:
    """Return the mean recall over the classes that occur, (...), of predictions (..., t) for labels (..., t)."""
    recalls = []
    for kind in np.unique(truth):
        members = truth == kind
        with np.errstate(invalid="ignore", divide="ignore"):
            recalls.append(((predicted == kind) & members).sum(-1) / members.sum(-1))
    mean: npt.NDArray[np.float64] = np.nanmean(np.array(np.broadcast_arrays(*recalls)), axis=0)
    return mean


def _make_label_sets(store: FeatureSource, labelled: LabelledFeatures, options: Options) -> _LabelSets:
    generator = np.random.default_rng(options.seed)
    pixels = _coarse_pixels(store)
    types = np.zeros(len(store), dtype=np.intp) if pixels is None else image_types(pixels, labelled)
    count = int(types.max()) + 1
    control_tasks = options.controls if count > 1 else 0
    control = draw_control_labels(types, labelled, control_tasks, generator)
    by_fold = []
    for fold in ("train", "validation", "test"):
        rows = labelled.rows[fold]
        permuted = permute_labels(labelled.of(fold), labelled.groups_of(fold), options.permutations, generator)
        by_fold.append(np.concatenate([labelled.truth[rows][None], control[:, rows], permuted]))
    return _LabelSets(by_fold[0], by_fold[1], by_fold[2], control_tasks=control_tasks, types=count)


def _coarse_pixels(store: FeatureSource) -> npt.NDArray[np.float32] | None:
    """Project the pixels of all images at random, (n, 64), reading them in parts; ``None`` if none are stored."""
    if all(layer.name != PIXELS for layer in store.header.layers):
        return None
    width = store.layer(PIXELS).widths[0]
    matrix = np.random.default_rng(width).standard_normal((width, _IMAGE_WIDTH), dtype=np.float32) / np.sqrt(width)
    at_once = max(1, BLOCK_BYTES // (8 * width))
    parts = [
        store.features(PIXELS, MEAN, np.arange(start, min(start + at_once, len(store)))) @ matrix
        for start in range(0, len(store), at_once)
    ]
    return np.concatenate(parts).astype(np.float32)


def _default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _blocks(sites: Sequence[Site], labelled: LabelledFeatures) -> Iterator[list[int]]:
    """Yield indices of sites of one width, as many as fit into a block."""
    rows = len(labelled.rows["train"]) + len(labelled.rows["validation"])
    by_width: dict[int, list[int]] = {}
    for index, site in enumerate(sites):
        by_width.setdefault(site.width, []).append(index)
    for width, indices in by_width.items():
        size = max(1, BLOCK_BYTES // (4 * rows * width))
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


def _transform(train: npt.NDArray[np.float32], options: Options) -> npt.NDArray[np.float32]:
    """Return factors (D,) of the features, or a random matrix (D, width) that projects them, for train rows (N, D).

    A few features of large models vary a thousand times as much as all others and would dominate every sum, so they are
    limited to :data:`_MAX_SPREAD` times the median. Otherwise nothing is standardised, because features that hardly
    vary are mostly noise.
    """
    spread = _spread(train)
    limit = _MAX_SPREAD * float(np.median(spread))
    factors = np.ones(len(spread), dtype=np.float32)
    if limit > 0:
        factors = np.minimum(1.0, limit / np.maximum(spread, limit)).astype(np.float32)
    if not options.width:
        return factors
    # One projection for all layers of a width, so that they do not differ in the projection.
    generator = np.random.default_rng((options.seed, len(factors)))
    matrix = generator.standard_normal((len(factors), options.width), dtype=np.float32)
    return matrix / np.float32(np.sqrt(options.width)) * factors[:, None]


def _spread(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the standard deviations of the columns of (n, D), summed in float64 a thousand rows at a time."""
    mean, total = features.mean(0, dtype=np.float64), np.zeros(features.shape[1])
    for start in range(0, len(features), 1000):
        total += ((features[start : start + 1000] - mean) ** 2).sum(0)
    deviations: npt.NDArray[np.float64] = np.sqrt(total / len(features))
    return deviations
