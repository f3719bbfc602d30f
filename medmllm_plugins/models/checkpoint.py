"""Checkpoint folders: finding them, reading safetensors files, and filling a model without a second copy in memory."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from medmllm_plugins.errors import ModelError, one_line, shown
from medmllm_plugins.plugins.specs import DEMO

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Weights, settings, and the texts of a tokenizer and of a prompt; conversation.py is read as text and never run.
_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "conversation.py")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LISTED = 20
_CHARACTERS = 800


def demo_folder() -> Path:
    """Return the folder of the checkpoint that ships with this package."""
    return Path(str(resources.files("medmllm_plugins.models") / "demo"))


def resolve_size(pretrained: str, sizes: Mapping[str, str]) -> str:
    """Return the hub id of a short name in ``sizes``, and ``"demo"``, a folder or a hub id as it is.

    Raises:
        ModelError: it is none of these.
    """
    if pretrained == DEMO or Path(pretrained).expanduser().exists():
        return pretrained
    name = sizes.get(pretrained.lower(), pretrained)
    if name != DEMO and _HUB_ID.fullmatch(name) is None:
        raise _no_checkpoint(pretrained, (DEMO, *(size for size in sizes if size != DEMO)))
    return name


def find_folder(pretrained: str) -> Path:
    """Return the local folder of a checkpoint: of ``"demo"``, a local folder, or a hub id.

    Returns:
        A folder that exists. A local folder is returned without any network access; a hub id is looked up in the
        hub's cache and downloaded where ``HF_HUB_OFFLINE`` does not forbid it.

    Raises:
        ModelError: there is no such folder or repository.
    """
    if pretrained == DEMO:
        return demo_folder()
    local = Path(pretrained).expanduser()
    if local.is_dir():
        return local
    if local.exists():
        raise ModelError(f"Expected `pretrained` to be a checkpoint folder, but {pretrained!r} is a file.")
    if _HUB_ID.fullmatch(pretrained) is None:
        raise _no_checkpoint(pretrained, (DEMO,))
    return hub_snapshot(pretrained, _PATTERNS)


def _no_checkpoint(pretrained: str, sizes: Iterable[str]) -> ModelError:
    return ModelError(
        f"Expected `pretrained` to be a folder, a hub id (owner/name) or one of {', '.join(sizes)}; "
        f"{pretrained!r} is none of them and no such folder exists."
    )


def hub_snapshot(repo: str, patterns: Iterable[str]) -> Path:
    """Download the files of a hub repository that match ``patterns``, or find them in the hub's cache.

    Raises:
        ModelError: the repository cannot be reached, does not exist, or is not cached while offline.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{repo!r} is neither a local folder nor in the hub's cache, and could not be downloaded: {error}. "
            "Check the name, the network and HF_HUB_OFFLINE, and for a gated repository `hf auth login`; or give a "
            "local folder."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ModelError: the file is missing, no JSON, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing: is {path.parent} a whole checkpoint folder?") from error
    # Also a whole number of thousands of digits, and brackets nested too deep.
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {one_line(error)[:300]}. Fetch the file again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"Expected {path} to hold a JSON object, got {type(content).__name__}.")
    return content


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a tensor in a file.

    Attributes:
        tensor: its name there.
        start: the first row.
        stop: the row after the last.
    """

    tensor: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Weights:
    """Safetensors files, and file and shape by tensor name; no tensor is in memory.

    Attributes:
        files: all files.
        where: file by tensor name.
        shapes: shape by tensor name.
        rows: the tensors that are rows of another one in the file.
    """

    files: tuple[Path, ...]
    where: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]
    rows: Mapping[str, Rows] = field(default_factory=dict)

    def read(self, handle: Any, name: str) -> torch.Tensor:
        """Return a tensor from its open file."""
        tensor: torch.Tensor
        if (rows := self.rows.get(name)) is None:
            tensor = handle.get_tensor(name)
        else:
            tensor = handle.get_slice(rows.tensor)[rows.start : rows.stop]
        return tensor


def open_weights(folder: Path) -> Weights:
    """Read the headers of a folder's safetensors files.

    Raises:
        ModelError: there are no safetensors files, a shard is missing or broken, or index and shards disagree.
    """
    files, indexed = _weight_files(folder)
    where: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(str(file), framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 - the handle is no mapping
                    if name in where:
                        raise ModelError(f"Tensor {shown(name)} is in both {where[name].name} and {file.name}.")
                    where[name] = file
                    shapes[name] = tuple(handle.get_slice(name).get_shape())
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(
                f"{file} cannot be read as safetensors: {printable(one_line(error), 300)}. It may be a broken "
                "download or a Git LFS pointer: fetch it again."
            ) from error
    if indexed is not None and (wrong := sorted(indexed.items() ^ {(name, f.name) for name, f in where.items()})):
        raise ModelError(
            f"{folder / INDEX} and the files it names disagree about {len(wrong)} entries: "
            f"{some(f'{name} in {file}' for name, file in wrong)}."
        )
    return Weights(tuple(files), where, shapes)


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Return the safetensors files of a folder, and the tensors in each by its index, if it has one."""
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() and index.is_file():
        raise ModelError(f"{folder} has both {SINGLE} and {INDEX}: remove the one that is out of date.")
    if single.is_file():
        return [single], None
    if index.is_file():
        indexed = read_json(index).get("weight_map")
        if not isinstance(indexed, dict) or not all(isinstance(name, str) for name in indexed.values()):
            raise ModelError(f"Expected {index} to map tensor names to files under `weight_map`.")
        names = sorted(set(indexed.values()))
        # Longer names are no file's, and asking for one would be an OSError.
        if odd := [name for name in names if Path(name).name != name or len(name.encode("utf-8", "replace")) > 255]:
            raise ModelError(f"{index} names files outside its folder: {some(odd)}.")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ModelError(f"{folder} lacks {len(missing)} of {len(names)} shards of its index: {some(missing)}.")
        return [folder / name for name in names], indexed
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    files = f"got {some(pickled)}" if pickled else "got no weights at all"
    raise ModelError(
        f"Expected {SINGLE} or {INDEX} in {folder}, but {files}. Only safetensors are read, since unpickling can run "
        "any code. To convert a checkpoint you trust, load its state dict with torch and write it with "
        "`safetensors.torch.save_file(state_dict, 'model.safetensors')`."
    )


