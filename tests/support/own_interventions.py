"""This package's own interventions in the form of a plugin's: attention knock-out, and states of another image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from medmllm_plugins import InterventionSpec
from medmllm_plugins.interventions.interchange import Exchange, interchange
from medmllm_plugins.interventions.knockout import cuts_of, knock_out
from medmllm_plugins.interventions.twin_patching import PatchSite
from medmllm_plugins.models.base import LoadedModel

SPECS = [
    InterventionSpec(name=name, target=f"support.own_interventions:{name}", summary="An intervention of ours.")
    for name in ("knockout", "interchanged")
]


def knockout(
    model: LoadedModel, question: str, images: Sequence[Any], labels: Sequence[str], every: int
) -> Mapping[str, Any]:
    cuts = cuts_of(model, every=every)[-3:]
    scores = knock_out(model, question, images, labels, cuts)
    return {f"{cut.first} to {cut.last}, {cut.queries}": rows for cut, rows in scores.items()}


def interchanged(
    model: LoadedModel, question: str, images: Sequence[Any], labels: Sequence[str], every: int
) -> Mapping[str, Any]:
    donors = [Image.new("RGB", image.size, (90, 90, 90)) for image in images]
    exchange = Exchange(PatchSite("connector"), "other class")
    given: Any = {"other class": donors, "same class": donors}
    scores = interchange(model, question, images, given, labels, [exchange])
    return {"connector of a grey image": scores[exchange]}
