"""MedM-VL's config.json, in both formats that are in the wild (Shi et al., arXiv 2504.04323).

April 2025: ``llm_*``, ``encoder_image_*``, ``connector_image_*`` with the nested ``llm_config``,
``encoder_image_config`` and ``connector_image_config``, and no ``model_type``. Since October 2025: the same names with
the prefix ``lvlm_``, ``model_type: "lvlm"``, and nothing nested, so that shapes come from :mod:`.base_configs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import Qwen2Config, SiglipVisionConfig

from medmllm_plugins.errors import ModelError, shown
from medmllm_plugins.models.checkpoint import read_json
from medmllm_plugins.models.config_files import make_config, whole_number
from medmllm_plugins.models.formats.base_configs import LLM_KEYS, LLMS, VISION_KEYS, VISION_TOWERS, base_config

_SELECT: Mapping[str, Literal["default", "full"]] = {"cls_patch": "full", "patch": "default"}


MLP, ATTENTION_POOLING = "mlp", "attn_pooling"
_MODELS: Mapping[str, str] = {MLP: "medm_vl", ATTENTION_POOLING: "medm_vl_ct"}
"""Type of the connector to the model that has it."""


@dataclass(frozen=True, slots=True)
class MedMVLConfig:
    """A MedM-VL checkpoint's description, of the 2D model or of that for chest CT.

    Attributes:
        llm_name: the language model it builds on, as a hub id or path; where its tokenizer comes from.
        llm: shapes of the language model.
        vision: shapes of the vision tower, without the pooling head, which the LLM never sees.
        max_length: the most tokens of a sequence, image tokens included.
        select_layer: index into the tower's hidden states (embeddings first; -1 is the last block's output, before
            the tower's final layer norm).
        select: ``"full"`` for all tokens of the tower; ``"default"`` drops the first.
    """

    llm_name: str
    llm: Qwen2Config
    vision: SiglipVisionConfig
    max_length: int
    select_layer: int
    select: Literal["default", "full"]

    @property
    def image_tokens(self) -> int:
        """Number of image tokens in the prompt; for a volume, the number of queries."""
        side = int(self.vision.image_size) // int(self.vision.patch_size)  # type: ignore[arg-type]
        return side * side - (self.select == "default")


def read_config(folder: Path, connector: str = MLP) -> MedMVLConfig:
    """Read the ``config.json`` of a MedM-VL checkpoint with a connector :data:`MLP` or :data:`ATTENTION_POOLING`.

    Raises:
        ModelError: it is of neither format, describes a part this package does not know, or is not consistent.
    """
    source = folder / "config.json"
    raw = read_json(source)
    prefix = _prefix(raw, source)

    def get(name: str) -> Any:
        return raw.get(prefix + name)

    def expect(name: str, *values: str) -> None:
        if get(name) not in values:
            raise ModelError(
                f"{source}: expected `{prefix}{name}` to be {' or '.join(map(repr, values))} for {_MODELS[connector]}, "
                f"got {shown(get(name))}."
            )

    expect("llm_type", "qwen2")
    expect("encoder_image_type", "siglip")
    kind = get("connector_image_type")
    if isinstance(kind, str) and kind in _MODELS and kind != connector:
        raise ModelError(
            f"{source}: expected a checkpoint of {_MODELS[connector]}, but this is one of {_MODELS[kind]}: load it "
            f"with --model {_MODELS[kind]}."
        )
    expect("connector_image_type", connector)
    expect("connector_image_name", "mlp2x_gelu")
    expect("encoder_image_select_feature", *_SELECT)
    if get("encoder_image3d_type") is not None:
        encoder = shown(get("encoder_image3d_type"))
        raise ModelError(f"{source}: expected a 2D checkpoint, but it has a 3D encoder ({encoder}).")
    llm_name = _name(raw, f"{prefix}llm_name_or_path", source)
    tower_name = _name(raw, f"{prefix}encoder_image_name_or_path", source)
    max_length = whole_number(raw, f"{prefix}llm_max_length", None, source)
    if max_length < 1:
        raise ModelError(f"{source}: expected `{prefix}llm_max_length` to be positive, got {max_length}.")

    llm_raw = raw.get("llm_config") or base_config(llm_name, LLMS, folder)
    tower_raw = raw.get("encoder_image_config") or base_config(tower_name, VISION_TOWERS, folder)
    llm = _part(Qwen2Config, llm_raw, LLM_KEYS, source)
    # A whole SigLIP config holds the tower's beside the text encoder's.
    tower_raw = tower_raw.get("vision_config", tower_raw) if isinstance(tower_raw, dict) else tower_raw
    vision = _part(SiglipVisionConfig, tower_raw, VISION_KEYS, source, vision_use_head=False)
    for name in ("image_size", "patch_size"):
        if not isinstance(getattr(vision, name), int):
            raise ModelError(f"{source}: expected the vision tower's `{name}` to be one number, for square images.")

    select_layer = whole_number(raw, f"{prefix}encoder_image_select_layer", None, source)
    states = vision.num_hidden_layers + 1
    if not -states <= select_layer < states:
        raise ModelError(
            f"{source}: `{prefix}encoder_image_select_layer` is {select_layer}, but the vision tower has {states} "
            "hidden states."
        )
    return MedMVLConfig(llm_name, llm, vision, max_length, select_layer, _SELECT[get("encoder_image_select_feature")])


def _prefix(raw: Mapping[str, Any], source: Path) -> str:
    """Return the prefix of the keys, which differs between the two formats."""
    if raw.get("model_type") == "lvlm" and "lvlm_llm_type" in raw:
        return "lvlm_"
    # An empty model_type is how transformers 4 may have written a config class that has none.
    if not raw.get("model_type") and "llm_type" in raw:
        return ""
    raise ModelError(
        f"{source} is of no MedM-VL format known. Expected the one of April 2025 (`llm_type`, `encoder_image_type`, …, "
        'no `model_type`) or the one since October 2025 (`model_type: "lvlm"`, `lvlm_llm_type`, …), got '
        f"model_type={shown(raw.get('model_type'))} and the keys {shown(sorted(raw)[:20])}."
    )


def _part(kind: Any, raw: Any, keys: tuple[str, ...], source: Path, **fixed: Any) -> Any:
    """Make the config of a part from the settings ``keys`` of ``raw``, with some fixed."""
    if not isinstance(raw, dict):
        raise ModelError(
            f"{source}: expected the nested config of a {kind.model_type} to be an object, got {shown(raw)}."
        )
    stated = raw.get("model_type", kind.model_type)
    if stated != kind.model_type:
        raise ModelError(f"{source}: expected a part of model_type {kind.model_type!r}, got {shown(stated)}.")
    config = make_config(kind, {key: raw[key] for key in keys if key in raw} | fixed, source)
    names = ("num_attention_heads", "hidden_size", "num_hidden_layers")
    heads, width, layers = (whole_number(vars(config), name, None, source) for name in names)
    if min(heads, width, layers) < 1 or width % heads:
        raise ModelError(
            f"{source}: expected a hidden_size of the {kind.model_type} part that divides into num_attention_heads, "
            f"got {width} and {heads}."
        )
    return config


def _name(raw: Mapping[str, Any], key: str, source: Path) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value:
        raise ModelError(f"{source}: expected `{key}` to be a name or path, got {shown(value)}.")
    return value
