"""Extend the host's ``TaskManager`` and command, whether they are imported already or later.

Everything here runs inside ``import lmms_eval.models``: no torch.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from loguru import logger

from medmllm_plugins.errors import PluginError, one_line
from medmllm_plugins.host import command_line, task_index
from medmllm_plugins.host.task_loading import loading_tasks, new_session
from medmllm_plugins.plugins.manager import get_manager

if TYPE_CHECKING:
    from medmllm_plugins.runtime.run_session import RunSession

TASKS_MODULE = "lmms_eval.tasks"


def install_task_hook() -> None:
    """Make every ``TaskManager`` built from now on in this process know the plugins' tasks."""
    loaded = sys.modules.get(TASKS_MODULE)
    if loaded is not None and hasattr(loaded, "TaskManager"):
        TaskManagerHook.install(loaded)
    else:
        _extend_when_imported(TASKS_MODULE, TaskManagerHook.install)
    if command_line.MAIN_MODULE in sys.modules:
        command_line.install()
    else:
        _extend_when_imported(command_line.MAIN_MODULE, command_line.guard)


def _extend_when_imported(module: str, extend: Callable[[ModuleType], None]) -> None:
    if not any(isinstance(finder, ExtendingFinder) and finder.module == module for finder in sys.meta_path):
        sys.meta_path.insert(0, ExtendingFinder(module, extend))


class TaskManagerHook:
    """Replacements of four methods of the host's ``TaskManager``, which call the originals.

    The hook also owns the run: each load of tasks begins a session, and ends the one before. It is found as
    ``TaskManager.medmllm_hook``.

    Attributes:
        session: of the tasks that were loaded last; ``None`` before the first load.
    """

    def __init__(self, host: Any) -> None:
        self.session: RunSession | None = None
        self._initialize, self._match = host.initialize_tasks, host.match_tasks
        self._load, self._get_config = host.load_task_or_group, host._get_config

    @classmethod
    def install(cls, tasks: ModuleType) -> None:
        """Extend the ``TaskManager`` of ``lmms_eval.tasks``; a second call changes nothing."""
        host: Any = tasks.TaskManager
        if hasattr(host, "medmllm_hook"):
            return
        hook = host.medmllm_hook = cls(host)

        def replace(name: str, method: Callable[..., Any]) -> None:
            @functools.wraps(getattr(host, name))
            def replacement(self: Any, *args: Any, **kwargs: Any) -> Any:
                return method(self, *args, **kwargs)

            setattr(host, name, replacement)

        replace("initialize_tasks", hook.initialize_tasks)
        replace("match_tasks", hook.match_tasks)
        replace("load_task_or_group", hook.load_task_or_group)
        replace("_get_config", hook.get_config)

    def initialize_tasks(self, manager: Any, *args: Any, **kwargs: Any) -> dict[str, dict[str, Any]]:
        """Build the index of tasks, ours among them.

        Raises:
            PluginError: a plugin's tasks are broken, under ``MEDMLLM_STRICT=1``.
        """
        index: dict[str, dict[str, Any]] = self._initialize(manager, *args, **kwargs)
        try:
            task_index.add_tasks(index)
        except PluginError:
            raise  # wanted by MEDMLLM_STRICT=1
        except Exception as error:
            # Every command of the host gets here, also those that use none of our tasks.
            logger.warning(f"medmllm-plugins: tasks are missing: {one_line(error)}")
        return index

    def match_tasks(self, manager: Any, task_list: Any) -> list[str]:
        """Match what the user wrote, and refuse flags that our tasks cannot honour before a model is loaded."""
        patterns = [task_list] if isinstance(task_list, str) else list(task_list)
        names: list[str] = self._match(manager, patterns)
        _check_flags(manager, names)
        # The host searches the result for what the user wrote, so a path stays a path here.
        known = {*names, *(pattern for pattern in patterns if _resolve(manager, pattern) in manager._task_index)}
        for pattern in patterns:
            if pattern not in known and (hint := task_index.hint(manager._task_index, pattern)):
                logger.error(hint)  # the host says next that the task was not found
        return sorted(known)

    def load_task_or_group(self, manager: Any, task_list: Any = None, task_type: str = "simple") -> dict[str, Any]:
        """Load tasks in a new session.

        Raises:
            DataError: data sets of several tasks are missing.
        """
        if self.session is not None:
            self.session.run.close()
        self.session = new_session()
        tasks = [task_list] if isinstance(task_list, str) else list(task_list or ())
        resolved = [_resolve(manager, task) if isinstance(task, str) else task for task in tasks]
        task_index.check_data(manager._task_index, [task for task in resolved if isinstance(task, str)])
        with loading_tasks(task_type, self.session):
            loaded: dict[str, Any] = self._load(manager, resolved, task_type)
            return loaded

    def get_config(self, manager: Any, name: str) -> Any:
        """Return the configuration of a task; of those without a YAML file of their own, a made one."""
        config = task_index.config(manager.task_index.get(name, {}), name, functools.partial(self._get_config, manager))
        return self._get_config(manager, name) if config is None else config


def _check_flags(manager: Any, tasks: Sequence[str]) -> None:
    """Refuse flags that our tasks or models cannot honour; between here and the first answer a model is loaded."""
    args = command_line.arguments()
    if args is None:  # called from Python
        return
    if any(task_index.is_ours(manager.task_index.get(task, {})) for task in tasks):
        command_line.concern_us()
    task = command_line.has_our_task(args)
    model = args.model in get_manager().models()
    if not (task or model):
        return
    from medmllm_plugins.host import flags

    flags.check_command(args, task=task, model=model, chat=model or _takes_messages(args))


def _takes_messages(args: Any) -> bool:
    from lmms_eval.models import MODEL_REGISTRY_V2

    try:
        return bool(MODEL_REGISTRY_V2.resolve(args.model, force_simple=args.force_simple).model_type == "chat")
    except ValueError:  # there is no such model, as the host is about to say
        return False


def _resolve(manager: Any, name: str) -> str:
    """Make the host's task manager know what a user wrote; see :func:`task_index.resolve` for the errors."""
    known = task_index.resolve(manager._task_index, name)
    if known in manager._task_index and known not in manager._all_tasks:
        manager._all_tasks = sorted([*manager._all_tasks, known])
    return known


class ExtendingFinder(importlib.abc.MetaPathFinder):
    """Extends one module once its first import has run, then removes itself."""

    def __init__(self, module: str, extend: Callable[[ModuleType], None]) -> None:
        self.module, self._extend = module, extend
        self._searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return a spec whose loader also extends the module; ``None`` for every other module."""
        if fullname != self.module or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self._extend(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
