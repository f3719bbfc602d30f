"""The unit of scoring: what one document's answer came to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from medmllm_plugins.errors import DataError, shown

Status = Literal["parsed", "ambiguous", "out_of_list", "refusal"]
STATUSES: tuple[Status, ...] = get_args(Status)
"""How parsing an answer can end; only ``"parsed"`` comes with a predicted class."""
UNPARSED = tuple(f"({status})" for status in STATUSES if status != "parsed")
"""How tables call the answers that were not parsed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One scored document.

    Attributes:
        id: the document's id, unique within a run.
        group: what is resampled as a whole for intervals (patient, lesion or source figure).
        label: the true class.
        predicted: the class that was answered; ``None`` exactly when the answer was not parsed.
        status: ``"parsed"``, ``"ambiguous"``, ``"out_of_list"`` or ``"refusal"``.
        scores: log p(label | prompt, image) of each class in class order, in nats; ``None`` if the model gave none.
        tokens: number of tokens of each label, over which ``scores`` are sums; ``None`` if the model does not say.
        blank: scores of the labels for the same question about an image that holds nothing; ``None`` likewise.
        finding: what was asked about in a multi-label set, whose labels are then yes and no; ``None`` in other sets.
        variant: which order of options or which wording was used, where several are compared.
        document: the document asked about; several rows may be about one. ``None`` where ``id`` says it.

    Raises:
        DataError: ``status`` is none of the four, ``predicted`` does not agree with it, or a score is not finite.
    """

    id: str
    group: str
    label: str
    predicted: str | None
    status: str
    scores: tuple[float, ...] | None = None
    finding: str | None = None
    variant: str = ""
    document: str | None = None
    tokens: tuple[int, ...] | None = None
    blank: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise DataError(
                f"Document {shown(self.id)}: expected `status` to be one of {STATUSES}, got {shown(self.status)}."
            )
        if (self.predicted is not None) != (self.status == "parsed"):
            raise DataError(
                f"Document {shown(self.id)}: expected `predicted` to be a class exactly where `status` is 'parsed', "
                f"got predicted={shown(self.predicted)} with status={shown(self.status)}."
            )
        for name in ("tokens", "blank"):
            values = getattr(self, name)
            if values is not None and (self.scores is None or len(values) != len(self.scores)):
                raise DataError(
                    f"Document {shown(self.id)}: expected `{name}` for each label score, got {shown(values)} with "
                    f"{shown(self.scores)}."
                )
        if self.tokens is not None and min(self.tokens) < 1:
            raise DataError(
                f"Document {shown(self.id)}: expected labels of at least one token, got {shown(self.tokens)}."
            )
        if not all(map(math.isfinite, (*(self.scores or ()), *(self.blank or ())))):
            raise DataError(
                f"Document {shown(self.id)}: expected finite label scores, got {shown(self.scores)}. The model's "
                "outputs overflow in this precision; load it in bfloat16 or float32."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain JSON types; ``scores`` becomes a list, and what does not apply is left out."""
        optional: dict[str, Any] = {"finding": self.finding, "variant": self.variant, "document": self.document}
        optional |= {"tokens": self.tokens and list(self.tokens), "blank": self.blank and list(map(float, self.blank))}
        return {
            "id": self.id,
            "group": self.group,
            "label": self.label,
            "predicted": self.predicted,
            "status": self.status,
            "scores": None if self.scores is None else [float(score) for score in self.scores],
            **{key: value for key, value in optional.items() if value},
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Outcome:
        """Read what :meth:`to_dict` wrote; ``scores`` may be missing.

        Raises:
            DataError: a key is missing or a value is invalid.
        """
        if missing := sorted({"id", "group", "label", "predicted", "status"} - set(record)):
            raise DataError(
                f"Expected an outcome with all of its keys, but {missing} are missing in {shown(dict(record))}."
            )
        for name in ("id", "group", "label"):
            _text(record, name)
        scores, tokens, blank = (_numbers(record, name) for name in ("scores", "tokens", "blank"))
        if tokens is not None and not all(count.is_integer() for count in tokens):
            raise DataError(
                f"Expected `tokens` of an outcome to be counts, got {shown(tokens)} in {shown(dict(record))}."
            )
        return cls(
            id=record["id"],
            group=record["group"],
            label=record["label"],
            predicted=_text(record, "predicted", optional=True),
            status=record["status"],
            scores=scores,
            finding=_text(record, "finding", optional=True),
            variant=_text(record, "variant", optional=True) or "",
            document=_text(record, "document", optional=True),
            tokens=None if tokens is None else tuple(map(int, tokens)),
            blank=blank,
        )


def _text(record: Mapping[str, Any], name: str, *, optional: bool = False) -> str | None:
    value = record.get(name)
    if isinstance(value, str) or (optional and value is None):
        return value
    raise DataError(f"Expected `{name}` of an outcome to be text, got {shown(value)} in {shown(dict(record))}.")


def _numbers(record: Mapping[str, Any], name: str) -> tuple[float, ...] | None:
    value = record.get(name)
    if value is None:
        return None
    try:
        if isinstance(value, list | tuple) and not any(isinstance(item, str | bool) for item in value):
            return tuple(map(float, value))
    except (TypeError, ValueError, OverflowError):  # JSON bounds no integer
        pass
    raise DataError(f"Expected `{name}` of an outcome to be numbers, got {shown(value)} in {shown(dict(record))}.")
