"""Paired tests against scipy, hand-computed values and simulations."""

import json
import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.results.comparison import compare, compare_runs, holm, mcnemar, render, sign_flip
from medmllm_plugins.results.outcome_files import write_outcomes


def outcomes(right, group=lambda i: i):
    truth = ["ab"[i % 2] for i in range(len(right))]
    other = {"a": "b", "b": "a"}
    return [
        Outcome(f"d{i}", f"g{group(i)}", t, t if hit else other[t], "parsed")
        for i, (t, hit) in enumerate(zip(truth, right, strict=True))
    ]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("pair", [(0, 0), (1, 0), (3, 9), (12, 12), (0, 24)])
def test_mcnemar_is_exact_where_few_differ(pair):
    expected = stats.binomtest(pair[0], sum(pair)).pvalue if sum(pair) else 1.0
    assert mcnemar(*pair) == pytest.approx(expected)


@pytest.mark.parametrize("pair", [(10, 15), (40, 20), (25, 25)])
def test_mcnemar_is_chi_square_where_many_differ(pair):
    chi = max(0, abs(pair[0] - pair[1]) - 1) ** 2 / sum(pair)
    assert mcnemar(*pair) == pytest.approx(stats.chi2.sf(chi, 1))


def test_sign_flips_are_exact_for_few_groups():
    # Of eight sign patterns of (1, 1, 1) two have a sum of at least 3 away from zero.
    assert sign_flip(np.array([1.0, 1.0, 1.0])) == pytest.approx(2 / 8)
    assert sign_flip(np.array([2.0, -1.0])) == pytest.approx(1.0)
    assert sign_flip(np.zeros(4)) == 1.0


def test_random_flips_come_near_the_exact_value():
    parts = np.array([1.0] * 14 + [-1.0] * 4)
    assert sign_flip(parts) == pytest.approx(stats.binomtest(4, 18).pvalue, abs=0.01)


def test_differences_by_hand():
    first, second = outcomes([1, 1, 0, 0, 0, 1, 0, 1]), outcomes([1, 1, 1, 1, 0, 1, 1, 0])
    result = compare(first, second, resamples=200)
    assert (result.first, result.second) == (0.5, 0.75)
    assert result.accuracy.value == pytest.approx(0.25) and result.discordant == (1, 3)
    assert result.accuracy.low <= 0.25 <= result.accuracy.high
    assert result.balanced.value == pytest.approx(0.25)
    back = compare(second, first, resamples=200)
    assert back.accuracy.value == -result.accuracy.value and back.p == result.p


def test_groups_that_hang_together_are_no_proof():
    """Forty documents of three patients: the clustered test cannot be sure, and McNemar's does not apply."""
    first, second = outcomes([0] * 40, lambda i: i % 3), outcomes([1] * 40, lambda i: i % 3)
    result = compare(first, second, resamples=50)
    assert math.isnan(result.p_mcnemar) and result.p == pytest.approx(0.25)
    assert result.to_dict()["p_mcnemar"] is None and render([result]).split()[-1] == "-"
    alone = compare(outcomes([0] * 40), outcomes([1] * 40), resamples=50)
    assert alone.p_mcnemar < 1e-6


def test_the_clustered_test_keeps_its_level():
    generator = np.random.default_rng(0)
    naive = clustered = 0
    for _ in range(200):
        effect = np.repeat(generator.integers(-1, 2, size=30), 8)  # all documents of a patient go one way
        first, second = (effect < 0).astype(int), (effect > 0).astype(int)
        sums = np.add.reduceat((second - first).astype(float), np.arange(0, 240, 8))
        clustered += sign_flip(sums, seed=1) < 0.05
        naive += mcnemar(int(first.sum()), int(second.sum())) < 0.05
    assert clustered <= 20 < naive


def test_other_rows_or_labels_are_an_error():
    with pytest.raises(DataError, match=r"1 in one of them only: 'd3'"):
        compare(outcomes([1, 1, 1]), outcomes([1, 1, 1, 1]))
    with pytest.raises(DataError, match="same labels and groups"):
        compare(outcomes([1, 1]), outcomes([1, 1], lambda i: i + 1))


def run_folder(folder, tasks, fingerprint="f"):
    folder.mkdir()
    content = {
        task: {
            "settings": {"dataset": task},
            "dataset_fingerprint": fingerprint,
            "overlaps": {"breast": "same images"},
        }
        for task in tasks
    }
    (folder / "manifest.json").write_text(json.dumps({"tasks": content}))
    for task, right in tasks.items():
        write_outcomes(folder / f"{task}.outcomes.jsonl", outcomes(right))
    return folder


def test_run_folders(tmp_path):
    first = run_folder(tmp_path / "a", {"breast": [0] * 6, "busi": [0, 1] * 5, "only_here": [1]})
    second = run_folder(tmp_path / "b", {"breast": [1] * 6, "busi": [1, 0] * 5})
    compared, warnings = compare_runs(first, second)
    assert [item.task for item in compared] == ["breast", "busi"]
    assert [item.p for item in compared] == pytest.approx([2 / 64, 1.0])
    assert compared[0].p_holm == pytest.approx(4 / 64)
    assert any("busi and breast share images" in warning for warning in warnings)
    table = render(compared).splitlines()
    assert len(table) == 3 and "+100.0 points" in table[1]
    assert json.dumps([item.to_dict() for item in compared], allow_nan=False)


def test_run_folders_of_other_data(tmp_path):
    first = run_folder(tmp_path / "a", {"t": [1, 0]})
    with pytest.raises(DataError, match="another dataset_fingerprint"):
        compare_runs(first, run_folder(tmp_path / "b", {"t": [1, 0]}, fingerprint="other"))
    with pytest.raises(DataError, match="task in common"):
        compare_runs(first, run_folder(tmp_path / "c", {"u": [1, 0]}))


def test_sign_flips_of_many_groups_stay_within_memory():
    """In one array 10,000 flips of 2,000 groups take 320 MB; the parts draw the same signs."""
    parts = np.random.default_rng(0).normal(0.05, 1, size=2000)
    tracemalloc.start()
    try:
        p = sign_flip(parts, seed=3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40e6
    generator = np.random.default_rng(3)
    observed = abs(parts.sum()) - 1e-9
    extreme = sum(abs((generator.integers(0, 2, size=2000) * 2.0 - 1) @ parts) >= observed for _ in range(10_000))
    assert p == (1 + extreme) / 10_001
