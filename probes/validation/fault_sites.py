"""Where faults are planted: the parts of a model by the names of :mod:`medmllm_plugins.models.stages`."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property

from torch import nn

from medmllm_plugins.interventions.model_edits import BatchTracker, check_masks, track_batch
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.families.family import stage_module
from medmllm_plugins.models.stages import (
    Layer,
    connectors_of,
    is_block,
    layers_of,
    tower_end,
    vision_blocks_read,
)


class FaultSites:
    """The parts of a model that faults edit, and one tracker of its batches for all faults."""

    def __init__(self, loaded: LoadedModel, stack: ExitStack) -> None:
        """``stack`` removes the tracker's hooks when it closes."""
        self.loaded = loaded
        self._stack = stack
        self._layers = layers_of(loaded)

    @cached_property
    def batch(self) -> BatchTracker:
        """The current batch; edits that ask for it must be entered afterwards."""
        return self._stack.enter_context(track_batch(self.loaded))

    @cached_property
    def tower(self) -> list[nn.Module]:
        """The vision blocks that the connector reads."""
        return vision_blocks_read(self.loaded)

    @cached_property
    def tower_end(self) -> Layer:
        """The last layer of the tower that the connector reads: its norm, or a block where blocks are chosen."""
        return tower_end(self.loaded)

    @cached_property
    def connectors(self) -> list[Layer]:
        """The connector and modules of its class: Qwen3-VL's tower has further ones for deeper layers of the LLM."""
        return connectors_of(self.loaded)

    @cached_property
    def llm_blocks(self) -> list[nn.Module]:
        """The blocks of the LLM."""
        return [layer.module for layer in self._layers if layer.part == "llm" and is_block(layer)]

    @cached_property
    def llm_norm(self) -> Layer:
        """The norm after them."""
        return self._layers[-1]

    @property
    def head(self) -> nn.Module:
        """The module that returns the logits."""
        return stage_module(self.loaded.model, self.loaded.family.head)

    def check_masks(self) -> None:
        """Check that the attention takes a mask for each pair of tokens.

        Raises:
            ModelError: it does not.
        """
        check_masks(self.loaded)
