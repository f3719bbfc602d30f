"""Fits the probes of all loci: read from the store a block at a time, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from medmllm_plugins.capture.floors import PIXELS
from medmllm_plugins.capture.store import FeatureStore, Locus
from medmllm_plugins.errors import OptionError
from medmllm_plugins.metrics.classification import Ints
from medmllm_plugins.probes.controls import control_labels, image_types, shuffled
from medmllm_plugins.probes.options import Options
from medmllm_plugins.probes.recipes import Material, Predictions, Probe, probe
from medmllm_plugins.probes.samples import Samples
from medmllm_plugins.questions.features import CLS, LAST, MEAN

LAST_LOCUS = "llm.norm"
"""The locus at the end of the LLM."""
BLOCK_BYTES = 128 * 2**20
"""Features that are in memory at a time; at least one locus."""


@dataclass(frozen=True, slots=True)
class Key:
    """A curve's point: a locus and a pooling."""

    locus: str
    part: str
    pooling: str
    width: int
    read: bool


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What the probes predict, and on what they were fitted.

    Attributes:
        keys: the loci and poolings, F of them.
        validation: (F, v) predicted classes of the validation fold.
        test: (F, t) predicted classes of the test fold.
        validation_loss: (F,) mean log loss on the validation fold, in nats.
        strength: (F,) the inverse L2 strength that was chosen; NaN where there is none to choose.
        gradient_norm: (F,) at the solution, see :func:`medmllm_plugins.probes.logistic.solve`; NaN likewise.
        control: (F, S, t) predictions of the control task's classes.
        control_truth: (S, t) these classes.
        null: (F, R, t) predictions after fitting on shuffled labels.
        null_truth: (R, t) the test fold's labels, shuffled likewise.
        types: number of types of the control task.
    """

    keys: tuple[Key, ...]
    validation: Ints
    test: Ints
    validation_loss: npt.NDArray[np.float64]
    strength: npt.NDArray[np.float64]
    gradient_norm: npt.NDArray[np.float64]
    control: Ints
    control_truth: Ints
    null: Ints
    null_truth: Ints
    types: int

    def at(self, locus: str, pooling: str) -> int:
        """The place of a locus and pooling among :attr:`keys`; -1 where it is not there."""
        return next((i for i, key in enumerate(self.keys) if (key.locus, key.pooling) == (locus, pooling)), -1)


@dataclass(frozen=True, slots=True, eq=False)
class _Labels:
    """Label sets: the real one first, then the control task's, then the shuffled ones; by fold."""

    train: Ints
    validation: Ints
    test: Ints
    controls: int
    types: int


def keys_of(store: FeatureStore, options: Options) -> tuple[Key, ...]:
    """The loci and poolings to look at, in the store's order, floors at the end.

    Raises:
        OptionError: a pooling or a locus was asked for that the store does not hold.
    """
    loci = store.header.loci
    held = {pooling for locus in loci for pooling in locus.poolings}
    if unknown := sorted(set(options.poolings) - held):
        raise OptionError(f"Expected poolings among {sorted(held)}, which the store holds, found {unknown}.")
    if unknown := sorted(set(options.loci) - {locus.name for locus in loci}):
        raise OptionError(f"Expected loci among {[locus.name for locus in loci]}, found {unknown}.")
    needed = ends(loci)
    return tuple(
        Key(locus.name, locus.part, pooling, width, locus.read)
        for locus in loci
        for pooling, width in zip(locus.poolings, locus.widths, strict=True)
        if (locus.name, pooling) in needed
        or (
            (not options.loci or locus.name in options.loci)
            and (not options.poolings or pooling in options.poolings or locus.part == "floor")
        )
    )


def ends(loci: Sequence[Locus]) -> frozenset[tuple[str, str]]:
    """The loci and poolings at which tower, connector and LLM hand over, and the raw pixels."""
    tower = [locus.name for locus in loci if locus.part == "vision" and locus.read][-1:]
    found = {(name, pooling) for name in tower for pooling in (MEAN, CLS)}
    return frozenset(found | {("connector", MEAN), (LAST_LOCUS, LAST), (PIXELS, MEAN)})


