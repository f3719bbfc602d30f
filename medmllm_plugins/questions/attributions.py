"""Which attributions a task asks for, beside the answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from medmllm_plugins.errors import OptionError

Baseline = Literal["blank", "blurred"]
BASELINES: Final[tuple[Baseline, ...]] = get_args(Baseline)
DECISION, TRUTH, ANSWER = "decision", "truth", "answer"
METHODS: Final = (
    "integrated_gradients",
    "occlusion",
    "layer_grad_cam",
    "layer_integrated_gradients",
    "attention_rollout",
    "prompt_ablation",
)
"""Methods that are used where a task names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributions:
    """What is to be explained, and how.

    Attributes:
        n: documents of each class, half of them answered wrongly where there are so many.
        methods: names of methods.
        layers: loci for the methods that look at layers; empty for the end of the vision tower and the connector.
        target: whose log-odds against the other labels are explained: ``"decision"`` (the label that scores highest),
            ``"truth"``, or a label; ``"answer"`` for the log-probability of the generated text.
        baseline: what the image is compared with: ``"blank"`` (mid-grey) or ``"blurred"``.
        steps: points of the path of methods that integrate.

    Raises:
        OptionError: a value is none of these.
    """

    n: int = 4
    methods: tuple[str, ...] = METHODS
    layers: tuple[str, ...] = ()
    target: str = DECISION
    baseline: Baseline = "blurred"
    steps: int = 24

    def __post_init__(self) -> None:
        if self.n < 1 or self.steps < 2:
            raise OptionError(f"Expected `n` to be at least 1 and `steps` at least 2, found {self.n} and {self.steps}.")
        if self.baseline not in BASELINES:
            raise OptionError(f"Expected `baseline` to be one of {list(BASELINES)}, found {self.baseline!r}.")
        if not self.methods:
            raise OptionError("Expected at least one `method`, found none.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, as they travel with each request."""
        return {
            "n": self.n,
            "methods": list(self.methods),
            "layers": list(self.layers),
            "target": self.target,
            "baseline": self.baseline,
            "steps": self.steps,
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Attributions:
        """Read what :meth:`to_dict` gave."""
        return cls(**{**told, "methods": tuple(told["methods"]), "layers": tuple(told["layers"])})
