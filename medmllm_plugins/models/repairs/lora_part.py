"""LoRA of modules of one stage, trained and written with peft, so that its folders load wherever adapters do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.families.family import stage_module
from medmllm_plugins.models.repairs.repair_part import RepairPart

LoraStage: TypeAlias = Literal["vision", "connector", "attention"]


def lora_targets(loaded: LoadedModel, stage: LoraStage, blocks: int) -> tuple[str, ...]:
    """Return the names of the linear layers of a stage.

    Args:
        loaded: the model.
        stage: ``vision`` (the last ``blocks`` blocks of the tower), ``connector``, or ``attention`` (of all blocks of
            the LLM).
        blocks: number of blocks of the tower.

    Raises:
        ModelError: the stage has no linear layer.
    """
    model, family = loaded.model, loaded.family
    if stage == "vision":
        count = len(list(stage_module(model, family.vision_blocks).children()))
        roots = [f"{family.vision_blocks}.{number}" for number in range(max(0, count - blocks), count)]
    else:
        roots = [family.connector if stage == "connector" else family.llm_blocks]
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and any(name == root or name.startswith(f"{root}.") for root in roots)
        and (stage != "attention" or "attn" in name or "attention" in name)
    ]
    if not names:
        raise ModelError(f"{family.title}: expected linear layers in {', '.join(roots)} ({stage}), got none.")
    return tuple(names)


class LoraPart(RepairPart):
    """Low-rank updates of the weights of a stage's linear layers.

    Source: Hu et al., "LoRA", arXiv 2106.09685.
    """

    kind = "lora"

    def __init__(self, targets: Sequence[str], rank: int) -> None:
        """``targets`` are names of linear layers below the transformers model."""
        self.targets, self.rank = tuple(targets), rank
        self._adapted: Any = None
        self._state: dict[str, Tensor] = {}

    def config(self) -> dict[str, Any]:
        """Return targets and rank."""
        return {"targets": list(self.targets), "rank": self.rank}

    @contextmanager
    def attached(self, loaded: LoadedModel) -> Iterator[None]:
        """Put peft's layers in the place of the targets.

        Raises:
            OptionError: peft is not installed.
        """
        peft = _peft()
        config = peft.LoraConfig(
            r=self.rank, lora_alpha=2 * self.rank, lora_dropout=0.0, target_modules=list(self.targets)
        )
        self._adapted = peft.get_peft_model(loaded.model, config)
        for parameter in self.parameters():
            parameter.data = parameter.data.float()
        try:
            if self._state:
                self.load_state(self._state)
            yield
            self._state = self.state()
        finally:
            self._adapted.unload()
            self._adapted = None
            loaded.model.requires_grad_(False)

    def parameters(self) -> list[nn.Parameter]:
        """Return the matrices of the updates."""
        return [value for value in self._adapted.parameters() if value.requires_grad]

    def state(self) -> dict[str, Tensor]:
        """Return copies of the matrices under peft's names."""
        if self._adapted is None:
            return dict(self._state)
        matrices: Mapping[str, Tensor] = _peft().get_peft_model_state_dict(self._adapted)
        return {name: value.detach().float().cpu().clone() for name, value in matrices.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the matrices; before the part is attached they are kept until it is."""
        if self._adapted is None:
            self._state = dict(state)
        else:
            _peft().set_peft_model_state_dict(self._adapted, dict(state))

    def write(self, folder: Path, loaded: LoadedModel) -> None:
        """Write peft's folder: ``adapter_config.json`` and ``adapter_model.safetensors``."""
        with self.attached(loaded):
            self._adapted.peft_config["default"].inference_mode = True
            self._adapted.save_pretrained(str(folder), safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)  # an empty model card


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise OptionError("LoRA needs the package peft; pip install peft.") from error
    return peft
