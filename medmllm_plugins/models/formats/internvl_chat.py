"""InternVL 2, 2.5 and 3 in their authors' format (``internvl_chat``) as transformers' own InternVL.

Such a checkpoint holds the configs of an InternViT and of an LLM, and names its tensors in another way. Its own code is
not run: ``conversation.py``, which holds the text around a question, is only parsed. Sources: Chen et al., "InternVL
2.5", arXiv:2412.05271 (2024); Zhu et al., "InternVL3", arXiv:2504.10479 (2025), with the authors' public code.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import transformers as hf

from medmllm_plugins.errors import ModelError, one_line, shown
from medmllm_plugins.models.adapters import adapter_files
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.checkpoint import find_folder, open_weights, read_json
from medmllm_plugins.models.config_files import make_config, whole_number
from medmllm_plugins.models.families.internvl import InternVL
from medmllm_plugins.models.formats.conversion import FOREIGN, build_model, rename_by_table, split_rows
from medmllm_plugins.models.formats.hulu_med import read_generation_config
from medmllm_plugins.models.formats.llm_tokenizer import load_tokenizer
from medmllm_plugins.models.native import Native, open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.weight_warnings import untrained_parts
from medmllm_plugins.plugins.specs import PromptStyle

MODEL_TYPE: Final = "internvl_chat"
CONVERSATIONS: Final = "conversation.py"
IMAGE: Final = "<IMG_CONTEXT>"
TOKENS: Final = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": IMAGE}
VIDEO: Final = "<video>"
"""No token of these checkpoints has this name; transformers' processor needs a word for it."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LLMS: Mapping[str, Any] = {
    "Qwen2ForCausalLM": hf.Qwen2Config,
    "Qwen3ForCausalLM": hf.Qwen3Config,
    "LlamaForCausalLM": hf.LlamaConfig,
}
_QKV = re.compile(r"^vision_model\.encoder\.layers\.\d+\.attn\.(qkv)\.(?:weight|bias)$")
_TOWER = r"^vision_model\.encoder\.layers\.(\d+)\."
_LAYER = r"model.vision_tower.encoder.layer.\1."
_EMBEDDINGS = "model.vision_tower.embeddings."
_RENAME = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^vision_model\.embeddings\.class_embedding$", f"{_EMBEDDINGS}cls_token"),
        (r"^vision_model\.embeddings\.position_embedding$", f"{_EMBEDDINGS}position_embeddings"),
        (r"^vision_model\.embeddings\.patch_embedding\.", f"{_EMBEDDINGS}patch_embeddings.projection."),
        (rf"{_TOWER}attn\.proj\.", rf"{_LAYER}attention.projection_layer."),
        (rf"{_TOWER}attn\.([qkv])\.", rf"{_LAYER}attention.\2_proj."),
        (rf"{_TOWER}attn\.([qk])_norm\.", rf"{_LAYER}attention.\2_norm."),
        (rf"{_TOWER}norm1\.", rf"{_LAYER}layernorm_before."),
        (rf"{_TOWER}norm2\.", rf"{_LAYER}layernorm_after."),
        (rf"{_TOWER}ls([12])$", rf"{_LAYER}lambda_\2"),
        (rf"{_TOWER}mlp\.", rf"{_LAYER}mlp."),
        (r"^mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
        (r"^mlp1\.1\.", "model.multi_modal_projector.linear_1."),
        (r"^mlp1\.3\.", "model.multi_modal_projector.linear_2."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^language_model\.lm_head\.", "lm_head."),
    )
)


class Conversation(NamedTuple):
    """The text around a question.

    Attributes:
        opening: what begins the system turn.
        system: its text.
        roles: what begins a turn of the user, and one of the assistant.
        end: what ends each turn.
    """

    opening: str
    system: str
    roles: tuple[str, str]
    end: str

    def chat_template(self) -> str:
        """Return it as a chat template of transformers; a system turn of the messages replaces the own one."""
        opening, system, user, assistant, end = (
            json.dumps(text, ensure_ascii=False) for text in (self.opening, self.system, *self.roles, self.end)
        )
        return (
            f"{{% if messages[0]['role'] != 'system' %}}{{{{ {opening} + {system} + {end} }}}}{{% endif %}}"
            "{% for message in messages %}"
            f"{{{{ {{'system': {opening}, 'user': {user}}}.get(message['role'], {assistant}) }}}}"
            "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
            "{% for part in message['content'] %}"
            f"{{% if part['type'] == 'image' %}}{IMAGE}\n{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
            "{% endfor %}{% endif %}"
            f"{{{{ {end} }}}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ {assistant} }}}}{{% endif %}}"
        )


