"""The result of twin patching of a task, from the answers that both models gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.special import logsumexp

from medmllm_plugins.errors import DataError
from medmllm_plugins.host.planned_replies import classes_and_groups
from medmllm_plugins.interventions.patch_effects import twin_effects
from medmllm_plugins.interventions.patch_summary import headline
from medmllm_plugins.interventions.twin_patching import MODEL, TWIN, Answers, PatchedAnswer
from medmllm_plugins.prompts.task_content import TaskContent
from medmllm_plugins.results.file_names import file_stem
from medmllm_plugins.results.patch_files import PatchedOutcome, write_patching
from medmllm_plugins.results.patch_records import TwinPatching
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.journal import Reply
from medmllm_plugins.runtime.patch_replies import PatchKey


class TwinResults:
    """The patched answers of one task."""

    def __init__(self, content: TaskContent, run: EvaluationRun) -> None:
        self._content, self._run = content, run
        self._rows = [content.row_list[index] for index in content.patched_rows]

    def write(self, folder: Path) -> TwinPatching:
        """Measure the effects of all patches, and write them into the run folder.

        Raises:
            DataError: some answers are missing.
        """
        sides = self._sides(*self._replies())
        classes = list(self._content.question(self._rows[0]).classes)
        truth, group = classes_and_groups(self._content, self._rows)

        def read(text: str) -> int:
            label = self._content.read_answer(self._rows[0], text).label
            return -1 if label is None else classes.index(label)

        def accuracy(recipient: str) -> float:
            return float(np.mean([read(answer.text) for answer in sides[recipient][None]] == truth))

        worse, better = sorted((MODEL, TWIN), key=accuracy)
        result = twin_effects(sides[worse], sides[better], truth, group, read, names=(worse, better))
        entry = self._run.manifest.model
        checkpoints = {MODEL: entry.pretrained or "", TWIN: entry.twin or ""} if entry is not None else {}
        result = replace(result, task=self._content.name, checkpoints=checkpoints)
        result = replace(result, headline=headline(result))
        write_patching(folder, file_stem(self._content.name), result, self._outcomes(sides))
        return result

    def _replies(self) -> tuple[list[PatchKey], dict[PatchKey, Reply]]:
        """Return all patched answers.

        Raises:
            DataError: some are missing.
        """
        name = self._content.name
        names, reason = self._run.patched.get(name, ({}, "the model was not asked"))
        replies = self._run.replies(names)
        if reason or not names or len(replies) < len(names):
            missing = len({key.document for key in names if key not in replies})
            raise DataError(
                f"{name}: expected the answers of two models with each other's states, got none of {missing} "
                f"documents: {reason or 'a process stopped'}. Start the same command again to continue."
            )
        return list(names), replies

    def _sides(self, keys: list[PatchKey], replies: Mapping[PatchKey, Reply]) -> dict[str, Answers]:
        """Return the answers of each model by site, documents in the order of the rows."""
        sides: dict[str, Answers] = {}
        for recipient in (MODEL, TWIN):
            sites = dict.fromkeys(key.site for key in keys if key.recipient == recipient)
            sides[recipient] = {
                site: [_answer(replies[PatchKey(row["document"], recipient, site)]) for row in self._rows]
                for site in sites
            }
        return sides

    def _outcomes(self, sides: Mapping[str, Answers]) -> list[PatchedOutcome]:
        outcomes = []
        for recipient, answers in sides.items():
            for site, by_document in answers.items():
                for row, answer in zip(self._rows, by_document, strict=True):
                    outcomes.append(
                        PatchedOutcome(
                            document=row["document"],
                            group=row["group"],
                            label=row["label"],
                            recipient=recipient,
                            layer="" if site is None else site.layer,
                            tokens="" if site is None else site.tokens,
                            predicted=self._content.read_answer(row, answer.text).label or "",
                            log_odds=_log_odds(answer, list(self._content.question(row).classes).index(row["label"])),
                            answer=answer.text,
                        )
                    )
        return outcomes


def _answer(reply: Reply) -> PatchedAnswer:
    return PatchedAnswer(reply.text, reply.scores or ())


def _log_odds(answer: PatchedAnswer, truth: int) -> float:
    others = [score for index, score in enumerate(answer.scores) if index != truth]
    return float(answer.scores[truth] - logsumexp(others))
