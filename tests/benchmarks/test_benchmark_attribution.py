"""The benchmark ``attribution``: both sides compute the same, and a difference is caught."""

from __future__ import annotations

import pytest
import torch

from benchmarks import attribution
from benchmarks.record import Settings
from medmllm_plugins.errors import ModelError


def test_both_sides_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribution, "LAYERS", ("vision.02", "connector"))
    monkeypatch.setattr(attribution, "STEPS", 3)
    monkeypatch.setattr(attribution, "IMAGES", 1)
    record = attribution.run(Settings(name="attribution", device="cpu", size=None, repeats=1))
    assert record.details["layers"] == 2 and record.comparison.ratio > 0


def test_a_difference_is_caught() -> None:
    one = [{"path connector": torch.tensor([1.0, 2.0])}]
    attribution.check(one, [{"path connector": torch.tensor([1.0, 2.001])}])
    with pytest.raises(ModelError, match="path connector"):
        attribution.check(one, [{"path connector": torch.tensor([1.0, 2.1])}])
