"""Planted features, to which the checks of a probe fit it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from medmllm_plugins.errors import one_line
from medmllm_plugins.probes.probe_methods import FittedProbe, ProbeData
from medmllm_plugins.testing.check_outcomes import CheckFailed

CLASSES: Final = 3
ROWS: Final = 240
HELD_OUT: Final = 120
TESTED: Final = 300
WIDTH: Final = 12
REAL, CONTROL, PERMUTED = 0, 1, slice(2, 4)
"""The label sets: real, a control task that can be learned, and two without a relation to the features."""
INFORMATIVE, NOISE = 0, 1
"""The layers."""


@dataclass(frozen=True, slots=True, eq=False)
class PlantedData:
    """Features of two layers with four label sets, and a test fold.

    Attributes:
        data: what the probe is given.
        test: (2, T, D) float32 features.
        labels: (4, T) int64 their labels.
    """

    data: ProbeData
    test: Tensor
    labels: Tensor


def planted_data(seed: int = 0) -> PlantedData:
    """Draw features whose first layer separates real labels and control task, and whose second is noise."""
    generator = torch.Generator().manual_seed(seed)
    count = ROWS + HELD_OUT + TESTED
    labels = torch.randint(CLASSES, (4, count), generator=generator)
    features = torch.randn(2, count, WIDTH, generator=generator)
    rows = torch.arange(count)
    features[INFORMATIVE, rows, labels[REAL]] += 6
    features[INFORMATIVE, rows, CLASSES + labels[CONTROL]] += 6
    train, validation, test = (part.contiguous() for part in torch.split(features, [ROWS, HELD_OUT, TESTED], dim=1))
    train_labels, validation_labels, test_labels = (
        part.contiguous() for part in torch.split(labels, [ROWS, HELD_OUT, TESTED], dim=1)
    )
    data = ProbeData(
        train=train,
        validation=validation,
        train_labels=train_labels,
        validation_labels=validation_labels,
        control_tasks=1,
        classes=CLASSES,
        strengths=(0.01, 0.1, 1.0),
        seed=0,
    )
    return PlantedData(data, test, test_labels)


def fit(name: str, probe: Any, data: ProbeData) -> FittedProbe:
    """Fit the probe.

    Raises:
        CheckFailed: it raises an error, or returns something else.
    """
    try:
        fitted = probe(data)
    except Exception as error:
        raise CheckFailed(f"{name}: expected a FittedProbe, got {one_line(error)}") from error
    if not isinstance(fitted, FittedProbe):
        raise CheckFailed(f"{name}: expected a FittedProbe, got {type(fitted).__name__}.")
    return fitted
