"""Parts of repairs: what they compute, that they leave no trace, and that folders load as they were trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.models.base import Generation, LoadedModel
from medmllm_plugins.models.formats.medm_vl import load
from medmllm_plugins.models.model_loading import load_model
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.repairs.lora_part import LoraPart, lora_targets
from medmllm_plugins.models.repairs.repair_folder import load_repaired, write_repair
from medmllm_plugins.models.repairs.repair_part import LowRankAdapter, RepairPart, SoftPrompt
from medmllm_plugins.models.repairs.repaired_model import RepairedModel, repaired
from medmllm_plugins.models.repairs.score_map import ScoreMap
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.probes.output_recalibration import affine_features, affine_map, fit_affine

torch.set_num_threads(1)
QUESTION, LABELS = "Is there a round mass?", ("round mass", "no finding", "x")


def demo() -> LoadedModel:
    return load(LoadOptions("demo", device="cpu", dtype="float32"))


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return demo()


def images(count: int = 2) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(count)]


def scores(
    model: LoadedModel, questions: tuple[str, ...] = (QUESTION, "A longer question about the image?")
) -> np.ndarray:
    answers = model.generate(questions, images(), max_new_tokens=0, labels=LABELS)
    return np.array([answer.scores for answer in answers])


def randomised(part: RepairPart, loaded: LoadedModel) -> RepairPart:
    """Return a part with random tensors."""
    generator = torch.Generator().manual_seed(0)
    with part.attached(loaded):
        part.load_state({k: 0.2 * torch.randn(v.shape, generator=generator) for k, v in part.state().items()})
    return part


def parts(loaded: LoadedModel) -> dict[str, RepairPart]:
    return {
        "soft_prompt": SoftPrompt(3, 128, 960),
        "connector": LowRankAdapter("connector", 128, 4),
        "block": LowRankAdapter("llm.02", 128, 4),
        "lora": LoraPart(lora_targets(loaded, "attention", 1), 4),
    }


@pytest.mark.parametrize("kind", ["soft_prompt", "connector", "block", "lora"])
def test_a_part_changes_the_model_and_leaves_no_trace(kind: str, loaded: LoadedModel) -> None:
    own, names = scores(loaded), [name for name, _ in loaded.model.named_modules()]
    part = randomised(parts(loaded)[kind], loaded)
    with repaired(loaded, part) as model:
        changed = scores(model)
    assert not np.allclose(changed, own, atol=1e-2)
    np.testing.assert_array_equal(scores(loaded), own)
    assert [name for name, _ in loaded.model.named_modules()] == names
    assert not any(value.requires_grad for value in loaded.model.parameters())
    with repaired(loaded, part) as model:
        np.testing.assert_allclose(scores(model), changed, atol=1e-5)


def test_new_adapters_and_lora_change_nothing(loaded: LoadedModel) -> None:
    for kind in ("connector", "block", "lora"):
        with repaired(loaded, parts(loaded)[kind]) as model:
            np.testing.assert_allclose(scores(model), scores(loaded), atol=1e-5)


def test_soft_tokens_that_are_words_give_the_scores_of_these_words(loaded: LoadedModel) -> None:
    """The reference is the model itself with the words' own tokens behind the first token."""
    words = [17, 400, 33]
    part = SoftPrompt(3, 128, 960)
    table = loaded.model.get_input_embeddings().weight.detach()  # type: ignore[union-attr, operator]
    part.load_state({"weight": table[words].clone()})
    with repaired(loaded, part) as model:
        inputs = model.prepare([QUESTION, "Why?"], images())
        soft = model.generate([QUESTION, "Why?"], [], max_new_tokens=0, labels=LABELS, inputs=inputs)
    plain = loaded.prepare([QUESTION, "Why?"], images())
    rows = []
    for ids, mask in zip(plain["input_ids"], plain["attention_mask"], strict=True):
        own = ids[mask.bool()]
        rows.append(torch.cat([own[:1], torch.tensor(words), own[1:]]))
    length = max(map(len, rows))
    pad = loaded.pad_token_id
    assert inputs["input_ids"].shape[1] == length
    expected = dict(plain)
    expected["input_ids"] = torch.stack([torch.cat([torch.full((length - len(r),), pad), r]) for r in rows])
    expected["attention_mask"] = torch.stack(
        [torch.cat([torch.zeros(length - len(r)), torch.ones(len(r))]).long() for r in rows]
    )
    assert torch.equal(inputs["attention_mask"], expected["attention_mask"])
    reference = loaded.generate([QUESTION, "Why?"], [], max_new_tokens=0, labels=LABELS, inputs=expected)
    for got, wanted in zip(soft, reference, strict=True):
        assert got.scores == pytest.approx(wanted.scores, abs=1e-4)


