"""The interface of a repair, and the repairs that this package trains itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.families.family import stage_module
from medmllm_plugins.models.stages import changed, layers_of, replaced_forward

_SPREAD: Final = 0.02
"""Spread of a new soft prompt around the mean embedding, in standard deviations of the embeddings."""


class RepairPart(ABC):
    """A trainable change of a model.

    Attributes:
        kind: its name in ``repair.json``.
        extra_tokens: by how many tokens a prompt gets longer.
    """

    kind: ClassVar[str]
    extra_tokens: int = 0

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return what makes an untrained part of the same shape, as plain JSON."""

    @abstractmethod
    def attached(self, loaded: LoadedModel) -> AbstractContextManager[None]:
        """Let the part act on a model while the context is open."""

    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters; call it while the part is attached."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return a copy of the trained tensors by name, on the CPU; call it while the part is attached."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the tensors that :meth:`state` returned; call it while the part is attached."""

    def prompt(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a model's input with the tokens that the part adds; unchanged by default."""
        return inputs


class ModulePart(RepairPart):
    """A part whose parameters are those of one module."""

    module: nn.Module

    def parameters(self) -> list[nn.Parameter]:
        """Return the module's parameters."""
        return list(self.module.parameters())

    def state(self) -> dict[str, Tensor]:
        """Return copies of the module's tensors."""
        return {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the tensors.

        Raises:
            ModelError: names or shapes differ.
        """
        own = {name: tuple(value.shape) for name, value in self.module.state_dict().items()}
        got = {name: tuple(value.shape) for name, value in state.items()}
        if own != got:
            raise ModelError(f"Expected tensors {own} of a repair of kind {self.kind}, got {got}.")
        self.module.load_state_dict(dict(state))


class _LowRank(nn.Module):
    """y + |y| (U D (y / |y|) + b), where |y| is the root mean square of a token; computed in float32."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width)
        nn.init.normal_(self.down.weight, std=width**-0.5)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, states: Tensor) -> Tensor:
        exact = states.to(self.up.weight)
        norm = exact.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
        added: Tensor = norm * self.up(self.down(exact / norm))
        return (exact + added).to(states)


class LowRankAdapter(ModulePart):
    """A low-rank map of a layer's output, added to it token by token, relative to the token's norm.

    Source: Hu et al., "LoRA", arXiv 2106.09685; here at the output of a layer in place of a weight, as in Houlsby et
    al., "Parameter-Efficient Transfer Learning for NLP", arXiv 1902.00751.
    """

    kind = "low_rank"

    def __init__(self, layer: str, width: int, rank: int) -> None:
        """``layer`` is a name as in :mod:`medmllm_plugins.models.stages`; ``rank`` is cut to its ``width``."""
        self.layer, self.width, self.rank = layer, width, min(rank, width)
        self.module = _LowRank(width, self.rank)

    def config(self) -> dict[str, Any]:
        """Return layer, width and rank."""
        return {"layer": self.layer, "width": self.width, "rank": self.rank}

    @contextmanager
    def attached(self, loaded: LoadedModel) -> Iterator[None]:
        """Change the layer's output.

        Raises:
            OptionError: the model has no such layer.
        """
        layer = next((layer for layer in layers_of(loaded) if layer.name == self.layer), None)
        if layer is None:
            names = ", ".join(layer.name for layer in layers_of(loaded))
            raise OptionError(f"Expected a layer of the model ({names}), got {self.layer!r}.")

        def adapted(states: Tensor) -> Tensor:
            self.module.to(states.device)  # where accelerate has put the layer
            result: Tensor = self.module(states)
            return result

        with changed(layer, adapted):
            yield


class SoftPrompt(ModulePart):
    """Trained vectors that stand before the prompt, behind its first token.

    In a model's input they are token ids beyond its vocabulary, so that positions and masks of every family count them
    as text.

    Source: Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", arXiv 2104.08691.
    """

    kind = "soft_prompt"

    def __init__(self, vectors: int, width: int, vocabulary: int) -> None:
        """``vocabulary`` is the number of the model's token embeddings, of ``width`` each."""
        self.extra_tokens, self.width, self.vocabulary = vectors, width, vocabulary
        self.module = nn.Embedding(vectors, width)
        self._is_new = True

    def config(self) -> dict[str, Any]:
        """Return the number of vectors and the shape of the model's embeddings."""
        return {"vectors": self.extra_tokens, "width": self.width, "vocabulary": self.vocabulary}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the vectors."""
        super().load_state(state)
        self._is_new = False

    @contextmanager
    def attached(self, loaded: LoadedModel) -> Iterator[None]:
        """Embed the added tokens; new vectors begin near the mean of the model's embeddings.

        Raises:
            ModelError: the model's embeddings have another shape.
        """
        embeddings: Any = stage_module(loaded.model, loaded.family.embed)
        shape = (int(embeddings.weight.shape[0]), int(embeddings.weight.shape[1]))
        if shape != (self.vocabulary, self.width):
            raise ModelError(f"Expected embeddings of shape {(self.vocabulary, self.width)}, got {shape}.")
        usual = embeddings.forward
        if self._is_new:
            weight = embeddings.weight.detach().float()
            noise = _SPREAD * weight.std() * torch.randn(self.extra_tokens, self.width)
            self.load_state({"weight": weight.mean(0).cpu() + noise})

        def embed(ids: Tensor, *args: Any, **options: Any) -> Tensor:
            added = ids >= self.vocabulary
            states: Tensor = usual(ids.masked_fill(added, 0), *args, **options)
            if not bool(added.any()):
                return states
            self.module.to(ids.device)
            rows = self.module((ids - self.vocabulary).clamp(min=0)).to(states)
            return torch.where(added[..., None], rows, states)

        def as_padding(table: nn.Module) -> Callable[[Tensor], Tensor]:
            own = table.forward
            return lambda ids: own(torch.where(ids >= self.vocabulary, loaded.pad_token_id, ids))

        with ExitStack() as stack:
            stack.enter_context(replaced_forward(embeddings, embed))
            for name in loaded.family.further_embeddings(loaded.model):
                table = stage_module(loaded.model, name)
                stack.enter_context(replaced_forward(table, as_padding(table)))
            yield

    def prompt(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Insert the added tokens behind the first token of each prompt."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        count, length = self.extra_tokens, ids.shape[1]
        first = mask.long().argmax(1, keepdim=True)
        target = torch.arange(length + count, device=ids.device)[None].expand(len(ids), -1)
        is_new = (target > first) & (target <= first + count)
        source = (target - count * (target > first + count).long()).clamp(max=length - 1)
        extended = {}
        for name, value in inputs.items():
            if value.shape[:2] != ids.shape or value.is_floating_point():
                extended[name] = value
                continue
            new: Tensor | int = 0  # such as the types of tokens, which are 0 for text
            if name == "input_ids":
                new = self.vocabulary + target - first - 1
            elif name == "attention_mask":
                new = 1
            moved = value.gather(1, source)
            extended[name] = torch.where(is_new, torch.as_tensor(new, dtype=value.dtype, device=value.device), moved)
        return extended
