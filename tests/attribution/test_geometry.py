"""Where rows stand on pictures, tried on the models: what changes in a picture changes the rows that stand there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_authors import hulu_med as write_hulu_med
from support.tiny_authors import old_llava as write_old_llava
from support.tiny_medm_vl import write_checkpoint, write_ct_checkpoint
from torch import Tensor

from medmllm_plugins.attribution import patch_measurement
from medmllm_plugins.attribution.cells import Cells
from medmllm_plugins.attribution.geometry import cells
from medmllm_plugins.attribution.patches import from_patches, to_patches
from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.families.family import stage_module as module_of
from medmllm_plugins.models.families.medm_vl_ct import slices_read
from medmllm_plugins.models.formats import hulu_med, medm_vl, original_llava
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.stages import changed, layers_of
from medmllm_plugins.testing.tiny_families import FAMILIES as TINY
from medmllm_plugins.testing.tiny_families import write_family

torch.set_num_threads(1)

ONE = [[(61, 43)], [(53, 90)], [(181, 140)], [(64, 64)]]
SEVERAL = [[(60, 40), (33, 97), (64, 64)], [(45, 45), (45, 45)]]
OTHERS = ("old_llava", "old_llava squeezed", "hulu_med", "hulu_med merged", "medm_vl", "demo")


def load(kind: str, folder: Path) -> LoadedModel:
    options = LoadOptions(str(folder), device="cpu", dtype="float32")
    if kind.startswith("old_llava"):
        more = {"image_aspect_ratio": "square"} if "squeezed" in kind else {}
        write_old_llava(folder, "llava_mistral", **more)
        return original_llava.llava_med(options)
    if kind.startswith("hulu_med"):
        write_hulu_med(folder)
        model = hulu_med.load(options)
        if "merged" in kind:
            model.processor.image_processor.merge_size = 2
        return model
    if kind == "medm_vl":
        write_checkpoint(folder, select_layer=-2)
        return medm_vl.load(options)
    if kind == "demo":
        return medm_vl.load(LoadOptions("demo", device="cpu"))
    return ChatModel(open_native(LoadOptions(str(write_family(kind, folder)), device="cpu")))


@pytest.fixture(scope="module", params=[*TINY, *OTHERS])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(request.param, tmp_path_factory.mktemp("model") / "checkpoint")


def dark(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 60, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def documents(model: LoadedModel) -> list[list[Image.Image]]:
    sizes = ONE if model.shows == "image" else [*ONE, *SEVERAL]
    return [[dark(size, seed) for seed, size in enumerate(several)] for several in sizes]


def prepared(model: LoadedModel, pictures: list[Image.Image]) -> dict[str, Tensor]:
    return model.prepare(["What?"], [pictures])


def with_block(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    changed_picture = picture.copy()
    changed_picture.paste((255, 255, 255), box)
    return changed_picture


def differ(rows: Tensor, other_rows: Tensor) -> np.ndarray:
    return (rows - other_rows).flatten(1).abs().amax(1).numpy() > 1e-5


def test_rows_that_change_with_a_block_of_a_picture_are_those_that_stand_on_it(model: LoadedModel) -> None:
    rng = np.random.default_rng(0)
    for pictures in documents(model):
        inputs = prepared(model, pictures)
        patch_cells = cells(model, inputs, pictures, "pixels")
        before = to_patches(model, inputs["pixel_values"])
        assert len(patch_cells) == len(before)
        side = before.shape[-1]
        for _ in range(6):
            which = int(rng.integers(len(pictures)))
            size = np.array(pictures[which].size)
            extent = np.maximum(6, size * rng.uniform(0.1, 0.6, 2)).astype(int)
            low = (rng.uniform(0, 1, 2) * (size - extent)).astype(int)
            high = low + extent
            block = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
            several = list(pictures)
            several[which] = with_block(pictures[which], block)
            after = to_patches(model, prepared(model, several)["pixel_values"])
            moved = differ(after, before)

            here = patch_cells.picture == which
            first, last = patch_cells.box[:, :2] * size, patch_cells.box[:, 2:] * size
            # Resampling takes from neighbours: four pixels, of the picture or the tile, whichever are larger; of
            # Idefics, which resamples three times, twice as many.
            reach = 8 if model.model.config.model_type in ("idefics3", "smolvlm") else 4
            margin = reach * np.maximum(1, (patch_cells.whole[:, 2:] - patch_cells.whole[:, :2]) * size / side)
            may = here & (np.minimum(last, high + margin) > np.maximum(first, low - margin)).all(1)
            must = here & (np.minimum(last, high) - np.maximum(first, low) > margin / reach).all(1)
            assert not (moved & ~may).any()
            assert moved[must].all()
            if not may.any():
                continue  # cropped away
            # Of each patch, where its change is: all of it within the block.
            change = (after - before).abs().mean(1).double().numpy()
            for row in np.flatnonzero(must):
                weight = change[row] / change[row].sum()
                middle = np.array([(weight.sum(0) * (np.arange(side) + 0.5)).sum(), 0.0])
                middle[1] = (weight.sum(1) * (np.arange(side) + 0.5)).sum()
                whole = patch_cells.whole[row]
                place = (whole[:2] + (whole[2:] - whole[:2]) * middle / side) * size
                shared = np.maximum(whole[:2] * size, low), np.minimum(whole[2:] * size, high)
                assert (np.abs(place - (shared[0] + shared[1]) / 2) < margin[row] / reach * 2.4).all()


def test_boxes_are_exact_where_the_whole_picture_is_shown(model: LoadedModel) -> None:
    if model.model.config.model_type in ("llava", "llava_next", "llava_onevision") and isinstance(
        model, ChatModel | original_llava.OriginalLlava
    ):
        pytest.skip("crops or pads")
    for pictures in documents(model):
        patch_cells = cells(model, prepared(model, pictures), pictures, "pixels")
        inside = patch_cells.picture >= 0
        assert (patch_cells.box[inside] == patch_cells.whole[inside]).all()
        # Mistral 3 pads several pictures to the largest, Gemma 4 each to a number of patches.
        several_sizes = len({picture.size for picture in pictures}) > 1
        kind = model.model.config.model_type
        assert inside.all() != (kind == "gemma4" or (kind == "mistral3" and several_sizes))
        for which in range(len(pictures)):
            box = patch_cells.box[patch_cells.picture == which]
            sizes = box[:, 2:] - box[:, :2]
            np.testing.assert_allclose(1 / sizes, np.rint(1 / sizes), atol=1e-6)
            np.testing.assert_allclose(box[:, :2] / sizes, np.rint(box[:, :2] / sizes), atol=1e-6)
            # Each scale covers the picture once.
            for scale in np.unique(np.rint(1 / sizes), axis=0):
                own = (np.rint(1 / sizes) == scale).all(1)
                places = {*map(tuple, np.rint(box[own, :2] * scale).tolist())}
                assert len(places) == own.sum() == scale.prod()


def test_a_centre_crop_and_padding_as_written_out(tmp_path: Path) -> None:
    shown = [dark((80, 40))]
    model = load("llava", tmp_path / "crop")
    patch_cells = cells(model, prepared(model, shown), shown, "pixels")  # 64 x 32, of which the middle 32 are taken
    np.testing.assert_allclose(patch_cells.box[[0, 15]], [[0.25, 0, 0.375, 0.25], [0.625, 0.75, 0.75, 1]], atol=1e-9)
    model = load("old_llava", tmp_path / "pad")
    patch_cells = cells(model, prepared(model, shown), shown, "pixels")  # 20 above and below, as wide as a patch
    assert (patch_cells.picture.reshape(4, 4) == [[-1] * 4, [0] * 4, [0] * 4, [-1] * 4]).all()
    np.testing.assert_allclose(patch_cells.box[[4, 11]], [[0, 0, 0.25, 0.5], [0.75, 0.5, 1, 1]], atol=1e-9)
    shown = [dark((40, 100))]
    patch_cells = cells(
        model, prepared(model, shown), shown, "pixels"
    )  # 30 to each side of 40: 9.6 pixels of 32, then 12.8
    assert (patch_cells.picture.reshape(4, 4) == [[-1, 0, 0, -1]] * 4).all()
    np.testing.assert_allclose(patch_cells.whole[1], [-0.125, 0, 0.5, 0.25], atol=0.01)
    np.testing.assert_allclose(patch_cells.box[2], [0.5, 0, 1, 0.25], atol=0.01)


@contextmanager
def without_attention(model: LoadedModel) -> Iterator[None]:
    """The tower's blocks with nothing added by attention, so that rows are not mixed."""
    with ExitStack() as stack:
        count = 0
        for name, module in module_of(model.model, model.family.vision_blocks).named_modules():
            if name.count(".") == 1 and name.split(".")[1] in ("attn", "self_attn", "attention"):
                handle = module.register_forward_hook(
                    lambda _, __, out: (
                        tuple(tensor * 0 for tensor in out[:1]) + out[1:] if isinstance(out, tuple) else out * 0
                    )
                )
                stack.callback(handle.remove)
                count += 1
        assert count == len(list(module_of(model.model, model.family.vision_blocks)))  # type: ignore[call-overload]
        yield


