"""How probes are fitted and compared; everything that ``medmllm diagnose`` can change without a model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from medmllm_plugins.errors import OptionError
from medmllm_plugins.probes.logistic import STRENGTHS
from medmllm_plugins.probes.probe_methods import load_probe

SHUFFLES: Final = 20
CONTROLS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Settings of an analysis.

    Attributes:
        protocol: ``"linear"``, multinomial logistic regression with the strength chosen on the validation fold, or
            ``"paper"``, the two-layer MLP of arXiv:2604.08333, or a probe that a plugin brings.
        strengths: grid of inverse L2 strengths, as scikit-learn's ``C``; the linear protocol's.
        poolings: which poolings to look at; all that the store holds where empty.
        layers: which layers to look at; all that the store holds where empty. Those that the diagnosis rests on, and the
            floors, are always looked at.
        width: features of every wider layer are projected at random to so many dimensions, so that layers of different
            width compare at equal capacity; 0 for as they are.
        shuffles: refits on shuffled labels, for the null band; 0 for no band.
        controls: drawings of the control task; 0 for none.
        repeats: further divisions into folds, on which the curves are fitted again.
        seed: of everything that is drawn.

    Raises:
        OptionError: a value makes no sense.
    """

    protocol: str = "linear"
    strengths: tuple[float, ...] = field(default=STRENGTHS)
    poolings: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    width: int = 0
    shuffles: int = SHUFFLES
    controls: int = CONTROLS
    repeats: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        load_probe(self.protocol)
        if not self.strengths or not all(0 < strength < math.inf for strength in self.strengths):
            raise OptionError(
                f"Expected argument `strengths` (grid) to be finite numbers above 0, but got {list(self.strengths)}."
            )
        for name, alias in (("width", ""), ("shuffles", ""), ("controls", ""), ("repeats", " (folds)"), ("seed", "")):
            if (found := getattr(self, name)) < 0:
                raise OptionError(f"Expected argument `{name}`{alias} to be at least 0, but got {found}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            **asdict(self),
            "strengths": list(self.strengths),
            "poolings": list(self.poolings),
            "layers": list(self.layers),
        }


def default_refits(protocol: str) -> tuple[int, int]:
    """Refits on shuffled labels and drawings of the control task, where nobody asked for others.

    The MLP of the paper's protocol cannot be fitted on many label sets in the time of one, as the linear probe is.
    """
    return (0, 1) if protocol == "paper" else (SHUFFLES, CONTROLS)


def parse_strengths(text: str) -> tuple[float, ...]:
    """Numbers between commas.

    Raises:
        OptionError: one of them is none.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"Expected inverse L2 strengths such as 1e-4,1e-2, found {text!r}.") from error
