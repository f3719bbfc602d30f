"""The form of the names of models, tasks, data sets, probes and methods."""

from __future__ import annotations

import re

_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,99}")


def is_identifier(value: object) -> bool:
    """Return whether a value is a name: lower-case letters, digits and underscores, at most 100 of them."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None
