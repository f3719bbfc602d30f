"""The paper's MLP probes of all layers: trained together by this package, or one after the other in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.measure import Noted, compare, stopwatch
from benchmarks.probe_fit import CLASSES, Problem, problem
from benchmarks.record import Record, Settings, Target
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.options import resolve_device
from medmllm_plugins.probes.fitting import fit_block
from medmllm_plugins.probes.mlp import BATCH, DECAY, DROPOUT, HIDDEN, RATE, fit_mlp, initial, rate
from medmllm_plugins.probes.probe_methods import FittedProbe, ProbeData

EPOCHS = 20
FOLDS = (200, 4, 400)
"""Train, validation and test rows; the recipe has nothing to choose, and leaves the second fold alone."""
POINTS = 1.5
"""How far mean test accuracy over the layers of the loop may lie apart, in percentage points: the two draw other shuffles
and drop other units, and these layers are few."""


@dataclass(frozen=True, slots=True)
class Size:
    """What is fitted.

    Attributes:
        layers: how many.
        width: of their features.
        compared: layers that are trained one after the other; the time of that is told for all.
    """

    layers: int
    width: int
    compared: tuple[int, ...]


SIZES = {"tiny": Size(140, 128, (0, 20, 40, 60, 80, 100, 120, 139)), "3b": Size(140, 2048, (0, 70, 139))}
"""70 places with two poolings each, as wide as the demo checkpoint, and as the LLM of MedM-VL-2D-3B."""


def together(data: Problem, device: torch.device) -> Tensor:
    """This package: test accuracy of each layer."""
    train, _, test = (part.to(device).float() for part in data.features)
    material = ProbeData(
        train=train,
        validation=test[:, :1],
        targets=data.labels[0][:1].to(device),
        right=data.labels[2][:1, :1].to(device),
        controls=0,
        classes=CLASSES,
        strengths=(),
        seed=0,
    )
    with fit_block(_fit, material) as (_, predict):
        answers = torch.from_numpy(predict(test))[:, 0]
    return (answers == data.labels[2][0]).float().mean(-1)


def _fit(material: ProbeData) -> FittedProbe:
    """As :func:`medmllm_plugins.probes.probe_methods.fit_paper_mlp`, without its figures of the validation fold."""
    classes, seed = material.classes, material.seed
    probes = fit_mlp(material.train, material.targets, classes=classes, seed=seed, epochs=EPOCHS)
    nothing = torch.zeros(len(material.train), 1)
    return FittedProbe(lambda features: probes.logits(features).argmax(-1), nothing, nothing)


def one_by_one(data: Problem, layers: Sequence[int], device: torch.device) -> Tensor:
    """Plain PyTorch, with autograd, AdamW and LambdaLR as they come: test accuracy of these layers."""
    target, right = (data.labels[fold][0].to(device) for fold in (0, 2))
    return torch.tensor([_one(data, layer, target, right, device) for layer in layers])


def _one(data: Problem, layer: int, target: Tensor, right: Tensor, device: torch.device) -> float:
    rows, _, tested = (part[layer].to(device).float() for part in data.features)
    mean, scale = rows.mean(0), rows.std(0, correction=0)
    rows, tested = (rows - mean) / scale, (tested - mean) / scale
    model = nn.Sequential(
        nn.Linear(rows.shape[1], HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, CLASSES)
    ).to(device)
    start = initial(rows.shape[1], HIDDEN, CLASSES, seed=0)
    state = {"0.weight": start.first.T, "0.bias": start.first_0, "3.weight": start.second.T, "3.bias": start.second_0}
    model.load_state_dict(state)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    steps = EPOCHS * math.ceil(len(rows) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, steps))
    for _ in range(EPOCHS):
        for at in torch.randperm(len(rows), device=device).split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(rows[at]), target[at]).backward()
            optimiser.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        return float((model(tested).argmax(-1) == right).float().mean())


def check(ours: Tensor, theirs: Tensor) -> float:
    """See to it that both sides are as accurate on average.

    Returns:
        By how many percentage points ours are better.

    Raises:
        ModelError: they lie too far apart.
    """
    points = 100 * float((ours - theirs).mean())
    if not abs(points) <= POINTS:
        raise ModelError(
            f"Expected mean test accuracies within {POINTS:g} points, found {points:+.2f}: run "
            "`pytest tests/probes/test_mlp.py`."
        )
    return points


def run(settings: Settings) -> Record:
    """Compare the two ways.

    Raises:
        ModelError: they are not as accurate.
        OptionError: there is no such device.
    """
    device = resolve_device(settings.device)
    size = SIZES[str(settings.size)]
    data = problem(size.layers, size.width, FOLDS)
    torch.manual_seed(0)
    first = Problem(tuple(part[:1] for part in data.features), data.labels)
    together(first, device)  # the warm-up
    one_by_one(first, (0,), device)
    ours, theirs = Noted(lambda: together(data, device)), Noted(lambda: one_by_one(data, size.compared, device))
    fast, slow = stopwatch(ours, device), stopwatch(theirs, device)
    comparison = compare(lambda: slow() * size.layers / len(size.compared), fast, repeats=settings.repeats)
    points = check(ours.last[list(size.compared)], theirs.last)
    return Record(
        settings=settings,
        sides=(
            ("one_by_one", f"plain PyTorch, {len(size.compared)} layers timed and told for {size.layers}"),
            ("together", "this package: all layers in one batched computation"),
        ),
        comparison=comparison,
        target=Target("at least", 20.0),
        details={
            "layers": size.layers,
            "train_rows": FOLDS[0],
            "width": size.width,
            "epochs": EPOCHS,
            "layers_of_the_loop": len(size.compared),
            "points_better": round(points, 3),
            "accuracy": float(ours.last.mean()),
            "threads": torch.get_num_threads(),
        },
    )
