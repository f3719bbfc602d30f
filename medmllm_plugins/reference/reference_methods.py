"""Make reference classifiers by their names on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from medmllm_plugins.errors import OptionError
from medmllm_plugins.reference.classifier import Majority, ReferenceClassifier

METHODS: Final = ("majority", "pixels", "timm:NAME")


def make_classifier(
    method: str, *, seed: int = 0, weights: Path | None = None, epochs: int | None = None, device: str | None = None
) -> ReferenceClassifier:
    """Make an untrained classifier.

    Weights, epochs and device are for ``timm:NAME`` alone.

    Raises:
        OptionError: there is no such method, or it does not take an option.
    """
    name, colon, network = method.partition(":")
    if name == "timm" and network:
        from medmllm_plugins.reference.network import EPOCHS, TimmClassifier  # torch takes seconds to import

        return TimmClassifier(
            network, weights=weights, epochs=EPOCHS if epochs is None else epochs, device=device, seed=seed
        )
    if colon or name not in METHODS:
        raise OptionError(f"Expected a method among {', '.join(METHODS)}, got {method!r}.")
    if weights is not None or epochs is not None or device is not None:
        raise OptionError(f"Expected weights, epochs and device with timm:NAME only, got some with {method!r}.")
    if name == "majority":
        return Majority()
    from medmllm_plugins.reference.pixels import PixelClassifier  # scikit-learn takes a second to import

    return PixelClassifier(seed)