def test_an_adapter_is_the_map_that_its_docstring_states(loaded: LoadedModel) -> None:
    part = randomised(LowRankAdapter("connector", 128, 4), loaded)
    states = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(1))
    state = part.state()
    norm = states.pow(2).mean(-1, keepdim=True).sqrt()
    expected = states + norm * (states / norm @ state["down.weight"].T @ state["up.weight"].T + state["up.bias"])
    torch.testing.assert_close(part.module(states), expected)
    assert torch.allclose(part.module(3 * states), 3 * expected, atol=1e-4)


def test_lora_targets_are_those_of_the_stage(loaded: LoadedModel) -> None:
    attention = lora_targets(loaded, "attention", 1)
    assert len(attention) == 6 * 4 and all("self_attn" in name and "language_model" in name for name in attention)
    assert len(lora_targets(loaded, "connector", 1)) == 2
    tower = lora_targets(loaded, "vision", 2)
    assert {name.split("layers.")[1].split(".")[0] for name in tower} == {"4", "5"}


@pytest.mark.parametrize("kind", ["soft_prompt", "connector", "block", "lora"])
def test_a_folder_loads_as_it_was_trained(kind: str, loaded: LoadedModel, tmp_path: Path) -> None:
    part = randomised(parts(loaded)[kind], loaded)
    with repaired(loaded, part) as model:
        expected = scores(model)
    write_repair(tmp_path, part, loaded, name=kind, task="med_cls_demo", model="demo")
    spec = get_manager().models()["medm_vl"]
    again = load_model(spec, LoadOptions("demo", device="cpu", dtype="float32", repair=str(tmp_path)))
    np.testing.assert_allclose(scores(again), expected, atol=2e-4)
    assert isinstance(again, RepairedModel) and again.fingerprint != loaded.fingerprint
    assert again.render(QUESTION) == loaded.render(QUESTION) and again.image_tokens == 64


def test_a_lora_folder_loads_with_peft_alone(loaded: LoadedModel, tmp_path: Path) -> None:
    part = randomised(parts(loaded)["lora"], loaded)
    with repaired(loaded, part) as model:
        expected = scores(model)
    write_repair(tmp_path, part, loaded, name="attention_lora", task="med_cls_demo", model="demo")
    other = demo()
    PeftModel.from_pretrained(other.model, str(tmp_path)).merge_and_unload()
    np.testing.assert_allclose(scores(other), expected, atol=2e-4)
    merged = load(LoadOptions("demo", device="cpu", dtype="float32", peft=str(tmp_path)))
    np.testing.assert_allclose(scores(merged), expected, atol=2e-4)
    # Another adapter in the same folder is another model.
    first = merged.fingerprint
    assert first != loaded.fingerprint
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: 2 * value for name, value in load_file(path).items()}, path)
    assert load(LoadOptions("demo", device="cpu", dtype="float32", peft=str(tmp_path))).fingerprint != first


def test_a_repair_of_other_weights_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    write_repair(tmp_path, SoftPrompt(2, 128, 960), loaded, name="soft_prompt", task="t", model="demo")
    path = tmp_path / "repair.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"fingerprint": "0" * 64}))
    with pytest.raises(ModelError, match=r"fingerprint 0000.*for which the repair was trained"):
        load_repaired(loaded, tmp_path)


