"""A model with a repair, behind the same interface as any other model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from medmllm_plugins.models.base import Generation, LoadedModel, Question, VisualInput, Watch
from medmllm_plugins.models.families.family import ImageStage
from medmllm_plugins.models.generation import Prefill
from medmllm_plugins.models.repairs.repair_part import RepairPart
from medmllm_plugins.models.repairs.score_map import ScoreMap

_SHARED = (
    *("model", "tokenizer", "family", "device", "dtype", "max_length", "eos_token_ids", "pad_token_id"),
    *("max_new_tokens", "weight_warnings", "shows"),
)


class RepairedModel(LoadedModel):
    """A model with a repair. What this class does not change is asked of the model itself.

    Attributes:
        base: the model.
        repair: what acts on it; ``None`` where it was merged into the weights.
    """

    def __init__(
        self,
        base: LoadedModel,
        repair: RepairPart | ScoreMap | None,
        files: Sequence[Path] = (),
        attachment: AbstractContextManager[None] | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            base: the model.
            repair: what acts on it.
            files: those of the repair, which count toward the fingerprint.
            attachment: a context that lets the repair act; it is entered here and stays open.
        """
        self.base, self.repair = base, repair
        for name in _SHARED:
            setattr(self, name, getattr(base, name))
        self._files = (*base._files, *files)
        self._stack = ExitStack()
        if attachment is not None:
            self._stack.enter_context(attachment)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "base":
            raise AttributeError(name)
        return getattr(self.base, name)

    @property
    def prefix_length(self) -> int:
        """Number of tokens of each label that are not scored."""
        return self.base.prefix_length

    def render(self, question: Question) -> str:
        """Return the prompt as text, without the tokens of a soft prompt, which have none."""
        return self.base.render(question)

    def prepare(self, questions: Sequence[Question], images: Sequence[VisualInput]) -> dict[str, Tensor]:
        """Make the model's input, with the tokens that the repair adds."""
        return self._longer(self.base.prepare(questions, images))

    def prepare_text(self, questions: Sequence[str]) -> dict[str, Tensor]:
        """Make the model's input without an image, likewise."""
        return self._longer(self.base.prepare_text(questions))

    def _longer(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if not isinstance(self.repair, RepairPart):
            return inputs
        inputs = self.repair.prompt(inputs)
        self.check_length(int(inputs["attention_mask"].sum(-1).max()), 0)
        return inputs

    def label_ids(self, question: Question, labels: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each label."""
        return self.base.label_ids(question, labels)

    def rows_per_document(self, stage: ImageStage, inputs: Mapping[str, Tensor]) -> list[int]:
        """Return how many entries of a stage's first output axis belong to each document."""
        return self.base.rows_per_document(stage, inputs)

    def image_positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return which tokens of the prompts are replaced by image features."""
        return self.base.image_positions(inputs)

    def prefill(self, inputs: Mapping[str, Tensor]) -> Prefill:
        """Run prompts and images through the model once."""
        return self.base.prefill(inputs)

    def generate(
        self,
        questions: Sequence[Question],
        images: Sequence[VisualInput],
        *,
        max_new_tokens: int,
        labels: Sequence[str] | None = None,
        inputs: dict[str, Tensor] | None = None,
        watch: Watch | None = None,
    ) -> list[Generation]:
        """Answer questions; a score map decides the answers to questions about its labels."""
        answers = super().generate(
            questions, images, max_new_tokens=max_new_tokens, labels=labels, inputs=inputs, watch=watch
        )
        if not isinstance(self.repair, ScoreMap):
            return answers
        return [self.repair.recalibrated(answer, labels) for answer in answers]


@contextmanager
def repaired(loaded: LoadedModel, repair: RepairPart | ScoreMap) -> Iterator[RepairedModel]:
    """Let a repair act on a model while the context is open."""
    if isinstance(repair, ScoreMap):
        yield RepairedModel(loaded, repair)
        return
    with repair.attached(loaded):
        yield RepairedModel(loaded, repair)
