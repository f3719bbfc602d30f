"""Fits the probes of all layers: read from the store a block at a time, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medmllm_plugins.errors import OptionError
from medmllm_plugins.features.control_features import PIXELS
from medmllm_plugins.features.store import FeatureStore, StoredLayer
from medmllm_plugins.metrics.classification import Ints
from medmllm_plugins.probes.control_labels import draw_control_labels, image_types, permute_labels
from medmllm_plugins.probes.labelled_features import LabelledFeatures
from medmllm_plugins.probes.probe_methods import FittedProbe, Probe, ProbeData, load_probe
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.prompts.feature_options import CLS, LAST, MEAN
from medmllm_plugins.utils.progress import Progress

LAST_LAYER = "llm.norm"
"""The layer at the end of the LLM."""
_LOOKS = 64
_LOUD = 10.0
"""No feature is to vary more than so many times as much as the middle one when a layer is projected at random."""
BLOCK_BYTES = 64 * 2**20
"""Features that are in memory at a time; at least one layer."""

_Matrix: TypeAlias = npt.NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Site:
    """A curve's point: a layer and a pooling; ``width`` is that of the features that are fitted."""

    layer: str
    part: str
    pooling: str
    width: int
    read: bool


@dataclass(frozen=True, slots=True, eq=False)
class ProbePredictions:
    """What the probes predict, and on what they were fitted.

    Attributes:
        keys: the layers and poolings, F of them.
        validation: (F, v) predicted classes of the validation fold.
        test: (F, t) predicted classes of the test fold.
        validation_loss: (F,) mean log loss on the validation fold, in nats.
        strength: (F,) the inverse L2 strength that was chosen; NaN where there is none to choose.
        gradient_norm: (F,) at the solution, see :func:`medmllm_plugins.probes.logistic.solve`; NaN likewise.
        control: (F, t) float32, share of the control task's drawings whose class is predicted; NaN without a drawing.
        label_permutation: (F, R) balanced accuracies of probes of shuffled labels, against the test fold's labels shuffled likewise.
        types: number of types of pictures for the control task; with fewer than two there is none to draw.
    """

    keys: tuple[Site, ...]
    validation: Ints
    test: Ints
    validation_loss: npt.NDArray[np.float64]
    strength: npt.NDArray[np.float64]
    gradient_norm: npt.NDArray[np.float64]
    control: npt.NDArray[np.float32]
    label_permutation: npt.NDArray[np.float64]
    types: int

    def at(self, layer: str, pooling: str) -> int:
        """The place of a layer and pooling among :attr:`keys`; -1 where it is not there."""
        return next((i for i, key in enumerate(self.keys) if (key.layer, key.pooling) == (layer, pooling)), -1)


@dataclass(frozen=True, slots=True, eq=False)
class _Labels:
    """Label sets: the real one first, then the control task's, then the shuffled ones; by fold."""

    train: Ints
    validation: Ints
    test: Ints
    controls: int
    types: int


def select_sites(store: FeatureStore, options: Options) -> tuple[Site, ...]:
    """The layers and poolings to look at, in the store's order, floors at the end.

    Raises:
        OptionError: a pooling or a layer was asked for that the store does not hold.
    """
    layers = store.header.layers
    held = {pooling for layer in layers for pooling in layer.poolings}
    if unknown := sorted(set(options.poolings) - held):
        raise OptionError(f"Expected poolings among {sorted(held)}, which the store holds, found {unknown}.")
    if unknown := sorted(set(options.layers) - {layer.name for layer in layers}):
        raise OptionError(f"Expected layers among {[layer.name for layer in layers]}, found {unknown}.")
    needed = stage_ends(layers)
    return tuple(
        Site(layer.name, layer.part, pooling, min(width, options.width or width), layer.read)
        for layer in layers
        for pooling, width in zip(layer.poolings, layer.widths, strict=True)
        if (layer.name, pooling) in needed
        or (
            (not options.layers or layer.name in options.layers)
            and (not options.poolings or pooling in options.poolings)
        )
    )


def stage_ends(layers: Sequence[StoredLayer]) -> frozenset[tuple[str, str]]:
    """The layers and poolings at which tower, connector and LLM hand over, and the floors."""
    tower = [layer.name for layer in layers if layer.part == "vision" and layer.read][-1:]
    found = {(name, pooling) for name in tower for pooling in (MEAN, CLS)}
    floors = {(layer.name, pooling) for layer in layers if layer.part == "control" for pooling in layer.poolings}
    return frozenset(found | floors | {("connector", MEAN), (LAST_LAYER, LAST)})


