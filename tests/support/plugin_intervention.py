"""A plugin's interventions, as a third party would write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from medmllm_plugins import InterventionSpec, hookimpl
from medmllm_plugins.models.base import LoadedModel


@hookimpl
def medmllm_interventions() -> list[InterventionSpec]:
    return [
        InterventionSpec(
            name="other_image",
            target="support.plugin_intervention:other_image",
            summary="A grey image, and the image turned by 180 degrees.",
            citation="A citation.",
        ),
        InterventionSpec(name="broken", target="support.plugin_intervention:broken", summary="Returns too little."),
    ]


def other_image(
    model: LoadedModel, question: str, images: Sequence[Any], labels: Sequence[str], every: int
) -> Mapping[str, list[tuple[float, ...]]]:
    def scores(shown: list[Image.Image]) -> list[tuple[float, ...]]:
        generations = model.generate([question] * len(shown), shown, max_new_tokens=0, labels=labels)
        return [tuple(generation.scores or ()) for generation in generations]

    assert every == 3
    return {
        "grey": scores([Image.new("RGB", image.size, (128, 128, 128)) for image in images]),
        "turned": scores([image.rotate(180) for image in images]),
    }


def broken(
    _model: LoadedModel, _question: str, images: Sequence[Any], labels: Sequence[str], _every: int
) -> Mapping[str, list[tuple[float, ...]]]:
    return {"short": [(0.0,) * len(labels)] * (len(images) - 1)}
