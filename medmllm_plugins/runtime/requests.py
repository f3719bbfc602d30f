"""One question for the model: which task asks, about which document, and how it is to be answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from medmllm_plugins.data.core.documents import MASKED
from medmllm_plugins.prompts.anchor_prompts import AnchorItem
from medmllm_plugins.prompts.attribution_options import AttributionOptions
from medmllm_plugins.prompts.feature_options import FeatureOptions
from medmllm_plugins.prompts.patch_options import PatchOptions
from medmllm_plugins.prompts.task_content import Row, TaskContent
from medmllm_plugins.prompts.task_names import answering_name

RequestKey = tuple[str, str, int, int]
"""Task, split, row index and repeat: equal for the clones with which the host pads the requests of a rank."""
Needs = Literal["features", "scores", "answer"]
_AFTERWARDS = ("attributions", "patching", "anchors", "masked")
"""Settings that decide nothing about the answers themselves."""
Messages = Sequence[Mapping[str, Any]]
"""Turns of a chat, each with ``role`` and ``content``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequest:
    """A question about one row of a task.

    Attributes:
        split: the split of its data set.
        index: the row's index in the split.
        generation: generation settings, such as ``max_new_tokens`` and ``until``.
        rows: all rows of the split by index; read one at a time, since rows of other packages' tasks hold images.
        to_messages: makes the chat turns of a row.
        content: the content of a task of this package; ``None`` for any other task, which gets plain text.
    """

    task: str
    split: str
    index: int
    repeat: int
    generation: Mapping[str, Any]
    rows: Sequence[Row] | Mapping[int, Row]
    to_messages: Callable[[Row], Messages]
    content: TaskContent | None

    @property
    def key(self) -> RequestKey:
        """Return what distinguishes this request from the others of a run."""
        return (self.task, self.split, self.index, self.repeat)

    @property
    def row(self) -> Row:
        """Return the row."""
        return self.rows[self.index]

    @property
    def way(self) -> str:
        """Return the finding and the variant that are asked about, such as ``Effusion | order 1``."""
        if self.content is None:
            return ""
        parts = (self.row.get("finding", ""), self.row.get("variant", ""))
        return " | ".join(part for part in parts if part)

    @property
    def features(self) -> FeatureOptions | None:
        """Return which features the task records; ``None`` for none."""
        return None if self.content is None else self.content.settings.features

    @property
    def attributions(self) -> AttributionOptions | None:
        """Return which attributions the task wants; ``None`` for none, as without scoring."""
        if self.content is None or self.content.predict_only:
            return None
        return self.content.settings.attributions

    @property
    def patching(self) -> PatchOptions | None:
        """Return where the task puts states of a twin in; ``None`` for nowhere, as without scoring."""
        if self.content is None or self.content.predict_only:
            return None
        return self.content.settings.patching

    @property
    def needs_twin(self) -> bool:
        """Return whether the task cannot do without a twin, as one can that probes or tries other interventions."""
        options = self.patching
        return options is not None and self.features is None and options.needs_twin

    @property
    def needs(self) -> Needs:
        """Return which outputs the document needs.

        ``"features"`` (train fold) and ``"scores"`` (validation fold) where features are recorded, both of which the
        prefill gives; else ``"answer"``.
        """
        if self.features is None:
            return "answer"
        needs: dict[str, Needs] = {"train": "features", "validation": "scores"}
        return needs.get(str(self.row["fold"]), "answer")

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Return the answers to score, in class order; ``None`` where none are scored."""
        if self.content is None or self.needs == "features":
            return None
        return tuple(self.row["answers"])

    def is_parsed(self, text: str) -> bool:
        """Return whether a class can be read out of an answer; true where no class is read."""
        if self.content is None or self.needs != "answer":
            return True
        return self.content.read_answer(self.row, text).status == "parsed"

    def stored_name(self) -> str:
        """Return the name of the answer in the journal: a hash of question, document and settings.

        Options of attributions, patching, anchors and masked borders are left out, see
        :meth:`medmllm_plugins.runtime.evaluation_run.EvaluationRun.open`.
        """
        metadata = {} if self.content is None else self.content.metadata
        settings = {key: value for key, value in metadata.items() if key not in _AFTERWARDS}
        parts = (
            answering_name(self.task), self.split, self.index, self.repeat, sorted(self.generation.items()), settings
        )  # fmt: skip
        return _hash(parts)

    def anchor_name(self, item: AnchorItem) -> str:
        """Return the name of the answer to an anchor of this request's task in the journal."""
        assert self.content is not None, "only tasks of this package have anchors"
        shown = "" if item.document is None else self.content.data.fingerprint
        parts = (
            answering_name(self.task), item.id, item.question.text, item.marks, shown, sorted(self.generation.items())
        )  # fmt: skip
        return _hash(parts)


def _hash(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def masked_requests(requests: Iterable[TaskRequest]) -> Iterator[TaskRequest]:
    """Yield the requests about the same documents with the border of their images masked, where the task wants some."""
    for request in requests:
        if request.content is None or request.repeat or request.content.predict_only:
            continue
        rows = request.content.masked_rows
        if request.index in rows:
            yield replace(request, split=f"{request.split} {MASKED}", rows=rows)


def by_task(requests: Sequence[TaskRequest]) -> dict[str, list[TaskRequest]]:
    """Group requests by the name of their task, in the order in which they come."""
    groups: dict[str, list[TaskRequest]] = {}
    for request in requests:
        groups.setdefault(request.task, []).append(request)
    return groups
