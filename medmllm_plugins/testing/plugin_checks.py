"""Checks that concern every kind of declaration, and plugins as a whole."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any, Final

from medmllm_plugins.plugins.manager import GROUP, discover
from medmllm_plugins.testing.check_outcomes import CheckFailed, NotApplicable, require
from medmllm_plugins.testing.check_subjects import InstalledPlugin, PluginSubject, Subject

HEAVY: Final = ("torch", "transformers", "tensorflow", "jax", "captum", "lmms_eval")
"""Packages that take seconds to import."""
_SCRIPT = """
import importlib, json, sys
from medmllm_plugins.plugins.hook_registry import HOOKS
for value in sys.argv[1:]:
    module, _, attribute = value.partition(":")
    plugin = importlib.import_module(module)
    plugin = getattr(plugin, attribute) if attribute else plugin
    for hook in HOOKS:
        if (function := getattr(plugin, hook, None)) is not None:
            list(function())
print(json.dumps([name for name in json.loads(sys.stdin.read()) if name in sys.modules]))
"""


def check_import_costs_no_torch(subject: Subject[Any]) -> None:
    """Assert that importing the plugin and calling its hooks imports no torch and no other package of such weight.

    Every command waits for the hooks of every installed plugin, even ``medmllm models``.
    """
    values = _hook_modules(subject)
    if not values:
        raise NotApplicable("it names no code of a plugin")
    heavy = _heavy_imports(tuple(values))
    require(
        not heavy,
        f"{subject.name}: expected {', '.join(values)} to declare without heavy packages, got imports of "
        f"{', '.join(heavy)}. Import them inside the functions that need them, and name code by dotted path.",
    )


def _hook_modules(subject: Subject[Any]) -> list[str]:
    """Return the modules with the hooks: entry points of the same top-level package, else that package."""
    entries = list(entry_points(group=GROUP))
    if isinstance(subject.spec, InstalledPlugin):
        return [entry.value for entry in entries if entry.name == subject.spec.name]
    package = subject.code.partition(":")[0].partition(".")[0]
    if not package and subject.kind in ("tasks", "dataset"):
        return []
    if not package:  # a checkpoint of a known family
        manager = discover()
        owners = {info["name"] for info in manager.describe()["plugins"] if subject.name in info[f"{subject.kind}s"]}
        return [entry.value for entry in entries if entry.name in owners]
    own = [entry.value for entry in entries if entry.value.partition(":")[0].partition(".")[0] == package]
    return own or [package]


@functools.lru_cache(maxsize=64)
def _heavy_imports(values: Sequence[str]) -> list[str]:
    """Return the heavy packages that a new process has imported after calling the hooks of some modules."""
    path = [entry for entry in sys.path if entry]
    code = f"import sys; sys.path[:0] = {path!r}\n{_SCRIPT}"
    process = subprocess.run(
        [sys.executable, "-c", code, *values], input=json.dumps(HEAVY), capture_output=True, text=True, timeout=300
    )
    if process.returncode:
        raise CheckFailed(f"Expected {', '.join(values)} to be importable, got {process.stderr.strip()[-300:]}")
    heavy: list[str] = json.loads(process.stdout.splitlines()[-1])
    return heavy


def check_hooks_declare_without_failures(subject: PluginSubject) -> None:
    """Assert that the plugin is discovered, with all of its hooks, declarations and task files.

    A fault leaves out only the part that it concerns, with a warning that is easily overlooked.
    """
    manager = discover()
    names = [info.name for info in manager.plugins]
    require(
        subject.name in names,
        f"Expected an installed plugin called {subject.name!r}, got {', '.join(names)}. Is its package installed, with "
        f'an entry point in the group "{GROUP}"?',
    )
    failures = [failure for failure in manager.failures if failure.plugin == subject.name]
    require(not failures, "; ".join(str(failure) for failure in failures[:3]))
