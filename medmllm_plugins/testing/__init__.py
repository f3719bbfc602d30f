"""Checks that any plugin can be put through, for the tests of plugins and for ``medmllm check-plugin``.

Importing this package imports neither torch nor pytest; :mod:`medmllm_plugins.testing.check_registry` lists the checks.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from medmllm_plugins.testing.check_outcomes import CheckFailed, NotApplicable
    from medmllm_plugins.testing.parametrize import parametrize_with_checks
    from medmllm_plugins.testing.runner import CheckResult, run_checks

__all__ = ["CheckFailed", "CheckResult", "NotApplicable", "parametrize_with_checks", "run_checks"]
_MODULES: Final = {
    "CheckFailed": "check_outcomes",
    "CheckResult": "runner",
    "NotApplicable": "check_outcomes",
    "parametrize_with_checks": "parametrize",
    "run_checks": "runner",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
