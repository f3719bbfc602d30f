"""Sources of the methods, and the numbers of citations."""

from __future__ import annotations

import re
from typing import Final

import yaml

from medmllm_plugins.report.templating import template_source

SOURCES: Final[dict[str, str]] = yaml.safe_load(template_source("citations.yaml"))
"""Sources by name."""
_IDENTIFIER: Final = re.compile(r"(?i)arXiv:\s*(\d{4}\.\d{4,5})")


class References:
    """Numbers sources in the order of their first citation; one paper has one number, however it is cited."""

    def __init__(self) -> None:
        self._sources: dict[str, str] = {}

    def __call__(self, *names: str) -> str:
        """Return the mark of sources, given by name or as whole citations, such as ``" [2,3]"``."""
        numbers = set()
        for name in names:
            source = SOURCES.get(name, name)
            if source:
                identifier = _IDENTIFIER.search(source)
                key = identifier[1] if identifier else source
                self._sources.setdefault(key, source)
                numbers.add(list(self._sources).index(key) + 1)
        return f" [{','.join(map(str, sorted(numbers)))}]" if numbers else ""

    def all(self) -> tuple[str, ...]:
        """Return the sources in the order of their numbers."""
        return tuple(self._sources.values())