def look(model: LoadedModel, inputs: dict[str, Tensor], layer: str, change: Any = None, at: str = "") -> Tensor:
    """What stands at a layer, (n, d), where something else may be put at another one before it."""
    stages = {stage.name: stage for stage in layers_of(model)}
    seen: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        seen.append(value.detach().clone())
        return value

    with ExitStack() as stack:
        if change is not None:
            stack.enter_context(changed(stages[at], change))
        stack.enter_context(changed(stages[layer], keep))
        model.prefill(inputs)
    return seen[0].reshape(-1, seen[0].shape[-1])


def same_place(stage: Cells, row: int, other_stage: Cells, rows: np.ndarray) -> np.ndarray:
    """Which of some rows stand exactly where a row of another stage does."""
    here = other_stage.picture[rows] == stage.picture[row]
    close = np.isclose(other_stage.whole[rows], stage.whole[row], atol=1e-9, equal_nan=True).all(1)
    matches: np.ndarray = here & close
    return matches


def test_a_patch_changes_the_row_of_a_block_that_stands_there(model: LoadedModel) -> None:
    """With attention off: Qwen2.5-VL's windows, class tokens, and tiles that are left out."""
    rng = np.random.default_rng(1)
    for pictures in documents(model)[:2] + documents(model)[-2:]:
        inputs = prepared(model, pictures)
        pixels, vision = (cells(model, inputs, pictures, stage) for stage in ("pixels", "vision.00"))
        patches = to_patches(model, inputs["pixel_values"])
        with without_attention(model):
            before = look(model, inputs, "vision.00")
            assert len(before) == len(vision)
            for patch in rng.choice(np.flatnonzero(pixels.picture >= 0), 5, replace=False):
                other = patches.clone()
                other[patch] += torch.randn(other[patch].shape)
                after = look(
                    model, {**inputs, "pixel_values": from_patches(model, other, inputs["pixel_values"])}, "vision.00"
                )
                moved = np.flatnonzero(differ(after, before))
                assert len(moved) == 1 and same_place(pixels, patch, vision, moved).all()


