"""Methods by name, from the hook ``medmllm_attributions``, and the layers at which they look."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from medmllm_plugins.attribution.attribution_input import PIXELS
from medmllm_plugins.attribution.methods.input_methods import PROMPT
from medmllm_plugins.attribution.methods.layer_methods import Method
from medmllm_plugins.errors import OptionError, PluginError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.stages import layers_of
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.plugins.specs import AttributionSpec
from medmllm_plugins.prompts.attribution_options import check_methods
from medmllm_plugins.utils.import_by_name import import_by_name

LAYERS = "layers"
_LAST_TOKEN_ONLY = 2
"""The LLM's last block and its norm: behind them stands the head alone, which takes each token by itself. The labels'
tokens look back at the image, but at what enters the last block."""
_NUMBERED = re.compile(r"(vision|llm)\.(\d+)")


@dataclass(frozen=True, slots=True)
class SelectedMethod:
    """A method and the layers at which it is to look.

    Attributes:
        spec: its declaration.
        method: the function.
        layers: names of layers.
    """

    spec: AttributionSpec
    method: Method
    layers: tuple[str, ...]


def specs() -> dict[str, AttributionSpec]:
    """All methods there are, by name."""
    return dict(get_manager().attributions())


def select_methods(
    names: Sequence[str], layers: Sequence[str], loaded: LoadedModel, unread: Collection[str]
) -> list[SelectedMethod]:
    """The methods and layers that were asked for.

    Args:
        names: of methods.
        layers: of layers, for methods that look at layers; empty for the last block of the tower that is read, and the
            connector where its tokens have a place on the picture.
        loaded: the model.
        unread: layers that the answer does not depend on.

    Raises:
        OptionError: there is no such method or layer, of a method's own layer too, the answer never hangs on what the
            image has there, or the weights are quantised and the method takes gradients.
    """
    check_methods(names)
    known = specs()
    chosen = [known[name] for name in names]
    packed = any(not value.is_floating_point() for value in loaded.model.parameters())
    if packed and (refused := [spec.name for spec in chosen if spec.gradients]):
        left = ", ".join(name for name, spec in known.items() if not spec.gradients)
        raise OptionError(
            f"Expected methods that take no gradients, since the model's weights are quantised, found "
            f"{', '.join(refused)}; these still work: {left}. Or load without load_in."
        )
    resolved = _resolve_layers(layers, loaded, unread)
    return [
        SelectedMethod(spec, _method(spec), resolved if spec.at == LAYERS else _own(spec, loaded, unread))
        for spec in dict.fromkeys(chosen)
    ]


def _method(spec: AttributionSpec) -> Method:
    method: Method = import_by_name(spec.target, PluginError)
    return method


def _own(spec: AttributionSpec, loaded: LoadedModel, unread: Collection[str]) -> tuple[str, ...]:
    """The one layer that a method has values for."""
    if spec.at in (PIXELS, PROMPT):
        return (spec.at,)
    return _resolve_layers((spec.at,), loaded, unread, f"`at` of {spec.name}")


def _resolve_layers(
    layers: Sequence[str], loaded: LoadedModel, unread: Collection[str], argument: str = "`layer`"
) -> tuple[str, ...]:
    known = [place.name for place in layers_of(loaded)]
    read = [name for name in known if name not in unread]
    if not layers:
        return loaded.family.default_layers(
            [name for name in read if name.startswith("vision.") and name != "vision.norm"]
        )
    found = []
    for name in layers:
        match = _NUMBERED.fullmatch(name)
        full = f"{match[1]}.{int(match[2]):02d}" if match else name
        if full not in known:
            raise OptionError(
                f"{loaded.family.title}: expected {argument} to be some of {', '.join(known)}, found {name!r}."
            )
        if full in unread:
            raise OptionError(
                f"{loaded.family.title}: {full} is a layer of the tower whose output never reaches the answer, since "
                f"the LLM is given an earlier one; the last that is read is "
                f"{[one for one in read if one.startswith('vision.')][-1]}."
            )
        if full in known[-_LAST_TOKEN_ONLY:]:
            raise OptionError(
                f"{loaded.family.title}: of {full} only the last token's state reaches the answer, as nothing behind "
                f"it looks from one token at another: a map of the image would be empty. The last layer whose "
                f"image tokens are read is {known[-_LAST_TOKEN_ONLY - 1]}."
            )
        found.append(full)
    return tuple(dict.fromkeys(found))
