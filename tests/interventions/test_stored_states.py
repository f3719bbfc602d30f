"""States on disk: what is read back, how much room it takes, and scores where each label is a row of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from medmllm_plugins.errors import DataError, ModelError
from medmllm_plugins.interventions.stored_states import StateStore, store_model, store_twin
from medmllm_plugins.interventions.twin_patching import (
    MODEL,
    TWIN,
    PatchSite,
    answers_with_states,
    patch_sites,
    patch_twins,
    recorded_layers,
)
from medmllm_plugins.models import generation
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.devices import discard, parked
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.recorded_pass import RecordedPass
from medmllm_plugins.testing.tiny_families import write_family

torch.set_num_threads(1)
QUESTION = "Is it benign or malignant?"
TOKENS = torch.tensor([[1, 2, 3]])
Pair = tuple[LoadedModel, LoadedModel]


@pytest.fixture(scope="module")
def open_pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Pair]:
    folders: list[Path] = [write_family("qwen2_5_vl", tmp_path_factory.mktemp("family"), seed) for seed in (0, 1)]

    def opened() -> Pair:
        first, second = (ChatModel(open_native(LoadOptions(str(folder), device="cpu"))) for folder in folders)
        return first, second

    return opened


def images(*widths: int) -> list[Any]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (64, width, 3), dtype=np.uint8)) for width in widths]


def scores_in_turn(pair: Pair, folder: Path, labels: Sequence[str], sites: Sequence[PatchSite]) -> list[dict[Any, Any]]:
    """Return the label scores by site of each model with the other one's states, which go through files."""
    model, twin = pair
    shown = [[image] for image in images(64, 128)] if model.shows == "images" else images(64, 128)
    results = []
    with StateStore(folder, 2) as store:
        for document, image in zip("ab", shown, strict=True):
            store_model(store, document, model, QUESTION, image, labels, sites)
            store_twin(store, document, twin, model, QUESTION, image, labels, sites)
        for loaded, other in ((model, TWIN), (twin, MODEL)):
            own = RecordedPass(loaded, loaded.prepare([QUESTION] * 2, shown), recorded_layers(sites))
            donor = store.batch(other, "ab", own)
            answers = answers_with_states(loaded, own, donor, QUESTION, labels, sites, max_new_tokens=2)
            results.append({site: [row.scores for row in rows] for site, rows in answers.items()})
    return results


@pytest.mark.parametrize(
    ("labels", "as_rows"), [(("benign", "malignant tumour"), True), (("a", "b"), False), (("a", "b"), True)]
)
def test_scores_are_those_of_two_models_in_memory(
    open_pair: Callable[[], Pair],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    labels: tuple[str, ...],
    as_rows: bool,
) -> None:
    if as_rows:
        monkeypatch.setattr(generation, "_takes_masks", lambda *_: False)
    pair = open_pair()
    sites = patch_sites(pair[0], every=1)
    shown = [[image] for image in images(64, 128)] if pair[0].shows == "images" else images(64, 128)
    expected = patch_twins(*pair, QUESTION, shown, labels, sites, max_new_tokens=2)
    for scores, answers in zip(scores_in_turn(pair, tmp_path / "states", labels, sites), expected, strict=True):
        for site, rows in answers.items():
            np.testing.assert_allclose(scores[site], [row.scores for row in rows], atol=5e-4, err_msg=str(site))


def test_a_folder_of_a_run_that_was_killed_is_emptied_and_removed_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    folder.mkdir()
    (folder / "left-over.safetensors").write_bytes(b"half of a file")
    states = {"vision": (torch.arange(6.0).view(1, 2, 3),), "connector": (torch.ones(4, 2), torch.zeros(2, 2))}
    with pytest.raises(KeyboardInterrupt), StateStore(folder, 1) as store:
        store.write(MODEL, "patient/1", TOKENS, states)
        assert len(list(folder.iterdir())) == 1
        read = store.read(MODEL, "patient/1")
        assert list(read) == ["connector", "vision"] and torch.equal(store.tokens(MODEL, "patient/1"), TOKENS)
        for layer, parts in states.items():
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(parts, read[layer], strict=True))
        raise KeyboardInterrupt
    assert not folder.exists()


def test_a_disk_without_room_is_an_error_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states: dict[str, tuple[Tensor, ...]] = {"vision": (torch.zeros(1, 1000, 1000),)}
    free = SimpleNamespace(free=10 * 4e6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with StateStore(tmp_path / "states", 5) as store:
        store.write(MODEL, "1", TOKENS, states)
        store.write(MODEL, "1", TOKENS, states)  # a document that is written again takes no more
        free.free = 8 * 4e6
        with pytest.raises(DataError, match=r"expected 0.0 GB .*got 0.0 GB\. Patch fewer documents"):
            store.write(TWIN, "1", TOKENS, states)


def test_states_of_another_shape_are_refused(open_pair: Callable[[], Pair], tmp_path: Path) -> None:
    model, _ = open_pair()
    shown = [[image] for image in images(64)] if model.shows == "images" else images(64)
    own = RecordedPass(model, model.prepare([QUESTION], shown), {"vision"})
    with StateStore(tmp_path / "states", 1) as store:
        store.write(TWIN, "1", own.inputs["input_ids"], {"vision": (torch.zeros(3, 2),)})
        with pytest.raises(ModelError, match=r"vision: expected states of the shapes .*got \[\(3, 2\)\] from disk"):
            store.batch(TWIN, ["1"], own)


def test_weights_that_are_discarded_take_no_memory(open_pair: Callable[[], Pair]) -> None:
    model, _ = open_pair()
    before = sum(parameter.numel() for parameter in model.model.parameters())  # type: ignore[attr-defined]
    discard(model.model)
    assert before > 10_000 and sum(parameter.numel() for parameter in model.model.parameters()) == 0  # type: ignore[attr-defined]


@pytest.mark.gpu
def test_parked_weights_leave_the_device_and_return() -> None:
    layer = torch.nn.Linear(8192, 8192, device="cuda")
    kept = torch.nn.Linear(4, 4, device="cuda")
    model = torch.nn.Sequential(layer, kept)
    sample = torch.randn(2, 8192, device="cuda")
    expected, held = layer(sample), torch.cuda.memory_allocated()
    with parked(model, keep=[kept]):
        assert layer.weight.device.type == "cpu" and kept.weight.device.type == "cuda"
        assert torch.cuda.memory_allocated() < held - 200 * 2**20
    assert torch.equal(layer(sample), expected)
