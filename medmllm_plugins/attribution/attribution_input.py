"""One question about one document, as attribution methods see it.

Everything runs through the very code that answers in an evaluation: one prefill, then the scores of the labels. A
method may put other values where a layer stands, take gradients there, or show other pixels. Rows of a batch are
copies of the one document, so that prompts are never padded and every family lays them out alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.attribution.baseline_images import baseline_image
from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.models.base import LoadedModel, Question, VisualInput
from medmllm_plugins.models.generation import score_labels
from medmllm_plugins.models.stages import EMBED, Layer, changed, layers_of
from medmllm_plugins.prompts.attribution_options import Baseline

PIXELS: Final = "pixels"
"""The layer of the tower's input."""


@dataclass(frozen=True, slots=True, eq=False)
class ActivationPatch:
    """What is to stand at a layer for some rows of a batch.

    Attributes:
        layer: its name.
        values: (R, n, d), see :meth:`Case.states`.
        first: the first of the rows.
    """

    layer: str
    values: Tensor
    first: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class ActivationGradients:
    """States and gradients at one layer.

    Attributes:
        states: (R, n, d), or of pixels (R, …) in the processor's layout.
        gradients: of the target, of the same shape.
    """

    states: Tensor
    gradients: Tensor


class AttributionInput:
    """A question about a document, a target, and a baseline to compare with."""

    def __init__(
        self,
        loaded: LoadedModel,
        question: Question,
        shown: VisualInput,
        target: Target,
        *,
        baseline: Baseline = "blank",
        batch: int = 16,
    ) -> None:
        """Prepare a case.

        Args:
            loaded: the model.
            question: what is asked.
            shown: the image, images or volume.
            target: what is explained.
            baseline: what the image is compared with.
            batch: the most rows that go through the model together.
        """
        self.loaded = loaded
        self.question = question
        self.shown = shown
        self.target = target
        self.batch = batch
        self.inputs = loaded.prepare([question], [shown])
        self.ids = [list(target.ids)] if target.ids else loaded.label_ids(question, list(target.answers))
        # An opening that stands before labels is part of what is generated.
        self._given = 0 if target.ids else loaded.prefix_length
        self._baseline = baseline
        self._places = {place.name: place for place in layers_of(loaded)}

    def place(self, layer: str) -> Layer:
        """A layer by its name.

        Raises:
            OptionError: the model has none of that name.
        """
        if layer not in self._places:
            raise OptionError(
                f"{self.loaded.family.title}: expected `layer` to be one of {', '.join(self._places)}, found {layer!r}."
            )
        return self._places[layer]

    @property
    def pixels(self) -> Tensor:
        """The image as the tower is given it, in the processor's layout."""
        return self.inputs["pixel_values"]

    @cached_property
    def blank_pixels(self) -> Tensor:
        """The baseline, of the shape of :attr:`pixels`.

        Raises:
            ModelError: the processor lays it out differently than the image.
        """
        shown = baseline_image(self.loaded.family, self.shown, self._baseline)
        found = self.loaded.prepare([self.question], [shown])["pixel_values"]
        if found.shape != self.pixels.shape:
            raise ModelError(
                f"Expected the processor to lay out an image and its baseline alike, found {tuple(self.pixels.shape)} "
                f"and {tuple(found.shape)}."
            )
        return found

    def forget(self) -> None:
        """Work anew what was kept of the document, after its pixels or the weights have changed."""
        for name in ("value", "padding"):
            self.__dict__.pop(name, None)

    # -- through the model -------------------------------------------------------------------------------------

    def scores(self, rows: int, stand_ins: Sequence[ActivationPatch] = (), pixels: Tensor | None = None) -> Tensor:
        """Log-probabilities of the answers, (rows, K), in nats.

        Args:
            rows: number of copies of the document.
            stand_ins: what is to stand at layers instead.
            pixels: (rows, …), pixels for each copy in place of the document's.
        """
        inputs = {name: value.repeat(rows, *[1] * (value.dim() - 1)) for name, value in self.inputs.items()}
        if pixels is not None:
            inputs["pixel_values"] = pixels.flatten(0, 1).to(self.pixels.dtype)
        with ExitStack() as stack:
            for one in stand_ins:
                stack.enter_context(changed(self.place(one.layer), _putting(one, rows)))
            start = self.loaded.prefill(inputs)
        return score_labels(self.loaded.model, start, [self.ids] * rows, prefix_length=self._given)

    def values(self, rows: int, stand_ins: Sequence[ActivationPatch] = (), pixels: Tensor | None = None) -> Tensor:
        """The target for each row, (rows,); arguments as for :meth:`scores`."""
        return self.target.value(self.scores(rows, stand_ins, pixels))

    @cached_property
    def value(self) -> float:
        """The target of the document as it is, in nats."""
        with torch.no_grad():
            return float(self.values(1))

    @torch.no_grad()
    def states(self, layers: Sequence[str], pixels: Tensor | None = None) -> dict[str, Tensor]:
        """What stands at layers, (rows, n, d) each, float32.

        n are the rows of the stage's output for this document (patches of all tiles, a class token among them, or
        tokens of the prompt) and d their width.

        Args:
            layers: their names.
            pixels: (rows, …), pixels for each copy; one copy of the document's own by default.
        """
        rows = 1 if pixels is None else len(pixels)
        with self._looking(layers, rows) as seen:
            self.scores(rows, (), pixels)
        return {layer: value.float() for layer, value in seen.items()}

    def baseline_states(self, layers: Sequence[str]) -> dict[str, Tensor]:
        """What stands at layers for the baseline, (1, n, d) each, float32.

        At ``llm.embed`` text tokens are those of padding, so that words count as well as the image.
        """
        found = self.states(layers, self.blank_pixels[None])
        if EMBED in found:
            found[EMBED] = torch.where(self.text[:, None], self.padding, found[EMBED])
        return found

    @cached_property
    def text(self) -> Tensor:
        """Which tokens of the prompt are text, (L,), bool."""
        return ~self.loaded.image_positions(self.inputs)[0]

    @cached_property
    def padding(self) -> Tensor:
        """What the LLM reads for the padding token, (1, 1, D), float32."""
        embed = self.loaded.model.get_submodule(self.loaded.family.embed)
        ids = torch.tensor([[self.loaded.pad_token_id]], device=self.loaded.device)
        with torch.no_grad():
            found: Tensor = embed(ids).float()
        return found

    def slopes(self, layers: Sequence[str], pixels: Tensor | None = None) -> dict[str, ActivationGradients]:
        """States and gradients of the target at all layers, ``"pixels"`` among them, in one pass and one way back.

        Args:
            layers: their names.
            pixels: (rows, …), pixels for each copy; one copy of the document's own by default.

        Raises:
            ModelError: no gradient reaches a layer.
        """
        given = (self.pixels[None] if pixels is None else pixels).detach().clone().requires_grad_()
        hooked = [layer for layer in layers if layer != PIXELS]
        with torch.enable_grad(), self._looking(hooked, len(given), raw=True) as seen:
            total = self.values(len(given), (), given).sum()
        wanted = {**seen, **({PIXELS: given} if PIXELS in layers else {})}
        if lost := [layer for layer, value in wanted.items() if not value.requires_grad or not total.requires_grad]:
            raise _no_gradient(lost)
        found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
        if lost := [layer for layer, one in zip(wanted, found, strict=True) if one is None]:
            raise _no_gradient(lost)
        rows = len(given)
        return {
            layer: ActivationGradients(_rows(value.detach(), rows), _rows(slope, rows))
            if layer != PIXELS
            else ActivationGradients(value.detach(), slope.float())
            for (layer, value), slope in zip(wanted.items(), found, strict=True)
        }

    @contextmanager
    def _looking(self, layers: Sequence[str], rows: int, *, raw: bool = False) -> Iterator[dict[str, Tensor]]:
        """Keep what stands at layers; ``raw``: as the model lays it out, so that gradients can be taken."""
        seen: dict[str, Tensor] = {}

        def look(layer: str, value: Tensor) -> Tensor:
            if layer not in seen:  # the first pass is the prompt's; what follows are the labels'
                seen[layer] = value if raw else _rows(value, rows)
            return value

        with ExitStack() as stack:
            for layer in layers:
                place = self.place(layer)
                stack.enter_context(changed(place, lambda value, layer=layer: look(layer, value)))  # type: ignore[misc]
            yield seen


