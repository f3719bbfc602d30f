"""How a check ends: it passes, fails, or does not apply."""

from __future__ import annotations

from typing import Any


class CheckFailed(AssertionError):
    """A plugin does not do what the check asks for; the message says what was expected and what to do."""


class NotApplicable(Exception):
    """A check cannot say anything about this plugin; the message names what is missing."""


def require(condition: object, message: str) -> None:
    """Raise :class:`CheckFailed` with the message unless the condition is true."""
    if not condition:
        raise CheckFailed(message)


def require_close(actual: Any, expected: Any, what: str, advice: str, *, tolerance: float = 1e-3) -> None:
    """Raise :class:`CheckFailed` unless arrays or tensors are finite, of one shape and close to each other.

    Args:
        actual: what the plugin gives.
        expected: what it should give.
        what: names the values, at the beginning of the message.
        advice: what to do, a sentence.
        tolerance: largest difference, as a share of the largest expected value, or of 1 if that is smaller.
    """
    import numpy as np

    got, wanted = (np.asarray(_on_cpu(values), dtype=np.float64) for values in (actual, expected))
    require(got.shape == wanted.shape, f"{what}: expected shape {wanted.shape}, got {got.shape}. {advice}")
    require(np.isfinite(got).all(), f"{what}: expected finite values, got {got[~np.isfinite(got)][:3]}. {advice}")
    if not got.size:
        return
    difference = np.abs(got - wanted)
    worst = np.unravel_index(int(difference.argmax()), got.shape)
    limit = tolerance * max(1.0, float(np.abs(wanted).max()))
    require(
        difference[worst] <= limit,
        f"{what}: expected {wanted[worst]:.5g}, got {got[worst]:.5g} (a difference of up to {limit:.1g} is allowed). "
        f"{advice}",
    )


def _on_cpu(values: Any) -> Any:
    return values.detach().float().cpu().numpy() if hasattr(values, "detach") else values
