"""One question about one document, as attribution methods see it.

The model runs as in an evaluation: one prefill, then the scores of the labels. A method can replace the output of a
layer, take gradients there, or replace the pixels. Rows of a batch are copies of the one document, so that prompts are
never padded and every family arranges them alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final, TypeVar

import torch
from torch import Tensor

from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.attribution.baseline_images import baseline_image
from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.models.base import LoadedModel, Question, VisualInput
from medmllm_plugins.models.devices import empty_cache, out_of_memory
from medmllm_plugins.models.generation import score_labels
from medmllm_plugins.models.recorded_pass import RecordedPass
from medmllm_plugins.models.stages import EMBED, Layer, changed, layers_of
from medmllm_plugins.prompts.attribution_options import Baseline

logger = logging.getLogger(__name__)

PIXELS: Final = "pixels"
"""Name of the vision tower's input, where methods treat it like a layer."""
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class ActivationPatch:
    """Values, (R, n, d), that replace the output of a layer for R rows of a batch, from the row ``first`` on."""

    layer: str
    values: Tensor
    first: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class ActivationGradients:
    """States and gradients of the target at one layer, (R, n, d), or for pixels (R, …) in the processor's layout."""

    states: Tensor
    gradients: Tensor


class AttributionInput:
    """A question about a document, a target, and a baseline to compare with."""

    def __init__(
        self,
        loaded: LoadedModel,
        question: Question,
        visual: VisualInput,
        target: Target,
        *,
        baseline: Baseline = "blank",
        batch: int = 16,
    ) -> None:
        """Prepare the model's inputs; ``batch`` is the largest number of rows in one forward pass."""
        self.loaded = loaded
        self.question = question
        self.visual = visual
        self.target = target
        self.batch = batch
        self.inputs = loaded.prepare([question], [visual])
        self.ids = [list(target.ids)] if target.ids else loaded.label_ids(question, list(target.answers))
        # An opening that precedes labels is part of what is generated.
        self._prefix_length = 0 if target.ids else loaded.prefix_length
        self._baseline = baseline
        self._layers = {layer.name: layer for layer in layers_of(loaded)}
        self._passes: dict[int, RecordedPass] = {}

    def layer(self, name: str) -> Layer:
        """Return a layer of the model.

        Raises:
            OptionError: The model has no layer of that name.
        """
        if name not in self._layers:
            raise OptionError(
                f"{self.loaded.family.title}: expected `layer` to be one of {', '.join(self._layers)}, got {name!r}."
            )
        return self._layers[name]

    @property
    def pixels(self) -> Tensor:
        """Return the input of the vision tower, in the processor's layout."""
        return self.inputs["pixel_values"]

    @cached_property
    def blank_pixels(self) -> Tensor:
        """Return the baseline, of the shape of :attr:`pixels`.

        Raises:
            ModelError: The processor gives it another shape than the image.
        """
        blank = baseline_image(self.loaded.family, self.visual, self._baseline)
        pixels = self.loaded.prepare([self.question], [blank])["pixel_values"]
        if pixels.shape != self.pixels.shape:
            raise ModelError(
                f"Expected the processor to give the baseline the shape of the image, {tuple(self.pixels.shape)}, got "
                f"{tuple(pixels.shape)}. Use the other baseline, blank or blurred."
            )
        return pixels

    def clear_cache(self) -> None:
        """Forget computed values, after the pixels or the weights have changed."""
        for name in ("value", "padding"):
            self.__dict__.pop(name, None)
        self._passes.clear()

    # -- through the model -------------------------------------------------------------------------------------

    def scores(
        self,
        rows: int,
        patches: Sequence[ActivationPatch] = (),
        pixels: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Return log-probabilities of the answers, (rows, K), in nats.

        ``pixels``, (rows, …), and ``ids``, the tokens of the prompt, (rows, L), replace its own.
        """
        inputs = {name: value.repeat(rows, *[1] * (value.dim() - 1)) for name, value in self.inputs.items()}
        if pixels is not None:
            inputs["pixel_values"] = pixels.flatten(0, 1).to(self.pixels.dtype)
        if ids is not None:
            inputs["input_ids"] = ids
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(changed(self.layer(patch.layer), _replacing(patch, rows)))
            start = self.loaded.prefill(inputs)
        return score_labels(self.loaded.model, start, [self.ids] * rows, prefix_length=self._prefix_length)

    def values(self, rows: int, patches: Sequence[ActivationPatch] = (), pixels: Tensor | None = None) -> Tensor:
        """Return the target of each row, (rows,), in nats; arguments as for :meth:`scores`."""
        return self.target.value(self.scores(rows, patches, pixels))

    def values_from(self, layer: str, states: Tensor) -> Tensor:
        """Return the target where a layer holds other states, computed from that layer on.

        What comes before the layer is that of the document: its outputs are recorded once and handed on.

        Args:
            layer: the layer.
            states: (R, n, d), as :meth:`states` returns them.

        Returns:
            (R,), in nats, differentiable in the states.
        """
        rows = len(states)
        recorded = self._recorded_pass(layer, rows)
        holders, held = recorded.layers_at(layer), list(recorded.states[layer])
        index = [holder.module for holder in holders].index(self.layer(layer).module)
        held[index] = states.to(held[index].device, held[index].dtype).reshape(held[index].shape)
        start = recorded.resume_with_gradient(layer, tuple(held))
        scores = score_labels(self.loaded.model, start, [self.ids] * rows, prefix_length=self._prefix_length)
        return self.target.value(scores)

    def record(self, layers: Sequence[str]) -> None:
        """Record the document's pass at layers that :meth:`values_from` is about to be asked for, all at once."""
        if 1 not in self._passes or any(layer not in self._passes[1].states for layer in layers):
            self._passes = {1: RecordedPass(self.loaded, self.inputs, layers)}

    def _recorded_pass(self, layer: str, rows: int) -> RecordedPass:
        """Return the pass of copies of the document; that of one is recorded, that of several is made from it."""
        self.record([layer])
        if rows not in self._passes:
            # Batches are whole ones or a last one, so that no more than these are kept.
            self._passes = {1: self._passes[1], rows: self._passes[1].repeated(rows)}
        return self._passes[rows]

    @cached_property
    def value(self) -> float:
        """Return the target of the document as it is, in nats."""
        with torch.no_grad():
            return float(self.values(1))

    @torch.no_grad()
    def states(self, layers: Sequence[str], pixels: Tensor | None = None) -> dict[str, Tensor]:
        """Return the outputs of layers, (rows, n, d) each, float32, by default for one copy of the document's pixels.

        n are the rows of the stage's output for this document (patches of all tiles, a class token among them, or
        tokens of the prompt) and d their width.
        """
        rows = 1 if pixels is None else len(pixels)
        with self._recorded(layers, rows) as outputs:
            self.scores(rows, (), pixels)
        return {layer: value.float() for layer, value in outputs.items()}

    def baseline_states(self, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the outputs of layers for the baseline, (1, n, d) each, float32.

        At ``llm.embed`` text tokens are those of padding, so that words count as well as the image.
        """
        states = self.states(layers, self.blank_pixels[None])
        if EMBED in states:
            states[EMBED] = torch.where(self.text[:, None], self.padding, states[EMBED])
        return states

    @cached_property
    def text(self) -> Tensor:
        """Return which tokens of the prompt are text, (L,), bool."""
        return ~self.loaded.image_positions(self.inputs)[0]

    @cached_property
    def padding(self) -> Tensor:
        """Return the embedding of the padding token, (1, 1, D), float32."""
        embed = self.loaded.model.get_submodule(self.loaded.family.embed)
        ids = torch.tensor([[self.loaded.pad_token_id]], device=self.loaded.device)
        with torch.no_grad():
            embedding: Tensor = embed(ids).float()
        return embedding

    def gradients(self, layers: Sequence[str], pixels: Tensor | None = None) -> dict[str, ActivationGradients]:
        """Return states and gradients of the target at layers and ``"pixels"``, from one forward and one backward pass.

        Raises:
            ModelError: No gradient reaches a layer.
        """
        image = (self.pixels[None] if pixels is None else pixels).detach().clone().requires_grad_()
        rows = len(image)
        hooked = [layer for layer in layers if layer != PIXELS]
        with torch.enable_grad(), self._recorded(hooked, rows, raw=True) as outputs:
            total = self.values(rows, (), image).sum()
        states = {**outputs, **({PIXELS: image} if PIXELS in layers else {})}
        if missing := [layer for layer, state in states.items() if not (state.requires_grad and total.requires_grad)]:
            raise _no_gradient(missing)
        gradients = torch.autograd.grad(total, list(states.values()), allow_unused=True)
        if missing := [layer for layer, gradient in zip(states, gradients, strict=True) if gradient is None]:
            raise _no_gradient(missing)
        return {
            layer: ActivationGradients(state.detach(), gradient.float())
            if layer == PIXELS
            else ActivationGradients(_by_row(state.detach(), rows), _by_row(gradient, rows))
            for (layer, state), gradient in zip(states.items(), gradients, strict=True)
        }

    @contextmanager
    def _recorded(self, layers: Sequence[str], rows: int, *, raw: bool = False) -> Iterator[dict[str, Tensor]]:
        """Record outputs of layers; ``raw`` in the model's layout, so that gradients can be taken."""
        outputs: dict[str, Tensor] = {}

        def record(layer: str, output: Tensor) -> Tensor:
            if layer not in outputs:  # the first pass is the prompt's; the next ones are the labels'
                outputs[layer] = output if raw else _by_row(output, rows)
            return output

        with ExitStack() as stack:
            for name in layers:
                stack.enter_context(changed(self.layer(name), partial(record, name)))
            yield outputs


def run_within_memory(case: AttributionInput, work: Callable[[], Result]) -> Result:
    """Do work that runs rows through the model, and halve the batch for good each time memory runs out."""
    while True:
        try:
            return work()
        except RuntimeError as error:
            if not out_of_memory(error) or case.batch == 1:
                raise
        # Outside the except block, since the error keeps the tensors alive.
        empty_cache()
        case.batch //= 2
        logger.info("Out of memory: batches have at most %d rows from now on.", case.batch)


def _by_row(value: Tensor, rows: int) -> Tensor:
    """Return (rows, n, d), float32, from any layout of copies of one document."""
    return value.reshape(rows, -1, value.shape[-1]).float()


def _replacing(patch: ActivationPatch, rows: int) -> Callable[[Tensor], Tensor]:
    def replace(output: Tensor) -> Tensor:
        outputs_per_row = output.shape[0] // rows
        first, count = patch.first * outputs_per_row, len(patch.values) * outputs_per_row
        values = patch.values.to(output.device, output.dtype).reshape(count, *output.shape[1:])
        if count == output.shape[0]:
            return values
        return torch.cat([output[:first], values, output[first + count :]])

    return replace


@contextmanager
def translated_gradient_errors(layers: Sequence[str]) -> Iterator[None]:
    """Raise our error where PyTorch finds no gradient at layers.

    Raises:
        ModelError: The target has no gradient, or does not depend on a layer.
    """
    try:
        yield
    except RuntimeError as error:
        if any(message in str(error) for message in ("does not require grad", "not have been used in the graph")):
            raise _no_gradient(layers) from error
        raise


def _no_gradient(layers: Sequence[str]) -> ModelError:
    return ModelError(
        f"Expected a gradient of the target at {', '.join(layers)}, got none: the model disables gradients in between, "
        "or the target does not depend on the layer. Use a method without gradients (occlusion, "
        "layer_feature_ablation)."
    )
