"""Options of the features that a task records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from medmllm_plugins.errors import OptionError

MEAN, LAST, CLS, MAX, ANSWER = "mean", "last", "cls", "max", "answer"
ALWAYS: Final = (MEAN, LAST, CLS)
"""Poolings that are always kept: the mean over the image's own patches or tokens, the last token of the prompt, and a
tower's class token where it has one."""
EXTRA: Final = (MAX, ANSWER)
"""Poolings that are kept on request: the maximum over patches or tokens, and the first token of the answer."""
POOLINGS: Final = (*ALWAYS, *EXTRA)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureOptions:
    """Which features of a model's stages to record.

    Attributes:
        extra: poolings beyond those of :data:`ALWAYS`.
        random_encoder: whether a re-initialised vision tower is run on the same images, as control features.
    """

    extra: tuple[str, ...] = ()
    random_encoder: bool = True

    @property
    def poolings(self) -> tuple[str, ...]:
        """All of them, in a fixed order."""
        return tuple(name for name in POOLINGS if name in ALWAYS or name in self.extra)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, as they are part of each request."""
        return {"extra": list(self.extra), "random_encoder": self.random_encoder}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureOptions:
        """Read what :meth:`to_dict` returned.

        Raises:
            OptionError: a pooling is none that can be asked for.
        """
        extra = tuple(values.get("extra") or ())
        if unknown := sorted(set(extra) - set(EXTRA)):
            raise OptionError(f"Expected poolings among {list(EXTRA)}, got {unknown}.")
        return cls(extra=extra, random_encoder=bool(values.get("random_encoder", True)))
