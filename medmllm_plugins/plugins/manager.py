"""Discovery of plugins: each is loaded and called on its own, so that a broken one affects no other.

Nothing heavy is imported here, and YAML is read only when tasks are requested. Every failure is recorded with its
distribution and version; under ``MEDMLLM_STRICT=1`` it raises :class:`PluginError` instead. ``MEDMLLM_DISABLE=NAME,…``
excludes plugins by the name of their entry point, before they are imported. Their code runs under
:mod:`medmllm_plugins.plugins.guard`, which limits what it raises and how long it takes.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import pluggy

from medmllm_plugins import __version__
from medmllm_plugins.errors import OptionError, PluginError
from medmllm_plugins.plugins.entry_points import Candidate, normal, read_candidates
from medmllm_plugins.plugins.guard import PluginRaised, bounded, described, pictured, run_plugin_code
from medmllm_plugins.plugins.hook_registry import HOOKS, HookRegistry
from medmllm_plugins.plugins.hook_results import WrongResult, read_items
from medmllm_plugins.plugins.plugin_records import (
    IN_PROCESS,
    USER,
    Failure,
    PluginInfo,
    Stage,
    TaskEntry,
    name_taken,
    origin_of,
)
from medmllm_plugins.plugins.specs import AttributionSpec, InterventionSpec, ModelSpec, ProbeSpec, TaskFolder
from medmllm_plugins.plugins.task_files import read_task, walk
from medmllm_plugins.utils.user_dirs import tasks_folder

GROUP: Final = "medmllm_plugins"
STRICT: Final = "MEDMLLM_STRICT"
DISABLE: Final = "MEDMLLM_DISABLE"
MOST_FAULTS: Final = 20
"""Faulty items of one hook that are named one by one."""
LONGEST_MESSAGE: Final = 1000
_BUILTIN = ("medmllm-plugins", "builtin", "medmllm_plugins.plugins.builtin")


_Result = TypeVar("_Result")
Declaration: TypeAlias = ModelSpec | TaskFolder | ProbeSpec | AttributionSpec | InterventionSpec
"""What a hook returns."""


class Manager:
    """All plugins, and what they declare.

    Hooks are called when their results are first needed, each plugin on its own; results are kept until a plugin
    is registered or unregistered through :attr:`pluggy`. Nothing is kept of a hook that raises, even midway through a
    generator. Of two declarations with one name the first counts: this package's own, then by distribution name.

    Attributes:
        pluggy: the plugin manager behind it, to register further plugins in process.
        strict: whether a failure raises; ``MEDMLLM_STRICT`` as it stood at discovery.
    """

    def __init__(self) -> None:
        """Find and register all plugins; see :func:`discover`."""
        self.strict = os.environ.get(STRICT, "").strip() not in ("", "0")
        self.pluggy = HookRegistry()
        self._registered: list[PluginInfo] = []
        self._disabled: list[PluginInfo] = []
        self._discovery: list[Failure] = []
        self._changes = 0
        self._slow: dict[str, str] = {}
        self._results: dict[str, tuple[Any, list[Failure]]] = {}
        named = ("medmllm_models", "medmllm_probes", "medmllm_attributions", "medmllm_interventions")
        self._readers: dict[str, Callable[[list[Failure]], Any]] = {
            "registry": self._registry_faults,
            **{hook: functools.partial(self._read_named, hook) for hook in named},
            "medmllm_tasks": self._read_folders,
            "task files": self._read_tasks,
        }
        self._discover()

    # -- discovery ---------------------------------------------------------------------------------------------

    def _discover(self) -> None:
        disabled = {name.strip() for name in os.environ.get(DISABLE, "").split(",")} - {""}
        candidates = self._candidates()
        for name in sorted(disabled - {candidate.entry.name for candidate in candidates}):
            known = ", ".join(sorted({candidate.entry.name for candidate in candidates}))
            message = f"Expected {DISABLE} to name plugins ({known}), but there is none called {name!r}."
            self._fail(self._discovery, PluginInfo(name, "", ""), "invalid", None, message)
        winners: dict[str, PluginInfo] = {}
        for candidate in candidates:
            info = PluginInfo(candidate.entry.name, candidate.distribution, candidate.version)
            if info.name in disabled:
                self._disabled.append(PluginInfo(info.name, info.distribution, info.version, disabled=True))
            elif info.name in winners:
                message = name_taken("plugin", info.name, winners[info.name], info)
                self._fail(self._discovery, info, "duplicate", None, message)
            else:
                winners[info.name] = info
                self._load(candidate)

    def _candidates(self) -> list[Candidate]:
        """Return the entry points of our group: this package's own, then by distribution name."""

        def fault(name: str, distribution: str, version: str, message: str, error: BaseException | None) -> None:
            self._fail(self._discovery, PluginInfo(name, distribution, version), "import", None, message, error)

        candidates = read_candidates(GROUP, fault)
        if not any(_is_builtin(candidate) for candidate in candidates):  # a source tree that is not installed
            entry = importlib.metadata.EntryPoint(_BUILTIN[1], _BUILTIN[2], GROUP)
            candidates.append(Candidate(entry, _BUILTIN[0], __version__))
        return sorted(
            candidates,
            key=lambda candidate: (not _is_builtin(candidate), normal(candidate.distribution), candidate.entry.name),
        )

    def _load(self, candidate: Candidate) -> None:
        info = PluginInfo(candidate.entry.name, candidate.distribution, candidate.version)
        value = candidate.entry.value
        package = value.partition(":")[0].partition(".")[0]
        try:
            plugin = self._run(candidate.entry.load, info, "import", package)
        except PluginRaised as error:
            message = f"Expected {pictured(value)} to be importable, got {error}"
            self._fail(self._discovery, info, "import", None, message, error.error)
            return
        if plugin is None:
            message = f"Expected {pictured(value)} to be a module or an object, got None."
            self._fail(self._discovery, info, "register", None, message)
            return
        try:
            self._run(functools.partial(self._register, plugin, info.name), info, "register", package)
        except PluginRaised as error:
            if self.pluggy.get_plugin(info.name) is plugin:
                self.pluggy.unregister(name=info.name)
            self._fail(self._discovery, info, "register", None, str(error), error.error)
            return
        self._registered.append(info)
        if self.strict:
            self._registry_faults([])

    def _register(self, plugin: Any, name: str) -> None:
        # pluggy compares each plugin with those it has: one that claims to equal others would keep them out.
        if plugin == object():
            raise OptionError("Expected a plugin that equals itself alone, but it equals any object.")
        self.pluggy.register(plugin, name)

    def _run(self, work: Callable[[], _Result], info: PluginInfo, stage: str, package: str) -> _Result:
        """Run code of a plugin; see :func:`medmllm_plugins.plugins.guard.run_plugin_code` for the errors."""
        origin = f"plugin {bounded(info.name, 100)} ({origin_of(info.distribution, info.version)})"
        what = f"{origin}: {stage}"

        def slow(seconds: float) -> None:
            self._slow[what] = (
                f"{what} took {seconds:.1f} s, for which every command of lmms-eval waits. A plugin declares by dotted "
                "paths and imports nothing heavy (docs/plugins.md)."
            )

        return run_plugin_code(work, what, package, slow)

    # -- results -----------------------------------------------------------------------------------------------

    @property
    def plugins(self) -> list[PluginInfo]:
        """Registered plugins, in the order in which they are called, then those disabled by name."""
        return [*self._sources(), *self._disabled]

    @property
    def failures(self) -> list[Failure]:
        """All failures, in the order plugins, hooks, task files; calls the hooks that were not called before.

        Raises:
            PluginError: there is one, and ``MEDMLLM_STRICT=1``.
        """
        return [*self._discovery, *(failure for key in self._readers for failure in self._results_of(key)[1])]

    @property
    def notices(self) -> list[str]:
        """Warnings about plugins whose import or hooks were slow."""
        return list(self._slow.values())

    def models(self) -> dict[str, ModelSpec]:
        """Return models by name."""
        return {name: spec for name, (spec, _) in self._result("medmllm_models").items()}

    def probes(self) -> dict[str, ProbeSpec]:
        """Return probes by name."""
        return {name: spec for name, (spec, _) in self._result("medmllm_probes").items()}

    def attributions(self) -> dict[str, AttributionSpec]:
        """Return attribution methods by name."""
        return {name: spec for name, (spec, _) in self._result("medmllm_attributions").items()}

    def interventions(self) -> dict[str, InterventionSpec]:
        """Return interventions by name."""
        return {name: spec for name, (spec, _) in self._result("medmllm_interventions").items()}

    def tasks(self) -> dict[str, TaskEntry]:
        """Return tasks and groups by name, from every ``*.yaml`` below the task folders.

        Files whose name starts with ``_`` (bases for ``include``) are skipped, and so are folders that are named
        ``datasets`` or ``__pycache__`` or start with a dot.
        """
        return dict(self._result("task files"))

    def dataset_folders(self) -> list[Path]:
        """Return the folders of data-set declarations: every ``datasets`` folder below a task folder."""
        folders: dict[Path, Path] = {}
        for _, _, paths in self._result("medmllm_tasks"):
            for path in paths:
                folders.setdefault(path.resolve(), path)
        return list(folders.values())

    def declared_by(self, name: str) -> list[Declaration]:
        """Return what the plugin of that name declares: models, task folders, probes, methods and interventions."""
        declared: list[Declaration] = []
        for hook in HOOKS:
            if hook == "medmllm_tasks":
                declared += [folder for folder, info in self._call(hook, []) if info.name == name]
            else:
                declared += [spec for spec, info in self._result(hook).values() if info.name == name]
        return declared

    def describe(self) -> dict[str, Any]:
        """Return everything above, JSON-safe, for ``medmllm plugins --json``."""
        # From what was read, not from the disk: the folder may have been removed since.
        shown = [*self.plugins, *([USER] if any(info == USER for info, _, _ in self._result("medmllm_tasks")) else [])]
        brought: dict[str, dict[str, list[str]]] = {
            info.name: {what: [] for what in ("models", "datasets", "tasks", "probes", "attributions", "interventions")}
            for info in shown
        }
        for what in ("models", "probes", "attributions", "interventions"):
            for name, (_, info) in self._result(f"medmllm_{what}").items():
                brought[info.name][what].append(name)
        for entry in self.tasks().values():
            brought[entry.plugin]["tasks"].append(entry.name)
        for info, _, folders in self._result("medmllm_tasks"):
            brought[info.name]["datasets"] += sorted(path.stem for folder in folders for path in folder.glob("*.yaml"))
        return {
            "plugins": [{**info._asdict(), "hooks": list(info.hooks), **brought[info.name]} for info in shown],
            "failures": [failure._asdict() for failure in self.failures],
            "notices": self.notices,
        }

    # -- calling plugins ---------------------------------------------------------------------------------------

    def _result(self, key: str) -> Any:
        return self._results_of(key)[0]

    def _results_of(self, key: str) -> tuple[Any, list[Failure]]:
        """Return the result and failures of a reader, cached until plugins come or go, unless it raises."""
        if self._changes != self.pluggy.changes:
            self._results.clear()
            self._changes = self.pluggy.changes
        if key not in self._results:
            failures: list[Failure] = []
            self._results[key] = (self._readers[key](failures), failures)
        return self._results[key]

    def _sources(self) -> list[PluginInfo]:
        """Return the registered plugins: discovered ones in their order, then those registered in process, by name."""
        now = {name for name, plugin in self.pluggy.list_name_plugin() if plugin is not None}
        discovered = [info for info in self._registered if info.name in now]
        others = sorted(now - {info.name for info in discovered})
        return [
            PluginInfo(info.name, info.distribution, info.version, tuple(h for h in HOOKS if self._functions(info, h)))
            for info in [*discovered, *(PluginInfo(name, IN_PROCESS, "") for name in others)]
        ]

    def _functions(self, info: PluginInfo, hook: str) -> list[Callable[[], object]]:
        """Return a plugin's implementations of a hook: more than one where ``specname`` is used."""
        caller: pluggy.HookCaller = getattr(self.pluggy.hook, hook)
        return [each.function for each in caller.get_hookimpls() if each.plugin_name == info.name]

    def _registry_faults(self, failures: list[Failure]) -> None:
        for info in self._sources():
            for hook, fault in self.pluggy.faults.get(info.name, ()):
                self._fail(failures, info, "register", hook, fault)

    def _call(self, hook: str, failures: list[Failure]) -> Iterator[tuple[Any, PluginInfo]]:
        """Call one hook of each plugin on its own; yield the sound declarations with their plugins."""
        sources = [(info, function) for info in self._sources() for function in self._functions(info, hook)]
        for info, function in sources:
            package = str(getattr(function, "__module__", "")).partition(".")[0]
            read = functools.partial(read_items, function, hook, HOOKS[hook])
            try:
                items, faults = self._run(read, info, hook, package)
            except PluginRaised as error:
                stage: Stage = "invalid" if isinstance(error.error, WrongResult) else "hook"
                message = str(error.error) if stage == "invalid" else f"{hook!r} raised {error}"
                self._fail(failures, info, stage, hook, message, error.error)
                continue
            for message in faults[:MOST_FAULTS]:
                self._fail(failures, info, "invalid", hook, message)
            if len(faults) > MOST_FAULTS:
                message = f"{len(faults) - MOST_FAULTS} more items of {hook!r} are faulty too."
                self._fail(failures, info, "invalid", hook, message)
            for item in items:
                yield item, info

    def _read_named(self, hook: str, failures: list[Failure]) -> dict[str, tuple[Any, PluginInfo]]:
        items: dict[str, tuple[Any, PluginInfo]] = {}
        what = hook.removeprefix("medmllm_").removesuffix("s")
        for item, info in self._call(hook, failures):
            if item.name in items:
                message = name_taken(what, item.name, items[item.name][1], info)
                self._fail(failures, info, "duplicate", hook, message)
            else:
                items[item.name] = (item, info)
        return items

    def _read_folders(self, failures: list[Failure]) -> list[tuple[PluginInfo, list[Path], list[Path]]]:
        """Return for each task folder its plugin, its task files and its ``datasets`` folders."""
        walked = []
        folders = [*self._call("medmllm_tasks", failures)]
        if tasks_folder().is_dir():
            folders.append((TaskFolder(path=str(tasks_folder())), USER))
        for folder, info in folders:
            package = folder.path.partition(":")[0]
            try:
                path = self._run(folder.resolve, info, "medmllm_tasks", package)  # may import what is around it
                files, datasets = walk(path)
            except (PluginRaised, PluginError, OSError, ValueError) as raised:
                error = raised.error if isinstance(raised, PluginRaised) else raised
                known = isinstance(error, PluginError)
                message = str(error) if known else f"{pictured(folder.path)} raised {described(error)}"
                self._fail(failures, info, "invalid", "medmllm_tasks", message, error)
                continue
            walked.append((info, files, datasets))
        return walked

    def _read_tasks(self, failures: list[Failure]) -> dict[str, TaskEntry]:
        entries: dict[str, TaskEntry] = {}
        owners: dict[str, PluginInfo] = {}
        read: set[Path] = set()
        for info, files, _ in self._result("medmllm_tasks"):
            for path in files:
                if path.resolve() in read:  # two task folders may overlap
                    continue
                read.add(path.resolve())
                try:
                    name, kind = read_task(path)
                except Exception as error:
                    message = str(error) if isinstance(error, PluginError) else f"{path}: {described(error)}"
                    self._fail(failures, info, "task file", "medmllm_tasks", message, error)
                    continue
                if name in entries:
                    message = (
                        f"{path}: {name_taken('task', name, owners[name], info)} The first is {entries[name].path}."
                    )
                    self._fail(failures, info, "duplicate", "medmllm_tasks", message)
                    continue
                entries[name], owners[name] = TaskEntry(name, path, kind, info.name), info
        return entries

    def _fail(
        self,
        failures: list[Failure],
        info: PluginInfo,
        stage: Stage,
        hook: str | None,
        message: str,
        cause: BaseException | None = None,
    ) -> None:
        failure = Failure(info.name, info.distribution, info.version, stage, hook, bounded(message, LONGEST_MESSAGE))
        if self.strict:
            raise PluginError(str(failure)) from cause
        failures.append(failure)


def discover() -> Manager:
    """Discover all plugins.

    Raises:
        PluginError: one is broken, and ``MEDMLLM_STRICT=1``.
    """
    return Manager()


@functools.cache
def get_manager() -> Manager:
    """Return the process's manager, made at the first call; see :func:`discover` for the errors."""
    return discover()


def reset() -> None:
    """Forget the process's manager, so that the next :func:`get_manager` discovers plugins again."""
    get_manager.cache_clear()


def _is_builtin(candidate: Candidate) -> bool:
    return (normal(candidate.distribution), candidate.entry.name, candidate.entry.value) == _BUILTIN
