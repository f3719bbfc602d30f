"""Tasks with their data."""

from __future__ import annotations

import pytest
from support.phantom_images import phantom_dataset

from medmllm_plugins.prompts.task_content import TaskContent
from medmllm_plugins.prompts.task_names import task_settings


@pytest.mark.parametrize(
    ("name", "asked", "scored"),
    [
        ("med_cls_demo", 480, 480),
        ("med_cls_demo:order=varied", 4 * 480, 4 * 480),
        ("med_probe_demo", 3280, 480),
    ],
)
def test_scored_questions_are_those_of_the_test_fold(name: str, asked: int, scored: int) -> None:
    content = TaskContent(name, task_settings(name), phantom_dataset())
    assert (len(content.row_list), content.scored_questions) == (asked, scored)
