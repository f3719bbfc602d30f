"""A repair as a folder: ``repair.json``, and safetensors. LoRA is a folder of peft's, with ``repair.json`` beside it.

``--model_args …,repair=FOLDER`` loads it for any model; peft's folders also load with ``peft=FOLDER``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medmllm_plugins.errors import DataError, ModelError, one_line, shown
from medmllm_plugins.models.adapters import merge_adapter
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.checkpoint import read_json
from medmllm_plugins.models.repairs.lora_part import LoraPart
from medmllm_plugins.models.repairs.repair_part import LowRankAdapter, RepairPart, SoftPrompt
from medmllm_plugins.models.repairs.repaired_model import RepairedModel
from medmllm_plugins.models.repairs.score_map import ScoreMap
from medmllm_plugins.utils.atomic_files import write_whole
from medmllm_plugins.utils.record import VersionedRecord

DESCRIPTION: Final = "repair.json"
TENSORS: Final = "repair.safetensors"
SCORE_MAP: Final = "score_map"
_ADAPTER: Final = ("adapter_config.json", "adapter_model.safetensors")
_PARTS: Final[dict[str, type[LowRankAdapter] | type[SoftPrompt] | type[LoraPart]]] = {
    LoraPart.kind: LoraPart,
    LowRankAdapter.kind: LowRankAdapter,
    SoftPrompt.kind: SoftPrompt,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairDescription(VersionedRecord):
    """What ``repair.json`` says.

    Attributes:
        name: the candidate's name, such as ``connector_adapter``.
        kind: ``score_map``, ``low_rank``, ``soft_prompt`` or ``lora``.
        config: what makes the part, by kind.
        task: the task that it was fitted on.
        model: checkpoint that it belongs to.
        fingerprint: SHA-256 of that checkpoint.
    """

    FORMAT: ClassVar[str] = "medmllm_repair"

    name: str
    kind: str
    config: dict[str, Any]
    task: str
    model: str
    fingerprint: str


def write_repair(
    folder: Path, repair: RepairPart | ScoreMap, loaded: LoadedModel, *, name: str, task: str, model: str
) -> None:
    """Write a fitted repair of a model.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind, config = (SCORE_MAP, repair.to_dict()) if isinstance(repair, ScoreMap) else (repair.kind, repair.config())
    if isinstance(repair, LoraPart):
        repair.write(folder, loaded)
    elif isinstance(repair, RepairPart):
        save_file(repair.state(), folder / TENSORS)
    description = RepairDescription(
        name=name, kind=kind, config=config, task=task, model=model, fingerprint=loaded.fingerprint
    )
    # The description comes last: a folder without one is not whole.
    write_whole(folder / DESCRIPTION, json.dumps(description.to_dict(), indent=2, ensure_ascii=False) + "\n")


def load_repaired(loaded: LoadedModel, folder: Path) -> LoadedModel:
    """Return a model with the repair of a folder, for good.

    Raises:
        ModelError: there is no repair, it is damaged, or belongs to other weights.
    """
    description = read_description(folder)
    if description.fingerprint != loaded.fingerprint:
        raise ModelError(
            f"{folder}: expected a model with the fingerprint {description.fingerprint} ({description.model}), for "
            f"which the repair was trained, got {loaded.fingerprint}. Load that checkpoint, or repair this one."
        )
    if description.kind == LoraPart.kind:
        # Where training found nothing better, the adapter is the untrained one.
        merge_adapter(loaded.model, str(folder), may_change_nothing=True)
        loaded.model.requires_grad_(False)
        return RepairedModel(loaded, None, (folder / DESCRIPTION, *(folder / name for name in _ADAPTER)))
    repair = read_repair(folder)
    if isinstance(repair, ScoreMap):
        return RepairedModel(loaded, repair, (folder / DESCRIPTION,))
    return RepairedModel(loaded, repair, (folder / DESCRIPTION, folder / TENSORS), repair.attached(loaded))


def read_repair(folder: Path) -> RepairPart | ScoreMap:
    """Read a fitted repair, without a model.

    Raises:
        ModelError: there is no repair, or it is damaged.
    """
    description = read_description(folder)
    try:
        if description.kind == SCORE_MAP:
            return ScoreMap.from_dict(description.config)
        part = _PARTS[description.kind](**description.config)
        part.load_state(load_file(folder / (_ADAPTER[1] if isinstance(part, LoraPart) else TENSORS)))
    except (KeyError, TypeError, ValueError, DataError, SafetensorError, OSError) as error:
        raise ModelError(
            f"{folder}: expected a repair of kind {shown(description.kind)}, got {one_line(error)}. Repair again."
        ) from error
    return part


def read_description(folder: Path) -> RepairDescription:
    """Read ``repair.json``.

    Raises:
        ModelError: it is missing or says something else.
    """
    if not (folder / DESCRIPTION).is_file():
        raise ModelError(f"Expected a folder with {DESCRIPTION}, as the command `repair` writes them, got {folder}.")
    try:
        return RepairDescription.from_dict(read_json(folder / DESCRIPTION))
    except DataError as error:
        raise ModelError(f"{folder / DESCRIPTION}: {error}") from error
