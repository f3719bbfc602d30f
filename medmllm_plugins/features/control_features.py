"""What probes find without the model: in raw pixels, and behind a vision tower that was never trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from medmllm_plugins.features.hooks import ActivationHooks, Site
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.models.families.family import Family, stage_module
from medmllm_plugins.reference.pixels import SLICE_SIDE, SLICES, downsample
from medmllm_plugins.results.probe_records import RANDOM_ENCODER

if TYPE_CHECKING:
    from medmllm_plugins.data.readers.volumes import Volume

SIDE = 32


def pixels(shown: VisualInput) -> npt.NDArray[np.float16]:
    """Return the raw-pixel control features: the picture shrunk to 32 x 32 in colour, 0 to 255, (3072,).

    Of several pictures the mean; of a volume 16 slices of 16 x 16 grey values, (4096,).
    """
    if isinstance(shown, Image.Image):
        return downsample(shown, "RGB", SIDE).astype(np.float16)
    if isinstance(shown, Sequence):
        return np.asarray(np.mean([downsample(picture, "RGB", SIDE) for picture in shown], axis=0), dtype=np.float16)
    return _slices(shown)


def _slices(volume: Volume) -> npt.NDArray[np.float16]:
    from medmllm_plugins.data.readers.slices import slice_images

    images = slice_images(volume, SLICES)
    chosen = np.linspace(0, len(images) - 1, SLICES).round().astype(int)
    return np.concatenate([downsample(images[index], "L", SLICE_SIDE) for index in chosen]).astype(np.float16)


class _ConnectorDone(Exception):
    """The connector has returned; what would follow is not needed."""


class RandomEncoder:
    """The model's own vision tower and connector with random weights, run on the same images.

    A probe fitted on it shows what the architecture and the probe alone can do. Matrices are normal with variance 1
    over the number of inputs, biases 0, norms 1, embeddings normal with deviation 0.02, and single vectors (class
    token, scales of layers) normal with the mean square that they have.
    """

    def __init__(self, loaded: LoadedModel, poolings: Sequence[str], seed: int = 0) -> None:
        """Draw weights in place of the encoder's, which are floating-point numbers and stay as they are."""
        self._loaded = loaded
        self._hooks = ActivationHooks(loaded, poolings, vision_only=True)
        generator = torch.Generator().manual_seed(seed)
        self._drawn: list[tuple[nn.Parameter, Tensor]] = []
        for module in _encoder(loaded):
            for name, value in module.named_parameters(recurse=False):
                drawn = _draw(loaded.family, module, name, value, generator)
                self._drawn.append((value, drawn.to(value.device, value.dtype)))

    @staticmethod
    def possible(loaded: LoadedModel) -> bool:
        """Return whether the tower's weights can be exchanged: those of a quantised one cannot."""
        return all(value.is_floating_point() for module in _encoder(loaded) for value in module.parameters(False))

    @torch.inference_mode()
    def features(self, inputs: Mapping[str, Tensor]) -> dict[Site, Tensor]:
        """Return the features of tower and connector for a batch, by site, under names of their own."""

        def stop(*_: Any) -> None:
            raise _ConnectorDone

        handle = stage_module(self._loaded.model, self._loaded.family.connector).register_forward_hook(stop)
        try:
            with self._exchanged(), self._hooks.prompt(inputs), suppress(_ConnectorDone):  # the LLM is not needed
                self._loaded.prefill(inputs)
        finally:
            handle.remove()
        return {
            (f"{RANDOM_ENCODER}{name}", pooling): value for (name, pooling), value in self._hooks.activations.items()
        }

    def close(self) -> None:
        """Take the hooks off the model."""
        self._hooks.close()

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        own = [value.data for value, _ in self._drawn]
        for value, drawn in self._drawn:
            value.data = drawn
        try:
            yield
        finally:
            for (value, _), data in zip(self._drawn, own, strict=True):
                value.data = data


def _encoder(loaded: LoadedModel) -> list[nn.Module]:
    """Return all modules of tower and connector, each once."""
    names = (loaded.family.tower, loaded.family.connector)
    modules = {id(module): module for name in names for module in stage_module(loaded.model, name).modules()}
    return list(modules.values())


def _draw(family: Family, module: nn.Module, name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    shape = tuple(value.shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    if value.dim() == 1:
        if "norm" not in type(module).__name__.lower():  # a class token, or the scale of a layer
            return torch.randn(shape, generator=generator) * float(value.float().square().mean().sqrt())
        return torch.full(shape, family.neutral_norm_weight(module))
    if name.endswith("weight") and not isinstance(module, nn.Embedding):
        inputs = math.prod(shape[1:])
        return torch.randn(shape, generator=generator) / math.sqrt(inputs)
    return torch.randn(shape, generator=generator) * 0.02
