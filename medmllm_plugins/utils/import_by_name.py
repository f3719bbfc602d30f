"""Import a function or class by a name such as ``package.module:function``."""

from __future__ import annotations

import importlib
from typing import Any


def import_by_name(name: str) -> Any:
    """Return what ``module:attribute`` names.

    Raises:
        ImportError: the module cannot be imported.
        AttributeError: it has no such attribute.
    """
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
