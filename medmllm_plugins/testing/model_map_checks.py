"""Checks of a model under attribution: gradients, and where its layers lie on the image."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from medmllm_plugins.attribution.attribution_input import PIXELS, AttributionInput
from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.attribution.geometry import cells
from medmllm_plugins.attribution.maps import build_map
from medmllm_plugins.attribution.methods.layer_methods import Scores
from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.errors import MedMLLMError, ModelError
from medmllm_plugins.features.unused_layers import unused_layers
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.models.stages import EMBED, is_block, layers_of
from medmllm_plugins.testing.check_outcomes import CheckFailed, NotApplicable, require
from medmllm_plugins.testing.check_subjects import ModelSubject
from medmllm_plugins.testing.example_documents import random_image, random_volume

SQUARES: Final = ((0.5, 0.0, 0.75, 0.25), (0.0, 0.5, 0.25, 0.75))
"""Left, top, right and bottom of the squares that are planted, as fractions of the picture."""
STANDS_OUT: Final = 1.2
"""How much more the states change in the square than on the whole picture, at least."""


def case_of(subject: ModelSubject, visual: VisualInput) -> AttributionInput:
    """Return one document as attribution methods are given it."""
    labels = subject.examples.labels[:3]
    return AttributionInput(
        subject.loaded, subject.examples.questions[0], visual, Target.of_label(labels[0], labels, labels)
    )


def default_layers(subject: ModelSubject, case: AttributionInput) -> tuple[str, ...]:
    """Return the layers that are explained where the user names none."""
    unused = unused_layers(subject.loaded, case.inputs)
    layers = [layer for layer in layers_of(subject.loaded) if layer.part == "vision" and is_block(layer)]
    return subject.loaded.family.default_layers([layer.name for layer in layers if layer.name not in unused])


def check_gradients_reach_default_sites(subject: ModelSubject) -> None:
    """Assert that the log-odds of a label have a finite, non-zero gradient at the pixels and at the default layers.

    A ``torch.no_grad`` or a ``detach`` inside the model stops them, and most attribution methods need gradients.
    """
    case = case_of(subject, subject.examples.visuals[0])
    names = [PIXELS, *default_layers(subject, case)]
    try:
        results = case.gradients(names)
    except MedMLLMError as error:
        raise CheckFailed(f"{subject.name}: {error}") from error
    for name in names:
        gradient = results[name].gradients
        require(
            bool(gradient.isfinite().all()) and bool((gradient != 0).any()),
            f"{subject.name}: expected a finite gradient that is not zero at {name}, got one with a largest value of "
            f"{float(gradient.abs().max()):.3g}. Remove no_grad, detach or rounding between {name} and the logits.",
        )


@torch.no_grad()
def check_maps_land_on_a_planted_square(subject: ModelSubject) -> None:
    """Assert that a bright square changes the states most where it is on the image, at each layer that has positions.

    Two squares that mirror each other are tried one after the other, so that rows in a wrong order, a transposed grid
    or tiles that are exchanged are found.
    """
    layers = _layers_to_try(subject)
    placed = 0
    for square in SQUARES:
        before, after = _planted(subject.loaded, square)
        dark, bright = case_of(subject, before), case_of(subject, after)
        states, changed = dark.states(layers), bright.states(layers)
        for layer in layers:
            try:
                cells(subject.loaded, bright.inputs, bright.visual, layer)
            except ModelError as error:
                if "position" in str(error):
                    continue  # such as tokens that are pooled from a whole volume
                raise CheckFailed(f"{subject.name}, {layer}: {error}") from error
            placed += 1
            change = (changed[layer] - states[layer])[0].norm(dim=-1)
            if layer == EMBED:
                change = torch.where(bright.text, torch.zeros_like(change), change)
            _require_inside(subject, layer, square, build_map(bright, layer, Scores(change)).painted)
    if not placed:
        raise NotApplicable("no layer has positions on the image")


def _layers_to_try(subject: ModelSubject) -> list[str]:
    case = case_of(subject, subject.examples.visuals[0])
    return list(dict.fromkeys(["vision.00", *default_layers(subject, case), EMBED]))


def _planted(loaded: LoadedModel, square: tuple[float, float, float, float]) -> tuple[VisualInput, VisualInput]:
    """Return a document of dim noise, and the same with a bright square, or a bright column of a volume."""
    if loaded.shows == "volume":
        volume = random_volume(0)
        voxels = volume.voxels.copy()
        left, top, right, bottom = (round(share * size) for share, size in zip(square, (58, 50) * 2, strict=True))
        voxels[4:-4, 4 + top : 4 + bottom, 10 + left : 10 + right] = 3000
        return volume, Volume(voxels, volume.spacing, volume.orientation, volume.unit)
    dim = Image.fromarray(np.asarray(random_image(0, (96, 96))) // 4)
    bright = dim.copy()
    left, top, right, bottom = (round(share * 96) for share in square)
    bright.paste((255, 255, 255), (left, top, right, bottom))
    return ([dim], [bright]) if loaded.shows == "images" else (dim, bright)


def _require_inside(subject: ModelSubject, layer: str, square: tuple[float, float, float, float], painted: Any) -> None:
    require(painted is not None, f"{subject.name}, {layer}: expected a map on the image, got none.")
    height, width = painted.shape[1:]
    if subject.loaded.shows == "volume":  # the tissue is 58 wide and 50 high, at (10, 4) of 80 x 60
        left, top, right, bottom = square
        square = ((10 + 58 * left) / 80, (4 + 50 * top) / 60, (10 + 58 * right) / 80, (4 + 50 * bottom) / 60)
    left, top, right, bottom = (
        round(share * size) for share, size in zip(square, (width, height, width, height), strict=True)
    )
    inside = float(np.nanmean(painted[:, top:bottom, left:right]))
    overall = float(np.nanmean(painted))
    require(
        inside > STANDS_OUT * overall,
        f"{subject.name}, {layer}: expected the states to change more than {STANDS_OUT} times as much on the planted "
        f"square as on the whole image, got {inside / overall if overall else 0:.2f} times. Check `vision_patches`, "
        "`connector_patches`, `prompt_order` and `merge_side` of the family.",
    )