def fit_probes(store: FeatureStore, samples: Samples, options: Options, device: torch.device | None = None) -> Fitted:
    """Fit a probe for every locus and pooling, on the real labels, the control task's and shuffled ones.

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
    keys = keys_of(store, options)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    labels = _label_sets(store, samples, options)
    rows = np.concatenate([samples.rows["train"], samples.rows["validation"], samples.rows["test"]])
    folds = [len(samples.rows["train"]), len(samples.rows["validation"]), len(samples.rows["test"])]
    targets, right = (torch.from_numpy(part).to(device) for part in (labels.train, labels.validation))
    fit = probe(options.protocol)
    parts: dict[int, _Said] = {}
    for block in _blocks(keys, len(rows)):
        features = np.stack([_features(store, keys[place], rows, options) for place in block])
        train, validation, test = torch.split(torch.from_numpy(features).to(device), folds, dim=1)
        material = Material(
            train=train,
            validation=validation,
            test=test,
            targets=targets,
            right=right,
            controls=labels.controls,
            classes=len(samples.labels),
            strengths=options.strengths,
            seed=options.seed,
        )
        parts |= dict(zip(block, _fit(fit, material), strict=True))
    whole = [parts[place] for place in range(len(keys))]
    controls = labels.controls
    return Fitted(
        keys=keys,
        validation=np.stack([one.validation for one in whole]),
        test=np.stack([one.test[0] for one in whole]),
        validation_loss=np.array([one.loss for one in whole]),
        strength=np.array([one.strength for one in whole]),
        gradient_norm=np.array([one.gradient_norm for one in whole]),
        control=np.stack([one.test[1 : 1 + controls] for one in whole]),
        control_truth=labels.test[1 : 1 + controls],
        null=np.stack([one.test[1 + controls :] for one in whole]),
        null_truth=labels.test[1 + controls :],
        types=labels.types,
    )


def _fit(fit: Probe, material: Material) -> list[_Said]:
    """Fit the loci of a block; on a CPU a share of them on each core.

    Products this small gain little from several cores each, and decompositions lose by it.
    """
    loci, threads = len(material.train), torch.get_num_threads()
    shares = 1 if material.train.device.type != "cpu" else min(threads, loci)
    parts = zip(
        *(torch.tensor_split(part, shares) for part in (material.train, material.validation, material.test)),
        strict=True,
    )
    materials = [replace(material, train=one, validation=two, test=three) for one, two, three in parts]
    if shares == 1:
        return _Said.each(fit(materials[0]))
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(shares, thread_name_prefix="medmllm-probes") as pool:
            return [said for found in pool.map(fit, materials) for said in _Said.each(found)]
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True, eq=False)
class _Said:
    """The predictions of one locus."""

    validation: Ints
    test: Ints
    loss: float
    strength: float
    gradient_norm: float

    @classmethod
    def each(cls, said: Predictions) -> list[_Said]:
        """The predictions of some loci, one by one."""
        nothing = torch.full_like(said.loss, float("nan"))
        strength = nothing if said.strength is None else said.strength
        norm = nothing if said.gradient_norm is None else said.gradient_norm
        validation, test = said.validation.cpu().numpy(), said.test.cpu().numpy()
        rows = zip(said.loss.tolist(), strength.tolist(), norm.tolist(), strict=True)
        return [cls(validation[place], test[place], *figures) for place, figures in enumerate(rows)]


def _label_sets(store: FeatureStore, samples: Samples, options: Options) -> _Labels:
    generator = np.random.default_rng(options.seed)
    types = image_types(store.features(PIXELS, MEAN), samples)
    control = control_labels(types, samples, options.controls, generator)
    by_fold = []
    for fold in ("train", "validation", "test"):
        rows = samples.rows[fold]
        null = shuffled(samples.of(fold), samples.groups_of(fold), options.shuffles, generator)
        by_fold.append(np.concatenate([samples.truth[rows][None], control[:, rows], null]))
    return _Labels(by_fold[0], by_fold[1], by_fold[2], controls=options.controls, types=int(types.max()) + 1)


def _blocks(keys: Sequence[Key], rows: int) -> Iterator[list[int]]:
    """Places of keys of one width, as many as fit into a block."""
    by_width: dict[int, list[int]] = {}
    for place, key in enumerate(keys):
        by_width.setdefault(key.width, []).append(place)
    for width, places in by_width.items():
        size = max(1, BLOCK_BYTES // (4 * rows * width))
        for start in range(0, len(places), size):
            yield places[start : start + size]


def _features(store: FeatureStore, key: Key, rows: Ints, options: Options) -> npt.NDArray[np.float32]:
    found = store.features(key.locus, key.pooling, rows)
    if options.width and key.width > options.width:
        # One projection for all loci of a width: what differs between them is then not the projection.
        generator = np.random.default_rng((options.seed, key.width))
        matrix = generator.standard_normal((key.width, options.width), dtype=np.float32)
        found = found @ (matrix / np.float32(np.sqrt(options.width)))
    return found
