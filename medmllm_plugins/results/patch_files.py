"""Twin patching as files: ``TASK.patching.json`` with everything, and tidy tables as CSV."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.metrics.intervals import number
from medmllm_plugins.results.file_names import PATCHED_ANSWERS, PATCHING, PATCHING_POINTS
from medmllm_plugins.results.patch_records import TwinPatching
from medmllm_plugins.utils.atomic_files import csv_text, write_whole

POINT_COLUMNS: Final = (
    *("kind", "direction", "layer", "tokens", "vision", "connector", "llm", "metric"),
    *("value", "low", "high"),
)
ANSWER_COLUMNS: Final = (
    *("document", "group", "label", "recipient", "layer", "tokens", "predicted", "log_odds", "answer"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchedOutcome:
    """One answer, with the states of another model put in or without.

    Attributes:
        document: id of the document.
        group: its group.
        label: its class.
        recipient: the model that answers, ``model`` or ``twin``.
        layer: where states of the other one are put in; empty for none.
        tokens: the tokens whose states are.
        predicted: the class that was read; empty for none.
        log_odds: log-odds of the correct label against all others, in nats.
        answer: the text.
    """

    document: str
    group: str
    label: str
    recipient: str
    layer: str
    tokens: str
    predicted: str
    log_odds: float
    answer: str


def write_patching(folder: Path, stem: str, result: TwinPatching, outcomes: Iterable[PatchedOutcome]) -> None:
    """Write the result of twin patching into a run folder.

    Raises:
        OSError: the folder cannot be written.
    """
    texts = {
        PATCHING: json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n",
        PATCHING_POINTS: csv_text(POINT_COLUMNS, point_rows(result)),
        PATCHED_ANSWERS: csv_text(ANSWER_COLUMNS, map(astuple, outcomes)),
    }
    for suffix, text in texts.items():
        write_whole(folder / f"{stem}{suffix}", text)


def point_rows(result: TwinPatching) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the table of effects, with the columns :data:`POINT_COLUMNS`."""
    for point in result.points:
        site = ("site", point.direction, point.layer, point.tokens, None, None, None)
        for name in ("accuracy", "effect", "log_odds_effect"):
            yield (*site, name, *getattr(point, name).to_dict().values())
        yield (*site, "parsed", number(point.parsed), None, None)
    for combination in result.combinations:
        modules = (combination.vision, combination.connector, combination.llm)
        for name in ("accuracy", "log_odds"):
            yield ("combination", None, None, None, *modules, name, *getattr(combination, name).to_dict().values())
    for share in result.shares:
        for name in ("accuracy", "log_odds"):
            yield (
                *("share", None, share.module, None, None, None, None, name),
                *getattr(share, name).to_dict().values(),
            )
