"""Means, spread and flips over variants, hand-computed and against the single summaries."""

import numpy as np
import pytest

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.prompt_variants import summarise_variants
from medmllm_plugins.metrics.summary import summarise
from medmllm_plugins.results.metric_files import write_metrics

LABELS = ("a", "b")


def rows(variant, answers):
    truth = ["a", "a", "b", "b"]
    return [
        Outcome(
            f"d{i} | {variant}",
            f"g{i // 2}",
            truth[i],
            answer,
            "parsed" if answer else "refusal",
            variant=variant,
            document=f"d{i}",
        )
        for i, answer in enumerate(answers)
    ]


def test_hand_computed():
    outcomes = rows("order 0", ["a", "a", "b", "b"]) + rows("order 1", ["a", "b", "b", None])
    orders = {"order 0": ("a", "b"), "order 1": ("b", "a")}
    summary = summarise_variants(outcomes, LABELS, None, orders=orders, resamples=50)
    assert summary.metrics["accuracy"].value == pytest.approx((1.0 + 0.5) / 2)
    assert summary.metrics["spread"].value == pytest.approx(0.25)
    assert summary.metrics["flips"].value == pytest.approx(0.5)
    assert summary.metrics["parsed"].value == pytest.approx(7 / 8)
    assert summary.positions == {"order 0": (0.5, 0.5), "order 1": pytest.approx((2 / 3, 1 / 3))}
    assert (summary.n, summary.n_groups) == (8, 2)
    assert "from 50.0% to 100.0%" in summary.headline()


def test_the_mean_is_that_of_the_single_summaries(tmp_path):
    generator = np.random.default_rng(0)
    outcomes = []
    for variant in ("x", "y", "z"):
        for i in range(60):
            scores = tuple(generator.normal(size=2))
            answer = LABELS[int(np.argmax(scores))]
            outcomes.append(
                Outcome(f"{i} {variant}", f"g{i % 20}", LABELS[i % 2], answer, "parsed", scores, None, variant, str(i))
            )
    summary = summarise_variants(outcomes, LABELS, "b", resamples=100)
    for name in ("accuracy", "balanced", "macro_f1", "mcc", "auroc"):
        single = [
            summarise([o for o in outcomes if o.variant == variant], LABELS, "b", resamples=10).metrics[name].value
            for variant in ("x", "y", "z")
        ]
        assert summary.metrics[name].value == pytest.approx(np.mean(single))
        assert summary.metrics[name].low <= summary.metrics[name].value <= summary.metrics[name].high
    table = write_metrics(tmp_path, "t", summary)[2].read_text().splitlines()
    assert [line.split(",")[0] for line in table] == ["variant", "x", "y", "z"]


def test_a_document_that_lacks_a_variant_is_an_error():
    with pytest.raises(DataError, match=r"once in each variant.*--limit"):
        summarise_variants(rows("x", ["a"] * 4) + rows("y", ["a"] * 3), LABELS, None)
