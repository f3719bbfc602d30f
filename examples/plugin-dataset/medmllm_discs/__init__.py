"""Images with bright and dark discs, a folder for each class."""

from medmllm_plugins import TaskFolder, hookimpl


@hookimpl
def medmllm_tasks() -> list[TaskFolder]:
    """Return the folder of task files; declarations of data sets are in ``tasks/datasets/``."""
    return [TaskFolder(path="medmllm_discs:tasks")]