def match_weights(
    weights: Weights, rename: Callable[[str], str | None], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, str]:
    """Match a checkpoint's tensors with a model's, and refuse anything but a full match.

    ``rename`` gives the model's name for a checkpoint's name, ``None`` for a tensor left out on purpose; ``expected``
    holds the shapes of the model's tensors by name.

    Returns:
        Checkpoint name to model name.

    Raises:
        ModelError: tensors are missing, left over, doubled or of another shape; lists the first 20 of each.
    """
    names = {name: target for name in weights.where if (target := rename(name)) is not None}
    sources: dict[str, list[str]] = {}
    for name, target in names.items():
        sources.setdefault(target, []).append(name)
    problems = {
        "missing from the checkpoint": sorted(set(expected) - set(sources)),
        "unknown to the model": sorted(name for name, target in names.items() if target not in expected),
        "given more than once": sorted(" and ".join(both) for both in sources.values() if len(both) > 1),
        "of another shape": sorted(
            f"{name} (expected {expected[target]}, got {weights.shapes[name]})"
            for name, target in names.items()
            if target in expected and weights.shapes[name] != expected[target]
        ),
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(these)} {what}: {some(these)}" for what, these in problems.items() if these)
        raise ModelError(
            f"The weights in {weights.files[0].parent} do not fit the model that its config.json describes: {listed}."
        )
    return names


def fill(
    model: PreTrainedModel, weights: Weights, names: Mapping[str, str], dtype: torch.dtype, device: torch.device
) -> None:
    """Put a checkpoint's tensors into a model built on the meta device; each is in memory once.

    The parameters are on the meta device, the buffers real and keep their dtype; ``names`` come from
    :func:`match_weights`.

    Raises:
        ModelError: a tensor is not of a floating dtype (quantised), or a parameter got no value.
    """
    state: dict[str, torch.Tensor] = {}
    for file in weights.files:
        with safe_open(str(file), framework="pt") as handle:
            for name in (name for name, source in weights.where.items() if source == file and name in names):
                tensor = weights.read(handle, name)
                if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
                    raise ModelError(
                        f"Tensor {name!r} in {file.name} is {tensor.dtype}, but only float32, float16 and bfloat16 "
                        "weights are read: use the checkpoint before quantisation."
                    )
                # A copy, so that the model does not depend on the memory-mapped file.
                state[names[name]] = tensor.to(device=device, dtype=dtype, copy=True)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    if left := [name for name, value in (*model.named_parameters(), *model.named_buffers()) if value.is_meta]:
        raise ModelError(f"{len(left)} parameters got no value from {weights.files[0].parent}: {some(left)}.")
    # Buffers only: the parameters are there already. No dtype, which would round the rotary frequencies.
    model.to(device)  # type: ignore[arg-type]


def fingerprint(files: Iterable[Path]) -> str:
    """Return the SHA-256 over the names, sizes and whole contents of files, in hexadecimal.

    Every byte is read (some seconds for a 3B model), because a sample would miss an edit of a few weights, and what
    is stored under a fingerprint must not be taken for another model's.
    """
    total = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        with file.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        total.update(f"{file.name}\0{file.stat().st_size}\0{digest}\n".encode())
    return total.hexdigest()


def some(names: Iterable[str]) -> str:
    """Return the first 20 names as a message lists them, fewer where they are long, and how many more there are."""
    listed = list(names)
    shown_names: list[str] = []
    for name in listed[:_LISTED]:
        if sum(map(len, shown_names)) > _CHARACTERS:
            break
        shown_names.append(printable(name, 120))
    more = f" and {len(listed) - len(shown_names)} more" if len(listed) > len(shown_names) else ""
    return ", ".join(shown_names) + more


def printable(text: str, length: int) -> str:
    """Return text without control characters and halves of letters, cut at a length."""
    short = text if len(text) <= length else f"{text[: length - 1]}…"
    return short if short.isprintable() else repr(short)[1:-1]
