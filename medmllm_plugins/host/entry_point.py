"""How lmms-eval finds our models and tasks: its one entry point, and a hook on its task index.

The host reads entry points for models only. It imports ``lmms_eval.models`` before it builds the task index, so the
entry point for models is also where we see to it that the index, when built, holds the tasks of all plugins.
Everything here runs inside ``import lmms_eval.models``: no torch, and no exception ever leaves it, since one would
drop the models of every other package too.
"""

from __future__ import annotations

import abc
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from loguru import logger

from medmllm_plugins.errors import PluginError, one_line
from medmllm_plugins.host import command_line, task_index
from medmllm_plugins.plugins.manager import get_manager

_TASKS_MODULE = "lmms_eval.tasks"
_task_type: ContextVar[str] = ContextVar("medmllm_task_type", default="simple")


def manifests() -> list[Any]:
    """Entry point of the group ``lmms_eval.models``: one manifest for each plugin model.

    Returns:
        The host's ``ModelManifest`` objects; an empty list, and a warning, if anything at all goes wrong.
    """
    try:
        install_task_hook()
        return _manifests()
    except Exception as error:
        # The host drops the models of all packages if one entry point raises.
        logger.warning(f"medmllm-plugins: no models registered: {type(error).__name__}: {error}")
        return []


def task_folders() -> list[str]:
    """Entry point of the group ``lmms_eval.tasks`` (a group the host does not read yet): our task folders."""
    try:
        return sorted({str(entry.path.parent) for entry in get_manager().tasks().values()})
    except Exception as error:
        logger.warning(f"medmllm-plugins: no tasks registered: {type(error).__name__}: {error}")
        return []


def _manifests() -> list[Any]:
    from lmms_eval.models.registry_v2 import ModelManifest

    host = sys.modules.get("lmms_eval.models")
    simple = getattr(host, "AVAILABLE_SIMPLE_MODELS", {})
    chat = getattr(host, "AVAILABLE_CHAT_TEMPLATE_MODELS", {})
    # Under a second name of one of its models the host would let itself be overwritten.
    aliases = {alias for names in getattr(host, "MODEL_ALIASES", {}).values() for alias in names}
    found = []
    for name, spec in get_manager().models().items():
        path = spec.wrapper or f"medmllm_plugins.host.registered_models.{name}"
        taken = simple.get(name) or chat.get(name)
        if name in aliases or (taken is not None and taken != path):
            logger.warning(f"medmllm-plugins: model {name!r} is left out: lmms-eval has a model of that name.")
            continue
        chat[name] = path  # `lmms-eval models` lists this table, not the registry
        found.append(ModelManifest(model_id=name, chat_class_path=path))
    for notice in get_manager().notices:
        logger.warning(f"medmllm-plugins: {notice}")
    return found


def register_models() -> None:
    """See to it that the host knows our models.

    It reads the entry points of all distributions at once, so that one damaged ``entry_points.txt``, whoever it belongs
    to, costs it every plugin; ``medmllm doctor`` names the file.
    """
    import lmms_eval.models as host

    registry = host.MODEL_REGISTRY_V2
    missing = [one for one in manifests() if one.model_id not in registry.list_canonical_model_ids()]
    for manifest in missing:
        registry.register_manifest(manifest, overwrite=True)
        host.AVAILABLE_MODELS[manifest.model_id] = str(manifest.chat_class_path).rpartition(".")[2]
    if missing:
        logger.warning(
            f"medmllm-plugins: lmms-eval had not found {len(missing)} models of this package; they are added. "
            "`medmllm doctor` says why."
        )


def requested_task_type() -> str:
    """``"chat"`` or ``"simple"``: the kind of requests that the model being evaluated takes."""
    return _task_type.get()


@contextmanager
def _requesting(task_type: str) -> Iterator[None]:
    token = _task_type.set(task_type)
    try:
        yield
    finally:
        _task_type.reset(token)


