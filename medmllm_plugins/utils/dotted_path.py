"""Objects named by dotted path, ``"package.module:name"``, as declarations name code without importing it."""

from __future__ import annotations

import importlib
from typing import Any


def import_object(path: str, error: type[Exception]) -> Any:
    """Import what a dotted path names.

    Args:
        path: ``"package.module:name"``.
        error: raised where there is no such module or name.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as cause:
        raise error(f"Expected {path!r} to be importable, got {type(cause).__name__}: {cause}.") from cause
