"""An attribution method on the embedded model and its phantoms, with the checks that every run makes of its maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from unittest import mock

import numpy as np
import torch

from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.attribution.checks import map_checks
from medmllm_plugins.attribution.checks.map_evaluator import MapEvaluator
from medmllm_plugins.attribution.explanation_faults import Faults
from medmllm_plugins.attribution.maps import AttributionMap, build_map
from medmllm_plugins.attribution.methods.layer_methods import MethodConfig, Scores
from medmllm_plugins.attribution.methods.method_registry import LAYERS, SelectedMethod
from medmllm_plugins.data.layouts.phantoms import LABELS
from medmllm_plugins.errors import one_line
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.plugins.specs import AttributionSpec
from medmllm_plugins.results.attribution_records import MapChecks
from medmllm_plugins.testing.check_outcomes import CheckFailed
from medmllm_plugins.testing.demo import QUESTION, Phantom, load_demo, phantoms

IMAGES: Final = 6
CONFIG: Final = MethodConfig(steps=16)
LAYER: Final = "vision.00"
"""The layer at which methods for any layer are tried: its rows are the least mixed."""


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """A phantom with its map and the checks of it."""

    case: AttributionInput
    map_: AttributionMap
    checks: MapChecks


class AttributionTrial:
    """An attribution method, tried on phantoms with a lesion.

    Attributes:
        loaded: the demo, loaded for this method alone.
        layer: the layer at which it is tried.
    """

    def __init__(self, spec: AttributionSpec, function: Any) -> None:
        """Load the demo."""
        self.spec, self.function = spec, function
        self.loaded: LoadedModel = load_demo()
        self.layer = LAYER if spec.at == LAYERS else full_name(spec.at)

    @cached_property
    def explained(self) -> list[Explained]:
        """Return the phantoms with their maps and the checks of these, which take most of the time.

        Raises:
            CheckFailed: the method fails on one.
        """
        return [self._explain(item, number) for number, item in enumerate(phantoms(IMAGES))]

    def case(self, item: Phantom, label: str | None = None) -> AttributionInput:
        """Return a phantom as the method is given it; the target is its class, or another label."""
        target = Target.of_label(label or item.label, LABELS, LABELS)
        return AttributionInput(self.loaded, QUESTION, item.image, target, batch=32)

    def scores(self, case: AttributionInput, config: MethodConfig = CONFIG) -> Scores:
        """Return what the method computes for a document.

        Raises:
            CheckFailed: it raises an error, or returns something else.
        """
        try:
            results = self.function(case, (self.layer,), config)
        except Exception as error:
            raise CheckFailed(f"{self.spec.name}: expected Scores, got {one_line(error)}") from error
        result = results.get(self.layer) if isinstance(results, Mapping) else None
        if not isinstance(result, Scores) or not isinstance(result.values, torch.Tensor):
            kind = type(results if result is None else result).__name__
            raise CheckFailed(f"{self.spec.name}: expected a mapping with Scores for {self.layer}, got {kind}.")
        return result

    def map_of(self, case: AttributionInput) -> AttributionMap:
        """Return the map of a document.

        Raises:
            CheckFailed: the method fails, or its values are no map.
        """
        scores = self.scores(case)
        try:
            return build_map(case, self.layer, scores)
        except Exception as error:
            raise CheckFailed(f"{self.spec.name}, {self.layer}: {one_line(error)}") from error

    def _explain(self, item: Phantom, number: int) -> Explained:
        case = self.case(item)
        map_, faults = self.map_of(case), Faults(f"phantom {number}", item.image)
        method = SelectedMethod(self.spec, self.function, (self.layer,))
        with mock.patch.object(map_checks, "RANDOM_ORDERS", 4):
            evaluator = MapEvaluator(case, f"phantom {number}", item.mask, CONFIG, faults)
            checks = evaluator.evaluate(self.spec.name, map_, evaluator.noisy_values(method))
        if faults.records:
            raise CheckFailed(f"{self.spec.name}, {faults.records[0].part}: {faults.records[0].why}")
        return Explained(case, map_, checks)

    def mean(self, *names: str) -> float | None:
        """Return the mean of a figure of the checks, or of the difference of two; ``None`` where maps have none."""
        values = [[getattr(item.checks, name) for name in names] for item in self.explained]
        known = [row[0] - sum(row[1:]) for row in values if None not in row]
        return float(np.mean(known)) if known else None


def full_name(layer: str) -> str:
    """Return the name of a layer with two digits: ``vision.3`` is ``vision.03``."""
    part, dot, number = layer.partition(".")
    return f"{part}.{int(number):02d}" if dot and number.isdigit() else layer
