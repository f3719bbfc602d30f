"""The run of tasks that were loaded together."""

from __future__ import annotations

from collections.abc import Callable

from medmllm_plugins.runtime.evaluation_run import EvaluationRun


class RunSession:
    """Hands the run of an evaluation from its tasks to the model and back.

    The host has no object that lives as long as one evaluation and reaches both. Tasks that are loaded together share a
    session; the model finds it with their data set.
    """

    def __init__(self, in_command: Callable[[], bool] = lambda: False) -> None:
        """Begin a run; ``in_command`` returns whether the process is a command, which Ctrl-C ends."""
        self._in_command = in_command
        self.run = EvaluationRun(in_command=in_command)

    def join(self, task: str) -> EvaluationRun:
        """Return the run that a task is about to be part of.

        A new one if the present run has answers already, or a task of that name: the caller evaluates the same loaded
        tasks once more.
        """
        if self.run.folder is not None or task in self.run.manifest.tasks:
            self.restart()
        return self.run

    def restart(self) -> None:
        """Close the run and begin another."""
        self.run.close()
        self.run = EvaluationRun(in_command=self._in_command)
