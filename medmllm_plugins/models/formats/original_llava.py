"""Models in the format of the first LLaVA code: HuatuoGPT-Vision and LLaVA-Med, as transformers' own LLaVA.

Such a checkpoint holds the LLM's config with ``mm_*`` keys beside it, and names its tensors in another way. The tower
is CLIP, the connector an MLP of two layers. Sources: Chen et al., "HuatuoGPT-Vision", arXiv:2406.19280 (2024); Li et
al., "LLaVA-Med", arXiv:2306.00890 (2023).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import transformers as hf
from PIL import Image

from medmllm_plugins.errors import ModelError, shown
from medmllm_plugins.models.adapters import adapter_files
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.checkpoint import find_folder, open_weights, read_json
from medmllm_plugins.models.config_files import make_config, whole_number
from medmllm_plugins.models.families.qwen2_5_vl import Qwen25VL
from medmllm_plugins.models.formats.base_configs import CLIP_TOWERS, base_config
from medmllm_plugins.models.formats.conversion import FOREIGN, build_model, rename_by_table
from medmllm_plugins.models.formats.llm_tokenizer import TOKENIZER_FILES, load_tokenizer
from medmllm_plugins.models.formats.templated_model import TemplatedModel
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.weight_warnings import untrained_parts

_LLMS: Mapping[str, Any] = {
    "llava_qwen2": hf.Qwen2Config,
    "llava_llama": hf.LlamaConfig,
    "llava_mistral": hf.MistralConfig,
    "llava": hf.LlamaConfig,
}
_RENAME = (
    (re.compile(r"^model\.vision_tower\.vision_tower\.vision_model\."), "model.vision_tower."),
    (re.compile(r"^model\.mm_projector\.0\."), "model.multi_modal_projector.linear_1."),
    (re.compile(r"^model\.mm_projector\.2\."), "model.multi_modal_projector.linear_2."),
    (re.compile(r"^model\.(layers|norm|embed_tokens)\."), r"model.language_model.\1."),
)
# Old ways of saving kept the positions 0, 1, 2, ….
_BUFFERS = re.compile(r"\.position_ids$|\.rotary_emb\.inv_freq$")


class Template(NamedTuple):
    """A prompt's text before the image, and that after it, with ``{}`` for the question."""

    before: str
    after: str


def huatuogpt_vision(options: LoadOptions) -> LoadedModel:
    """Load HuatuoGPT-Vision in its authors' format; see :func:`load` for the errors.

    The later version that was tuned from Qwen2.5-VL is loaded as such.
    """
    family = Qwen25VL()
    if read_json(find_folder(options.pretrained) / "config.json").get("model_type") == family.model_type:
        return ChatModel(open_native(options, family))
    return load(options, Template("<|user|>\n", "\n{}\n<|assistant|>\n"))


def llava_med(options: LoadOptions) -> OriginalLlava:
    """Load LLaVA-Med v1.5; see :func:`load` for the errors."""
    return load(options, Template("[INST] ", "\n{} [/INST]"))


def load(options: LoadOptions, template: Template) -> OriginalLlava:
    """Load a checkpoint of the first LLaVA format, with no network where the folder is whole.

    Raises:
        ModelError: there is no such checkpoint, it is of another format, or its weights do not fit its config.
        OptionError: the device, the attention kernel or another option is not available.
    """
    options.check()
    folder = find_folder(options.pretrained)
    config, tokenizer = read_config(folder), load_tokenizer(folder)
    image_token = _image_token(tokenizer, int(config.get_text_config().vocab_size), folder)
    config.image_token_id = image_token
    weights = open_weights(folder)
    model = build_model(
        hf.LlavaForConditionalGeneration, config, weights, rename, options, left_out=(*FOREIGN, "system")
    )
    files = [folder / name for name in ("config.json", "generation_config.json", *TOKENIZER_FILES, "tokenizer.model")]
    # Padding is never attended to; it only must not be taken for an image.
    pads = (tokenizer.pad_token_id, tokenizer.unk_token_id, 0)
    begins = tokenizer.bos_token_id is not None and getattr(tokenizer, "add_bos_token", False)
    return OriginalLlava(
        model,
        tokenizer,
        _processor(folder, config),
        template.before,
        (*(file for file in files if file.is_file()), *weights.files, *adapter_files(options)),
        max_length=int(config.get_text_config().max_position_embeddings),
        pad_token_id=next(int(pad) for pad in pads if pad is not None and int(pad) != image_token),
        first_token=int(tokenizer.bos_token_id) if begins else None,
        template=template,
        square=read_json(folder / "config.json").get("image_aspect_ratio") == "pad",
    )


