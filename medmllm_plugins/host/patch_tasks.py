"""Tasks that patch: answers as in any classification, then states of a twin put in, site by site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from loguru import logger
from scipy.special import logsumexp

from medmllm_plugins.errors import DataError
from medmllm_plugins.host.inspection import InspectionTask
from medmllm_plugins.host.tasks import ChatClassification, ClassificationTask, SimpleClassification
from medmllm_plugins.interventions.patch_effects import MODULES, twin_effects
from medmllm_plugins.interventions.patch_summary import headline
from medmllm_plugins.interventions.twin_patching import Answers, PatchedAnswer
from medmllm_plugins.metrics.intervals import number
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.prompts.task_settings import Purpose
from medmllm_plugins.results.file_names import file_stem
from medmllm_plugins.results.manifest import PatchEntry
from medmllm_plugins.results.patch_files import PatchedOutcome, write_patching
from medmllm_plugins.results.patch_records import TwinPatching
from medmllm_plugins.runtime.journal import Reply
from medmllm_plugins.runtime.patch_loop import MODEL, TWIN, PatchKey


class PatchingTask(ClassificationTask):
    """What the YAML of a task that patches names under ``class:``."""


class Patching(InspectionTask[TwinPatching]):
    """Twin patching of one data set; the states are put in while both models are still loaded.

    The host prints how much better the twin answers the patched documents, and how much of that comes with each module.
    """

    PURPOSE: ClassVar[Purpose] = "patch"
    ANALYSIS = "twin patching"
    NO_EXAMPLES = "states are those of one image"
    PRINTED = ("twin_gain", *(f"gain_{module}" for module in MODULES))

    def _analyse(self, outcomes: Sequence[Outcome], model: str) -> TwinPatching:
        """Measure the effects of all patches."""
        folder = self.run.folder_for(model)
        keys, replies = self._replies()
        rows = [self.content.row_list[index] for index in self.content.patched_rows]
        classes = list(self.content.question(rows[0]).classes)
        truth = np.array([classes.index(row["label"]) for row in rows], dtype=np.intp)
        group = np.unique([row["group"] for row in rows], return_inverse=True)[1].astype(np.intp)
        sides: dict[str, Answers] = {}
        for recipient in (MODEL, TWIN):
            sites = dict.fromkeys(key.site for key in keys if key.recipient == recipient)
            sides[recipient] = {
                site: [_answer(replies[PatchKey(row["document"], recipient, site)]) for row in rows] for site in sites
            }

        def read(text: str) -> int:
            label = self.content.read_answer(rows[0], text).label
            return -1 if label is None else classes.index(label)

        def accuracy(recipient: str) -> float:
            return float(np.mean([read(answer.text) for answer in sides[recipient][None]] == truth))

        worse, better = sorted((MODEL, TWIN), key=accuracy)
        result = twin_effects(sides[worse], sides[better], truth, group, read, names=(worse, better))
        entry = self.run.manifest.model
        checkpoints = {MODEL: entry.pretrained or "", TWIN: entry.twin or ""} if entry is not None else {}
        result = replace(result, task=self.name, checkpoints=checkpoints)
        result = replace(result, headline=headline(result))
        write_patching(folder, file_stem(self.name), result, self._outcomes(sides))
        self.run.task(self.name, patching=PatchEntry(headline=result.headline, printed=self._known(result)))
        logger.info(f"{self.name}: {result.headline}")
        return result

    def _replies(self) -> tuple[list[PatchKey], dict[PatchKey, Reply]]:
        """Return all patched answers.

        Raises:
            DataError: some are missing.
        """
        names, reason = self.run.patched.get(self.name, ({}, "the model was not asked"))
        replies = self.run.replies(names)
        if reason or not names or len(replies) < len(names):
            documents = len({key.document for key in names} - {key.document for key in replies})
            raise DataError(
                f"{self.name}: expected the answers of two models with each other's states, got none of {documents} "
                f"documents: {reason or 'a process stopped'}. Start the same command again to continue."
            )
        return list(names), replies

    def _outcomes(self, sides: Mapping[str, Answers]) -> list[PatchedOutcome]:
        rows = [self.content.row_list[index] for index in self.content.patched_rows]
        outcomes = []
        for recipient, answers in sides.items():
            for site, by_document in answers.items():
                for row, answer in zip(rows, by_document, strict=True):
                    outcomes.append(
                        PatchedOutcome(
                            document=row["document"],
                            group=row["group"],
                            label=row["label"],
                            recipient=recipient,
                            layer="" if site is None else site.layer,
                            tokens="" if site is None else site.tokens,
                            predicted=self.content.read_answer(row, answer.text).label or "",
                            log_odds=_log_odds(answer, list(self.content.question(row).classes).index(row["label"])),
                            answer=answer.text,
                        )
                    )
        return outcomes

    def _printed(self, result: TwinPatching) -> Mapping[str, float | str | None]:
        sign = 1 if result.better == TWIN else -1
        figures = {
            "twin_gain": result.difference,
            **{f"gain_{share.module}": share.accuracy for share in result.shares},
        }
        return {name: number(sign * figure.value) for name, figure in figures.items()}

    def _known(self, result: TwinPatching) -> dict[str, float]:
        return {name: value for name, value in self._printed(result).items() if isinstance(value, float)}

    def _note_failure(self, reason: str) -> None:
        self.run.task(self.name, patching=PatchEntry(failed=reason))


def _answer(reply: Reply) -> PatchedAnswer:
    return PatchedAnswer(reply.text, reply.scores or ())


def _log_odds(answer: PatchedAnswer, truth: int) -> float:
    others = [score for index, score in enumerate(answer.scores) if index != truth]
    return float(answer.scores[truth] - logsumexp(others))


class SimplePatching(Patching, SimpleClassification):
    """For the host's simple models, whose states cannot be exchanged."""


class ChatPatching(Patching, ChatClassification):
    """For the host's chat models, ours among them."""


PatchingTask.kinds = {"simple": SimplePatching, "chat": ChatPatching}
