"""The data set of a task as lmms-eval holds it, with the content and the run that belong to it."""

from __future__ import annotations

import datasets

from medmllm_plugins.prompts.task_content import TaskContent
from medmllm_plugins.runtime.run_session import RunSession

SPLIT = "test"


class TaskDataset(datasets.DatasetDict):
    """Rows of a task, without images or paths, so that none reaches a log.

    The host hands the data set of each task to the model (``lm.task_dict``). By that way the model gets the content of
    our tasks and the run that they are part of.
    """

    content: TaskContent
    session: RunSession

    @classmethod
    def of(cls, content: TaskContent, session: RunSession) -> TaskDataset:
        """Return the data set of a task."""
        dataset = cls({SPLIT: datasets.Dataset.from_list(content.row_list)})
        dataset.content, dataset.session = content, session
        return dataset
