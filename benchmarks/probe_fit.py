"""Linear probes of all layers: this package's fits in a few products against a loop with scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.measure import Noted, compare, stopwatch
from benchmarks.record import Record, Settings, Target
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.options import resolve_device
from medmllm_plugins.probes.fitting import BLOCK_BYTES, fit_block
from medmllm_plugins.probes.logistic import STRENGTHS
from medmllm_plugins.probes.probe_methods import ProbeData, fit_linear

LAYERS, WIDTH, CLASSES = 140, 2048, 3
"""70 places in a model with two poolings each, as wide as the LLM of MedM-VL."""
FOLDS = (600, 200, 400)
"""Train, validation and test rows."""
CONTROLS, SHUFFLES = 3, 20
COMPARED = (0, 35, 70, 105, 139)
"""Layers on which the loop runs; its time is told for all. Whole it takes some twenty minutes."""
MEAN_POINTS, WORST_POINTS = 0.5, 1.5
"""How far test accuracy may lie apart on average, and below for one probe, in percentage points.

The second is of probes of real and control labels alone. What a probe of shuffled labels answers hangs on nothing, and
turns over where scikit-learn stops a little short of the solution.
"""


@dataclass(frozen=True, slots=True)
class Problem:
    """Made-up features and labels.

    Attributes:
        features: for each fold (L, n, D) float16, as the store holds them.
        labels: for each fold (1 + controls + shuffles, n) int64: the real ones, the control task's, shuffled ones.
    """

    features: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]


def problem(layers: int, width: int, folds: tuple[int, int, int], seed: int = 0) -> Problem:
    """Features like those of a model: correlated, of decaying spectrum, the classes clearer the deeper the layer.

    What the images are (their hidden factors) is the same at all layers, and mixed anew in each.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = sum(folds)
    truth = torch.randint(CLASSES, (rows,), generator=generator)
    hidden = torch.randn(rows, width, generator=generator)
    signal = torch.randn(CLASSES, width, generator=generator)[truth]
    decay = torch.arange(1, width + 1).pow(-0.5)
    # A control label is a function of some hidden factors: it can be learnt, and has nothing to do with the class.
    controls = (hidden[:, :10] @ torch.randn(CONTROLS, 10, CLASSES, generator=generator)).argmax(-1)
    features = torch.empty(layers, rows, width, dtype=torch.float16)
    for layer in range(layers):
        mix = torch.randn(width, width, generator=generator) / math.sqrt(width)
        noise = torch.randn(rows, width, generator=generator)
        strength = 0.05 + 0.2 * layer / layers
        features[layer] = ((hidden + noise + strength * signal) * decay) @ mix
    labels = []
    for fold in torch.split(torch.cat([truth[None], controls]), folds, dim=1):
        shuffled = [fold[0, torch.randperm(fold.shape[1], generator=generator)] for _ in range(SHUFFLES)]
        labels.append(torch.cat([fold, torch.stack(shuffled)]))
    return Problem(torch.split(features, folds, dim=1), tuple(labels))


