"""Fewer repetitions of the checks of attributions, for tests of what surrounds them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from medmllm_plugins.attribution import explainer
from medmllm_plugins.attribution.checks import map_checks, map_evaluator


@contextmanager
def quick_checks() -> Iterator[None]:
    """Draw two random orders instead of eight and noise once instead of twice; randomise maps of one document.

    Every check is made, on less of a sample; ``tests/attribution`` tests them with the numbers of the package.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(map_checks, "RANDOM_ORDERS", 2)
        patch.setattr(map_evaluator, "NOISE_DRAWS", 1)
        patch.setattr(explainer, "RANDOMISED", 1)
        yield
