"""Read the entry points of plugins, one distribution at a time, so that damaged metadata of one hide no other."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import DistributionFinder
from typing import Final, NamedTuple

from medmllm_plugins.errors import shown
from medmllm_plugins.plugins.guard import bounded, described

UNKNOWN: Final = "unknown"
MOST_ENTRIES: Final = 100
"""Entry points of one distribution that are read; the rest is left out."""
LONGEST_NAME: Final = 100
_NAME = re.compile(rf"[\w.-]{{1,{LONGEST_NAME}}}")


class Candidate(NamedTuple):
    """An entry point, with the distribution it was found in."""

    entry: importlib.metadata.EntryPoint
    distribution: str
    version: str


Fault = Callable[[str, str, str, str, BaseException | None], None]
"""Receives plugin, distribution, version, message and cause of a failure."""


def read_candidates(group: str, fault: Fault) -> list[Candidate]:
    """Return the entry points of a group; what cannot be read is reported to ``fault``."""
    candidates: list[Candidate] = []
    seen: set[str] = set()
    for distribution in _distributions(fault):
        # Only those that name the group, so that unreadable metadata of an unrelated package do no harm.
        text, unreadable = _entry_points_text(distribution)
        if group not in text:
            continue
        name, version = _identity(distribution)
        if name != UNKNOWN and normal(name) in seen:  # an older copy further down the path
            continue
        seen.add(normal(name))
        try:
            if unreadable is not None:
                raise unreadable
            entries = list(distribution.entry_points.select(group=group))
        except Exception as error:
            fault(name, name, version, f"Expected entry_points.txt to be readable, got {described(error)}", error)
            continue
        if len(entries) > MOST_ENTRIES:
            message = f"Expected at most {MOST_ENTRIES} entry points, got {len(entries)}; the rest is left out."
            fault(name, name, version, message, None)
        for entry in entries[:MOST_ENTRIES]:
            if _NAME.fullmatch(entry.name):
                candidates.append(Candidate(entry, name, version))
            else:
                message = (
                    "Expected the entry point's name to be letters, digits, dots and dashes, at most "
                    f"{LONGEST_NAME}, got {shown(entry.name)}."
                )
                fault(bounded(entry.name, LONGEST_NAME) or "(no name)", name, version, message, None)
    return candidates


def damaged_entry_points() -> dict[str, str]:
    """Return distributions whose ``entry_points.txt`` cannot be read, and why.

    One of them is enough to keep the host, which reads them all at once, from any plugin.
    """
    damaged: dict[str, str] = {}

    def fault(plugin: str, distribution: str, version: str, message: str, error: BaseException | None) -> None:
        damaged[plugin] = message

    for distribution in _distributions(fault):
        try:
            _ = list(distribution.entry_points)
        except Exception as error:
            where = bounded(str(getattr(distribution, "_path", "")))
            damaged[_identity(distribution)[0]] = f"{where}/entry_points.txt: {described(error)}"
    return damaged


def normal(distribution: str) -> str:
    """Return a distribution's name as packaging compares names."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _distributions(fault: Fault) -> Iterator[importlib.metadata.Distribution]:
    """Yield all distributions; report a finder that fails to ``fault`` and go on with the next."""
    for finder in list(sys.meta_path):
        find = getattr(finder, "find_distributions", None)
        if find is None:
            continue
        try:
            yield from find(DistributionFinder.Context())
        except Exception as error:
            name = bounded(getattr(finder, "__name__", type(finder).__name__), LONGEST_NAME)
            fault(name, "", "", f"Expected the finder to list distributions, got {described(error)}", error)


def _entry_points_text(distribution: importlib.metadata.Distribution) -> tuple[str, Exception | None]:
    """Return the text of ``entry_points.txt``, as far as it is text, and what is wrong with it."""
    try:
        return distribution.read_text("entry_points.txt") or "", None
    except UnicodeDecodeError as error:
        return error.object.decode("ascii", "replace"), error
    except Exception:  # without its text, nothing shows that the distribution has a plugin of ours
        return "", None


def _identity(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    """Return name and version; metadata on disk may lack either.

    Read from the head of the file itself: parsing it whole, as ``distribution.metadata`` does, takes as long as all of
    the rest of discovery, and every command of the host waits for it.
    """
    try:
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    except Exception:
        return UNKNOWN, UNKNOWN
    head = re.split(r"\n\r?\n", text, maxsplit=1)[0]
    fields = re.findall(r"(?m)^(Name|Version):(.*)$", head, re.IGNORECASE)
    known = {key.lower(): bounded(value, LONGEST_NAME) for key, value in fields}
    return known.get("name") or UNKNOWN, known.get("version") or UNKNOWN
