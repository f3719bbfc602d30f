"""pluggy's manager for our hooks, which leaves out only the hook implementations that are faulty."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

import pluggy

from medmllm_plugins.plugins import hookspecs
from medmllm_plugins.plugins.hookspecs import PROJECT
from medmllm_plugins.plugins.specs import AttributionSpec, InterventionSpec, ModelSpec, ProbeSpec, TaskFolder

HOOKS: Final[Mapping[str, type[Any]]] = {
    "medmllm_models": ModelSpec,
    "medmllm_tasks": TaskFolder,
    "medmllm_probes": ProbeSpec,
    "medmllm_attributions": AttributionSpec,
    "medmllm_interventions": InterventionSpec,
}
"""The declaration that each hook returns."""


class HookRegistry(pluggy.PluginManager):
    """A plugin manager that leaves out a faulty hook and keeps the plugin's other hooks.

    Attributes:
        changes: number of plugins registered and unregistered so far.
        faults: by plugin, its faulty hooks and what is wrong with each.
    """

    def __init__(self) -> None:
        super().__init__(PROJECT)
        self.add_hookspecs(hookspecs)
        self.changes = 0
        self.faults: dict[str, list[tuple[str, str]]] = {}
        self._current_faults: list[tuple[str, str]] = []

    def register(self, plugin: Any, name: str | None = None) -> str | None:
        """Register a plugin; what is wrong with its hooks is in ``faults[name]`` afterwards."""
        self._current_faults = []
        registered = super().register(plugin, name)
        if registered is not None:
            self.faults[registered] = self._current_faults
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
                self._current_faults.append((name, f"Expected {name!r} to carry @hookimpl, but it does not."))
            return None
        hook = options.get("specname") or name
        fault = _hook_fault(plugin, name, hook, options)
        if fault:
            self._current_faults.append((hook, fault))
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
        return f"Expected {name!r} to be a plain hook, got a wrapper; hooks are called one plugin at a time."
    required = [
        parameter.name
        for parameter in inspect.signature(getattr(plugin, name)).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    return f"Expected {name!r} to take no arguments, but it requires {', '.join(required)}." if required else ""
