"""The host's command line: what it asks for, and an exit status that says whether the evaluation succeeded.

lmms-eval logs an exception of an evaluation, goes on, and ends with status 0. Here its ``cli_evaluate`` is wrapped
where it is defined, so that the status is 1 however the command is started: ``lmms-eval``, ``python -m lmms_eval``,
torchrun, accelerate or ``medmllm lmms-eval``. Only evaluations that name a model or a task of ours (see
:func:`concerns_us`) are changed, unless :func:`judge_every_evaluation` was called, as ``medmllm lmms-eval`` does.
"""

from __future__ import annotations

import functools
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from medmllm_plugins.errors import MedMLLMError, PluginError, one_line
from medmllm_plugins.plugins.manager import get_manager

MAIN_MODULE: Final = "lmms_eval.__main__"
TASK_PREFIXES: Final = ("med_cls", "med_probe", "med_attr", "med_patch")
"""Beginnings of our tasks' names: a misspelt one is known by them too."""
LONGEST: Final = 300
"""Characters of anybody else's message."""

_arguments: ContextVar[Namespace | None] = ContextVar("medmllm_arguments", default=None)


class _Status:
    """What one call of the host's command has met so far."""

    def __init__(self) -> None:
        self.every = False
        self.begin()

    def begin(self) -> None:
        self.ours = self.failed = False
        self.notes: list[str] = []
        self.results: dict[str, list[str]] = {}


_status = _Status()


def arguments() -> Namespace | None:
    """Return what the host's command line says; ``None`` where no evaluation was started from one."""
    return _arguments.get()


def judge_every_evaluation() -> None:
    """Let failed evaluations end with status 1 also where no model and no task of ours takes part."""
    _status.every = True


def concern_us() -> None:
    """Note that a task of ours takes part in the evaluation that is running."""
    _status.ours = True


def note_failure(message: str) -> None:
    """Note something that was asked for and failed while the evaluation went on, such as the probes of one task.

    The results are printed and written as usual; then the message is printed, and the command ends with status 1.
    """
    _status.notes.append(message)


def note_result(sentence: str, folder: str | Path) -> None:
    """Note the result of a task in one sentence, which is printed after the host's table.

    Args:
        sentence: the task and its accuracy.
        folder: what ``medmllm report`` takes for it: the ``--output_path``, or the run folder.
    """
    _status.results.setdefault(str(folder), []).append(sentence)


def has_our_task(args: Namespace) -> bool:
    """Return whether an evaluation has a task of ours, by what was matched or else by its name, be it misspelt."""
    tasks = str(getattr(args, "tasks", None) or "").split(",")
    return _status.ours or any(task.strip().startswith(TASK_PREFIXES) for task in tasks)


def concerns_us(args: Namespace) -> bool:
    """Return whether an evaluation has a model or a task of ours."""
    return _status.every or has_our_task(args) or _is_our_model(getattr(args, "model", None))


def _is_our_model(name: str | None) -> bool:
    try:
        return name in get_manager().models()
    except PluginError:  # asked for by MEDMLLM_STRICT=1, under which nobody knows whose it is
        return True


def install() -> None:
    """See to it that the host's command tells of failures, be its module imported, on its way, or still to come."""
    module = sys.modules.get(MAIN_MODULE)
    if module is None or type(module) is _BeingImported:
        return  # a module that is imported later is left to `guard`, see `bridge`
    if "cli_evaluate" in vars(module):
        guard(module)
    else:
        # We are called in the middle of its import: `cli_evaluate` is wrapped when it is first looked up.
        module.__class__ = _BeingImported


def guard(module: ModuleType) -> None:
    """Wrap the two functions by which ``lmms_eval.__main__`` evaluates; a second call changes nothing."""
    functions = vars(module)
    if not getattr(functions["cli_evaluate"], "medmllm", False):
        functions["cli_evaluate_single"] = _one_evaluation(functions["cli_evaluate_single"])
        functions["cli_evaluate"] = _command(functions["cli_evaluate"])


