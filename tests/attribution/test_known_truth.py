"""Checks beside maps, where the truth is known: draws that matter, lesions of phantoms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.loading import load

from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.attribution_item import AttributionItem
from medmllm_plugins.attribution.attribution_store import AttributionStore, gather_index
from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.attribution.checks import map_checks
from medmllm_plugins.attribution.checks.check_summary import summarise_checks
from medmllm_plugins.attribution.checks.map_checks import (
    Removal,
    document_seed,
    importance_order,
    lesion_overlap,
    patch_values,
)
from medmllm_plugins.attribution.explainer import explain
from medmllm_plugins.attribution.maps import build_map
from medmllm_plugins.attribution.methods import layer_methods
from medmllm_plugins.attribution.methods.layer_methods import MethodConfig, Scores
from medmllm_plugins.data.layouts.phantoms import LABELS, phantom
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.formats import medm_vl
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.prompts.attribution_options import AttributionOptions
from medmllm_plugins.results.attribution_records import AttributionEntry, MapChecks

torch.set_num_threads(1)

CLASSES = ("benign", "malignant")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load("llava", tmp_path_factory.mktemp("model") / "checkpoint")


def item(number: int) -> AttributionItem:
    picture = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    name = f"d{number}"
    return AttributionItem(
        id=name,
        document=name,
        group=name,
        label="benign",
        predicted="benign",
        answer="benign",
        scores=(-1.0, -2.0),
        question="Is it benign?",
        visual=Image.fromarray(picture),
        classes=CLASSES,
        answers=CLASSES,
    )


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A method that draws its values, in the place of one that does not."""

    def drawn(case: AttributionInput, layers: Sequence[str], how: MethodConfig) -> dict[str, Scores]:
        generator = torch.Generator().manual_seed(how.seed)
        return {
            layer: Scores(torch.rand(case.states([layer])[layer].shape[1], generator=generator)) for layer in layers
        }

    monkeypatch.setattr(layer_methods, "layer_activation", drawn)
    yield


def test_a_method_that_hangs_on_its_draws_is_unstable(model: LoadedModel, drawing: None, tmp_path: Path) -> None:
    asked = AttributionOptions(methods=("layer_activation",), layers=("connector",))
    explain(model, asked, [item(number) for number in range(3)], AttributionStore(tmp_path, asked.to_dict()), 16)
    (row,) = gather_index(tmp_path, "task", "model", CLASSES).summary
    assert abs(row.figure("stability").value) < 0.4
    assert any(message.startswith("unstable") for message in row.failed)


# -- where the truth is known --------------------------------------------------------------------------------------


def test_a_method_finds_the_lesions_of_phantoms(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least 0.6 of its mass lies in them, and deletion beats chance; tests/host tries the docs' whole command."""
    monkeypatch.setattr(map_checks, "RANDOM_ORDERS", 2)  # for speed
    demo, entries = medm_vl.load(LoadOptions("demo", device="cpu")), []
    for number in range(2800, 2808):
        drawn = phantom(number)
        if not drawn.mask.any():
            continue
        shown, question = Image.fromarray(drawn.image).convert("RGB"), f"Which is shown: {', '.join(LABELS)}?"
        case = AttributionInput(
            demo, question, shown, Target.of_label(drawn.label, LABELS, LABELS), baseline="blurred", batch=32
        )
        scores = layer_methods.layer_integrated_gradients(case, ["vision.00"], MethodConfig(steps=8))
        map_, seed = build_map(case, "vision.00", scores["vision.00"]), document_seed(str(number))
        removal = Removal.of_image(case, seed)
        deletion, _ = removal.areas(importance_order(patch_values(case, map_), seed))
        assert map_.painted is not None
        inside, area, _ = lesion_overlap(map_.painted, drawn.mask)
        checks = MapChecks(deletion=deletion, deletion_random=removal.random, inside=inside, area=area)
        entries.append(AttributionEntry.from_dict({"group": str(number), "hit": True, "checks": checks.to_dict()}))
    (row,) = summarise_checks(entries, [])
    assert row.area is not None and row.figure("inside").value >= 0.6 > 5 * row.area
    assert row.figure("inside").low > row.area and row.figure("deletion_gain").low > 0