@pytest.mark.parametrize("damage", ["no folder", "no tensors", "shape", "kind", "json"])
def test_damaged_folders_are_refused(damage: str, loaded: LoadedModel, tmp_path: Path) -> None:
    write_repair(tmp_path, SoftPrompt(2, 128, 960), loaded, name="soft_prompt", task="t", model="demo")
    path = tmp_path / "repair.json"
    content = json.loads(path.read_text())
    if damage == "no folder":
        path.unlink()
    if damage == "no tensors":
        (tmp_path / "repair.safetensors").write_bytes(b"abc")
    if damage == "shape":
        path.write_text(json.dumps(content | {"config": content["config"] | {"vectors": 5}}))
    if damage == "kind":
        path.write_text(json.dumps(content | {"kind": "magic"}))
    if damage == "json":
        path.write_text("[]")
    with pytest.raises(ModelError, match=r"Expected|expected"):
        load_repaired(loaded, tmp_path)


def test_parts_that_do_not_fit_are_refused(loaded: LoadedModel) -> None:
    with (
        pytest.raises(OptionError, match=r"Expected a layer of the model .*llm\.05.*, got 'llm\.99'"),
        repaired(loaded, LowRankAdapter("llm.99", 128, 4)),
    ):
        pass
    with (
        pytest.raises(ModelError, match=r"Expected embeddings of shape \(10, 128\), got \(960, 128\)"),
        repaired(loaded, SoftPrompt(2, 128, 10)),
    ):
        pass


def test_a_score_map_answers_with_the_best_label(loaded: LoadedModel) -> None:
    plain = loaded.generate([QUESTION] * 2, images(), max_new_tokens=4, labels=LABELS)
    favoured = ScoreMap(
        labels=LABELS, matrix=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), bias=(0.0, 0.0, 1000.0)
    )
    with repaired(loaded, favoured) as model:
        answers = model.generate([QUESTION] * 2, images(), max_new_tokens=4, labels=LABELS)
        others = model.generate([QUESTION] * 2, images(), max_new_tokens=4, labels=LABELS[:2])
    for before, after in zip(plain, answers, strict=True):
        assert after.text == "x" and after.scores is not None and before.scores is not None
        assert after.scores == pytest.approx((before.scores[0], before.scores[1], before.scores[2] + 1000))
    assert [answer.text for answer in others] == [answer.text for answer in plain]
    with pytest.raises(ModelError, match="Expected a matrix and a bias for 3 labels"):
        ScoreMap(labels=LABELS, matrix=((1.0,),), bias=(0.0,))


@pytest.mark.parametrize("classes", [2, 4])
def test_an_affine_map_decides_as_scikit_learn_does(classes: int) -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(classes, size=200)
    values = -20 + 3 * generator.normal(size=(200, classes))
    values[np.arange(200), (truth + 1) % classes] += 4
    model = fit_affine(values, truth, np.arange(200))
    assert isinstance(model[-1], LogisticRegression)
    matrix, bias = affine_map(model, classes)
    labels = tuple(map(str, range(classes)))
    score_map = ScoreMap(labels=labels, matrix=tuple(map(tuple, matrix.tolist())), bias=tuple(bias.tolist()))
    answers = [score_map.recalibrated(Generation("", 0, tuple(row)), labels) for row in values.tolist()]
    assert [int(answer.text) for answer in answers] == model.predict(affine_features(values)).tolist()
    mapped = torch.tensor([answer.scores for answer in answers])
    probability = torch.softmax(mapped, 1).numpy()
    np.testing.assert_allclose(probability, model.predict_proba(affine_features(values)), atol=1e-6)


def test_tensors_of_other_shapes_are_named() -> None:
    part = SoftPrompt(2, 4, 10)
    state: dict[str, Tensor] = {"weight": torch.zeros(3, 4)}
    with pytest.raises(
        ModelError, match=r"Expected tensors .*\(2, 4\).* of a repair of kind soft_prompt, got .*\(3, 4\)"
    ):
        part.load_state(state)
