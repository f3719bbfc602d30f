"""Copy what a hook returned into plain declarations: a plugin's own classes may run any code when they are read."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from medmllm_plugins.plugins.guard import described, pictured
from medmllm_plugins.plugins.specs import PromptStyle

MOST_ITEMS: Final = 1000
"""Declarations of one hook; a hook that returns more, or never ends, is left out."""

_Item = TypeVar("_Item")


class WrongResult(Exception):
    """A hook returned something else than a bounded number of declarations."""


def read_items(function: Callable[[], object], hook: str, kind: type[_Item]) -> tuple[list[_Item], list[str]]:
    """Call a hook; runs under the guard.

    Returns:
        Sound declarations, copied from what the plugin returned, and what is wrong with the others.
    """
    result = function()
    if not isinstance(result, Iterable) or isinstance(result, str | Mapping):
        raise WrongResult(f"Expected {hook!r} to return an iterable of {kind.__name__}, got {pictured(result)}.")
    iterator = iter(result)
    declarations = list(itertools.islice(iterator, MOST_ITEMS + 1))
    if len(declarations) > MOST_ITEMS:
        if (close := getattr(iterator, "close", None)) is not None:
            close()
        raise WrongResult(f"Expected {hook!r} to return at most {MOST_ITEMS} items, got more.")
    items, faults = [], []
    for position, item in enumerate(declarations):
        expected = f"Expected item {position} of {hook!r} to be {kind.__name__}"
        if not issubclass(type(item), kind):
            faults.append(f"{expected}, got {pictured(item)}.")
            continue
        try:
            items.append(_remade(item, kind))
        except Exception as error:
            faults.append(f"{expected} that can be read, got {described(error)}")
    return items, faults


def _remade(item: Any, kind: type[_Item]) -> _Item:
    """Return a copy of a declaration with plain values."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    return kind(**{field.name: _plain(getattr(item, field.name)) for field in fields})


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, PromptStyle):
        return _remade(value, PromptStyle)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in itertools.islice(value.items(), MOST_ITEMS)}
    return value
