"""Planted faults: they break the stage they name and none before it, and nothing of them is left afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.planted_faults import (
    LABELS,
    QUESTIONS,
    attention_scalings,
    before,
    broken_mode,
    context,
    hooks,
    own,
    pictures,
    recorded_layers,
    run,
)
from torch import Tensor

from medmllm_plugins.data.layouts.phantoms import LABELS as FINDINGS
from medmllm_plugins.data.layouts.phantoms import phantom
from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.models import generation
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.stages import vision_blocks_read
from medmllm_plugins.probes.validation.fault_kinds import (
    DESTROYING,
    HEALTHY,
    KINDS,
    PAIRS,
    STRENGTHS,
    Fault,
    Strength,
    all_faults,
    names_of,
)
from medmllm_plugins.probes.validation.image_faults import IMAGE_EDITS
from medmllm_plugins.probes.validation.planted_faults import class_directions, plant_faults
from medmllm_plugins.prompts.wording import closed_set
from medmllm_plugins.testing.tiny_families import FAMILIES as TINY
from medmllm_plugins.testing.tiny_families import write_family

torch.set_num_threads(1)

NAMES = ("demo", "qwen2_5_vl", "gemma3", "gemma4")
EVERY = [name for name in list(KINDS)[1:] if name not in IMAGE_EDITS]
# The demo takes every fault; each other family takes some of each stage, and all of them in the slow tests: where a
# fault is hooked in depends on the stage and the family, and what it does there on neither.
ELSEWHERE = (
    *(names[0] for names in DESTROYING.values()),
    "tower_patches_permuted",
    "tower_signs",
    "tokens_transposed",
    "attention_flat",
    "rope_base",
    "positions_shifted",
    "attention_windowed",
    "values_rotated",
    "blocks_swapped",
    "final_permuted",
)
EVERYWHERE = [
    pytest.param(kind, name, marks=[] if kind == "demo" or name in ELSEWHERE else pytest.mark.slow, id=f"{kind}-{name}")
    for kind in NAMES
    for name in EVERY
]
BY_SHARE = ("tower_lost", "directions_removed", "connector_lost", "blind")
BY_TOKENS = ("attention_windowed", "tokens_hidden")


@pytest.mark.parametrize(("kind", "name"), EVERYWHERE)
def test_breaks_its_own_stage_more_and_more_none_before_and_is_gone_afterwards(
    load: Callable[..., LoadedModel], kind: str, name: str
) -> None:
    model, questions, images = load(kind), [QUESTIONS[0]] * 8, pictures(8)
    mode = broken_mode(name)
    inputs = model.prepare(questions, images)

    def observe(fault: Fault) -> dict[str, Tensor]:
        seen = run(model, fault, inputs)
        if mode == "mapping":
            with context(model, fault):
                answers_found = model.generate(questions, images, max_new_tokens=0, labels=LABELS)
            seen["scores"] = torch.tensor([answer.scores for answer in answers_found])
        return seen

    original = {key: value.clone() for key, value in model.model.state_dict().items()}
    healthy, at, changes = observe(HEALTHY), own(model, mode, name), []
    scalings = attention_scalings(model)
    count = hooks(model)  # transformers leaves some of its own at the first call
    for strength in STRENGTHS:
        fault = Fault(name, strength, seed=3)
        broken = observe(fault)
        for layer in before(model, mode):
            assert torch.equal(broken[layer], healthy[layer]), layer
        change = (broken[at] - healthy[at]).abs()
        changes.append(float((change > 1e-6).float().mean() if name == "labels_permuted" else change.mean()))
        assert hooks(model) == count and attention_scalings(model) == scalings
        assert all(torch.equal(value, original[key]) for key, value in model.model.state_dict().items())
    assert torch.equal(observe(fault)[at], broken[at])
    if KINDS[name].group == "destroying":
        # Of few documents the weakest fault may choose none.
        # A norm behind each part of Gemma 4's blocks bounds what weights do, so that strong faults may be alike.
        most = (1.05 if kind == "gemma4" else 1.0) * changes[2]
        assert changes[0] <= changes[1] <= most and changes[0] < changes[2], changes
    # Of few image tokens a small fraction may be none.
    assert min(changes) > 0 or name in BY_SHARE or (name in BY_TOKENS and changes[2] > 0)
    with pytest.raises(ZeroDivisionError), context(model, fault):
        model.prefill(inputs)
        raise ZeroDivisionError
    assert hooks(model) == count
    again = run(model, HEALTHY, inputs)
    assert all(torch.equal(again[layer], healthy[layer]) for layer in again)


@pytest.mark.parametrize("name", ["tower_noise", "tower_reset", "tower_blur", "tower_lost", "connector_blur"])
def test_another_seed_is_another_fault(load: Callable[..., LoadedModel], name: str) -> None:
    model = load("qwen2_5_vl")
    inputs = model.prepare([QUESTIONS[0]] * 8, pictures(8))
    faults = [Fault(name, 2, seed) for seed in (0, 1)]
    first, second = (run(model, fault, inputs)["connector"] for fault in faults)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(("kind", "name"), EVERYWHERE)
def test_a_batch_gives_what_single_questions_give(load: Callable[..., LoadedModel], kind: str, name: str) -> None:
    model = load(kind)
    images = pictures(3)
    with context(model, Fault(name, 2, seed=1)):
        batch = model.generate(QUESTIONS, images, max_new_tokens=4, labels=LABELS)
        for question, image, answers_found in zip(QUESTIONS, images, batch, strict=True):
            (single,) = model.generate([question], [image], max_new_tokens=4, labels=LABELS)
            assert single.text == answers_found.text
            assert single.scores == pytest.approx(answers_found.scores, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        *[(kind, "sdpa") for kind in ("demo", *TINY)],
        # How a mask is made for the other attention depends on no family but Gemma's, whose layers have windows.
        *[(kind, "eager") for kind in ("demo", "gemma3")],
        *[pytest.param(kind, "eager", marks=pytest.mark.slow) for kind in TINY if kind != "gemma3"],
    ],
)
def test_blind_text_does_not_depend_on_the_image(
    load: Callable[..., LoadedModel], monkeypatch: pytest.MonkeyPatch, kind: str, attention: str
) -> None:
    """Prompts, label scores in one sequence and row by row, and answers, of padded prompts."""
    model, images = load(kind, attention), pictures(4)
    questions = [QUESTIONS[0], QUESTIONS[1], QUESTIONS[0], QUESTIONS[1]]
    inputs = model.prepare(questions, images)
    if kind == "qwen3_5":
        with pytest.raises(ModelError, match="blocks of linear attention"):
            run(model, Fault("blind", 3), inputs)
        return
    healthy, broken = (run(model, fault, inputs) for fault in (HEALTHY, Fault("blind", 3)))
    text = ~model.image_positions(inputs) & inputs["attention_mask"].bool()
    for layer in ("llm.00", "llm.norm"):
        torch.testing.assert_close(broken[layer][0][text[0]], broken[layer][2][text[2]], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(healthy[layer][0][text[0]], healthy[layer][2][text[2]], atol=1e-3)
    images_at = model.image_positions(inputs)
    torch.testing.assert_close(broken["llm.00"][images_at], healthy["llm.00"][images_at], atol=1e-5, rtol=1e-5)
    with context(model, Fault("blind", 3)):
        answers_found = model.generate(questions, images, max_new_tokens=6, labels=LABELS)
        monkeypatch.setattr(generation, "_takes_masks", lambda *_: False)
        by_row = model.generate(questions, images, max_new_tokens=0, labels=LABELS)
    for answer, other in ((answers_found[0], answers_found[2]), (answers_found[1], answers_found[3])):
        assert answer.text == other.text
        assert answer.scores == pytest.approx(other.scores, abs=1e-4)
    for answer, other in zip(answers_found, by_row, strict=True):
        assert answer.scores == pytest.approx(other.scores, abs=1e-4)


def test_blindness_holds_where_a_window_has_passed_the_image(tmp_path: Path) -> None:
    """Step by step, with a cache that keeps the last keys only, as in one pass without a cache."""
    folder = write_family("gemma3", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["sliding_window"] = 24
    (folder / "config.json").write_text(json.dumps(config))
    model = ChatModel(open_native(LoadOptions(str(folder), device="cpu")))
    images = pictures(2)
    with context(model, Fault("blind", 3)):
        inputs = model.prepare([QUESTIONS[1]] * 2, images)
        assert inputs["input_ids"].shape[1] > 24
        first, second = model.generate([QUESTIONS[1]] * 2, images, max_new_tokens=12, labels=LABELS)
        assert first.text == second.text and first.scores == pytest.approx(second.scores, abs=1e-4)
        start = model.prefill(inputs)
        token = start.logits.argmax(-1)[:, None]
        step = model.model(
            input_ids=token,
            attention_mask=torch.cat([start.attention_mask, torch.ones_like(token)], dim=1),
            position_ids=start.next_position[:, None],
            **generation.cache_option(model.model, start.cache),
            use_cache=True,
        ).logits[:, -1]
        whole = dict(inputs)
        whole["input_ids"] = torch.cat([inputs["input_ids"], token], dim=1)
        for name in ("attention_mask", "token_type_ids"):
            more = torch.full_like(token, int(name == "attention_mask"))
            whole[name] = torch.cat([inputs[name], more.to(inputs[name].dtype)], dim=1)
        torch.testing.assert_close(model.model(**whole, use_cache=False).logits[:, -1], step, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", BY_SHARE)
def test_documents_that_keep_their_image_are_not_touched(load: Callable[..., LoadedModel], name: str) -> None:
    """And those that lose it at one strength lose it at the next."""
    model = load("demo")
    inputs = model.prepare([QUESTIONS[0]] * 24, pictures(24))
    healthy = run(model, HEALTHY, inputs)["logits"]
    lost: set[int] = set()
    for strength in STRENGTHS:
        logits = run(model, Fault(name, strength, seed=2), inputs)["logits"]
        now = {row for row in range(24) if not torch.allclose(logits[row], healthy[row], atol=1e-4)}
        assert lost < now
        lost = now
    assert len(lost) < 24 or name in ("blind", "directions_removed")


def test_a_stage_that_lost_the_image_says_nothing_of_it(load: Callable[..., LoadedModel]) -> None:
    model = load("demo")
    inputs = model.prepare([QUESTIONS[0]] * 24, pictures(24))
    answers_found = run(model, Fault("tower_lost", 3), inputs)
    rows = answers_found["connector"].flatten(1)
    same = [row for row in rows if float((row - rows).abs().amax(1).eq(0).sum()) > 1]
    assert 6 <= len(same) < 24 and all(torch.equal(row, same[0]) for row in same)
    assert float(answers_found[own(model, "vision")].abs().amax((1, 2)).eq(0).sum()) == len(same)


def test_removed_directions_leave_the_classes_one_mean(load: Callable[..., LoadedModel]) -> None:
    model = load("demo")
    labels = [FINDINGS[number % 4] for number in range(16)]
    images = pictures(16)
    inputs = model.prepare([QUESTIONS[0]] * 16, images)
    features = run(model, HEALTHY, inputs)["connector"].mean(1)
    directions = class_directions(features, labels)
    assert directions.shape == (3, features.shape[1])
    torch.testing.assert_close(directions @ directions.T, torch.eye(3, dtype=torch.float64))
    fault = Fault("directions_removed", 3)
    with plant_faults(model, fault, directions={"connector": directions}), recorded_layers(model) as seen:
        model.prefill(inputs)
    means = torch.stack([seen["connector"].mean(1)[number::4].mean(0) for number in range(4)])
    torch.testing.assert_close(means, means[:1].expand(4, -1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        *[("demo", seed) for seed in range(4)],
        *[
            pytest.param(kind, seed, marks=pytest.mark.slow if seed else [])  # a seed chooses the label, in any model
            for kind in NAMES[1:]
            for seed in range(4)
        ],
    ],
)
def test_a_bias_raises_one_label_and_no_other(load: Callable[..., LoadedModel], kind: str, seed: int) -> None:
    model = load(kind)

    def scores(strength: Strength | None) -> Tensor:
        with context(model, HEALTHY if strength is None else Fault("label_bias", strength, seed)):
            answers_found = model.generate(QUESTIONS, pictures(3), max_new_tokens=0, labels=LABELS)
        return torch.tensor([answer.scores for answer in answers_found])

    healthy, last = scores(None), scores(None)
    raised = set()
    for strength in STRENGTHS:
        now = scores(strength)
        up = (now > healthy + 1e-4).all(0)
        assert int(up.sum()) == 1 and bool((now[:, ~up] <= healthy[:, ~up] + 1e-4).all())
        assert bool((now[:, up] > last[:, up]).all())
        raised.add(int(up.nonzero()))
        last = now
    assert len(raised) == 1


def test_permuted_labels_are_words_of_other_labels(load: Callable[..., LoadedModel]) -> None:
    """In answers and in scores; at strength 1 two labels change places."""
    model = load("demo")
    question = closed_set("synthetic phantom image", FINDINGS)
    images = [Image.fromarray(phantom(index).image).convert("RGB") for index in range(2800, 2816)]

    def answers(fault: Fault) -> list[tuple[str, str]]:
        with plant_faults(model, fault, question=question, labels=FINDINGS):
            answers_found = model.generate([question] * len(images), images, max_new_tokens=6, labels=FINDINGS)
        return [(answer.text.strip(), FINDINGS[int(np.argmax(answer.scores or ()))]) for answer in answers_found]

    healthy = answers(HEALTHY)
    moved = []
    for strength in STRENGTHS:
        broken = answers(Fault("labels_permuted", strength, seed=1))
        assert {word for pair in broken for word in pair} <= set(FINDINGS)
        became = {(old[0], new[0]) for old, new in zip(healthy, broken, strict=True)}
        assert len(became) == len({old for old, _ in became})  # one label has become one other
        moved.append(sum(old != new for old, new in became))
    assert moved == [2, 3, 4]


def test_labels_that_share_beginnings_change_places_where_they_part(load: Callable[..., LoadedModel]) -> None:
    model = load("gemma3")
    ids = model.label_ids(QUESTIONS[0], ["no benign", "no malignant"])
    assert ids[0][0] == ids[1][0]
    for fault in (HEALTHY, Fault("labels_permuted", 1)):
        with plant_faults(model, fault, question=QUESTIONS[0], labels=["no benign", "no malignant"]):
            inputs = model.prepare(QUESTIONS[:1], pictures(1))
            start = model.prefill(inputs)
            token = torch.tensor([[ids[0][0]]])
            step = model.model(
                input_ids=token,
                attention_mask=torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long),
                position_ids=start.next_position[:, None],
                **generation.cache_option(model.model, start.cache),
                use_cache=True,
            ).logits[0, -1]
        if fault == HEALTHY:
            first, second = start.logits, step
    part = next(traced for traced in range(len(ids[0])) if ids[0][traced] != ids[1][traced])
    assert torch.equal(start.logits, first)  # the beginning in common is as likely as before
    if part == 1:
        answer, other = ids[0][1], ids[1][1]
        assert torch.equal(step[[answer, other]], second[[other, answer]])
        assert int((step != second).sum()) == 2


def test_blocks_behind_the_one_that_llava_reads_are_left_alone(load: Callable[..., LoadedModel]) -> None:
    assert len(vision_blocks_read(load("demo"))) == 6
    llava = load("llava")  # reads the last but one of two
    assert len(vision_blocks_read(llava)) == 1


def test_all_faults_are_each_kind_at_each_strength() -> None:
    faults = all_faults(seed=5)
    assert len(faults) == len(set(faults)) == 3 * (len(KINDS) - 1)
    assert {fault.seed for fault in faults} == {5}
    assert {fault.name for fault in all_faults(names=("blind",))} == {"blind"}


def test_kinds_of_form_cover_every_stage_and_pairs_break_two() -> None:
    assert len(names_of("form")) >= 16 and len(names_of("held-out form")) >= 8 and len(PAIRS) >= 8
    for group in ("form", "held-out form"):
        assert all(names_of(group, mode) for mode in ("vision", "connector", "comprehension"))
    for first, second in PAIRS:
        assert KINDS[first].modes[0] != KINDS[second].modes[0]
    assert set(IMAGE_EDITS) == {*names_of("preprocessing"), "image_noise"}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "tower"}, "`name` of a fault"),
        ({"strength": 4}, "`strength` of a fault to be 1, 2 or 3"),
    ],
)
def test_faults_that_there_are_not(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        replace(Fault("tower_noise"), **wrong)


def test_two_faults_act_one_after_the_other(load: Callable[..., LoadedModel]) -> None:
    """Both need to know the batch: the logits of the second are edited from those that the first leaves."""
    model = load("demo")
    inputs = model.prepare([QUESTIONS[0]] * 12, pictures(12))
    lost, bias = Fault("connector_lost", 3), Fault("label_bias", 3)
    first = run(model, lost, inputs)
    directions = {"connector": torch.eye(model.model.config.get_text_config().hidden_size)[:3]}
    planted = plant_faults(model, lost, bias, directions=directions, question=QUESTIONS[0], labels=LABELS)
    with planted, recorded_layers(model) as seen:
        logits = model.prefill(inputs).logits
    assert torch.equal(seen["connector"], first["connector"]) and torch.equal(seen["llm.norm"], first["llm.norm"])
    added = logits - first["logits"]
    assert torch.equal(added.ne(0).sum(1), torch.ones(12)) or float(added.abs().max()) == 0  # it may come later
    assert float(added.max()) in (0.0, pytest.approx(bias.grade, rel=1e-5))