def at_once(data: Problem, device: torch.device) -> Tensor:
    """This package: test accuracy (L, label sets), with strengths chosen by log loss on the validation fold."""
    train, validation, test = data.labels
    found = []
    each_layer = 4 * data.features[0].shape[2] * sum(part.shape[1] for part in data.features[:2])
    block = max(1, BLOCK_BYTES // each_layer)  # as many as a run holds
    for start in range(0, len(data.features[0]), block):
        rows, held_out, tested = (part[start : start + block].to(device).float() for part in data.features)
        material = ProbeData(
            train=rows,
            validation=held_out,
            targets=train.to(device),
            right=validation.to(device),
            controls=CONTROLS,
            classes=CLASSES,
            strengths=STRENGTHS,
            seed=0,
        )
        with fit_block(fit_linear, material) as (_, predict):
            found.append(torch.from_numpy(predict(tested)) == test)
    return torch.cat(found).float().mean(-1)


def loop(data: Problem, layers: Sequence[int]) -> Tensor:
    """scikit-learn, one fit after the other: test accuracy (layers, label sets), with strengths chosen likewise."""
    train, validation, test = (part.numpy() for part in data.labels)
    found = np.empty((len(layers), len(train)))
    for place, layer in enumerate(layers):
        folds = [part[layer].float().numpy() for part in data.features]
        scaler = StandardScaler().fit(folds[0])
        rows, held_out, tested = (scaler.transform(fold) for fold in folds)
        best = math.nan
        for labels in range(len(train)):
            if labels > CONTROLS:
                model = _fit(rows, train[labels], best)
            else:
                models = [_fit(rows, train[labels], strength) for strength in STRENGTHS]
                at = np.arange(len(held_out)), validation[labels]
                model = max(models, key=lambda one, at=at: one.predict_log_proba(held_out)[at].mean())
            if labels == 0:
                best = model.C
            found[place, labels] = model.score(tested, test[labels])
    return torch.from_numpy(found).float()


def _fit(rows: npt.NDArray[np.float32], target: npt.NDArray[np.int64], strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=10_000).fit(rows, target)


def check(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """See to it that both sides are as accurate.

    Args:
        ours: accuracies of this package's probes, (layers, label sets), those of shuffled labels last.
        theirs: those of scikit-learn's.

    Returns:
        By how many percentage points ours are better on average over all label sets, and the least that one is among
        the real and the control ones.

    Raises:
        ModelError: they lie too far apart.
    """
    points = 100 * (ours - theirs).double()
    mean, worst = float(points.mean()), float(points[:, : 1 + CONTROLS].min())
    if not (abs(mean) <= MEAN_POINTS and worst >= -WORST_POINTS):
        raise ModelError(
            f"Expected test accuracies within {MEAN_POINTS} points on average and none more than {WORST_POINTS} below, "
            f"found {mean:+.2f} on average and {worst:+.2f} at worst: run `pytest tests/probes/test_logistic.py`."
        )
    return mean, worst


def run(settings: Settings) -> Record:
    """Compare the two ways.

    Raises:
        ModelError: they do not find the same.
        OptionError: there is no such device.
    """
    device = resolve_device(settings.device)
    data = problem(LAYERS, WIDTH, FOLDS)
    first = slice(0, min(2, LAYERS))
    at_once(Problem(tuple(part[first] for part in data.features), data.labels), device)  # the warm-up
    ours, theirs = Noted(lambda: at_once(data, device)), Noted(lambda: loop(data, COMPARED))
    fast, slow = stopwatch(ours, device), stopwatch(theirs, torch.device("cpu"))
    comparison = compare(lambda: slow() * LAYERS / len(COMPARED), fast, repeats=settings.repeats)
    mean, worst = check(ours.last[list(COMPARED)], theirs.last)
    real = 1 + CONTROLS
    return Record(
        settings=settings,
        sides=(
            ("loop", f"a loop with scikit-learn, {len(COMPARED)} layers timed and told for {LAYERS}"),
            ("at_once", "this package: all layers, strengths and label sets in blocks"),
        ),
        comparison=comparison,
        target=Target("at least", 100.0 if device.type == "cuda" else 20.0),
        details={
            "layers": LAYERS,
            "train_rows": FOLDS[0],
            "width": WIDTH,
            "fits": LAYERS * (len(STRENGTHS) * (1 + CONTROLS) + SHUFFLES),
            "layers_of_the_loop": len(COMPARED),
            "points_better": round(mean, 3),
            "points_at_worst": round(worst, 3),
            "accuracy": float(ours.last[:, 0].mean()),
            "control_accuracy": float(ours.last[:, 1:real].mean()),
            "shuffled_accuracy": float(ours.last[:, real:].mean()),
            "threads": torch.get_num_threads(),
        },
    )
