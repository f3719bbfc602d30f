"""Select methods, from the hook ``medmllm_attributions``, and the layers they are applied to."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from medmllm_plugins.attribution.attribution_input import PIXELS
from medmllm_plugins.attribution.methods.input_methods import PROMPT
from medmllm_plugins.attribution.methods.layer_methods import Method
from medmllm_plugins.errors import OptionError, PluginError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.stages import is_block, layers_of
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.plugins.specs import AttributionSpec
from medmllm_plugins.prompts.attribution_options import check_methods
from medmllm_plugins.utils.import_by_name import import_by_name

LAYERS = "layers"
_LAST_TOKEN_ONLY = 2
"""The LLM's last block and its norm, which only the head follows, token by token. The labels' tokens attend to the
image through the inputs of the last block, or of the last one that makes keys of its own where later ones read them."""
_NUMBERED = re.compile(r"(vision|llm)\.(\d+)")


@dataclass(frozen=True, slots=True)
class SelectedMethod:
    """A method and the layers it is applied to."""

    spec: AttributionSpec
    method: Method
    layers: tuple[str, ...]


def specs() -> dict[str, AttributionSpec]:
    """Return all methods by name."""
    return dict(get_manager().attributions())


def select_methods(
    names: Sequence[str], layers: Sequence[str], loaded: LoadedModel, unused: Collection[str]
) -> list[SelectedMethod]:
    """Return the methods to use, each with its layers.

    Without ``layers``, methods that apply to layers get the last block of the tower that is used, and the connector
    where its tokens have positions in the picture. ``unused`` are layers that the answer does not depend on.

    Raises:
        OptionError: A method or layer does not exist, the answer does not depend on the image tokens of a layer, or the
            weights are quantised and a method needs gradients.
    """
    check_methods(names)
    known = specs()
    selected = [known[name] for name in names]
    is_quantised = any(not value.is_floating_point() for value in loaded.model.parameters())
    if is_quantised and (refused := [spec.name for spec in selected if spec.gradients]):
        usable = ", ".join(name for name, spec in known.items() if not spec.gradients)
        raise OptionError(
            f"Expected methods without gradients, since the model's weights are quantised, got {', '.join(refused)}. "
            f"Use {usable}, or load the model without load_in."
        )
    resolved = _resolve_layers(layers, loaded, unused)
    return [
        SelectedMethod(
            spec,
            import_by_name(spec.target, PluginError),
            resolved if spec.at == LAYERS else _own_layers(spec, loaded, unused),
        )
        for spec in dict.fromkeys(selected)
    ]


def _own_layers(spec: AttributionSpec, loaded: LoadedModel, unused: Collection[str]) -> tuple[str, ...]:
    """Return the single layer that a method declares."""
    if spec.at in (PIXELS, PROMPT):
        return (spec.at,)
    return _resolve_layers((spec.at,), loaded, unused, f"`at` of {spec.name}")


def _resolve_layers(
    layers: Sequence[str], loaded: LoadedModel, unused: Collection[str], argument: str = "`layer`"
) -> tuple[str, ...]:
    known = [layer.name for layer in layers_of(loaded)]
    depth = sum(layer.part == "llm" and is_block(layer) for layer in layers_of(loaded))
    last_token_only = _LAST_TOKEN_ONLY + depth - loaded.family.blocks_with_keys(loaded.model, depth)
    used = [name for name in known if name not in unused]
    if not layers:
        blocks = [name for name in used if name.startswith("vision.") and name != "vision.norm"]
        return loaded.family.default_layers(blocks)
    resolved = []
    for name in layers:
        match = _NUMBERED.fullmatch(name)
        full = f"{match[1]}.{int(match[2]):02d}" if match else name
        if full not in known:
            raise OptionError(
                f"{loaded.family.title}: expected {argument} to be some of {', '.join(known)}, got {name!r}."
            )
        if full in unused:
            last = [layer for layer in used if layer.startswith("vision.")][-1]
            raise OptionError(
                f"{loaded.family.title}: expected a layer that the answer depends on, got {full}: the LLM reads an "
                f"earlier layer of the tower. Use {last}, the last that it reads."
            )
        if full in known[-last_token_only:]:
            raise OptionError(
                f"{loaded.family.title}: expected a layer whose image tokens the answer depends on, got {full}, of "
                f"which it depends on the last token alone. Use {known[-last_token_only - 1]} or an earlier layer."
            )
        resolved.append(full)
    return tuple(dict.fromkeys(resolved))
