"""The tokenizer of a checkpoint that is published without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer

from medmllm_plugins.errors import ModelError, one_line
from medmllm_plugins.models.checkpoint import hub_snapshot
from medmllm_plugins.models.formats.base_configs import LLMS, named_folder, published_name

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def tokenizer_folder(checkpoint: Path, llm_name: str) -> Path:
    """Return the folder of a checkpoint's tokenizer.

    The authors of MedM-VL publish weights without one and take it from the language model it builds on. So it is, in
    this order: the checkpoint itself, the local folder that ``llm_name`` means, the hub repository ``llm_name`` (the
    only step that may use the network, and only where it is not in the hub's cache).

    Raises:
        ModelError: none of them has a tokenizer.
    """
    for folder in (checkpoint, named_folder(llm_name, checkpoint)):
        if folder is not None and _holds_tokenizer(folder):
            return folder
    repo = published_name(llm_name, LLMS)
    if repo is None:
        raise ModelError(
            f"Neither {checkpoint} nor {llm_name!r} holds a tokenizer: put tokenizer.json and tokenizer_config.json of "
            "the language model into the checkpoint folder."
        )
    try:
        folder = hub_snapshot(repo, TOKENIZER_FILES)
    except ModelError as error:
        raise ModelError(
            f"{checkpoint} holds no tokenizer, and that of {repo} could not be downloaded: {error} Or copy its "
            "tokenizer.json and tokenizer_config.json into the checkpoint folder."
        ) from error
    if not _holds_tokenizer(folder):
        raise ModelError(f"{folder} (the hub's copy of {repo}) holds no tokenizer.json, nor vocab.json and merges.txt.")
    return folder


def _holds_tokenizer(folder: Path) -> bool:
    whole = (folder / "tokenizer.json").is_file()
    return whole or ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file())


def load_qwen_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a Qwen2 tokenizer from a local folder.

    Raises:
        ModelError: its files are broken, or it has no end-of-sequence or padding token.
    """
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(folder, Qwen2Tokenizer)
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
        raise ModelError(f"The tokenizer in {folder} lacks `eos_token` or `pad_token` in its tokenizer_config.json.")
    return tokenizer


def load_tokenizer(folder: Path, kind: Any = AutoTokenizer) -> Any:
    """Load the tokenizer of a local folder, of any class or of one of transformers' classes.

    Raises:
        ModelError: its files are missing or broken.
    """
    try:
        return kind.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # broken files are met with errors of many types, also bare exceptions
        raise ModelError(f"{folder}: expected a tokenizer, got {one_line(error)}; fetch its files again.") from error
