"""Records: frozen dataclasses that are written as JSON and read back.

The annotations of a dataclass are its schema. Reading forgives damage: a value that is missing, ``null`` or of another
type becomes the field's default, else an empty value of its type (NaN, 0, ``""``, an empty tuple). Inside a tuple or a
mapping such a value is left out. Keys that are not fields are ignored.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, Union, get_args, get_origin, get_type_hints

from medmllm_plugins.errors import DataError, shown
from medmllm_plugins.utils.json_values import clean, number, whole

_EMPTY: Final[dict[Any, Any]] = {str: "", int: 0, float: math.nan, bool: False}
_TYPES: Final[dict[type[Any], dict[str, Any]]] = {}


class _Unusable(Exception):
    """A value that a field of this type cannot hold."""


class Record:
    """Base class of all records; its subclasses are frozen dataclasses."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types, ``None`` in place of NaN."""
        return {name: to_json(getattr(self, name)) for name in field_types(type(self))}

    @classmethod
    def from_dict(cls, content: object) -> Self:
        """Read what :meth:`to_dict` returned, as far as it can be read; see :mod:`medmllm_plugins.utils.record`."""
        return cls(**read_fields(cls, content))


class VersionedRecord(Record):
    """A record that is a file of its own, with the version of its format under the key :attr:`FORMAT`."""

    __slots__ = ()
    FORMAT: ClassVar[str]
    VERSION: ClassVar[int] = 1

    def to_dict(self) -> dict[str, Any]:
        """Return the version and the fields as plain JSON types, ``None`` in place of NaN."""
        return {self.FORMAT: self.VERSION, **Record.to_dict(self)}

    @classmethod
    def from_dict(cls, content: object) -> Self:
        """Read what :meth:`to_dict` returned, as far as it can be read.

        Raises:
            DataError: the content is something else, or of a newer version of the format.
        """
        check_version(content, cls.FORMAT, cls.VERSION)
        return cls(**read_fields(cls, content))


def check_version(content: object, name: str, version: int) -> None:
    """Refuse content without the key of a format, or of a newer version than this package reads.

    Raises:
        DataError: either of them; the message lacks the file's path, which the caller adds.
    """
    if not isinstance(content, Mapping) or name not in content:
        raise DataError(f"expected a JSON object with the key '{name}', got {shown(content)[:60]}")
    stored = content[name]
    if isinstance(stored, int) and not isinstance(stored, bool) and stored > version:
        raise DataError(
            f"expected version {version} of the format '{name}', got version {shown(stored)}. A newer medmllm-plugins "
            "wrote it: read it with that version (pip install --upgrade medmllm-plugins)"
        )


def field_types(cls: type[Any]) -> dict[str, Any]:
    """Return the types of a record's fields by name, in order."""
    if cls not in _TYPES:
        hints = get_type_hints(cls)
        _TYPES[cls] = {field.name: hints[field.name] for field in fields(cls)}
    return _TYPES[cls]


def read_fields(cls: type[Any], content: object) -> dict[str, Any]:
    """Return the values of a record's fields from JSON, as arguments of its class."""
    stored = content if isinstance(content, Mapping) else {}
    types_of, values = field_types(cls), {}
    for field in fields(cls):
        value = stored.get(field.name)
        try:
            values[field.name] = _default(field, types_of) if value is None else _read(types_of[field.name], value)
        except _Unusable:
            values[field.name] = _default(field, types_of)
    return values


def to_json(value: Any) -> Any:
    """Return a field's value as plain JSON types."""
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _default(field: Field[Any], types_of: Mapping[str, Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    if field.default_factory is not MISSING:
        return field.default_factory()
    hint = types_of[field.name]
    origin = get_origin(hint)
    if origin is Literal:
        raise _Unusable
    if origin is tuple:
        return ()
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {}
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_dict({})
    return _EMPTY.get(hint)


def _read(hint: Any, value: Any) -> Any:
    """Return a JSON value as a field's type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _read_union(arguments, value)
    if origin is tuple:
        return _read_tuple(arguments, value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _read_mapping(arguments[1], value)
    if origin is Literal:
        return _require(value, any(value == option and type(value) is type(option) for option in arguments))
    if issubclass(hint, Record):
        try:
            return hint.from_dict(_require(value, isinstance(value, Mapping)))
        except DataError as error:  # a record in a record, without its version or of a newer one
            raise _Unusable from error
    if hint is Path:
        return Path(_require(value, isinstance(value, str) and value != ""))
    if hint is str:
        return clean(_require(value, isinstance(value, str | int | float)))
    if hint is bool:
        return _require(value, isinstance(value, bool))
    result = whole(value) if hint is int else number(value)
    return _require(result, result is not None and not math.isnan(result))


def _read_union(arguments: tuple[Any, ...], value: Any) -> Any:
    *others, last = (argument for argument in arguments if argument is not types.NoneType)
    for argument in others:
        try:
            return _read(argument, value)
        except _Unusable:
            continue
    return _read(last, value)


def _read_tuple(arguments: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    _require(value, isinstance(value, list | tuple))
    if arguments[-1] is not Ellipsis:
        _require(value, len(value) == len(arguments))
        return tuple(_read(hint, item) for hint, item in zip(arguments, value, strict=True))
    if arguments[0] is float:
        return tuple(map(number, value))
    if arguments[0] is int:  # with one left out it would be another list
        return tuple(_read(int, item) for item in value)
    return tuple(item for _, item in _readable(arguments[0], enumerate(value)))


def _read_mapping(hint: Any, value: Any) -> dict[str, Any]:
    _require(value, isinstance(value, Mapping))
    return {clean(key): item for key, item in _readable(hint, value.items())}


def _readable(hint: Any, items: Any) -> Any:
    for key, item in items:
        try:
            yield key, _read(hint, item)
        except _Unusable:
            continue


def _require(value: Any, usable: bool) -> Any:
    if not usable:
        raise _Unusable
    return value
