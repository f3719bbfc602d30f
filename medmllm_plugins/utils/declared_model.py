"""Base class of what users declare in YAML: checked by pydantic, with errors in the words of this package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from medmllm_plugins.errors import MedMLLMError, shown
from medmllm_plugins.utils.environment import tolerate_damaged_metadata
from medmllm_plugins.utils.suggestions import did_you_mean

tolerate_damaged_metadata()


class DeclaredModel(BaseModel):
    """A frozen declaration without unknown keys, whose values are not converted from other types.

    The text below a field is its description in the JSON Schema for editors.
    """

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True
    )


class DeclarationFault(ValueError):
    """Raised by validators that write the whole message themselves, without its source."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Metadata of a field: what its value has to be, as it completes "expected `key` to be …"."""

    text: str


Model = TypeVar("Model", bound=DeclaredModel)


def read_declaration(model: type[Model], raw: object, source: str, *, error: type[MedMLLMError]) -> Model:
    """Check what a user declared.

    ``source`` is the file or task, for messages; ``error`` is the class to raise.

    Raises:
        MedMLLMError: of the class ``error``: a key is unknown or missing, or a value is wrong. The message names the
            first fault on one line.
    """
    if not isinstance(raw, Mapping):
        raise error(f"{source}: expected keys and values, got {shown(raw)}.")
    fields = model.model_fields
    if unknown := sorted((key for key in raw if key not in fields), key=str):
        hint = did_you_mean(str(unknown[0]), fields)
        raise error(
            f"{source}: unknown keys {few(map(shown, unknown))}; expected some of {', '.join(fields)}."
            f"{f' {hint}' if hint else ''}"
        )
    if missing := sorted(name for name, field in fields.items() if field.is_required() and name not in raw):
        raise error(f"{source}: keys {missing} are missing.")
    try:
        return model.model_validate(dict(raw))
    except ValidationError as fault:
        raise error(f"{source}: {_first_fault(fault, fields, raw)}") from None
    except RecursionError:
        raise error(f"{source}: expected a declaration of a few levels, got deeper nesting.") from None


def few(items: Iterable[str], most: int = 10) -> str:
    """Return the first of some items between commas, and how many more there are."""
    listed = list(items)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return f"{', '.join(listed[:most])}{more}"


def _first_fault(fault: ValidationError, fields: Mapping[str, FieldInfo], raw: Mapping[Any, Any]) -> str:
    details = fault.errors(include_url=False)[0]
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, DeclarationFault):
        return str(cause)
    key = str(details["loc"][0])
    return f"expected `{key}` to be {expected_words(fields[key])}, got {shown(raw[key])}."


def expected_words(field: FieldInfo) -> str:
    """Return what the value of a field has to be, in words."""
    for item in field.metadata:
        if isinstance(item, Expected):
            return item.text
    if get_origin(field.annotation) is Literal:
        return f"one of {list(get_args(field.annotation))}"
    return "text"