def load(options: LoadOptions) -> ChatModel:
    """Load a checkpoint of InternVL, in its authors' format or in that of transformers.

    Raises:
        ModelError: there is no such checkpoint, it is of another format, or its weights do not fit its config.
        OptionError: the device, the attention kernel or another option is not available.
    """
    options.check()
    folder = find_folder(options.pretrained)
    raw = read_json(folder / "config.json")
    family = InternVL()
    if raw.get("model_type") == family.model_type:
        return ChatModel(open_native(options, family), PromptStyle(system=options.system))
    tokenizer = _tokenizer(folder)
    config = read_config(folder, int(tokenizer.context_image_token_id))
    conversation = read_conversation(folder, raw)
    processor = _processor(tokenizer, config, raw, folder, conversation)
    weights = split_rows(open_weights(folder), _QKV, "qkv")
    tied = bool(config.tie_word_embeddings)
    model = build_model(
        hf.InternVLForConditionalGeneration,
        config,
        weights,
        lambda name: rename(name, tied=tied),
        options,
        left_out=FOREIGN,
    )
    if (folder / "generation_config.json").is_file():
        model.generation_config = read_generation_config(folder)
    end = conversation.end.strip()
    if end in tokenizer.get_vocab():
        tokenizer.eos_token = end
    read = [path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".txt", ".model")]
    files = (*read, folder / CONVERSATIONS, *weights.files, *adapter_files(options))
    native = Native(model, processor, family, folder, files, untrained_parts(model, family))
    return ChatModel(native, PromptStyle(system=options.system))


def rename(name: str, *, tied: bool = False) -> str | None:
    """Return transformers' name for a tensor of an InternVL checkpoint.

    Args:
        name: the checkpoint's name; queries, keys and values of the tower are split already.
        tied: whether the output embeddings are the input embeddings, so that their copy is left out.

    Returns:
        ``None`` for rotary frequencies and for that copy.
    """
    if name.endswith(".inv_freq") or (tied and name == "language_model.lm_head.weight"):
        return None
    return rename_by_table(name, _RENAME)


