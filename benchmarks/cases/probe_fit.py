"""Linear probes of all sites: this package's fits in a few products against a loop with scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

from benchmarks.harness import Benchmark, Details, Run, Sides, expect
from medmllm_plugins.probes.fitting import BLOCK_BYTES, fit_block
from medmllm_plugins.probes.logistic import STRENGTHS
from medmllm_plugins.probes.probe_methods import ProbeData, fit_linear

CLASSES, CONTROLS, SHUFFLES = 3, 3, 20
MEAN_POINTS, WORST_POINTS = 0.5, 1.5
"""Largest difference of test accuracy in points: on average, and below scikit-learn's for one probe.

The second bound leaves out probes of shuffled labels, whose answers change where scikit-learn stops a little short of
the solution.
"""


Array: TypeAlias = npt.NDArray[Any]


class Problem(NamedTuple):
    """Made-up features and labels.

    Attributes:
        features: For each fold (sites, n, width) float16, as the store holds them.
        labels: For each fold (1 + controls + shuffles, n) int64: the real ones, the control task's, shuffled ones.
    """

    features: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]

    def first(self, count: int) -> Problem:
        """Return the problem of the first sites alone."""
        return Problem(tuple(part[:count] for part in self.features), self.labels)


def problem(sites: int, width: int, folds: tuple[int, int, int]) -> Problem:
    """Make up features like those of a model: correlated, of decaying spectrum, classes clearer in deeper sites.

    The hidden factors of the images are the same at all sites, mixed differently in each.
    """
    generator = torch.Generator().manual_seed(0)
    rows = sum(folds)
    truth = torch.randint(CLASSES, (rows,), generator=generator)
    hidden = torch.randn(rows, width, generator=generator)
    signal = torch.randn(CLASSES, width, generator=generator)[truth]
    decay = torch.arange(1, width + 1).pow(-0.5)
    # A control label is a function of some hidden factors: it can be learnt, and has nothing to do with the class.
    controls = (hidden[:, :10] @ torch.randn(CONTROLS, 10, CLASSES, generator=generator)).argmax(-1)
    features = torch.empty(sites, rows, width, dtype=torch.float16)
    for site in range(sites):
        mix = torch.randn(width, width, generator=generator) / math.sqrt(width)
        noise = torch.randn(rows, width, generator=generator)
        strength = 0.05 + 0.2 * site / sites
        features[site] = ((hidden + noise + strength * signal) * decay) @ mix
    labels = []
    for fold in torch.split(torch.cat([truth[None], controls]), list(folds), dim=1):
        shuffled = [fold[0, torch.randperm(fold.shape[1], generator=generator)] for _ in range(SHUFFLES)]
        labels.append(torch.cat([fold, torch.stack(shuffled)]))
    return Problem(torch.split(features, list(folds), dim=1), tuple(labels))


def at_once(data: Problem, device: torch.device) -> Tensor:
    """Return this package's test accuracy (sites, label sets), strengths chosen on the validation fold."""
    train, validation, test = data.labels
    correct = []
    bytes_per_site = 4 * data.features[0].shape[2] * sum(part.shape[1] for part in data.features[:2])
    block = max(1, BLOCK_BYTES // bytes_per_site)  # as many as a run holds
    for start in range(0, len(data.features[0]), block):
        rows, held_out, tested = (part[start : start + block].to(device).float() for part in data.features)
        labels = train.to(device), validation.to(device)
        probe_data = ProbeData(rows, held_out, *labels, CONTROLS, CLASSES, STRENGTHS, seed=0)
        with fit_block(fit_linear, probe_data) as fitted:
            correct.append(torch.from_numpy(fitted.apply(lambda part, rows: part.predict(rows), tested)) == test)
    return torch.cat(correct).float().mean(-1)


def loop(data: Problem, sites: Sequence[int], controls: int = CONTROLS) -> Tensor:
    """Return scikit-learn's test accuracy (sites, label sets), one fit after the other, strengths chosen likewise."""
    train, validation, test = (part.numpy() for part in data.labels)
    accuracy = np.empty((len(sites), len(train)))
    for row, site in enumerate(sites):
        folds = [part[site].float().numpy() for part in data.features]
        centre = folds[0].mean(0)
        scale = np.sqrt(((folds[0] - centre) ** 2).sum(1).mean())
        rows, held_out, tested = ((fold - centre) / scale for fold in folds)
        best = math.nan
        for labels in range(len(train)):
            strengths = STRENGTHS if labels <= controls else (best,)
            models = [LogisticRegression(C=value, max_iter=10_000).fit(rows, train[labels]) for value in strengths]
            model = _choose(models, held_out, validation[labels], train[labels]) if labels <= controls else models[0]
            if labels == 0:
                best = model.C
            accuracy[row, labels] = model.score(tested, test[labels])
    return torch.from_numpy(accuracy).float()


def _choose(
    models: Sequence[LogisticRegression], held_out: Array, labels: Array, train_labels: Array
) -> LogisticRegression:
    """Choose by the one-standard-error rule, from stiff to free."""
    documents = np.arange(len(labels)), labels
    losses = [-model.predict_log_proba(held_out)[documents] for model in models]
    best = int(np.argmin([loss.mean() for loss in losses]))
    majority = -np.log(np.bincount(train_labels) / len(train_labels))[labels].mean()
    for model, loss in zip(models, losses, strict=True):
        difference = loss - losses[best]
        balanced = balanced_accuracy_score(labels, model.predict(held_out))
        beats = loss.mean() < majority and balanced > 1 / CLASSES + 1e-6
        if beats and difference.mean() <= difference.std(ddof=1) / math.sqrt(len(labels)):
            return model
    return models[best]


def check(ours: Tensor, baseline: Tensor, *, compared: Sequence[int]) -> Details:
    """Check that our probes (all sites, label sets) are as accurate as scikit-learn's (compared sites, label sets)."""
    real = 1 + CONTROLS
    points = 100 * (ours[list(compared)] - baseline).double()
    mean, worst = float(points.mean()), float(points[:, :real].min())
    expect(
        abs(mean) <= MEAN_POINTS and worst >= -WORST_POINTS,
        f"test accuracies within {MEAN_POINTS} points on average and none more than {WORST_POINTS} lower",
        f"{mean:+.2f} on average and {worst:+.2f} at worst",
        "tests/probes/test_logistic.py",
    )
    accuracy = {"accuracy": ours[:, :1], "control_accuracy": ours[:, 1:real], "shuffled_accuracy": ours[:, real:]}
    facts = {"points_better": round(mean, 3), "points_at_worst": round(worst, 3)}
    return {**facts, **{name: float(values.mean()) for name, values in accuracy.items()}}


def setup(run: Run, sites: int, width: int, folds: tuple[int, int, int], compared: tuple[int, ...]) -> Sides:
    """Make up train, validation and test rows; the loop takes the compared sites, and its time is scaled to all."""
    data, device = problem(sites, width, folds), torch.device(run.device)
    return Sides(
        ours=partial(at_once, data, device),
        baseline=partial(loop, data, compared),
        check=partial(check, compared=compared),
        warm_up=partial(at_once, data.first(2), device),
        baseline_scale=sites / len(compared),
        details=lambda _: {"fits": sites * (len(STRENGTHS) * (1 + CONTROLS) + SHUFFLES)},
        # The inner products of all train rows with all rows, which any solver that works on rows needs.
        flops=2.0 * sites * width * folds[0] * sum(folds),
    )


BENCHMARK = Benchmark(
    name="probe_fit",
    ours="all sites, strengths and label sets in blocks",
    baseline="a loop with scikit-learn over some sites, scaled to all",
    setup=setup,
    # 70 layers with two poolings each, as wide as the LLM of MedM-VL.
    sizes={
        "full": {"sites": 140, "width": 2048, "folds": (600, 200, 400), "compared": (0, 35, 70, 105, 139)},
        "gpu": {"sites": 140, "width": 2048, "folds": (600, 200, 400), "compared": (0, 139)},
        "quick": {"sites": 2, "width": 16, "folds": (60, 30, 400), "compared": (1,)},
    },
    targets={("full", "cpu"): 20.0, ("full", "cuda"): 100.0, ("gpu", "cuda"): 100.0},
    repeats=1,
    devices=("cpu", "cuda"),
)