def _rows(value: Tensor, rows: int) -> Tensor:
    """(rows, n, d), float32, from any layout of copies of one document."""
    return value.reshape(rows, -1, value.shape[-1]).float()


def _putting(one: ActivationPatch, rows: int) -> Callable[[Tensor], Tensor]:
    def put(output: Tensor) -> Tensor:
        each = output.shape[0] // rows
        first, count = one.first * each, len(one.values) * each
        values = one.values.to(output.device, output.dtype).reshape(count, *output.shape[1:])
        if count == output.shape[0]:
            return values
        return torch.cat([output[:first], values, output[first + count :]])

    return put


@contextmanager
def translated_gradient_errors(layers: Sequence[str]) -> Iterator[None]:
    """Say in our words where another library finds no gradient at layers.

    Raises:
        ModelError: PyTorch said that the target has no gradient, or that nothing reads a layer.
    """
    try:
        yield
    except RuntimeError as error:
        if any(said in str(error) for said in ("does not require grad", "not have been used in the graph")):
            raise _no_gradient(layers) from error
        raise


def _no_gradient(layers: Sequence[str]) -> ModelError:
    return ModelError(
        f"Expected the target's gradient at {', '.join(layers)}, found none: the model switches gradients off on the "
        "way, or nothing behind the layer reads it. Methods without gradients (occlusion, layer_feature_ablation) work."
    )