def read_layer(model: LoadedModel) -> str:
    """The last block that the connector reads."""
    config: Any = model.model.config
    blocks = [place.name for place in layers_of(model) if place.part == "vision" and place.name[-1].isdigit()]
    return blocks[getattr(config, "vision_feature_layer", -1) if config.model_type.startswith("llava") else -1]


def test_a_row_of_a_block_changes_the_connectors_row_that_stands_there(model: LoadedModel) -> None:
    rng = np.random.default_rng(2)
    at = read_layer(model)
    for pictures in documents(model)[:2] + documents(model)[-2:]:
        inputs = prepared(model, pictures)
        vision, connector = (cells(model, inputs, pictures, stage) for stage in (at, "connector"))
        before = look(model, inputs, "connector")
        assert len(before) == len(connector)
        there = vision.picture >= 0
        merge = round((there.sum() / max(1, (connector.picture >= 0).sum())) ** 0.5)

        def moved_by(row: int, inputs: dict[str, Tensor] = inputs, before: Tensor = before) -> np.ndarray:
            def put(value: Tensor) -> Tensor:
                other = value.clone().contiguous()
                flat = other.view(-1, other.shape[-1])
                flat[row] += 3 * torch.randn(flat.shape[-1])
                return other

            return np.flatnonzero(differ(look(model, inputs, "connector", put, at), before))

        for row in rng.choice(np.flatnonzero(there), 5, replace=False):
            moved = moved_by(int(row))
            assert len(moved) == 1
            patch, token = vision.whole[row], connector.whole[moved[0]]
            assert connector.picture[moved[0]] == vision.picture[row]
            assert (token[:2] <= patch[:2] + 1e-9).all() and (token[2:] >= patch[2:] - 1e-9).all()
            np.testing.assert_allclose(token[2:] - token[:2], merge * (patch[2:] - patch[:2]), atol=1e-9)
        if model.model.config.model_type in ("internvl", "llava", "llava_next") and len(vision) % 17 == 0:
            assert vision.picture[0] == -1 and not len(moved_by(0))  # the class token


