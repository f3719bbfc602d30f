"""What a user may have meant by a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

MOST: Final = 4
"""More names than that are no help."""


def close_names(name: str, known: Iterable[str], most: int = MOST) -> list[str]:
    """Return the known names that are most similar to a wrong one, best first; none if no name is similar."""
    import difflib

    # A name of any length may come from a command line, and the comparison takes the product of both lengths.
    wanted = name[:100].casefold()
    by_folded = {candidate.casefold(): candidate for candidate in sorted(known, reverse=True)}
    containing = sorted(
        (folded for folded in by_folded if len(wanted) > 2 and wanted in folded),
        key=lambda folded: (len(folded), folded),
    )
    ordered = [*difflib.get_close_matches(wanted, by_folded, n=most, cutoff=0.75), *containing]
    return [by_folded[folded] for folded in dict.fromkeys(ordered)][:most]


def one_edit_apart(first: str, second: str) -> bool:
    """Return whether one letter inserted, left out, changed or swapped with its neighbour makes one name the other."""
    short, long = sorted((first, second), key=len)
    start = next((index for index, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    rest, other = short[start:], long[start:]
    if len(short) < len(long):
        return rest == other[1:]
    return rest[1:] == other[1:] or (rest[:2] == other[1::-1] and rest[2:] == other[2:])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question such as ``Did you mean med_cls_busi?``; an empty text if no name is similar."""
    names = close_names(name, known)
    if not names:
        return ""
    return f"Did you mean {', '.join(names[:-1])}{' or ' if names[:-1] else ''}{names[-1]}?"