def rename(name: str) -> str | None:
    """Give transformers' name for a tensor of the first LLaVA format; ``None`` for positions, which are no weights."""
    if _BUFFERS.search(name):
        return None
    return rename_by_table(name, _RENAME)


def read_config(folder: Path) -> hf.LlavaConfig:
    """Read the ``config.json`` of a checkpoint of the first LLaVA format.

    Raises:
        ModelError: it is of another format, or names or describes a part that cannot be made.
    """
    source = folder / "config.json"
    raw = read_json(source)
    kind = str(raw.get("model_type"))
    if kind not in _LLMS or "mm_vision_tower" not in raw:
        raise ModelError(
            f"{source}: expected a checkpoint of the first LLaVA format, with `mm_vision_tower` and a "
            f"`model_type` among {', '.join(_LLMS)}, got {shown(kind)}. A repository of the same name in "
            "transformers' own format is taken by --model medmllm_hf."
        )
    projector = raw.get("mm_projector_type")
    if projector != "mlp2x_gelu":
        raise ModelError(f"{folder}: expected `mm_projector_type` mlp2x_gelu, got {shown(projector)}.")
    select: Any = {"patch": "default", "cls_patch": "full"}.get(str(raw.get("mm_vision_select_feature") or "patch"))
    if select is None:
        raise ModelError(
            f"{folder}: expected `mm_vision_select_feature` patch or cls_patch, got "
            f"{shown(raw['mm_vision_select_feature'])}."
        )
    tower = base_config(str(raw["mm_vision_tower"]), CLIP_TOWERS, folder)
    shapes = tower.get("vision_config", tower)
    if not isinstance(shapes, Mapping):
        raise ModelError(f"{source}: expected the vision tower's config to be an object, got {shown(shapes)}.")
    vision = make_config(hf.CLIPVisionConfig, shapes, source)
    text = {
        key: value for key, value in raw.items() if not key.startswith("mm_") and key not in ("model_type", "auto_map")
    }
    side, patch = (whole_number(vision.to_dict(), name, 0, source) for name in ("image_size", "patch_size"))
    if not 0 < patch <= side:
        raise ModelError(f"{source}: expected a `patch_size` of 1 to `image_size`, got {patch} and {side}.")
    settings = {
        "vision_config": vision,
        "text_config": make_config(_LLMS[kind], text, source),
        "image_seq_length": (side // patch) ** 2 + (select == "full"),
        "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": select,
        "vision_feature_layer": whole_number(raw, "mm_vision_select_layer", -2, source),
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", False)),
    }
    config: hf.LlavaConfig = make_config(hf.LlavaConfig, settings, source)
    return config


def _image_token(tokenizer: Any, vocabulary: int, folder: Path) -> int:
    """Return a token that marks the image and that no text has: one beyond the tokenizer's, else the one that ends."""
    if len(tokenizer) > vocabulary:
        raise ModelError(
            f"The tokenizer in {folder} has {len(tokenizer)} tokens, the model {vocabulary}: it belongs to another "
            "model."
        )
    return vocabulary - 1 if len(tokenizer) < vocabulary else int(tokenizer.eos_token_id)


def _processor(folder: Path, config: hf.LlavaConfig) -> Any:
    side = int(config.vision_config.image_size)  # type: ignore[union-attr]
    crop = {"height": side, "width": side}
    return hf.CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=crop, do_convert_rgb=True)


class OriginalLlava(TemplatedModel):
    """A model in memory; images may be padded to a square with the mean colour."""

    def __init__(self, *args: Any, template: Template, square: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        self._template = template
        self._square = square
        self.weight_warnings = untrained_parts(self.model, self.family)

    def _after(self, question: str) -> str:
        return self._template.after.format(question)

    def _shaped(self, picture: Image.Image) -> Image.Image:
        if not self._square:
            return picture
        side = max(picture.size)
        colour = tuple(int(value * 255) for value in self._processor.image_mean)
        square = Image.new("RGB", (side, side), colour)
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        return square
