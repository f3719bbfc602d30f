"""Checks of a model's answers and label scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.testing.check_outcomes import CheckFailed, NotApplicable, require, require_close
from medmllm_plugins.testing.check_subjects import ModelSubject
from medmllm_plugins.testing.loading_checks import label_scores

NEW_TOKENS: Final = 6


def check_batched_equals_single(subject: ModelSubject) -> None:
    """Assert that each document of a batch gets the label scores and the text that it gets alone.

    Wrong padding, positions or attention masks change the answers with the batch size, and raise no error.
    """
    loaded, examples = subject.loaded, subject.examples
    rows = range(len(examples))
    batch = loaded.generate(*examples.batch(rows), max_new_tokens=NEW_TOKENS, labels=examples.labels)
    for row in rows:
        (alone,) = loaded.generate(*examples.batch([row]), max_new_tokens=NEW_TOKENS, labels=examples.labels)
        what = f"{subject.name}, document {row} of a batch of {len(examples)}"
        advice = "Check padding (on the left), attention mask and positions of a batch."
        require_close(label_scores(batch[row]), label_scores(alone), f"{what}, label scores", advice)
        require(
            batch[row].text == alone.text,
            f"{what}: expected the text {alone.text!r}, as alone, got {batch[row].text!r}. {advice}",
        )


@torch.no_grad()
def check_label_scores_equal_whole_passes(subject: ModelSubject) -> None:
    """Assert that label scores are those of a forward pass over prompt and label together, without a cache.

    Label scores are computed from the cache of the prompt, which a wrong position or mask of the label's tokens spoils.
    """
    loaded, examples = subject.loaded, subject.examples
    for row in range(len(examples)):
        questions, visuals = examples.batch([row])
        (item,) = loaded.generate(questions, visuals, max_new_tokens=0, labels=examples.labels)
        inputs = loaded.prepare(questions, visuals)
        expected = [
            whole_pass(loaded, inputs, ids, loaded.prefix_length)
            for ids in loaded.label_ids(questions[0], examples.labels)
        ]
        advice = "Check the positions and token types that follow the prompt (`Family.forward_prompt`)."
        require_close(label_scores(item), expected, f"{subject.name}, document {row}, label scores", advice)


def whole_pass(loaded: LoadedModel, inputs: Mapping[str, Tensor], ids: Sequence[int], unscored: int = 0) -> float:
    """Return log p of the tokens of a label after one document's prompt, in nats, by one pass without a cache.

    The first ``unscored`` tokens are run, but not counted.
    """
    device = inputs["input_ids"].device
    fills = {
        "input_ids": torch.tensor([list(ids)]),
        "attention_mask": torch.ones(1, len(ids)),
        "mm_token_type_ids": torch.zeros(1, len(ids)),
        "token_type_ids": torch.full((1, len(ids)), loaded.family.answer_token_type),
    }
    extended = {
        name: torch.cat([value, fills[name].to(device, value.dtype)], dim=1) if name in fills else value
        for name, value in inputs.items()
    }
    forget_positions(loaded)
    logits = loaded.model(**extended, use_cache=False).logits[0].double().log_softmax(-1)
    start = inputs["input_ids"].shape[1] - 1
    return float(sum(logits[start + index, token] for index, token in enumerate(ids) if index >= unscored))


def forget_positions(loaded: LoadedModel) -> None:
    """Forget the positions that Qwen2-VL and its relatives keep from one prompt to the next."""
    inner = getattr(loaded.model, "model", None)
    if hasattr(inner, "rope_deltas"):
        inner.rope_deltas = None  # type: ignore[union-attr]


@torch.no_grad()
def check_text_equals_generate(subject: ModelSubject) -> None:
    """Assert that the text is that of transformers' own ``generate`` with greedy decoding.

    The package decodes by itself, from the prefill that also gives label scores and features.
    """
    loaded, examples = subject.loaded, subject.examples
    if not getattr(loaded.model, "can_generate", lambda: False)():
        raise NotApplicable(f"{type(loaded.model).__name__} has no generate() of transformers to compare with")
    for row in range(len(examples)):
        questions, visuals = examples.batch([row])
        (item,) = loaded.generate(questions, visuals, max_new_tokens=NEW_TOKENS)
        inputs = loaded.prepare(questions, visuals)
        forget_positions(loaded)
        generator: Any = loaded.model
        output = generator.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=list(loaded.eos_token_ids),
            pad_token_id=loaded.pad_token_id,
        )[0, inputs["input_ids"].shape[1] :].tolist()
        end = next((index for index, token in enumerate(output) if token in loaded.eos_token_ids), len(output))
        text = loaded.tokenizer.decode(output[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        require(
            item.text == text,
            f"{subject.name}, document {row}: expected the text of transformers' generate(), {text!r}, got "
            f"{item.text!r}. Check the positions after the prompt and the tokens that end an answer.",
        )


def check_answer_depends_on_the_image(subject: ModelSubject) -> None:
    """Assert that another image gives other label scores for the same question.

    A model that ignores the image still answers, often at the rate of the most common class.
    """
    loaded, examples = subject.loaded, subject.examples
    results = [
        label_scores(item)
        for visual in examples.visuals
        for item in loaded.generate([examples.questions[0]], [visual], max_new_tokens=0, labels=examples.labels)
    ]
    differences = [abs(score - other) for score, other in zip(results[0], results[1], strict=True)]
    require(
        max(differences) > 1e-4,
        f"{subject.name}: expected label scores that change with the image, got a change of {max(differences):.1g} "
        "nats. Is the image among the model's inputs, and does the prompt hold its tokens?",
    )


class _Interrupted(Exception):
    """Ends a run in the middle."""


def check_resume_gives_the_same(subject: ModelSubject) -> None:
    """Assert that a run that is interrupted and started again gives the answers of a run that is not.

    The second start loads the model again, finds the stored answers by its fingerprint, and answers the rest. A model
    that keeps a state from one batch to the next gives other answers then.
    """
    first, folder = subject.loaded, subject.folder
    whole, _ = _answers(subject, first, folder / "whole")
    generate, batches = first.generate, 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches > 2:  # of the first batch, and of its question about a blank image
            raise _Interrupted
        return generate(*arguments, **options)

    first.generate = interrupted  # type: ignore[method-assign]
    try:
        _answers(subject, first, folder / "parts")
    except _Interrupted:
        pass
    finally:
        del first.__dict__["generate"]
    resumed, known = _answers(subject, subject.load(), folder / "parts")
    require(
        known,
        f"{subject.name}: expected the second start to find the answers of the first, got none of them. The "
        "fingerprint of the model must be the same in every load.",
    )
    for key, reply in whole.items():
        what = f"{subject.name}, document {key[2]}, after a second start"
        advice = "The model must not keep anything from one batch to the next."
        require(
            resumed[key].text == reply.text,
            f"{what}: expected the text {reply.text!r}, got {resumed[key].text!r}. {advice}",
        )
        require_close(resumed[key].scores or (), reply.scores or (), f"{what}, label scores", advice)


def _answers(subject: ModelSubject, loaded: LoadedModel, folder: Path) -> tuple[Mapping[Any, Any], bool]:
    """Answer six questions in batches of two; also return whether some answers were known."""
    from medmllm_plugins.models.options import LoadOptions
    from medmllm_plugins.runtime.answer_loop import AnswerLoop, AnswerOptions
    from medmllm_plugins.runtime.answering import deciding_facts, model_entry
    from medmllm_plugins.runtime.evaluation_run import EvaluationRun
    from medmllm_plugins.testing.random_task import random_requests

    run = EvaluationRun(folder)
    try:
        options = AnswerOptions(subject.spec.name, batch_size=2)
        entry = model_entry(loaded, LoadOptions(subject.pretrained, device=subject.resources.device), options)
        journal = run.open(options.model, deciding_facts(entry, loaded))
        known = bool(journal.known)
        replies = AnswerLoop(loaded, run, options).answer(random_requests(volumes=loaded.shows == "volume"), journal)
    finally:
        run.close()
    if not replies:
        raise CheckFailed("Expected answers to six questions, got none.")
    return replies, known
