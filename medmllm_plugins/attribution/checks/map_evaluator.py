"""All checks of the maps of one document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from medmllm_plugins.attribution.attribution_input import AttributionInput, run_within_memory
from medmllm_plugins.attribution.cells import FloatArray
from medmllm_plugins.attribution.checks.map_checks import (
    NOISE,
    NOISE_DRAWS,
    Removal,
    document_seed,
    importance_order,
    is_constant,
    lesion_overlap,
    patch_values,
    rank_correlation,
    word_values,
)
from medmllm_plugins.attribution.explanation_faults import Faults
from medmllm_plugins.attribution.maps import AttributionMap
from medmllm_plugins.attribution.methods.layer_methods import MethodConfig
from medmllm_plugins.attribution.methods.method_registry import SelectedMethod
from medmllm_plugins.results.attribution_records import MapChecks


class MapEvaluator:
    """Checks the maps of one document; a check that fails is reported and left out."""

    def __init__(
        self, case: AttributionInput, identifier: str, mask: Any, config: MethodConfig, faults: Faults
    ) -> None:
        """Create an evaluator; ``mask`` is (h, w) bool, the lesion, or None where it is not known."""
        self._case, self._seed, self._mask = case, document_seed(identifier), mask
        self._config, self._faults = config, faults
        self._removals: dict[tuple[str, int], Removal] = {}

    def evaluate(
        self, method: str, map_: AttributionMap, noisy_values: Sequence[Mapping[str, FloatArray]]
    ) -> MapChecks:
        """Return all checks of one map; those that fail or do not apply are None."""
        results: dict[str, Any] = {"completeness_gap": map_.gap}
        with self._faults.skipping(method, f"{map_.layer}, stability"):
            if noisy_values:
                own = map_.comparable(map_.values)
                others = (map_.comparable(noisy[map_.layer]) for noisy in noisy_values)
                correlations = [rank_correlation(own, other) for other in others]
                results["stability"] = float(np.mean(correlations))
        with self._faults.skipping(method, f"{map_.layer}, deletion and insertion"):
            results |= run_within_memory(self._case, partial(self._removal_areas, map_))
        with self._faults.skipping(method, f"{map_.layer}, inside the lesion"):
            has_mask = self._mask is not None and self._mask.any()
            if map_.painted is not None and len(map_.painted) == 1 and has_mask:
                inside, area, pointing = lesion_overlap(map_.painted, self._mask)
                results |= {"inside": inside, "area": area, "pointing": pointing}
        return MapChecks(**results)

    def noisy_values(self, selected: SelectedMethod) -> list[dict[str, FloatArray]]:
        """Return a method's values for the image under noise, by layer, for each draw; empty where it fails."""
        values: list[dict[str, FloatArray]] = []
        with self._faults.skipping(selected.spec.name, "stability"):
            values = run_within_memory(self._case, partial(self._draw_noisy_values, selected))
        return values

    def _draw_noisy_values(self, selected: SelectedMethod) -> list[dict[str, FloatArray]]:
        case, draws = self._case, []
        pixels = case.inputs["pixel_values"]
        deviation = NOISE * float(pixels.float().max() - pixels.float().min())
        try:
            for draw in range(NOISE_DRAWS):
                noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(draw))
                case.inputs["pixel_values"] = pixels + (deviation * noise).to(pixels.device, pixels.dtype)
                case.clear_cache()
                # Another seed for methods that sample: a value that depends on the sample is not stable either.
                config = replace(self._config, seed=self._config.seed + draw + 1)
                scores = selected.method(case, selected.layers, config)
                draws.append({layer: result.values.detach().double().cpu().numpy() for layer, result in scores.items()})
        finally:
            case.inputs["pixel_values"] = pixels
            case.clear_cache()
        return draws

    def _removal_areas(self, map_: AttributionMap) -> dict[str, float | bool | None]:
        """Return the areas under the curves of deletion and insertion, by the map's order and by random ones."""
        case, is_prompt = self._case, map_.painted is None
        key = ("prompt" if is_prompt else "image", case.batch)  # a removal keeps the batch size it was made with
        if key not in self._removals:
            make = Removal.of_prompt if is_prompt else Removal.of_image
            self._removals[key] = make(case, self._seed)
        removal = self._removals[key]
        values = word_values(case, map_) if is_prompt else patch_values(case, map_)
        deletion, insertion = removal.areas(importance_order(values, self._seed))
        return {
            "deletion": deletion,
            "deletion_random": removal.random,
            "insertion": insertion,
            "insertion_random": removal.random,
            "flat": is_constant(values),
        }
