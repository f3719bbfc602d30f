"""The layers of a model in memory, by the names that curves and reports use for them.

``vision.00`` … are the blocks of the vision tower, ``vision.norm`` the norm after them, ``connector`` the connector,
``llm.embed`` the input of the LLM (text and image tokens together), ``llm.00`` … its blocks, and ``llm.norm`` its norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.families.family import Family, stage_module

Part = Literal["vision", "connector", "llm"]
EMBED = "llm.embed"


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a model.

    Attributes:
        enters: whether the layer is the module's input, not its output.
    """

    name: str
    part: Part
    module: nn.Module
    family: Family
    enters: bool = False

    def rows(self, output: object) -> Tensor:
        """View what the module returned, a tensor or a tuple that begins with one, with the feature axis last.

        Raises:
            ModelError: it is neither.
        """
        tensor = output[0] if isinstance(output, tuple) else output
        if not isinstance(tensor, Tensor):
            raise ModelError(
                f"{self.name}: expected the stage to return a tensor, got {type(tensor).__name__}; this version of "
                "transformers lays the model out differently."
            )
        return tensor if self.part == "llm" else self.family.to_rows(self.name, tensor)

    def from_rows(self, rows: Tensor) -> Tensor:
        """Undo :meth:`rows`."""
        return rows if self.part == "llm" else self.family.from_rows(self.name, rows)


def layers_of(loaded: LoadedModel) -> tuple[Layer, ...]:
    """Return all layers of a model in the order in which an image passes them.

    Raises:
        ModelError: the model has no module of a name that its family states.
    """
    family, model = loaded.family, loaded.model
    vision, blocks = _modules(model, family.vision_blocks), _modules(model, family.llm_blocks)
    if not vision or not blocks:
        raise ModelError(
            f"{family.title}: expected blocks at {family.vision_blocks} and {family.llm_blocks}, got {len(vision)} "
            f"and {len(blocks)}."
        )
    layers = [Layer(f"vision.{index:02d}", "vision", module, family) for index, module in enumerate(vision)]
    if family.vision_norm is not None:
        layers.append(Layer("vision.norm", "vision", stage_module(model, family.vision_norm), family))
    layers.append(Layer("connector", "connector", stage_module(model, family.connector), family))
    # The embedding module returns a placeholder for the image; the first block's input holds its features.
    layers.append(Layer(EMBED, "llm", blocks[0], family, enters=True))
    layers += [Layer(f"llm.{index:02d}", "llm", module, family) for index, module in enumerate(blocks)]
    return (*layers, Layer("llm.norm", "llm", stage_module(model, family.llm_norm), family))


def vision_blocks_read(loaded: LoadedModel) -> list[nn.Module]:
    """Return the vision blocks up to the last one that the connector reads; LLaVA may not use the last ones."""
    blocks = _vision_blocks(loaded)
    numbers = _vision_layers_chosen(loaded)
    return [layer.module for layer in (blocks if numbers is None else blocks[: max(numbers)])]


def tower_end(loaded: LoadedModel) -> Layer:
    """Return the last layer of the tower that the connector reads: its norm, or a block where blocks are chosen."""
    return tower_ends(loaded)[-1]


def tower_ends(loaded: LoadedModel) -> list[Layer]:
    """Return all layers of the tower that connectors read, the last one last.

    Most models have one. LLaVA may read several blocks, and Qwen3-VL has further connectors that read earlier blocks.
    """
    blocks, numbers = _vision_blocks(loaded), _vision_layers_chosen(loaded)
    if numbers is not None:
        return [blocks[number - 1] for number in sorted(set(numbers)) if number]
    end = [layer for layer in layers_of(loaded) if layer.part == "vision"][-1]
    beside = [blocks[number] for number in sorted(loaded.family.vision_blocks_beside(loaded.model))]
    return [*(layer for layer in beside if layer.module is not end.module), end]


def connectors_of(loaded: LoadedModel) -> list[Layer]:
    """Return the connector and modules of its class within the tower, as Qwen3-VL has for deeper layers of the LLM.

    A module of its class elsewhere may be the connector of an audio tower (Gemma 4).
    """
    (first,) = (layer for layer in layers_of(loaded) if layer.name == "connector")
    kind = type(first.module)
    if kind.__module__.startswith("torch."):  # many modules are an nn.Linear
        return [first]
    tower = stage_module(loaded.model, loaded.family.tower)
    others = [module for module in tower.modules() if type(module) is kind and module is not first.module]
    return [first, *(Layer("connector", "connector", module, loaded.family) for module in others)]


def connector_modules(loaded: LoadedModel) -> list[nn.Module]:
    """Return all modules between the end of the tower and the LLM."""
    before = [stage_module(loaded.model, name) for name in loaded.family.before_connector]
    return [*before, *(layer.module for layer in connectors_of(loaded))]


def is_block(layer: Layer) -> bool:
    """Return whether a layer is a block of the tower or the LLM."""
    return layer.name.rpartition(".")[2].isdigit()


def _vision_blocks(loaded: LoadedModel) -> list[Layer]:
    return [layer for layer in layers_of(loaded) if layer.part == "vision" and is_block(layer)]


def _vision_layers_chosen(loaded: LoadedModel) -> list[int] | None:
    """Return the hidden states of the tower that the connector reads where they are chosen, as LLaVA does.

    The patch embeddings are hidden state 0, so that block n gives hidden state n + 1.
    """
    read = getattr(loaded.model.config, "vision_feature_layer", None)
    if read is None:
        return None
    count = len(_vision_blocks(loaded))
    numbers = [int(number) for number in (read if isinstance(read, list | tuple) else [read])]
    return [number if number >= 0 else count + 1 + number for number in numbers]


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute something else while the context is open.

    Not by a hook: LLaVA takes its layer from states that transformers' own hooks record before ours would run.
    """
    own = module.__dict__.get("forward")  # accelerate sets one on a module that is spread over devices
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


@contextmanager
def changed(layer: Layer, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace what a layer holds, or read it, while the context is open.

    ``change`` takes the layer's output, in the model's layout with the feature axis last, and returns its replacement.

    Raises:
        ModelError: the module returns no tensor, or is called without one.
    """
    usual = layer.module.forward

    def replaced(output: object) -> Tensor:
        return layer.from_rows(change(layer.rows(output)))

    def entering(*args: Any, **kwargs: Any) -> Any:
        if args:
            return usual(replaced(args[0]), *args[1:], **kwargs)
        return usual(**{**kwargs, "hidden_states": replaced(kwargs.get("hidden_states"))})

    def leaving(*args: Any, **kwargs: Any) -> Any:
        output = usual(*args, **kwargs)
        return (replaced(output), *output[1:]) if isinstance(output, tuple) else replaced(output)

    with replaced_forward(layer.module, entering if layer.enters else leaving):
        yield


def _modules(model: nn.Module, name: str) -> list[nn.Module]:
    module = stage_module(model, name)
    return list(module) if isinstance(module, Iterable) else []