def test_what_the_connector_returns_stands_at_the_tokens_of_the_same_place(model: LoadedModel) -> None:
    """Each of its rows is put its number, and the numbers are read off what the LLM is given."""
    for pictures in documents(model):
        inputs = prepared(model, pictures)
        connector, llm = (cells(model, inputs, pictures, stage) for stage in ("connector", "llm.00"))
        assert len(llm) == inputs["input_ids"].shape[1]

        def filled(numbers: Any, inputs: dict[str, Tensor] = inputs) -> Tensor:
            def put(value: Tensor) -> Tensor:
                rows = value.numel() // value.shape[-1]
                given = torch.as_tensor(numbers, dtype=value.dtype).expand(rows)
                return given.reshape(*value.shape[:-1], 1).expand_as(value).clone()

            return look(model, inputs, "llm.embed", put, "connector").double()[:, 0]

        once, twice = filled(1.0), filled(2.0)
        from_image = np.flatnonzero(((twice - once).abs() > 1e-6).numpy())
        counted = (filled(np.arange(1, len(connector) + 1)) / once).numpy()
        numbers = np.rint(counted[from_image]).astype(int) - 1
        np.testing.assert_allclose(counted[from_image] - 1, numbers, atol=0.01)
        elsewhere = np.setdiff1d(np.arange(len(llm)), from_image)
        assert (llm.picture[elsewhere] == -1).all() and np.isnan(llm.box[elsewhere]).all()
        assert (llm.picture[from_image] == connector.picture[numbers]).all()
        np.testing.assert_array_equal(llm.box[from_image], connector.box[numbers])
        assert len(np.unique(numbers)) == len(numbers)


def test_patches_are_put_together_again_and_gradients_pass(model: LoadedModel) -> None:
    for pictures in documents(model)[:1] + documents(model)[-1:]:
        pixels = prepared(model, pictures)["pixel_values"]
        patches = to_patches(model, pixels)
        assert torch.equal(from_patches(model, patches, pixels), pixels)
        other = torch.randn(patches.shape)
        assert torch.equal(to_patches(model, from_patches(model, other, pixels)), other)
        given = pixels.clone().requires_grad_()
        (to_patches(model, given) * other).sum().backward()
        assert given.grad is not None and torch.equal(given.grad, from_patches(model, other, pixels))
        with pytest.raises(ModelError, match="Expected patches"):
            from_patches(model, patches[:-1], pixels)
        with pytest.raises(ModelError, match=r"Expected (rows of 3|pixel values)"):
            to_patches(model, pixels[..., :1])