def read_config(folder: Path, image_token: int) -> hf.InternVLConfig:
    """Read the ``config.json`` of an InternVL checkpoint; ``image_token`` is the id of the token that marks an image.

    Raises:
        ModelError: it is of another format, or describes a part that cannot be made.
    """
    source = folder / "config.json"
    raw = read_json(source)
    if raw.get("model_type") != MODEL_TYPE:
        raise ModelError(f"{source}: expected a `model_type` of {MODEL_TYPE}, got {shown(raw.get('model_type'))}.")
    vision, text = raw.get("vision_config"), raw.get("llm_config")
    if not isinstance(vision, Mapping) or not isinstance(text, Mapping):
        raise ModelError(f"{source}: expected objects under `vision_config` and `llm_config`, as InternVL has them.")
    named = text.get("architectures")
    kind = str(named[0]) if isinstance(named, list) and named else ""
    if kind not in _LLMS:
        raise ModelError(
            f"{source}: expected an LLM among {', '.join(_LLMS)}, got {shown(kind)}. InternLM2 and Phi-3 have tensors "
            "arranged in another way; convert the checkpoint with transformers' own script for InternVL, and use "
            "--model medmllm_hf."
        )
    for key, only in (("ps_version", "v2"), ("pad2square", False)):
        if raw.get(key, only) != only:
            raise ModelError(f"{source}: expected `{key}` to be {only}, got {shown(raw[key])}, which is not served.")
    # Each is a dict in the file: settings beyond the shapes belong to the authors' code.
    settings = {
        "vision_config": _vision_config(vision, source),
        "text_config": make_config(_LLMS[kind], _without(text, "auto_map", "architectures", "model_type"), source),
        "image_token_id": image_token,
        "downsample_ratio": float(raw.get("downsample_ratio", 0.5)),
        "vision_feature_layer": whole_number(raw, "select_layer", -1, source),
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
    }
    config: hf.InternVLConfig = make_config(hf.InternVLConfig, settings, source)
    config.image_seq_length = int((tile_side(raw, source) // _patch(config)) ** 2 * config.downsample_ratio**2)
    return config


def tile_side(raw: Mapping[str, Any], source: Path) -> int:
    """Return the side of a tile in pixels, as ``config.json`` states it."""
    if raw.get("force_image_size") is not None:
        return whole_number(raw, "force_image_size", None, source)
    return whole_number(raw["vision_config"], "image_size", None, source)


def read_conversation(folder: Path, raw: Mapping[str, Any]) -> Conversation:
    """Read the text around a question from the checkpoint's ``conversation.py``, which is parsed and not run.

    Raises:
        ModelError: the file is missing or no Python, or lacks the template that ``config.json`` names.
    """
    path, name = folder / CONVERSATIONS, raw.get("template")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{path} is missing, which holds the prompt of this model: fetch it from the checkpoint's repository."
        ) from error
    # Also a null byte, and brackets nested too deep.
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ModelError(f"{path}: expected Python code, got {one_line(error)[:300]}. Fetch the file again.") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Conversation":
            stated = {word.arg: word.value for word in node.keywords if word.arg}
            if _constant(stated.get("name")) == name:
                return _conversation(stated, path, name)
    raise ModelError(f"{path}: expected the template {shown(name)} that config.json names, got none of that name.")


def _conversation(stated: Mapping[str, ast.expr], path: Path, name: object) -> Conversation:
    style = stated.get("sep_style")
    roles, template = _constant(stated.get("roles")), _constant(stated.get("system_template"))
    message, end = _constant(stated.get("system_message")), _constant(stated.get("sep"))
    texts = isinstance(template, str) and template.endswith("{system_message}")
    texts = texts and isinstance(message, str) and isinstance(end, str)
    pair = isinstance(roles, tuple) and len(roles) == 2 and all(isinstance(role, str) for role in roles)
    if not (isinstance(style, ast.Attribute) and style.attr == "MPT" and texts and pair):
        raise ModelError(
            f"{path}: expected template {shown(name)} to be of separator style MPT, with a system message, two roles "
            "and a separator, which InternVL's own have."
        )
    return Conversation(str(template).removesuffix("{system_message}"), str(message), (roles[0], roles[1]), str(end))


def _constant(node: ast.expr | None) -> Any:
    """Return the value of a literal; ``None`` for anything else."""
    try:
        return None if node is None else ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _vision_config(vision: Mapping[str, Any], source: Path) -> hf.InternVLVisionConfig:
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size")
    settings: dict[str, Any] = {key: whole_number(vision, key, None, source) for key in sizes}
    if not 0 < settings["patch_size"] <= settings["image_size"]:
        raise ModelError(f"{source}: expected a `patch_size` of 1 to `image_size`, got {settings['patch_size']}.")
    settings |= {key: vision[key] for key in ("hidden_act", "layer_norm_eps", "norm_type") if key in vision}
    settings |= {
        "attention_bias": bool(vision.get("qkv_bias", False)),
        "use_qk_norm": bool(vision.get("qk_normalization", True)),
        "use_mean_pooling": True,  # no norm after the last block
    }
    settings.setdefault("norm_type", "rms_norm")
    if settings["use_qk_norm"] and settings.get("layer_norm_eps", 1e-6) != 1e-6:
        raise ModelError(f"{source}: expected a `layer_norm_eps` of 1e-6 where queries and keys have norms.")
    config: hf.InternVLVisionConfig = make_config(hf.InternVLVisionConfig, settings, source)
    return config


def _without(settings: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def _patch(config: hf.InternVLConfig) -> int:
    return int(config.vision_config.patch_size[0])  # type: ignore[union-attr]


def _tokenizer(folder: Path) -> Any:
    tokenizer = load_tokenizer(folder)
    known = tokenizer.get_vocab()
    if missing := [token for token in TOKENS.values() if token not in known]:
        raise ModelError(f"{folder}: expected InternVL's own tokenizer, got one without {', '.join(missing)}.")
    for name, token in TOKENS.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", known[token])
    tokenizer.video_token = VIDEO
    return tokenizer


def _processor(
    tokenizer: Any, config: hf.InternVLConfig, raw: Mapping[str, Any], folder: Path, conversation: Conversation
) -> Any:
    source = folder / "config.json"
    side = tile_side(raw, source)
    tiled = bool(raw.get("dynamic_image_size", False))
    if tiled and not raw.get("use_thumbnail", False):
        raise ModelError(f"{source}: expected `use_thumbnail` with `dynamic_image_size`, which InternVL's own have.")
    image = hf.GotOcr2ImageProcessorPil(
        size={"height": side, "width": side},
        image_mean=MEAN,
        image_std=STD,
        crop_to_patches=tiled,
        min_patches=whole_number(raw, "min_dynamic_patch", 1, source),
        max_patches=whole_number(raw, "max_dynamic_patch", 6, source),
    )
    return _processor_class(tiled)(
        image_processor=image,
        tokenizer=tokenizer,
        video_processor=hf.InternVLVideoProcessor(size={"height": side, "width": side}),
        image_seq_length=config.image_seq_length,
        chat_template=conversation.chat_template(),
    )


def _processor_class(tiled: bool) -> Any:
    """Return InternVL's processor with its default for tiling, which is to tile every image, set to ``tiled``."""
    kind: Any = hf.InternVLProcessor
    if hasattr(kind, "images_kwargs"):
        return type(kind.__name__, (kind,), {"images_kwargs": {**kind.images_kwargs, "crop_to_patches": tiled}})

    # Before transformers 5.23, defaults are not an attribute of the processor but of a class that all processors share.
    def merge(self: Any, *args: Any, **kwargs: Any) -> Any:
        merged = kind._merge_kwargs(self, *args, **kwargs)
        merged["images_kwargs"]["crop_to_patches"] = tiled
        return merged

    return type(kind.__name__, (kind,), {"_merge_kwargs": merge})
