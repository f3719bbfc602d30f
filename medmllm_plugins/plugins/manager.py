"""Plugins: found, loaded and asked one by one, so that a broken one costs only what it brings itself.

Nothing heavy is imported here, and YAML is read only when tasks are asked for. Every failure is recorded with the
distribution and version it comes from; under ``MEDMLLM_STRICT=1`` it raises :class:`PluginError` instead.
``MEDMLLM_DISABLE=NAME,…`` leaves plugins out by the name of their entry point, before they are imported. Their code
runs under :mod:`medmllm_plugins.plugins.guard`, which bounds what it raises and how long it takes.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar

import pluggy

from medmllm_plugins import __version__
from medmllm_plugins.errors import OptionError, PluginError
from medmllm_plugins.plugins import hookspecs
from medmllm_plugins.plugins.entry_points import Candidate, normal, read_candidates
from medmllm_plugins.plugins.guard import PluginRaised, bounded, described, pictured, run_plugin_code
from medmllm_plugins.plugins.hook_results import WrongResult, read_items
from medmllm_plugins.plugins.hookspecs import PROJECT
from medmllm_plugins.plugins.specs import AttributionSpec, ModelSpec, ProbeSpec, TaskFolder
from medmllm_plugins.plugins.task_files import read_task, walk
from medmllm_plugins.utils.user_dirs import tasks_folder

GROUP: Final = "medmllm_plugins"
STRICT: Final = "MEDMLLM_STRICT"
DISABLE: Final = "MEDMLLM_DISABLE"
HOOKS: Final[Mapping[str, type[Any]]] = {
    "medmllm_models": ModelSpec,
    "medmllm_tasks": TaskFolder,
    "medmllm_probes": ProbeSpec,
    "medmllm_attributions": AttributionSpec,
}

Stage = Literal["import", "register", "hook", "duplicate", "invalid", "task file"]

_BUILTIN = ("medmllm-plugins", "builtin", "medmllm_plugins.plugins.builtin")
IN_PROCESS = "(registered in process)"
MOST_FAULTS: Final = 20
"""Faulty items of one hook that are named one by one."""
LONGEST_MESSAGE: Final = 1000


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_NamedItem = TypeVar("_NamedItem", bound=_Named)


# Named tuples here, as dataclasses take four times as long to make, and every command of the host waits for it.
class Failure(NamedTuple):
    """Something of a plugin that was left out.

    Attributes:
        plugin: name of the plugin's entry point.
        distribution: the distribution it comes from; empty where no plugin is to blame.
        version: that distribution's version.
        stage: where it went wrong.
        hook: the hook concerned, if one is.
        message: what was expected and what was found.
    """

    plugin: str
    distribution: str
    version: str
    stage: Stage
    hook: str | None
    message: str

    def __str__(self) -> str:
        origin = f" ({_origin(self.distribution, self.version)})" if self.distribution else ""
        return f"plugin {self.plugin}{origin}: {self.stage}{f' of {self.hook}' if self.hook else ''}: {self.message}"


class PluginInfo(NamedTuple):
    """A plugin that is registered, or disabled by name.

    Attributes:
        name: name of its entry point.
        distribution: the distribution it comes from.
        version: that distribution's version.
        hooks: the hooks it implements, faulty ones left out.
        disabled: whether ``MEDMLLM_DISABLE`` names it.
    """

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...] = ()
    disabled: bool = False


USER: Final = PluginInfo("(user)", "", "", ("medmllm_tasks",))
"""What stands for the user's own task folder among the plugins."""


class TaskEntry(NamedTuple):
    """A task or a group of tasks, as the host's index needs it.

    Attributes:
        name: what stands behind ``--tasks``.
        path: its YAML file.
        kind: ``"task"`` or ``"group"``.
        plugin: name of the plugin that brings it.
    """

    name: str
    path: Path
    kind: Literal["task", "group"]
    plugin: str


class _Registry(pluggy.PluginManager):
    """pluggy's manager, except that a faulty hook is left out alone, and the plugin's good ones go on working."""

    def __init__(self) -> None:
        super().__init__(PROJECT)
        self.add_hookspecs(hookspecs)
        self.changes = 0
        self.faults: dict[str, list[tuple[str, str]]] = {}
        self._found: list[tuple[str, str]] = []

    def register(self, plugin: Any, name: str | None = None) -> str | None:
        """Register a plugin; what is wrong with its hooks is in ``faults[name]`` afterwards."""
        self._found = []
        registered = super().register(plugin, name)
        if registered is not None:
            self.faults[registered] = self._found
        self.changes += 1
        return registered

    def unregister(self, plugin: Any = None, name: str | None = None) -> Any:
        """Unregister a plugin by object or name."""
        self.changes += 1
        return super().unregister(plugin, name)

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> pluggy.HookimplOpts | None:
        """Return the options of a sound hook implementation; ``None`` for anything else."""
        options = super().parse_hookimpl_opts(plugin, name)
        if options is None:
            if name in HOOKS and callable(inspect.getattr_static(plugin, name, None)):
                self._found.append((name, f"Expected {name!r} to carry @hookimpl, but it does not."))
            return None
        hook = options.get("specname") or name
        fault = _hook_fault(plugin, name, hook, options)
        if fault:
            self._found.append((hook, fault))
            return None
        return options if hook in HOOKS else None