def test_measuring_is_done_once_for_sizes(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = documents(model)[0]
    inputs = prepared(model, pictures)
    cells(model, inputs, pictures, "pixels")
    monkeypatch.setattr(patch_measurement, "_measure", None)
    cells(model, inputs, [dark(picture.size, 9) for picture in pictures], "llm.00")
    assert model.device.type == "cpu" and model.dtype == torch.float32


def test_input_that_has_no_place(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = documents(model)[0]
    inputs = prepared(model, pictures)
    two = model.prepare(["What?"] * 2, [pictures] * 2)
    with pytest.raises(ModelError, match="the input of one document, got that of 2"):
        cells(model, two, pictures, "llm.00")
    with pytest.raises(ModelError, match=r"Expected `layer` to be pixels or a layer of the model, .* got 'head'"):
        cells(model, inputs, pictures, "head")
    with pytest.raises(
        ModelError, match=r"Expected pictures to be shown to .*, got Volume|Gemma 4: expected images, got Volume"
    ):
        cells(model, inputs, ct_volume(), "pixels")
    with pytest.raises(ModelError, match="the input is another document's"):
        cells(model, {**inputs, "pixel_values": inputs["pixel_values"][:, :-1]}, pictures, "pixels")


def test_half_precision_moves_no_box(tmp_path: Path) -> None:
    shown = [dark((61, 43))]
    boxes = []
    for dtype in ("float32", "bfloat16"):
        folder = write_family("internvl", tmp_path / dtype)
        model = ChatModel(open_native(LoadOptions(str(folder), device="cpu", dtype=dtype)))
        boxes.append(cells(model, prepared(model, shown), shown, "connector").box)
        assert model.dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(*boxes)


def test_a_processor_that_shows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("gemma3", tmp_path / "model")
    usual = type(model).prepare

    def blank(self: Any, *args: Any) -> dict[str, Tensor]:
        inputs_ = usual(self, *args)
        return {**inputs_, "pixel_values": inputs_["pixel_values"] * 0}

    shown = [dark((61, 43))]
    inputs = prepared(model, shown)
    monkeypatch.setattr(type(model), "prepare", blank)
    with pytest.raises(ModelError, match="pixel values that are alike for black and white pictures"):
        cells(model, inputs, shown, "pixels")


# -- volumes ----------------------------------------------------------------------------------------------------


def ct_volume(deep: int = 70) -> Volume:
    """Tissue from 5 to 8 before the end, 4 to 6 and 10 to 12 within air."""
    voxels = np.full((deep, 60, 80), -1024, np.float32)
    voxels[5:-8, 4:-6, 10:-12] = np.random.default_rng(0).uniform(-900, -600, (deep - 13, 50, 58))
    return Volume(voxels, (1.0, 1.0, 1.0), "RAS", "HU")


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> medm_vl.MedMVLCT:
    folder = write_ct_checkpoint(tmp_path_factory.mktemp("ct") / "checkpoint")
    return medm_vl.load_ct(LoadOptions(str(folder), device="cpu"))


@pytest.mark.parametrize("deep", [70, 30, 150])
def test_voxels_change_the_patches_of_the_slices_that_read_them(chest: medm_vl.MedMVLCT, deep: int) -> None:
    rng = np.random.default_rng(deep)
    volume = ct_volume(deep)
    inputs = chest.prepare(["What?"], [volume])
    pixels, vision = (cells(chest, inputs, volume, stage) for stage in ("pixels", "vision.00"))
    np.testing.assert_array_equal(pixels.box, vision.box)
    assert sorted({*pixels.picture}) == list(range(32)) and len(pixels) == len(
        to_patches(chest, inputs["pixel_values"])
    )
    np.testing.assert_allclose(pixels.box[:, :2].min(0), [10 / 80, 4 / 60])
    np.testing.assert_allclose(pixels.box[:, 2:].max(0), [68 / 80, 54 / 60])
    before, read = to_patches(chest, inputs["pixel_values"]), slices_read(volume)
    for _ in range(8):
        z, y, x = (int(rng.integers(low, high)) for low, high in ((5, deep - 8), (4, 44), (10, 58)))
        voxels = volume.voxels.copy()
        voxels[z, y : y + 10, x : x + 10] = 900
        other = Volume(voxels, volume.spacing, volume.orientation, volume.unit)
        moved = differ(to_patches(chest, chest.prepare(["What?"], [other])["pixel_values"]), before)
        reading = [index for index, (first, last) in enumerate(read) if first <= z <= last]
        assert sorted({*pixels.picture[moved]}) == reading
        edges = pixels.box * [80, 60, 80, 60]
        near = 3.0  # voxels: neighbours are read
        may = (edges[:, 2:] > [x - near, y - near]).all(1) & (edges[:, :2] < [x + 10 + near, y + 10 + near]).all(1)
        must = np.minimum(edges[:, 2:], [x + 10, y + 10]) - np.maximum(edges[:, :2], [x, y])
        assert not (moved & ~may).any()
        assert moved[(must > near).all(1) & np.isin(pixels.picture, reading)].all()


def test_a_volume_of_air_stays_whole(chest: medm_vl.MedMVLCT) -> None:
    volume = Volume(np.full((9, 6, 7), -2000, np.float32), (1, 1, 1), "RAS", "HU")
    patch_cells = cells(chest, chest.prepare(["What?"], [volume]), volume, "pixels")
    np.testing.assert_array_equal(patch_cells.box[0, :2], [0, 0])
    np.testing.assert_array_equal(patch_cells.box[-1, 2:], [1, 1])
    read = slices_read(volume)
    assert read[0] == (0, 0) and read[-1] == (8, 8) and all(last - first <= 1 for first, last in read)


def test_tokens_pooled_from_a_whole_volume_have_no_place(chest: medm_vl.MedMVLCT) -> None:
    volume = ct_volume()
    inputs = chest.prepare(["What?"], [volume])
    for layer in ("connector", "llm.00"):
        with pytest.raises(ModelError, match="have no position in the volume"):
            cells(chest, inputs, volume, layer)
    with pytest.raises(ModelError, match=r"Expected a volume, .* got list"):
        cells(chest, inputs, [dark((20, 20))], "pixels")
