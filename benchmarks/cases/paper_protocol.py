"""The paper's MLP probes of all sites: trained together by this package, or one after the other in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases.probe_fit import CLASSES, Problem, problem
from benchmarks.harness import Benchmark, Details, Run, Sides, expect
from medmllm_plugins.probes.fitting import fit_block
from medmllm_plugins.probes.mlp import BATCH, DECAY, DROPOUT, HIDDEN, RATE, fit_mlp, initial, rate
from medmllm_plugins.probes.probe_methods import FittedProbe, ProbeData


def together(data: Problem, epochs: int, device: torch.device) -> Tensor:
    """Return the test accuracy of each site of this package's probes."""

    def fit(probe_data: ProbeData) -> FittedProbe:
        # As medmllm_plugins.probes.probe_methods.paper, without its figures of the validation fold.
        classes, seed = probe_data.classes, probe_data.seed
        probes = fit_mlp(probe_data.train, probe_data.train_labels, classes=classes, seed=seed, epochs=epochs)
        zeros = torch.zeros(len(probe_data.train), 1)
        return FittedProbe(lambda features: probes.logits(features).argmax(-1), zeros, zeros)

    train, _, test = (part.to(device).float() for part in data.features)
    labels = data.labels[0][:1].to(device), data.labels[2][:1, :1].to(device)
    # The recipe has nothing to choose on the validation fold.
    probe_data = ProbeData(train, test[:, :1], *labels, control_tasks=0, classes=CLASSES, strengths=(), seed=0)
    with fit_block(fit, probe_data) as block:
        answers = torch.from_numpy(block.apply(lambda part, rows: part.predict(rows), test))[:, 0]
    return (answers == data.labels[2][0]).float().mean(-1)


def one_by_one(data: Problem, epochs: int, sites: Sequence[int], device: torch.device) -> Tensor:
    """Return the test accuracy of these sites, trained with autograd, AdamW and LambdaLR as they come."""
    target, truth = (data.labels[fold][0].to(device) for fold in (0, 2))
    accuracy = []
    for site in sites:
        rows, _, tested = (part[site].to(device).float() for part in data.features)
        mean, scale = rows.mean(0), rows.std(0, correction=0)
        model = _trained((rows - mean) / scale, target, epochs)
        with torch.no_grad():
            accuracy.append(float((model((tested - mean) / scale).argmax(-1) == truth).float().mean()))
    return torch.tensor(accuracy)


def _trained(rows: Tensor, target: Tensor, epochs: int) -> nn.Module:
    width, device = rows.shape[1], rows.device
    layers = nn.Linear(width, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, CLASSES)
    model = nn.Sequential(*layers).to(device)
    start = initial(width, HIDDEN, CLASSES, seed=0)
    state = {"0.weight": start.first.T, "0.bias": start.first_0, "3.weight": start.second.T, "3.bias": start.second_0}
    model.load_state_dict(state)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    steps = epochs * math.ceil(len(rows) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, steps))
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(rows), device=device), BATCH):
            optimiser.zero_grad()
            loss: Any = nn.functional.cross_entropy(model(rows[batch]), target[batch])
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def check(ours: Tensor, baseline: Tensor, *, compared: Sequence[int], tolerance: float) -> Details:
    """Check that our probes (all sites) are as accurate on average as the baseline's (compared sites)."""
    points = 100 * float((ours[list(compared)] - baseline).mean())
    expected = f"mean test accuracies within {tolerance:g} points"
    expect(abs(points) <= tolerance, expected, f"{points:+.2f}", "tests/probes/test_mlp.py")
    return {"points_better": round(points, 3), "accuracy": float(ours.mean())}


def setup(
    run: Run,
    sites: int,
    width: int,
    compared: tuple[int, ...],
    folds: tuple[int, int, int] = (200, 4, 400),
    epochs: int = 20,
    tolerance: float = 1.5,
) -> Sides:
    """Make up train, validation and test rows; the baseline takes the compared sites, and its time is scaled to all.

    ``tolerance`` is in points: the sides draw other shuffles and drop other units.
    """
    data, device = problem(sites, width, folds), torch.device(run.device)
    torch.manual_seed(0)

    def warm_up() -> None:
        together(data.first(1), epochs, device)
        one_by_one(data.first(1), epochs, (0,), device)

    return Sides(
        ours=partial(together, data, epochs, device),
        baseline=partial(one_by_one, data, epochs, compared, device),
        check=partial(check, compared=compared, tolerance=tolerance),
        warm_up=warm_up,
        baseline_scale=sites / len(compared),
        # Forward and backward products of the first layer, which has nearly all weights.
        flops=6.0 * sites * epochs * folds[0] * width * HIDDEN,
    )


BENCHMARK = Benchmark(
    name="paper_protocol",
    ours="all sites in one batched computation",
    baseline="plain PyTorch over some sites, one after the other, scaled to all",
    setup=setup,
    # 70 layers with two poolings each, as wide as the demo checkpoint, and as the LLM of MedM-VL-2D-3B.
    sizes={
        "tiny": {"sites": 140, "width": 128, "compared": (0, 20, 40, 60, 80, 100, 120, 139)},
        "3b": {"sites": 140, "width": 2048, "compared": (0, 70, 139)},
        "quick": {"sites": 4, "width": 16, "compared": (0, 3), "folds": (40, 4, 100), "epochs": 1, "tolerance": 100.0},
    },
    targets={(size, device): 20.0 for size in ("tiny", "3b") for device in ("cpu", "cuda")},
    repeats=1,
    devices=("cpu", "cuda"),
)
