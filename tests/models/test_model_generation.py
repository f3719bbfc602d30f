"""Greedy decoding equals transformers', labels score as whole forwards do, and rows of a batch do not meet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny_medm_vl import write_checkpoint

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models import generation as generation_module
from medmllm_plugins.models.families.llava import Llava
from medmllm_plugins.models.formats.medm_vl import MedMVL, load
from medmllm_plugins.models.generation import greedy, score_labels
from medmllm_plugins.models.options import LoadOptions

QUESTIONS = [
    "What?",
    "Classify this breast ultrasound image into one of the following categories: benign, malignant, normal.",
    "a",
    "Answer with the category name only.",
    "Is it benign? " * 5,
]
LABELS = ["benign", "malignant tumour", "no", "normal"]


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MedMVL:
    # Untied: a random model with tied embeddings says one token over and over.
    folder = tmp_path_factory.mktemp("generation")
    write_checkpoint(folder, tied=False)
    return load(LoadOptions(str(folder), device="cpu", dtype="float32", attn_implementation=request.param))


@pytest.fixture(scope="module")
def images(make_image: Any) -> list[Any]:
    return [make_image(seed, (30 + seed, 40)) for seed in range(len(QUESTIONS))]


def decode(loaded: MedMVL, questions: Any, images: Any, *, eos: set[int], new: int = 8) -> list[list[int]]:
    start = loaded.prefill(loaded.prepare(questions, images))
    return greedy(loaded.model, start, max_new_tokens=new, eos_token_ids=eos)


def theirs(loaded: MedMVL, inputs: dict[str, torch.Tensor], *, eos: set[int], new: int = 8) -> list[list[int]]:
    out = loaded.model.generate(
        **inputs, do_sample=False, max_new_tokens=new, eos_token_id=sorted(eos), pad_token_id=loaded.pad_token_id
    )[:, inputs["input_ids"].shape[1] :].tolist()
    return [row[: next((i for i, token in enumerate(row) if token in eos), len(row))] for row in out]


def test_tokens_equal_transformers_generate(loaded: MedMVL, images: list[Any]) -> None:
    rows = decode(loaded, QUESTIONS, images, eos=set(loaded.eos_token_ids))
    inputs = loaded.prepare(QUESTIONS, images)
    assert rows == theirs(loaded, inputs, eos=set(loaded.eos_token_ids))
    assert len({tuple(row) for row in rows}) > 1


def test_rows_stop_where_transformers_stops_them(loaded: MedMVL, images: list[Any]) -> None:
    free = decode(loaded, QUESTIONS, images, eos={-1})
    # Tokens that only some rows reach, so that these end while the others go on.
    eos = {next(t for t in free[0][2:] if t not in free[1]), next(t for t in free[1][4:] if t not in free[2])}
    rows = decode(loaded, QUESTIONS, images, eos=eos)
    assert rows == theirs(loaded, loaded.prepare(QUESTIONS, images), eos=eos)
    assert len({len(row) for row in rows}) > 1
    assert not any(eos.intersection(row) for row in rows)


def test_decoding_ends_when_all_rows_have(tiny: MedMVL, images: list[Any]) -> None:
    free = decode(tiny, QUESTIONS[:2], images[:2], eos={-1})
    calls = count_calls(tiny.model.model.language_model)
    assert decode(tiny, QUESTIONS[:2], images[:2], eos={free[0][0], free[1][0]}) == [[], []]
    assert calls() == 1


@pytest.mark.parametrize("size", [2, 5])  # with a rest, and all at once
def test_any_batch_size_gives_the_same_answers(loaded: MedMVL, images: list[Any], size: int) -> None:
    alone = [
        loaded.generate([q], [i], max_new_tokens=8, labels=LABELS)[0] for q, i in zip(QUESTIONS, images, strict=True)
    ]
    batched = [
        generation
        for at in range(0, len(QUESTIONS), size)
        for generation in loaded.generate(
            QUESTIONS[at : at + size], images[at : at + size], max_new_tokens=8, labels=LABELS
        )
    ]
    assert [(g.text, g.tokens) for g in batched] == [(g.text, g.tokens) for g in alone]
    torch.testing.assert_close(
        torch.tensor([g.scores for g in batched]), torch.tensor([g.scores for g in alone]), atol=1e-4, rtol=0
    )
    at_once = decode(loaded, QUESTIONS, images, eos={-1})
    assert at_once == [decode(loaded, [q], [i], eos={-1})[0] for q, i in zip(QUESTIONS, images, strict=True)]


def test_label_scores_equal_whole_forwards(loaded: MedMVL, images: list[Any]) -> None:
    for at, generation in enumerate(loaded.generate(QUESTIONS, images, max_new_tokens=3, labels=LABELS)):
        inputs = loaded.prepare([QUESTIONS[at]], [images[at]])
        prompt = inputs["input_ids"]
        closing = loaded.render(QUESTIONS[at]).split("<image>")[1]
        assert generation.scores is not None
        for label, score in zip(LABELS, generation.scores, strict=True):
            joint = loaded.tokenizer(f"{closing} {label}")["input_ids"]
            ids = joint[len(loaded.tokenizer(closing)["input_ids"]) :]
            assert loaded.tokenizer.decode(ids) == f" {label}"
            whole = torch.cat([prompt, torch.tensor([ids])], dim=1)
            logits = loaded.model(
                input_ids=whole, attention_mask=torch.ones_like(whole), pixel_values=inputs["pixel_values"]
            ).logits[0]
            log_p = logits[prompt.shape[1] - 1 : -1].double().log_softmax(-1)
            assert score == pytest.approx(sum(log_p[i, token].item() for i, token in enumerate(ids)), abs=1e-4)


@pytest.mark.parametrize("together", [True, False])
def test_logits_after_continuations_equal_whole_forwards(
    loaded: MedMVL, images: list[Any], monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    if not together:
        monkeypatch.setattr(generation_module, "_takes_masks", lambda *_: False)
    inputs = loaded.prepare(QUESTIONS[:1], images[:1])
    start, prompt = loaded.prefill(inputs), inputs["input_ids"]
    continuations = [(), (5,), (5, 7), (9, 5, 3), (5, 7, 2)]
    logits = generation_module.logits_after(loaded.model, start, continuations)
    for ids, row in zip(continuations, logits, strict=True):
        whole = torch.cat([prompt, torch.tensor([ids], dtype=torch.long)], dim=1)
        expected = loaded.model(
            input_ids=whole, attention_mask=torch.ones_like(whole), pixel_values=inputs["pixel_values"]
        ).logits[0, -1]
        torch.testing.assert_close(row, expected.float(), atol=1e-4, rtol=1e-4)
    alone = generation_module.logits_after(loaded.model, start, [()])
    torch.testing.assert_close(alone, logits[:1])


def test_scores_leave_the_answer_as_it_was(tiny: MedMVL, images: list[Any]) -> None:
    plain = tiny.generate(QUESTIONS, images, max_new_tokens=6)
    scored = tiny.generate(QUESTIONS, images, max_new_tokens=6, labels=LABELS)
    assert [(g.text, g.tokens, None) for g in scored] == [(g.text, g.tokens, g.scores) for g in plain]
    only = tiny.generate(QUESTIONS, images, max_new_tokens=0, labels=LABELS)
    assert [g.scores for g in only] == [g.scores for g in scored]
    assert {(g.text, g.tokens) for g in only} == {("", 0)}


def test_score_of_one_token_labels_needs_no_forward(tiny: MedMVL, images: list[Any]) -> None:
    start = tiny.prefill(tiny.prepare(QUESTIONS[:2], images[:2]))
    calls = count_calls(tiny.model.model.language_model)
    scores = score_labels(tiny.model, start, [[[5], [6]], [[5], [7]]])
    assert calls() == 0
    log_p = start.logits.log_softmax(-1)
    torch.testing.assert_close(scores, torch.stack([log_p[0, [5, 6]], log_p[1, [5, 7]]]))


def test_image_and_prompt_pass_once(tiny: MedMVL, images: list[Any]) -> None:
    tower = count_calls(tiny.model.model.vision_tower)
    llm = count_calls(tiny.model.model.language_model)
    result = tiny.generate(QUESTIONS, images, max_new_tokens=4, labels=LABELS)
    assert max(g.tokens for g in result) == 4
    assert tower() == 1
    assert llm() == 1 + 1 + 3  # prompts, labels, and three steps after the first token


def count_calls(module: torch.nn.Module) -> Any:
    calls = []
    handle = module.register_forward_hook(lambda *_: calls.append(1))

    def total() -> int:
        handle.remove()
        return len(calls)

    return total


def test_positions_ignore_padding() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    positions, following = Llava().forward_prompt(lambda **inputs: inputs["position_ids"], {"attention_mask": mask})
    assert positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]] and following.tolist() == [2, 4]


def test_text_is_the_decoded_tokens(tiny: MedMVL, images: list[Any]) -> None:
    rows = decode(tiny, QUESTIONS, images, eos=set(tiny.eos_token_ids))
    result = tiny.generate(QUESTIONS, images, max_new_tokens=8)
    assert [g.text for g in result] == [tiny.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    assert [g.tokens for g in result] == [len(row) for row in rows]
    assert tiny.generate([], [], max_new_tokens=3) == []


def test_too_long_says_the_counts(tiny: MedMVL, images: list[Any]) -> None:
    inputs = tiny.prepare(["What?"], images[:1])
    length = inputs["input_ids"].shape[1]
    assert len(tiny.generate(["What?"], images[:1], max_new_tokens=0)) == 1
    tiny.check_length(length, 2048 - length)
    with pytest.raises(ModelError, match=rf"{length} tokens .* {2049 - length} may follow: 2049 .* takes 2048"):
        tiny.generate(["What?"], images[:1], max_new_tokens=2049 - length)
    with pytest.raises(ModelError, match="the model takes 2048"):
        tiny.prepare(["What? " * 2000], images[:1])
    with pytest.raises(ModelError, match="the model takes 2048"):
        tiny.generate(["What?"], images[:1], max_new_tokens=0, labels=["benign", "benign? " * 1500])
    with pytest.raises(ModelError, match="0 or more"):
        tiny.generate(["What?"], images[:1], max_new_tokens=-1)
