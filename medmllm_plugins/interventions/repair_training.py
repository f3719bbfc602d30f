"""Train a repair on answers to the task's question, with early stopping on the validation fold.

The model's weights stay frozen. The loss is the negative log-likelihood of the correct answer's tokens and of the token
that ends it, given prompt and image: what the model would be trained with if all of it were.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from medmllm_plugins.errors import DataError, ModelError
from medmllm_plugins.models.base import LoadedModel, Question, VisualInput
from medmllm_plugins.models.devices import empty_cache, out_of_memory
from medmllm_plugins.models.processes import Processes
from medmllm_plugins.models.repairs.repair_part import RepairPart
from medmllm_plugins.models.repairs.repaired_model import repaired
from medmllm_plugins.utils.progress import Progress

_WIDTH: Final = 256
"""LLMs wider than this are trained at a lower rate, by the square root of the ratio."""
_WARM_UP: Final = 0.1
_LEAST_GAIN: Final = 1e-3
"""Nats by which the validation loss must fall for a state to count as better."""
_IGNORED: Final = -100


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A question with its correct answer.

    Attributes:
        question: what the model is asked.
        visual: reads the image, the images or the volume.
        answer: the label as it is to be generated.
    """

    question: Question
    visual: Callable[[], VisualInput]
    answer: str


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How a repair is trained.

    Attributes:
        steps: the most updates.
        batch: examples in an update.
        rate: the highest learning rate for an LLM of width 256 or less.
        patience: measurements of the validation loss without a better one after which training stops.
        every: updates between them.
        seconds: time after which training stops; ``None`` for no limit.
        seed: of the order of examples, and of the part's first values.
        checkpointing: recompute activations in the backward pass, which saves memory.
    """

    steps: int = 200
    batch: int = 16
    rate: float = 3e-3
    patience: int = 4
    every: int = 20
    seconds: float | None = None
    seed: int = 0
    checkpointing: bool = False


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """The course of training.

    Attributes:
        steps: updates that were made.
        best_step: number of updates after which the validation loss was lowest; 0 for the untrained part.
        losses: mean training loss between measurements, in nats an answer token.
        validation_losses: validation loss before training and at each measurement.
        seconds: duration.
        stopped: why training ended: ``patience``, ``steps`` or ``time``.
    """

    steps: int
    best_step: int
    losses: tuple[float, ...]
    validation_losses: tuple[float, ...]
    seconds: float
    stopped: str


def train_part(
    loaded: LoadedModel,
    part: RepairPart,
    train: Sequence[TrainingExample],
    validation: Sequence[TrainingExample],
    options: TrainingOptions,
    *,
    title: str = "",
    processes: Processes | None = None,
) -> TrainingLog:
    """Train a part; afterwards it has the state with the lowest validation loss.

    A batch that does not fit into memory is divided, so that the updates stay the same.

    Args:
        loaded: the model, its parameters frozen.
        part: the part, not attached.
        train: examples to learn from.
        validation: examples that decide when to stop.
        options: how.
        title: for the progress bar; empty for none.
        processes: those that train together, each on its share of every batch; all call this function alike.

    Raises:
        DataError: there is nothing to learn from, or a loss is not finite.
        ModelError: nothing in the model reads what the part changes.
    """
    if not train or not validation:
        raise DataError(f"Expected examples to train and to stop on, got {len(train)} and {len(validation)}.")
    begin = time.monotonic()
    processes = processes or Processes()
    with seeded(options.seed), repaired(loaded, part) as model, _trainable(loaded, options.checkpointing):
        parameters = part.parameters()
        fit = _Fit(model, parameters, options, processes)
        (best, _), best_state, best_step = fit.measure(validation), part.state(), 0
        losses: list[float] = []
        measured, since, stopped, step = [best], 0, "steps", 0
        recent: list[float] = []
        with Progress(title, options.steps, "steps", shown=bool(title) and processes.is_first) as progress:
            for batch in _batches(train, options):
                recent.append(fit.update(batch, step))
                step += 1
                progress.update()
                late = options.seconds is not None and time.monotonic() - begin > options.seconds
                out_of_time = fit.any(late) if options.seconds is not None else False
                if step % options.every and step < options.steps and not out_of_time:
                    continue
                loss, accuracy = fit.measure(validation)
                losses, recent = [*losses, float(np.mean(recent))], []
                measured.append(loss)
                progress.note = f"loss {losses[-1]:.3f}, validation loss {loss:.3f}, accuracy {accuracy:.1%}"
                if loss < best - _LEAST_GAIN:
                    best, best_state, best_step, since = loss, part.state(), step, 0
                else:
                    since += 1
                if since >= options.patience or out_of_time:
                    stopped = "time" if out_of_time else "patience"
                    break
        part.load_state(best_state)
    return TrainingLog(step, best_step, tuple(losses), tuple(measured), time.monotonic() - begin, stopped)


class _Fit:
    """One optimisation: AdamW with warm-up, cosine decay and clipped gradients."""

    def __init__(
        self, loaded: LoadedModel, parameters: list[nn.Parameter], options: TrainingOptions, processes: Processes
    ) -> None:
        width = int(getattr(loaded.model.config.get_text_config(), "hidden_size", _WIDTH))
        self._loaded, self._parameters, self._options, self._processes = loaded, parameters, options, processes
        self._rate = options.rate * math.sqrt(_WIDTH / max(_WIDTH, width))
        self._adam = torch.optim.AdamW(parameters, lr=self._rate, weight_decay=0.01)
        self._part_size = options.batch

    def update(self, batch: Sequence[TrainingExample], step: int) -> float:
        """Make one update and return the loss."""
        warm = max(1, round(_WARM_UP * self._options.steps))
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self._options.steps))
        for group in self._adam.param_groups:
            group["lr"] = self._rate * min(1.0, (step + 1) / warm) * cosine
        while True:
            try:
                loss = self._backward(batch)
                break
            except RuntimeError as error:
                if not out_of_memory(error) or self._part_size == 1:
                    raise
            empty_cache()
            self._part_size = max(1, self._part_size // 2)
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        whole = torch.tensor(loss, device=self._loaded.device)
        self._processes.sum([*(parameter.grad for parameter in self._parameters if parameter.grad is not None), whole])
        loss = float(whole)
        if not math.isfinite(loss):
            raise DataError(
                f"Expected a finite training loss, got {loss} at step {step}. Lower --rate, or load the model in "
                "bfloat16 or float32."
            )
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._adam.step()
        return loss

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set in any process."""
        total = torch.tensor(float(flag), device=self._loaded.device)
        self._processes.sum([total])
        return bool(total > 0)

    def _backward(self, batch: Sequence[TrainingExample]) -> float:
        """Compute the gradients of a batch's mean loss on this process's share; returns its part of the loss."""
        self._adam.zero_grad(set_to_none=True)
        total = 0.0
        own = self._processes.share(batch)
        for start in range(0, len(own), self._part_size):
            some = own[start : start + self._part_size]
            loss = score_answers(self._loaded, some).losses.mean() * (len(some) / len(batch))
            if not loss.requires_grad:
                raise ModelError(
                    "Expected answers that depend on the part that is trained, got ones that do not: nothing in this "
                    "model reads what the part changes."
                )
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def measure(self, examples: Sequence[TrainingExample]) -> tuple[float, float]:
        """Return the mean loss of examples, and the share of those whose answer's tokens are all the likeliest."""
        examples = self._processes.share(examples)
        sums = torch.zeros(3, device=self._loaded.device)
        start = 0
        while start < len(examples):
            try:
                answers = score_answers(self._loaded, examples[start : start + self._part_size])
            except RuntimeError as error:
                if not out_of_memory(error) or self._part_size == 1:
                    raise
                empty_cache()
                self._part_size = max(1, self._part_size // 2)
                continue
            sums += torch.stack([answers.losses.sum(), answers.correct.sum(), sums.new_tensor(len(answers.losses))])
            start += self._part_size
        self._processes.sum([sums])
        loss, correct, count = sums.tolist()
        return loss / count, correct / count


@dataclass(frozen=True, slots=True, eq=False)
class ScoredAnswers:
    """How likely correct answers are.

    Attributes:
        losses: mean negative log-likelihood of each answer's tokens, (B,) float32 in nats, with gradients.
        correct: whether each of its tokens is the likeliest one, (B,) bool.
    """

    losses: Tensor
    correct: Tensor


def score_answers(loaded: LoadedModel, examples: Sequence[TrainingExample]) -> ScoredAnswers:
    """Run prompts with their correct answers through the model.

    The token that ends an answer counts as one of its tokens; those of an opening, which precede the label, do not.
    """
    questions = [example.question for example in examples]
    inputs = loaded.prepare(questions, [example.visual() for example in examples])
    end = _end_token(loaded)
    rows = [
        [*loaded.label_ids(question, [example.answer])[0], end]
        for question, example in zip(questions, examples, strict=True)
    ]
    longest, device = max(map(len, rows)), inputs["input_ids"].device
    # The last token is a target, but no input.
    tokens = torch.tensor([[*row[:-1], *[loaded.pad_token_id] * (longest - len(row))] for row in rows], device=device)
    valid = torch.tensor([[1] * (len(row) - 1) + [0] * (longest - len(row)) for row in rows], device=device)
    targets = torch.tensor([[*row, *[_IGNORED] * (longest - len(row))] for row in rows], device=device)
    targets[:, : loaded.prefix_length] = _IGNORED
    shape, extended = inputs["input_ids"].shape, {}
    for name, value in inputs.items():
        if name == "input_ids":
            extended[name] = torch.cat([value, tokens.to(value)], dim=1)
        elif value.shape[:2] == shape and not value.is_floating_point():
            added = valid.to(value) if name == "attention_mask" else torch.zeros_like(tokens).to(value)
            extended[name] = torch.cat([value, added], dim=1)
        else:
            extended[name] = value
    output, _ = loaded.family.forward_prompt(loaded.model, extended, use_cache=False, logits_to_keep=longest)
    logits = output.logits[:, -longest:].float()  # some models return those of all positions
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, reduction="none"
    ).view(len(rows), longest)
    counted = targets != _IGNORED
    correct = ((logits.argmax(-1) == targets) | ~counted).all(1)
    return ScoredAnswers(losses.sum(1) / counted.sum(1), correct)


def _end_token(loaded: LoadedModel) -> int:
    """Return the token that the answers are to end with."""
    own = loaded.tokenizer.eos_token_id
    return int(own) if own in loaded.eos_token_ids else int(loaded.eos_token_ids[0])


def _batches(examples: Sequence[TrainingExample], options: TrainingOptions) -> Iterator[list[TrainingExample]]:
    """Yield batches of examples in random order, each example once before any comes again."""
    generator = np.random.default_rng(options.seed)
    order: list[int] = []
    for _ in range(options.steps):
        while len(order) < options.batch:
            order += generator.permutation(len(examples)).tolist()
        yield [examples[index] for index in order[: options.batch]]
        order = order[options.batch :]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fix the random numbers of torch, and restore its generators afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _trainable(loaded: LoadedModel, checkpointing: bool) -> Iterator[None]:
    """Let gradients pass; with checkpointing the model is in training mode, without its dropout."""
    if not checkpointing:
        yield
        return
    model: Any = loaded.model
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
        model.eval()
