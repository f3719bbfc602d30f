"""transformers' configs, made from what a checkpoint states: a file that may hold anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.errors import ModelError, one_line, shown

MAX_LAYERS: Final = 1000
"""Most layers of a part; the largest models have some 130, and transformers lists the type of each."""
MAX_SIDE: Final = 16_384
"""Largest side of an image in pixels; position indices of all patches are in memory before weights are compared."""


def make_config(kind: Any, settings: Mapping[str, Any], source: Path) -> Any:
    """Make a config of transformers' class ``kind`` from settings read from the file ``source``.

    Raises:
        ModelError: a count or size is beyond all bounds, or the class does not take the settings.
    """
    check_bounds(settings, source)
    try:
        return kind(**settings)
    # The config classes meet values of a wrong type with errors of many kinds.
    except Exception as error:
        raise ModelError(
            f"{source}: expected settings that {kind.__name__} takes, got {one_line(error)[:300]}. Fetch the file "
            "again, or compare it with the published one."
        ) from error


def check_bounds(settings: Mapping[str, Any], source: Path) -> None:
    """Check counts of layers and sides of images, also in nested settings, before anything is made of that size.

    Raises:
        ModelError: one is above :data:`MAX_LAYERS` or :data:`MAX_SIDE`.
    """
    for key, value in _numbers(settings):
        most = MAX_SIDE if key.endswith("image_size") else MAX_LAYERS if key.endswith(("layers", "depth")) else None
        if most is not None and value > most:
            raise ModelError(
                f"{source}: expected `{key[:60]}` to be at most {most}, got {shown(value)}. Fetch the file again."
            )


def whole_number(settings: Mapping[str, Any], key: str, default: int | None, source: Path) -> int:
    """Return a whole number from a checkpoint's settings, or ``default`` where it is not stated; ``None`` for none.

    Raises:
        ModelError: something else is stated.
    """
    value = settings.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > 2**31:
        raise ModelError(f"{source}: expected `{key}` to be a whole number, got {shown(value)}. Fetch the file again.")
    return value


def _numbers(settings: object) -> Iterator[tuple[str, float]]:
    pending: list[tuple[str, object]] = [("", settings)]
    while pending:  # not by recursion, as JSON may be nested deep
        name, value = pending.pop()
        if isinstance(value, Mapping):
            pending += [(str(key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            pending += [(name, inner) for inner in value]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value
