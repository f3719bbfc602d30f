"""How probes are fitted and compared; everything that ``medmllm diagnose`` can change without a model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from medmllm_plugins.errors import OptionError
from medmllm_plugins.probes.logistic import STRENGTHS
from medmllm_plugins.probes.probe_methods import load_probe

PERMUTATIONS: Final = 20
CONTROLS: Final = 3
REFITS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Settings of an analysis.

    Attributes:
        protocol: ``"linear"``, multinomial logistic regression with the strength chosen on the validation fold;
            ``"paper"``, the two-layer MLP of arXiv:2604.08333; or the name of a plugin's probe.
        strengths: grid of inverse L2 strengths, scikit-learn's ``C`` for rows of squared norm 1 on average; used by the
            linear protocol.
        poolings: which poolings to fit; empty for all in the store.
        layers: which layers to fit; empty for all in the store. The layers that the diagnosis needs and the control
            features are always fitted.
        width: project the features of every layer at random to this many dimensions, so that a probe that depends on
            the number of features has the same at each; the linear probe does not. 0 for no projection.
        permutations: number of refits on permuted labels; 0 for none.
        controls: number of control tasks; 0 for none.
        repeats: number of further random divisions into folds on which the curves are fitted again.
        refits: number of resamples of the train fold on which the probes that the diagnosis rests on are fitted again,
            so that its intervals contain the choice of train documents; 0 for none.

    Raises:
        OptionError: a value is out of range.
    """

    protocol: str = "linear"
    strengths: tuple[float, ...] = field(default=STRENGTHS)
    poolings: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    width: int = 0
    permutations: int = PERMUTATIONS
    controls: int = CONTROLS
    repeats: int = 0
    refits: int = REFITS
    seed: int = 0

    def __post_init__(self) -> None:
        load_probe(self.protocol)
        if not self.strengths or not all(0 < strength < math.inf for strength in self.strengths):
            raise OptionError(
                f"Expected argument `strengths` (grid) to be finite numbers above 0, got {list(self.strengths)}."
            )
        for name in ("width", "permutations", "controls", "repeats", "refits", "seed"):
            if (value := getattr(self, name)) < 0:
                option = " (folds)" if name == "repeats" else ""
                raise OptionError(f"Expected argument `{name}`{option} to be at least 0, got {value}.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def default_counts(protocol: str) -> tuple[int, int, int]:
    """Return the default numbers of label permutations, control tasks and refits.

    The paper's MLP, unlike the linear probe, cannot be fitted on many label sets in the time of one.
    """
    return (0, 1, 0) if protocol == "paper" else (PERMUTATIONS, CONTROLS, REFITS)


def parse_strengths(text: str) -> tuple[float, ...]:
    """Parse numbers separated by commas.

    Raises:
        OptionError: one of them is not a number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"Expected inverse L2 strengths such as 1e-4,1e-2, got {text!r}.") from error
