"""The sides of the benchmark ``bootstrap`` compute the same, and are caught when they do not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks import bootstrap
from medmllm_plugins.errors import ModelError
from medmllm_plugins.metrics.intervals import Estimate


def test_both_sides_agree_and_a_fault_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "DOCUMENTS", 400)
    monkeypatch.setattr(bootstrap, "GROUPS", 120)
    rows = bootstrap.outcomes()
    summary = bootstrap.at_once(rows)
    bootstrap.check(rows, summary)
    drawn = bootstrap.loop(rows, draws=300)
    for name in bootstrap.METRICS:
        estimate = summary.metrics[name]
        low, high = np.quantile(drawn[name], [0.025, 0.975])
        width = estimate.high - estimate.low
        assert abs(low - estimate.low) < 0.25 * width and abs(high - estimate.high) < 0.25 * width
    wrong = dataclasses.replace(summary, metrics={**summary.metrics, "auroc": Estimate(0.1, 0.0, 0.2)})
    with pytest.raises(ModelError, match="found auroc"):
        bootstrap.check(rows, wrong)