def install_task_hook() -> None:
    """See to it that every ``TaskManager`` built from now on in this process knows the plugins' tasks."""
    loaded = sys.modules.get(_TASKS_MODULE)
    if loaded is not None and hasattr(loaded, "TaskManager"):
        _extend(loaded)
    elif not any(isinstance(finder, _TasksFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TasksFinder())
    if command_line.MAIN_MODULE in sys.modules:
        command_line.install()
    elif not any(isinstance(finder, _CommandFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _CommandFinder())


def _extend(tasks: ModuleType) -> None:
    host: Any = tasks.TaskManager
    if getattr(host.initialize_tasks, "medmllm", False):
        return
    initialize, match, load = host.initialize_tasks, host.match_tasks, host.load_task_or_group
    get_config = host._get_config

    @functools.wraps(initialize)
    def initialize_tasks(self: Any, *args: Any, **kwargs: Any) -> dict[str, dict[str, Any]]:
        index: dict[str, dict[str, Any]] = initialize(self, *args, **kwargs)
        try:
            task_index.add_tasks(index)
        except PluginError:
            raise  # asked for by MEDMLLM_STRICT=1
        except Exception as error:
            # Every command of the host comes by here, also where nobody asks for our tasks.
            logger.warning(f"medmllm-plugins: tasks are missing: {one_line(error)}")
        return index

    @functools.wraps(match)
    def match_tasks(self: Any, task_list: Any) -> list[str]:
        patterns = [task_list] if isinstance(task_list, str) else list(task_list)
        found: list[str] = match(self, patterns)
        _check_flags(self, found)
        # What the user wrote is what the host looks for in the result, so a path stays a path here.
        known = {*found, *(pattern for pattern in patterns if _known(self, pattern))}
        for pattern in patterns:
            if pattern not in known and (hint := task_index.hint(self._task_index, pattern)):
                logger.error(hint)  # the host says next that the task was not found
        return sorted(known)

    @functools.wraps(load)
    def load_task_or_group(self: Any, task_list: Any = None, task_type: str = "simple") -> dict[str, Any]:
        from medmllm_plugins.host import evaluation_run  # not at import time, which every command of the host pays for

        evaluation_run.start()
        wanted = [task_list] if isinstance(task_list, str) else list(task_list or ())
        resolved = [_resolve(self, task) if isinstance(task, str) else task for task in wanted]
        task_index.check_data(self._task_index, [task for task in resolved if isinstance(task, str)])
        # The host builds class-based tasks without telling them which kind of requests the model takes.
        with _requesting(task_type):
            loaded: dict[str, Any] = load(self, resolved, task_type)
            return loaded

    @functools.wraps(get_config)
    def _get_config(self: Any, name: str) -> Any:
        found = task_index.config(self.task_index.get(name, {}), name, functools.partial(get_config, self))
        return get_config(self, name) if found is None else found

    initialize_tasks.medmllm = True  # type: ignore[attr-defined]
    host.initialize_tasks = initialize_tasks
    host.match_tasks = match_tasks
    host.load_task_or_group = load_task_or_group
    host._get_config = _get_config


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
    """Make the host's task manager know what a user wrote; see :func:`names.resolve` for the errors."""
    known = task_index.resolve(manager._task_index, name)
    if known in manager._task_index and known not in manager._all_tasks:
        manager._all_tasks = sorted([*manager._all_tasks, known])
    return known


def _known(manager: Any, name: str) -> bool:
    return _resolve(manager, name) in manager._task_index


class _ExtendingFinder(importlib.abc.MetaPathFinder):
    """Extends one module once its first import has run, then goes."""

    module: str

    def __init__(self) -> None:
        self._looking = False

    @abc.abstractmethod
    def extend(self, module: ModuleType) -> None:
        """Change the module, whose code has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.module or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self.extend(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


class _TasksFinder(_ExtendingFinder):
    """Extends ``lmms_eval.tasks`` by our tasks."""

    module = _TASKS_MODULE

    def extend(self, module: ModuleType) -> None:
        """Make every ``TaskManager`` know the plugins' tasks."""
        _extend(module)


class _CommandFinder(_ExtendingFinder):
    """Extends ``lmms_eval.__main__`` by an exit status."""

    module = command_line.MAIN_MODULE

    def extend(self, module: ModuleType) -> None:
        """Make the command tell of failures."""
        command_line.guard(module)
