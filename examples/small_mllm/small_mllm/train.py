"""Train the model in two stages, as MedM-VL does: the connector alone, then LoRA in the LLM.

    python -m small_mllm.train --output models

Nothing is downloaded: the pretrained parts come from two installed packages, the images from the folder that
``MEDMLLM_DATA`` names. The tower is never trained, so it reads every image once. Two checkpoints are written,
``stage1`` and ``stage2``, which ``lmms-eval --model small_mllm --model_args pretrained=models/stage2`` evaluates. The
same command continues a training that was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medmllm_plugins import Dataset, dataset_specs, load_dataset
from medmllm_plugins.prompts.protocols import ask
from small_mllm.architecture import SmallForConditionalGeneration
from small_mllm.pretrained import assemble
from small_mllm.questions import Example, QuestionSource, View, views_of

SETS = ("busi", "covid19_ct", "pneumoniamnist")
IMAGE_TOKENS = 16


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: of the checkpoint.
        steps: updates.
        rate: highest learning rate.
        lora: whether the LLM gets LoRA, which is merged at the end.
        words: whether findings in words are asked about as well.
    """

    name: str
    steps: int
    rate: float
    lora: bool
    words: bool


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("models"), help="folder of checkpoints")
    parser.add_argument("--sets", nargs="+", default=SETS, help="data sets of medmllm-plugins")
    parser.add_argument("--steps", nargs=2, type=int, default=(250, 350), help="updates of each stage")
    parser.add_argument("--batch", type=int, default=16, help="questions in an update")
    parser.add_argument("--limit", type=int, default=800, help="most train images of each set")
    parser.add_argument("--marked", type=int, default=240, help="train images of each set with white squares")
    parser.add_argument("--validation", type=int, default=100, help="validation images of each set")
    parser.add_argument("--save-every", type=int, default=50, help="updates between saved states")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of matrix products; bfloat16 takes half the time on a CPU with instructions for it (AVX512-BF16, AMX)",
    )
    options = parser.parse_args(arguments)
    train(options)


def train(options: argparse.Namespace) -> None:
    """Train both stages, or continue."""
    begin = time.monotonic()
    options.output.mkdir(parents=True, exist_ok=True)
    model, processor = assemble(options.seed)
    sets = [load_dataset(dataset_specs()[name]) for name in options.sets]
    views = views_of(sets, "train", options.limit, options.marked, mirrored=True, seed=options.seed)
    held = views_of(sets, "validation", options.validation, 0, mirrored=False, seed=options.seed)
    maps = stored_maps(options.output / "train-maps.safetensors", model, processor, sets, views)
    held_maps = stored_maps(options.output / "validation-maps.safetensors", model, processor, sets, held)
    say(f"{len(views)} train views of {len(sets)} sets; the tower read them {time.monotonic() - begin:.0f} s in")
    stages = (
        Stage("stage1", options.steps[0], 5e-3, lora=False, words=False),
        Stage("stage2", options.steps[1], 5e-4, lora=True, words=True),
    )
    for stage in stages:
        folder = options.output / stage.name
        if (folder / "config.json").is_file():
            say(f"{stage.name}: found in {folder}")
            model = SmallForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
            continue
        source = QuestionSource(sets, views)
        trained = train_stage(model, processor, stage, source, maps, options)
        accuracies = validate(trained, processor, sets, held, held_maps)
        model = trained
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        seconds = time.monotonic() - begin
        (folder / "training.json").write_text(
            json.dumps({"validation": accuracies, "seconds": seconds}, indent=2) + "\n"
        )
        shown = ", ".join(f"{name} {share:.1%}" for name, share in accuracies.items())
        say(f"{stage.name}: validation accuracy {shown}; {seconds / 60:.1f} minutes in all; written to {folder}")


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


@torch.no_grad()
def stored_maps(
    path: Path, model: SmallForConditionalGeneration, processor: Any, sets: Sequence[Dataset], views: Sequence[View]
) -> Tensor:
    """Return the tower's maps of all views, (views, channels, rows, columns) float16, computed once."""
    if path.is_file():
        maps = load_file(path)["maps"]
        if len(maps) == len(views):
            return maps
    parts = []
    for start in range(0, len(views), 32):
        images = [view.image(sets[view.data]).convert("RGB") for view in views[start : start + 32]]
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        parts.append(model.model.vision_tower(pixels).half())
    maps = torch.cat(parts)
    save_file({"maps": maps}, path)
    return maps