def _hook_fault(plugin: Any, name: str, hook: str, options: pluggy.HookimplOpts) -> str:
    if hook not in HOOKS:
        if options.get("optionalhook"):  # meant for a later version of this package
            return ""
        import difflib

        close = difflib.get_close_matches(hook, HOOKS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the hooks are {', '.join(HOOKS)}."
        return f"There is no hook {hook!r}; {hint}"
    if options.get("wrapper") or options.get("hookwrapper"):
        return f"Expected {name!r} to be a plain hook, but got a wrapper; hooks are called one plugin at a time."
    required = [
        parameter.name
        for parameter in inspect.signature(getattr(plugin, name)).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    return f"Expected {name!r} to take no arguments, but it requires {', '.join(required)}." if required else ""


class Manager:
    """All plugins, and what they bring.

    Hooks are called when their results are first asked for, each plugin on its own; results are kept until a plugin
    is registered or unregistered through :attr:`pluggy`. A hook that raises, be it midway through a generator,
    brings nothing. Of two things with one name the first counts: this package's own, then by distribution name.

    Attributes:
        pluggy: the plugin manager behind it, to register further plugins in process.
        strict: whether a failure raises; ``MEDMLLM_STRICT`` as it stood at discovery.
    """

    def __init__(self) -> None:
        """Find and register all plugins; see :func:`discover`."""
        self.strict = os.environ.get(STRICT, "").strip() not in ("", "0")
        self.pluggy = _Registry()
        self._registered: list[PluginInfo] = []
        self._disabled: list[PluginInfo] = []
        self._discovery: list[Failure] = []
        self._changes = 0
        self._slow: dict[str, str] = {}
        self._results: dict[str, tuple[Any, list[Failure]]] = {}
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
                message = _taken("plugin", info.name, winners[info.name], info)
                self._fail(self._discovery, info, "duplicate", None, message)
            else:
                winners[info.name] = info
                self._load(candidate)

    def _candidates(self) -> list[Candidate]:
        """Entry points of our group: this package's own, then by distribution name."""

        def fault(name: str, distribution: str, version: str, message: str, error: BaseException | None) -> None:
            self._fail(self._discovery, PluginInfo(name, distribution, version), "import", None, message, error)

        found = read_candidates(GROUP, fault)
        if not any(_is_builtin(candidate) for candidate in found):  # a source tree that is not installed
            entry = importlib.metadata.EntryPoint(_BUILTIN[1], _BUILTIN[2], GROUP)
            found.append(Candidate(entry, _BUILTIN[0], __version__))
        return sorted(found, key=lambda one: (not _is_builtin(one), normal(one.distribution), one.entry.name))

    def _load(self, candidate: Candidate) -> None:
        info = PluginInfo(candidate.entry.name, candidate.distribution, candidate.version)
        value = candidate.entry.value
        package = value.partition(":")[0].partition(".")[0]
        try:
            plugin = self._run(candidate.entry.load, info, "import", package)
        except PluginRaised as error:
            message = f"Expected {pictured(value)} to be importable, but got {error}"
            self._fail(self._discovery, info, "import", None, message, error.error)
            return
        if plugin is None:
            message = f"Expected {pictured(value)} to be a module or an object, but got None."
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
        origin = f"plugin {bounded(info.name, 100)} ({_origin(info.distribution, info.version)})"
        what = f"{origin}: {stage}"

        def slow(seconds: float) -> None:
            self._slow[what] = (
                f"{what} took {seconds:.1f} s, for which every command of lmms-eval waits. A plugin declares by dotted "
                "paths and imports nothing heavy (docs/plugins.md)."
            )

        return run_plugin_code(work, what, package, slow)

    # -- what there is -----------------------------------------------------------------------------------------

    @property
    def plugins(self) -> list[PluginInfo]:
        """Plugins that are registered, in the order in which they are asked, then those disabled by name."""
        return [*self._sources(), *self._disabled]

    @property
    def failures(self) -> list[Failure]:
        """All failures, in the order plugins, hooks, task files; hooks not called so far are called now.

        Raises:
            PluginError: there is one, and ``MEDMLLM_STRICT=1``.
        """
        found = [*self._discovery, *self._results_of("registry", self._registry_faults)[1]]
        for hook, ask in self._asks().items():
            found.extend(self._results_of(hook, ask)[1])
        return found

    @property
    def notices(self) -> list[str]:
        """What works but keeps everybody waiting: plugins whose import or hooks took long."""
        return list(self._slow.values())

    def models(self) -> dict[str, ModelSpec]:
        """Models by name."""
        return {name: spec for name, (spec, _) in self._named("medmllm_models", ModelSpec).items()}

    def model_provenance(self) -> dict[str, PluginInfo]:
        """The plugin each model comes from, by the model's name."""
        return {name: info for name, (_, info) in self._named("medmllm_models", ModelSpec).items()}

    def probes(self) -> dict[str, ProbeSpec]:
        """Probes by name."""
        return {name: spec for name, (spec, _) in self._named("medmllm_probes", ProbeSpec).items()}

    def attributions(self) -> dict[str, AttributionSpec]:
        """Attribution methods by name."""
        return {name: spec for name, (spec, _) in self._named("medmllm_attributions", AttributionSpec).items()}

    def tasks(self) -> dict[str, TaskEntry]:
        """Tasks and groups by name, from every ``*.yaml`` below the task folders.

        Left aside are files whose name starts with ``_`` (bases for ``include``), and folders that are called
        ``datasets`` or ``__pycache__`` or start with a dot.
        """
        entries: dict[str, TaskEntry] = self._results_of("task files", self._ask_tasks)[0]
        return dict(entries)

    def dataset_folders(self) -> list[Path]:
        """Folders of data-set declarations: every ``datasets`` folder below a task folder."""
        folders = {path.resolve(): path for _, _, found in reversed(self._walked()) for path in reversed(found)}
        return list(reversed(folders.values()))

    def describe(self) -> dict[str, Any]:
        """Everything above, JSON-safe, for ``medmllm plugins --json``."""
        # Asked of what was read, not of the disk: the folder may have gone since.
        shown = [*self.plugins, *([USER] if any(info == USER for info, _, _ in self._walked()) else [])]
        given: dict[str, dict[str, list[str]]] = {
            info.name: {"models": [], "datasets": [], "tasks": [], "probes": [], "attributions": []} for info in shown
        }
        for what, hook in (("models", "medmllm_models"), ("probes", "medmllm_probes")):
            for name, (_, info) in self._named(hook, HOOKS[hook]).items():
                given[info.name][what].append(name)
        for name, (_, info) in self._named("medmllm_attributions", AttributionSpec).items():
            given[info.name]["attributions"].append(name)
        for entry in self.tasks().values():
            given[entry.plugin]["tasks"].append(entry.name)
        for info, _, folders in self._walked():
            given[info.name]["datasets"] += sorted(path.stem for folder in folders for path in folder.glob("*.yaml"))
        return {
            "plugins": [{**info._asdict(), "hooks": list(info.hooks), **given[info.name]} for info in shown],
            "failures": [failure._asdict() for failure in self.failures],
            "notices": self.notices,
        }

    # -- asking plugins ----------------------------------------------------------------------------------------

    def _asks(self) -> dict[str, Callable[[list[Failure]], Any]]:
        return {
            "medmllm_models": functools.partial(self._ask_named, "medmllm_models", ModelSpec),
            "medmllm_probes": functools.partial(self._ask_named, "medmllm_probes", ProbeSpec),
            "medmllm_attributions": functools.partial(self._ask_named, "medmllm_attributions", AttributionSpec),
            "medmllm_tasks": self._ask_folders,
            "task files": self._ask_tasks,
        }

    def _results_of(self, key: str, ask: Callable[[list[Failure]], Any]) -> tuple[Any, list[Failure]]:
        """What ``ask`` finds and where it fails, kept until plugins come or go; nothing is kept when it raises."""
        if self._changes != self.pluggy.changes:
            self._results.clear()
            self._changes = self.pluggy.changes
        if key not in self._results:
            failures: list[Failure] = []
            self._results[key] = (ask(failures), failures)
        return self._results[key]

    def _sources(self) -> list[PluginInfo]:
        """Plugins registered now: discovered ones in their order, then those registered in process, by name."""
        now = {name for name, plugin in self.pluggy.list_name_plugin() if plugin is not None}
        discovered = [info for info in self._registered if info.name in now]
        others = sorted(now - {info.name for info in discovered})
        return [
            PluginInfo(info.name, info.distribution, info.version, tuple(h for h in HOOKS if self._functions(info, h)))
            for info in [*discovered, *(PluginInfo(name, IN_PROCESS, "") for name in others)]
        ]

    def _functions(self, info: PluginInfo, hook: str) -> list[Callable[[], object]]:
        """A plugin's implementations of a hook: more than one where ``specname`` is used."""
        caller: pluggy.HookCaller = getattr(self.pluggy.hook, hook)
        return [one.function for one in caller.get_hookimpls() if one.plugin_name == info.name]

    def _registry_faults(self, failures: list[Failure]) -> None:
        for info in self._sources():
            for hook, fault in self.pluggy.faults.get(info.name, ()):
                self._fail(failures, info, "register", hook, fault)

    def _call(self, hook: str, kind: type[_Item], failures: list[Failure]) -> Iterator[tuple[_Item, PluginInfo]]:
        """Call one hook of each plugin on its own; what is not of ``kind`` is left out."""
        sources = [(info, function) for info in self._sources() for function in self._functions(info, hook)]
        for info, function in sources:
            package = str(getattr(function, "__module__", "")).partition(".")[0]
            try:
                items, faults = self._run(functools.partial(read_items, function, hook, kind), info, hook, package)
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

    def _named(self, hook: str, kind: type[_NamedItem]) -> dict[str, tuple[_NamedItem, PluginInfo]]:
        found: dict[str, tuple[_NamedItem, PluginInfo]] = self._results_of(
            hook, functools.partial(self._ask_named, hook, kind)
        )[0]
        return found

    def _ask_named(
        self, hook: str, kind: type[_NamedItem], failures: list[Failure]
    ) -> dict[str, tuple[_NamedItem, PluginInfo]]:
        found: dict[str, tuple[_NamedItem, PluginInfo]] = {}
        what = hook.removeprefix("medmllm_").removesuffix("s")
        for item, info in self._call(hook, kind, failures):
            if item.name in found:
                message = _taken(what, item.name, found[item.name][1], info)
                self._fail(failures, info, "duplicate", hook, message)
            else:
                found[item.name] = (item, info)
        return found

    def _walked(self) -> list[tuple[PluginInfo, list[Path], list[Path]]]:
        walked, _ = self._results_of("medmllm_tasks", self._ask_folders)
        return list(walked)

    def _ask_folders(self, failures: list[Failure]) -> list[tuple[PluginInfo, list[Path], list[Path]]]:
        """For each task folder its plugin, its task files and its ``datasets`` folders."""
        walked = []
        folders = [*self._call("medmllm_tasks", TaskFolder, failures)]
        if tasks_folder().is_dir():
            folders.append((TaskFolder(path=str(tasks_folder())), USER))
        for folder, info in folders:
            package = folder.path.partition(":")[0]
            try:
                path = self._run(folder.resolve, info, "medmllm_tasks", package)  # may import what is around it
                files, datasets = walk(path)
            except (PluginRaised, PluginError, OSError, ValueError) as raised:
                error = raised.error if isinstance(raised, PluginRaised) else raised
                said = str(error) if isinstance(error, PluginError) else described(error)
                message = said if isinstance(error, PluginError) else f"{pictured(folder.path)} raised {said}"
                self._fail(failures, info, "invalid", "medmllm_tasks", message, error)
                continue
            walked.append((info, files, datasets))
        return walked

    def _ask_tasks(self, failures: list[Failure]) -> dict[str, TaskEntry]:
        found: dict[str, TaskEntry] = {}
        owners: dict[str, PluginInfo] = {}
        read: set[Path] = set()
        for info, files, _ in self._walked():
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
                if name in found:
                    message = f"{path}: {_taken('task', name, owners[name], info)} The first is {found[name].path}."
                    self._fail(failures, info, "duplicate", "medmllm_tasks", message)
                    continue
                found[name], owners[name] = TaskEntry(name, path, kind, info.name), info
        return found

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
    """Find all plugins anew.

    Raises:
        PluginError: one is broken, and ``MEDMLLM_STRICT=1``.
    """
    return Manager()


@functools.cache
def get_manager() -> Manager:
    """The process's manager, made at the first call; see :func:`discover` for the errors."""
    return discover()


def reset() -> None:
    """Forget the process's manager, so that the next :func:`get_manager` looks again."""
    get_manager.cache_clear()


def _is_builtin(candidate: Candidate) -> bool:
    return (normal(candidate.distribution), candidate.entry.name, candidate.entry.value) == _BUILTIN


def _origin(distribution: str, version: str) -> str:
    return f"{distribution} {version}".rstrip()


def _taken(what: str, name: str, first: PluginInfo, second: PluginInfo) -> str:
    return (
        f"The {what} name {name!r} is taken by {_origin(first.distribution, first.version)}; "
        f"that of {_origin(second.distribution, second.version)} is left out."
    )