def fit_probes(
    store: FeatureStore, samples: LabelledFeatures, options: Options, device: torch.device | None = None
) -> ProbePredictions:
    """Fit a probe for every layer and pooling, on the real labels, the control task's and shuffled ones.

    The strength of the penalty is chosen by log loss on the validation fold: for the real labels and for each drawing
    of the control task on its own. Probes of shuffled labels take the strength of the real ones. The test fold is
    looked at once, at the end.

    Args:
        store: the features.
        samples: its documents.
        options: how.
        device: where to compute; a CUDA device where there is one, by default.

    Raises:
        DataError: features are not finite, or cannot be read.
    """
    keys = select_sites(store, options)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    labels = _label_sets(store, samples, options)
    train, validation, test = (samples.rows[fold] for fold in ("train", "validation", "test"))
    targets, right = (torch.from_numpy(part).to(device) for part in (labels.train, labels.validation))
    fit = load_probe(options.protocol)
    parts: dict[int, _Said] = {}
    progress = Progress(f"{store.header.task}: fitting probes", len(keys), "sites")
    with progress:
        for block in _blocks(keys, len(train) + len(validation)):
            chosen = [keys[place] for place in block]
            projections = [_projection(store, key, train, options) for key in chosen]

            def read(
                rows: Ints, chosen: Sequence[Site] = chosen, projections: Sequence[_Matrix] = projections
            ) -> Tensor:
                pairs = zip(chosen, projections, strict=True)
                return torch.from_numpy(np.stack([_features(store, key, rows, matrix) for key, matrix in pairs])).to(
                    device
                )

            material = ProbeData(
                train=read(train),
                validation=read(validation),
                targets=targets,
                right=right,
                controls=labels.controls,
                classes=len(samples.labels),
                strengths=options.strengths,
                seed=options.seed,
            )
            with fit_block(fit, material) as (fittings, predict):
                # The test fold may be larger than the others by far; it is read in parts.
                at_once = max(1, BLOCK_BYTES // (4 * len(chosen) * chosen[0].width))
                said = [predict(read(test[start : start + at_once])) for start in range(0, len(test), at_once)]
            predicted = np.concatenate(said, axis=2)
            for place, figures, one in zip(block, _each(fittings), predicted, strict=True):
                parts[place] = _judge(figures, one, labels)
            progress.update(len(block))
    whole = [parts[place] for place in range(len(keys))]
    return ProbePredictions(
        keys=keys,
        validation=np.stack([one.validation for one in whole]),
        test=np.stack([one.test for one in whole]),
        validation_loss=np.array([one.loss for one in whole]),
        strength=np.array([one.strength for one in whole]),
        gradient_norm=np.array([one.gradient_norm for one in whole]),
        control=np.stack([one.control for one in whole]),
        label_permutation=np.stack([one.label_permutation for one in whole]),
        types=labels.types,
    )


@contextmanager
def fit_block(
    fit: Probe, material: ProbeData
) -> Iterator[tuple[list[FittedProbe], Callable[[Tensor], npt.NDArray[np.int16]]]]:
    """Fit the layers of a block; on a CPU a share of them on each core.

    Products this small gain little from several cores each, and decompositions lose by it.

    Yields:
        The fitted probes of each share, and what predicts the classes of further rows, (L, T, D) to (L, P, T), for all
        shares together.
    """
    layers, threads = len(material.train), torch.get_num_threads()
    shares = 1 if material.train.device.type != "cpu" else min(threads, layers)

    def divided(features: Tensor) -> tuple[Tensor, ...]:
        return torch.tensor_split(features, shares)

    materials = [
        replace(material, train=train, validation=validation)
        for train, validation in zip(divided(material.train), divided(material.validation), strict=True)
    ]
    torch.set_num_threads(1 if shares > 1 else threads)
    try:
        with ThreadPoolExecutor(shares, thread_name_prefix="medmllm-probes") as pool:
            fittings = list(pool.map(fit, materials))

            def predict(features: Tensor) -> npt.NDArray[np.int16]:
                found = pool.map(lambda pair: pair[0].predict(pair[1]), zip(fittings, divided(features), strict=True))
                return np.concatenate([part.cpu().numpy().astype(np.int16) for part in found])

            yield fittings, predict
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True, eq=False)
class _Said:
    """What the probes of one layer say."""

    validation: Ints
    test: Ints
    loss: float
    strength: float
    gradient_norm: float
    control: npt.NDArray[np.float32]
    label_permutation: npt.NDArray[np.float64]


def _each(fittings: Sequence[FittedProbe]) -> Iterator[tuple[Ints, float, float, float]]:
    """Of each layer the predictions of the validation fold, their loss, the strength and the norm of the gradient."""
    for fitting in fittings:
        nothing = torch.full_like(fitting.loss, float("nan"))
        strength = nothing if fitting.strength is None else fitting.strength
        norm = nothing if fitting.gradient_norm is None else fitting.gradient_norm
        figures = zip(fitting.loss.tolist(), strength.tolist(), norm.tolist(), strict=True)
        yield from (
            (validation, *figure) for validation, figure in zip(fitting.validation.cpu().numpy(), figures, strict=True)
        )