def train_stage(
    model: SmallForConditionalGeneration,
    processor: Any,
    stage: Stage,
    source: QuestionSource,
    maps: Tensor,
    options: argparse.Namespace,
) -> SmallForConditionalGeneration:
    """Train the connector, and LoRA of the LLM where the stage says so, which is merged at the end."""
    model.requires_grad_(False).eval()
    adapted: Any = model
    if stage.lora:
        torch.manual_seed(options.seed)
        targets = r"model\.language_model\.layers\.\d+\.self_attn\.[qkvo]_proj"
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules=targets))
    model.model.multi_modal_projector.requires_grad_(True)
    parameters = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    adam = torch.optim.AdamW(parameters.values(), lr=stage.rate, weight_decay=0.01)
    state = options.output / f"{stage.name}-state.safetensors"
    first = load_state(state, parameters, adam)
    begin, losses = time.monotonic(), []
    for step in range(first, stage.steps):
        for group in adam.param_groups:
            group["lr"] = stage.rate * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / stage.steps))
        generator = random.Random(f"{options.seed} {stage.name} {step}")
        examples = [source.draw(generator, words=stage.words) for _ in range(options.batch)]
        adam.zero_grad()
        # Left after each forward pass: within, the weights' rounded copies are kept and would not be updated.
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.dtype == "bfloat16"):
            loss = answer_loss(model, processor, examples, maps)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        adam.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 10 == 0 or step + 1 == stage.steps:
            rate = (time.monotonic() - begin) / (step + 1 - first)
            left = rate * (stage.steps - step - 1)
            say(
                f"{stage.name}: {step + 1} of {stage.steps} updates, loss {np.mean(losses[-10:]):.3f}, "
                f"about {left:.0f} s left"
            )
        if (step + 1) % options.save_every == 0:
            save_state(state, parameters, adam, step + 1)
    result: SmallForConditionalGeneration = adapted.merge_and_unload() if stage.lora else model
    state.unlink(missing_ok=True)
    result.requires_grad_(False).eval()  # type: ignore[no-untyped-call]
    return result


def answer_loss(
    model: SmallForConditionalGeneration, processor: Any, examples: Sequence[Example], maps: Tensor
) -> Tensor:
    """Return the mean loss on the tokens of the answers and the ones that end them."""
    rows = [
        tokens_of(processor, example.question, example.answer, image=example.view is not None) for example in examples
    ]
    seen = [example.view for example in examples if example.view is not None]
    logits, targets = answer_logits(model, processor, rows, maps[seen] if seen else None)
    return nn.functional.cross_entropy(logits, targets[targets != -100])


def answer_logits(
    model: SmallForConditionalGeneration,
    processor: Any,
    rows: Sequence[tuple[list[int], list[int]]],
    maps: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the logits of all tokens of answers, and the tokens.

    Args:
        model: the model.
        processor: its processor.
        rows: tokens of prompt and answer.
        maps: the tower's maps of the rows with an image, in their order.

    Returns:
        (tokens, V) float32; and (B, L) int64, -100 where no token of an answer comes next.
    """
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), width), int(processor.tokenizer.pad_token_id))
    targets = torch.full((len(rows), width), -100)
    for row, (prompt, answer) in enumerate(rows):
        ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        targets[row, len(prompt) - 1 : len(prompt) + len(answer) - 1] = torch.tensor(answer)
    # Rows are padded on the right, where no token of an answer sees the padding.
    states = model.model(ids, maps=None if maps is None else maps.float(), use_cache=False).last_hidden_state
    return model.lm_head(states[targets != -100]), targets


def tokens_of(processor: Any, question: str, answer: str, *, image: bool) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt, with one token for each token of the image, and those of its answer."""
    content = [{"type": "image"}] if image else []
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    text = processor.tokenizer.apply_chat_template(
        messages, chat_template=processor.chat_template, tokenize=False, add_generation_prompt=True
    )
    text = text.replace(processor.image_token, processor.image_token * IMAGE_TOKENS)
    prompt = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = processor.tokenizer(f"{text}{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
    return prompt, whole[len(prompt) :]


@torch.no_grad()
def validate(
    model: SmallForConditionalGeneration, processor: Any, sets: Sequence[Dataset], views: Sequence[View], maps: Tensor
) -> dict[str, float]:
    """Return by data set how often the label that scores highest on the task's own question is correct."""
    correct: dict[str, list[bool]] = {}
    for view, seen in zip(views, maps, strict=True):
        spec = sets[view.data].spec
        question = ask("closed_set", spec.modality, spec.classes)
        rows = [tokens_of(processor, question.text, label, image=True) for label in question.labels]
        logits, targets = answer_logits(model, processor, rows, seen.expand(len(rows), -1, -1, -1))
        chosen = targets != -100
        losses = torch.zeros(targets.shape)
        losses[chosen] = nn.functional.cross_entropy(logits, targets[chosen], reduction="none")
        best = list(question.classes)[int(losses.sum(1).argmin())]
        correct.setdefault(spec.name, []).append(best == view.document.labels[0])
    return {name: float(np.mean(hits)) for name, hits in correct.items()}


def load_state(path: Path, parameters: dict[str, Tensor], adam: torch.optim.AdamW) -> int:
    """Continue from a saved state; returns the number of updates that were made."""
    if not path.is_file():
        return 0
    stored = load_file(path)
    step = int(stored["step"])
    for name, value in parameters.items():
        value.data.copy_(stored[name])
        adam.state[value] = {
            "step": torch.tensor(float(step)),
            "exp_avg": stored[f"{name}/mean"],
            "exp_avg_sq": stored[f"{name}/square"],
        }
    return step


def save_state(path: Path, parameters: dict[str, Tensor], adam: torch.optim.AdamW, step: int) -> None:
    """Save parameters and the optimiser's state, under another name first."""
    tensors = {"step": torch.tensor(step)}
    for name, value in parameters.items():
        tensors |= {
            name: value.detach().clone(),
            f"{name}/mean": adam.state[value]["exp_avg"],
            f"{name}/square": adam.state[value]["exp_avg_sq"],
        }
    draft = path.with_suffix(".draft")
    save_file(tensors, draft)
    draft.replace(path)


if __name__ == "__main__":
    main()
