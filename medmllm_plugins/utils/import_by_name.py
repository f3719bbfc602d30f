"""Import a function or class by a name such as ``package.module:function``."""

from __future__ import annotations

import importlib
from typing import Any


def import_by_name(name: str, error: type[Exception] | None = None) -> Any:
    """Return what ``module:attribute`` names; ``error`` is raised in place of the errors below.

    Raises:
        ImportError: the module cannot be imported.
        AttributeError: it has no such attribute.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as cause:
        if error is None:
            raise
        raise error(f"Expected {name!r} to be importable, got {type(cause).__name__}: {cause}.") from cause
