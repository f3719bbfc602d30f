"""Options of the patching that a task asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

from medmllm_plugins.errors import OptionError

Tokens: TypeAlias = Literal["all", "image", "last"]
TOKENS: Final[tuple[Tokens, ...]] = get_args(Tokens)
BLOCKS: Final = 8
"""About how many blocks of the LLM are patched where a task does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchOptions:
    """Which documents to patch, and where.

    Attributes:
        n: documents of each class, drawn from the test fold.
        every: patch after every ``every``-th block of the LLM and the last one; 0 for about :data:`BLOCKS` blocks.
        tokens: the tokens whose states are put in at a block: ``all``, ``image`` or ``last``.
        interchange: whether states of other documents are put in, too.
        knockout: whether attention to the image is cut, too.
        steering: whether states are pushed along directions of probes, too.
        interventions: names of plugins' interventions.

    Raises:
        OptionError: a value is none of these.
    """

    n: int = 25
    every: int = 0
    tokens: tuple[Tokens, ...] = TOKENS
    interchange: bool = True
    knockout: bool = True
    steering: bool = False
    interventions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.n < 1:
            raise OptionError(f"Expected `n` to be at least 1, got {self.n}.")
        if not self.tokens or not set(self.tokens) <= set(TOKENS):
            raise OptionError(f"Expected `tokens` to be some of {list(TOKENS)}, got {list(self.tokens)}.")

    @property
    def needs_twin(self) -> bool:
        """Whether nothing is done without a twin."""
        return not (self.interchange or self.knockout or self.steering or self.interventions)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**asdict(self), "tokens": list(self.tokens), "interventions": list(self.interventions)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PatchOptions:
        """Read what :meth:`to_dict` returned."""
        lists = {name: tuple(values[name]) for name in ("tokens", "interventions")}
        return cls(**{**values, **lists})