def _judge(figures: tuple[Ints, float, float, float], predicted: npt.NDArray[np.int16], labels: _Labels) -> _Said:
    """Hold a layer's predictions of the test fold, (P, t), against the label sets."""
    validation, loss, strength, norm = figures
    real, real_and_control = 1, 1 + labels.controls
    test = predicted[0].astype(np.intp)
    control = np.full(len(test), np.nan, dtype=np.float32)
    if labels.controls:
        right = predicted[real:real_and_control] == labels.test[real:real_and_control]
        control = right.mean(0, dtype=np.float32)
    shuffles = predicted[real_and_control:]
    null = balanced_accuracy(shuffles, labels.test[real_and_control:]) if len(shuffles) else np.empty(0)
    return _Said(validation, test, loss, strength, norm, control, null)


def balanced_accuracy(predicted: Ints | npt.NDArray[np.int16], truth: Ints) -> npt.NDArray[np.float64]:
    """Mean recall over the classes that occur, (...), of predictions (..., t) against labels (..., t)."""
    recalls = []
    for kind in np.unique(truth):
        members = truth == kind
        with np.errstate(invalid="ignore", divide="ignore"):
            recalls.append(((predicted == kind) & members).sum(-1) / members.sum(-1))
    found: npt.NDArray[np.float64] = np.nanmean(np.array(np.broadcast_arrays(*recalls)), axis=0)
    return found


def _label_sets(store: FeatureStore, samples: LabelledFeatures, options: Options) -> _Labels:
    generator = np.random.default_rng(options.seed)
    types = image_types(_looks(store), samples)
    count = int(types.max()) + 1
    controls = options.controls if count > 1 else 0
    control = draw_control_labels(types, samples, controls, generator)
    by_fold = []
    for fold in ("train", "validation", "test"):
        rows = samples.rows[fold]
        null = permute_labels(samples.of(fold), samples.groups_of(fold), options.shuffles, generator)
        by_fold.append(np.concatenate([samples.truth[rows][None], control[:, rows], null]))
    return _Labels(by_fold[0], by_fold[1], by_fold[2], controls=controls, types=count)


def _looks(store: FeatureStore) -> npt.NDArray[np.float32]:
    """What pictures look like, coarsely, (n, 64): raw pixels under one random projection, read in parts."""
    width = store.layer(PIXELS).widths[0]
    matrix = np.random.default_rng(width).standard_normal((width, _LOOKS), dtype=np.float32) / np.sqrt(width)
    at_once = max(1, BLOCK_BYTES // (8 * width))
    parts = [
        store.features(PIXELS, MEAN, np.arange(start, min(start + at_once, len(store)))) @ matrix
        for start in range(0, len(store), at_once)
    ]
    return np.concatenate(parts).astype(np.float32)


def _blocks(keys: Sequence[Site], rows: int) -> Iterator[list[int]]:
    """Places of keys of one width, as many as fit into a block."""
    by_width: dict[int, list[int]] = {}
    for place, key in enumerate(keys):
        by_width.setdefault(key.width, []).append(place)
    for width, places in by_width.items():
        size = max(1, BLOCK_BYTES // (4 * rows * width))
        for start in range(0, len(places), size):
            yield places[start : start + size]


def _projection(store: FeatureStore, key: Site, train: Ints, options: Options) -> _Matrix:
    """The random matrix, (D, d), that a wide layer goes through; ``None`` for one that stays as it is.

    Some features of large models vary a thousand times as much as all others, and would drown them in every sum: these
    are held to :data:`_LOUD` times the middle one. Beyond that nothing is standardised, for what hardly varies is
    mostly noise.
    """
    held = store.layer(key.layer)
    width = held.widths[held.poolings.index(key.pooling)]
    if width <= key.width:
        return None
    # One projection for all layers of a width: what differs between them is then not the projection.
    generator = np.random.default_rng((options.seed, width))
    matrix = generator.standard_normal((width, key.width), dtype=np.float32) / np.float32(np.sqrt(key.width))
    spread = _spread(store.features(key.layer, key.pooling, train))
    most = _LOUD * float(np.median(spread))
    if most > 0:
        matrix *= np.minimum(1.0, most / np.maximum(spread, most))[:, None].astype(np.float32)
    return matrix


def _spread(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Standard deviations of the columns of (n, D), summed in float64 a thousand rows at a time."""
    mean, total = features.mean(0, dtype=np.float64), np.zeros(features.shape[1])
    for start in range(0, len(features), 1000):
        total += ((features[start : start + 1000] - mean) ** 2).sum(0)
    found: npt.NDArray[np.float64] = np.sqrt(total / len(features))
    return found


def _features(store: FeatureStore, key: Site, rows: Ints, matrix: _Matrix) -> npt.NDArray[np.float32]:
    found = store.features(key.layer, key.pooling, rows)
    return found if matrix is None else found @ matrix