class _BeingImported(ModuleType):
    """``lmms_eval.__main__`` until its import is over."""

    @property
    def cli_evaluate(self) -> Any:
        if "cli_evaluate" not in vars(self):
            raise AttributeError(f"module {self.__name__!r} has no attribute 'cli_evaluate'")
        self.__class__ = ModuleType  # type: ignore[assignment]
        guard(self)
        return vars(self)["cli_evaluate"]


def _command(evaluate: Callable[..., None]) -> Callable[..., None]:
    """Wrap the whole command, which may hold several evaluations (``--config``)."""

    @functools.wraps(evaluate)
    def cli_evaluate(args: Namespace | None = None) -> None:
        _status.begin()
        evaluate(args)
        _print_results()
        for note in dict.fromkeys(_status.notes):
            _say(note)
        # Of several processes the first alone ends with 1: the launcher would end it over another's, while it still
        # prints the results.
        if (_status.failed or _status.notes) and not int(os.environ.get("RANK") or 0):
            sys.exit(1)

    cli_evaluate.medmllm = True  # type: ignore[attr-defined]
    return cli_evaluate


def _one_evaluation(evaluate: Callable[[Namespace], Any]) -> Callable[[Namespace], Any]:
    """Wrap one evaluation; the host prints a traceback for whatever leaves it and forgets about it."""

    @functools.wraps(evaluate)
    def cli_evaluate_single(args: Namespace) -> Any:
        token = _arguments.set(args)
        _status.ours = False  # of the evaluation before, where `--config` names several
        try:
            returned = evaluate(args)
        except SystemExit as stop:
            if not stop.code and not args.tasks and concerns_us(args):  # the host ends with 0 where --tasks is missing
                _say("--tasks: expected the names of tasks, got none. `lmms-eval --tasks list` lists them.")
                raise SystemExit(2) from None
            raise
        except Exception as error:
            if str(args.verbosity) == "DEBUG" or not concerns_us(args):
                raise
            _say(_message(error))
            if int(os.environ.get("WORLD_SIZE") or 1) > 1:
                # The other processes wait for this one: their launcher ends them once this one has failed.
                raise SystemExit(1) from None
            _status.failed = True
            return None, None  # what the host takes for an evaluation of another process: it goes on with the next
        finally:
            _arguments.reset(token)
        results = returned[0] if isinstance(returned, tuple) else None
        if results is not None and concerns_us(args):
            for task in _without_metrics(results):
                note_failure(f"{task}: expected documents to be evaluated, got no metric of any. See the log above.")
        return returned

    return cli_evaluate_single


def _without_metrics(results: dict[str, Any]) -> list[str]:
    """Return the tasks of which the host has no metric, as where no document was left to evaluate."""
    values = results.get("results", {})
    return [
        task
        for task in results.get("configs", {})
        if not any("," in key and "_stderr" not in key for key in values.get(task, {}))
    ]


def _print_results() -> None:
    """Print the results of all tasks and the command for their report, in one line if there is one task."""
    if int(os.environ.get("RANK") or 0):
        return
    sys.stdout.flush()  # the host's table comes first
    for folder, sentences in _status.results.items():
        report = f"Report: {shlex.join(['medmllm', 'report', folder])}"
        lines = [f"{sentences[0]} {report}"] if len(sentences) == 1 else [*sentences, report]
        print("\n".join(lines), file=sys.stderr, flush=True)


def _message(error: BaseException) -> str:
    """Return one clean message: of an error of ours its text, also where the host has wrapped it."""
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, MedMLLMError):
            return str(link)
        attempt = getattr(link, "last_attempt", None)  # of tenacity's RetryError, whose own text says nothing
        link = attempt.exception() if attempt is not None else link.__cause__ or link.__context__
    text = one_line(error)
    text = text.rstrip(".") if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return f"the evaluation failed: {text}. Run it again with --verbosity DEBUG for the traceback."


def _say(message: str) -> None:
    rank = os.environ.get("RANK") if int(os.environ.get("WORLD_SIZE") or 1) > 1 else None
    sys.stdout.flush()  # the host's log and table come first
    print(f"medmllm: {'' if rank is None else f'process {rank}: '}{message}", file=sys.stderr, flush=True)
