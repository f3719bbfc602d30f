"""Options of the attributions that a task asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from medmllm_plugins.errors import OptionError
from medmllm_plugins.plugins.manager import get_manager

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
"""Methods for tasks that name none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionOptions:
    """Which answers to explain, and how.

    Attributes:
        n: documents of each class, half of them answered incorrectly if enough are.
        methods: names of methods.
        layers: layers for the methods that need one; empty for the end of the vision tower, and the connector if its
            tokens have positions in the image.
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
            raise OptionError(f"Expected `n` to be at least 1 and `steps` at least 2, got {self.n} and {self.steps}.")
        if self.baseline not in BASELINES:
            raise OptionError(f"Expected `baseline` to be one of {list(BASELINES)}, got {self.baseline!r}.")
        if not self.methods:
            raise OptionError("Expected at least one `method`, got none.")

    def check(self, labels: Sequence[str]) -> None:
        """Check the names of methods and target before anything is loaded; ``labels`` are the possible answers.

        Raises:
            OptionError: a method or the target does not exist.
        """
        check_methods(self.methods)
        if self.target not in (DECISION, TRUTH, ANSWER, *labels):
            raise OptionError(
                f"Expected `target` to be decision, truth, answer or one of {list(labels)}, got {self.target!r}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, as they are part of each request."""
        return {**asdict(self), "methods": list(self.methods), "layers": list(self.layers)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AttributionOptions:
        """Read what :meth:`to_dict` returned."""
        return cls(**{**values, "methods": tuple(values["methods"]), "layers": tuple(values["layers"])})


def check_methods(names: Sequence[str]) -> None:
    """Check that methods of these names are declared, by this package or a plugin.

    Raises:
        OptionError: one is not.
    """
    known = get_manager().attributions()
    if unknown := [name for name in names if name not in known]:
        raise OptionError(f"Expected `method` to be some of {', '.join(known)}, got {', '.join(unknown)}.")
