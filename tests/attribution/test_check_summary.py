"""Summary of the checks over documents: means, intervals, and which checks fail."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from medmllm_plugins.attribution.checks.check_summary import format_summary, summarise_checks
from medmllm_plugins.attribution.checks.map_checks import (
    Removal,
    document_seed,
    importance_order,
    is_constant,
    map_similarity,
)
from medmllm_plugins.attribution.maps import AttributionMap
from medmllm_plugins.results.attribution_files import write_table
from medmllm_plugins.results.attribution_records import (
    RANDOMISATION_LEVELS,
    AttributionEntry,
    AttributionIndex,
    AttributionSummary,
    MapChecks,
    ProcessCascade,
)

torch.set_num_threads(1)


def summarise(entries: Sequence[dict[str, Any]], cascades: Sequence[dict[str, Any]]) -> Any:
    return summarise_checks(
        [AttributionEntry.from_dict(entry) for entry in entries],
        [ProcessCascade.from_dict(cascade) for cascade in cascades],
    )


def csv_lines(*rows: AttributionSummary) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checks.csv")
        write_table(path, rows)
        return path.read_text(encoding="utf-8").splitlines()


def text_of(row: AttributionSummary) -> str:
    return format_summary(AttributionIndex.from_dict({"medmllm_attributions": 1, "summary": [row.to_dict()]}))


def fake(batch: int) -> Any:
    return SimpleNamespace(batch=batch, loaded=SimpleNamespace(device=torch.device("cpu")))


def lesions(documents: int) -> list[tuple[str, Any, Any]]:
    """Documents of 8 x 8 patches whose target hangs on four of them, all in the upper half: name, patches, function."""
    rng, entries = np.random.default_rng(7), []
    for number in range(documents):
        row, column = rng.integers(0, 3), rng.integers(0, 7)
        own = [8 * (row + down) + column + across for down in (0, 1) for across in (0, 1)]
        entries.append((f"d{number}", own, lambda keep, own=own: torch.sigmoid(8 * keep.double()[:, own].mean(1) - 4)))
    return entries


def judged(values: Any, documents: int = 24) -> Any:
    """What the summary says of a method: ``values`` makes a map of a document's number and of its lesion's patches."""
    entries = []
    for number, (name, own, probability) in enumerate(lesions(documents)):
        removal = Removal(fake(100), probability, 64, document_seed(name))
        said = values(number, own)
        deletion, insertion = removal.areas(importance_order(said, document_seed(name)))
        checks = MapChecks(
            deletion=deletion,
            deletion_random=removal.random,
            insertion=insertion,
            insertion_random=removal.random,
            flat=is_constant(said),
        )
        entries.append({"method": "m", "layer": "l", "group": name, "hit": True, "checks": checks.to_dict()})
    (row,) = summarise(entries, [])
    return row


DELETION, INSERTION = "deletion no better than a random order", "insertion no better than a random order"


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_a_constant_map_fails(value: float) -> None:
    """Neither as it is, nor as painting leaves it: with the last digits rounded."""
    for rounding in (0.0, 1e-15):
        row = judged(lambda number, own, tiny=rounding: value + value * tiny * np.arange(64.0)[::-1])
        assert list(row.failed) == ["constant for 24 of 24 documents: all values are equal", DELETION, INSERTION]
        assert abs(row.deletion_gain.value) < 0.05


def test_maps_of_noise_have_no_gain() -> None:
    rows = [
        judged(lambda number, own, seed=seed: np.random.default_rng([seed, number]).random(64)) for seed in range(8)
    ]
    assert abs(np.mean([row.deletion_gain.value for row in rows])) < 0.01
    assert sum(list(row.failed) == [DELETION, INSERTION] for row in rows) >= 6


def test_a_map_of_the_lesion_passes() -> None:
    row = judged(lambda number, own: np.isin(np.arange(64), own).astype(float))
    assert list(row.failed) == [] and row.flat == 0 and row.deletion_gain.value > 0.3


def test_documents_with_a_constant_map_are_counted() -> None:
    row = judged(lambda number, own: np.isin(np.arange(64), own) * float(number > 2))
    assert list(row.failed) == ["constant for 3 of 24 documents: all values are equal"]


def entry(group: str, **more: Any) -> dict[str, Any]:
    return {"method": "m", "layer": "l", "group": group, "hit": True, "checks": {**MapChecks().to_dict(), **more}}


def level(
    name: str, similarity: float, documents: int = 1, shape: float | None = 0.5, sizes: float = 0.0
) -> dict[str, Any]:
    both = {"similarity": similarity, "absolute_similarity": sizes}
    return {"randomised": name, **both, "structural_similarity": shape, "documents": documents}


def good(gain: float = 0.2) -> dict[str, Any]:
    return {
        "completeness_gap": 0.01,
        "deletion": 0.4,
        "deletion_random": 0.4 + gain,
        "insertion": 0.6 + gain,
        "insertion_random": 0.6,
        "stability": 0.9,
        "inside": 0.7,
        "area": 0.1,
        "pointing": True,
    }


def test_a_good_method_fails_nothing() -> None:
    entries = [entry("a", **good(0.2)), entry("b", **good(0.3)), entry("b", **good(0.1)), entry("c", **good(0.2))]
    entries.append({**entry("z"), "method": "other"})
    (row, other) = summarise(
        entries, [{"method": "m", "layer": "l", "levels": [level("head", 0.9), level("tower", 0.1)]}]
    )
    assert (row.method, row.layer, row.n, row.failed) == ("m", "l", 4, ())
    assert row.deletion_gain.value == pytest.approx(0.2) == row.insertion_gain.value
    assert 0.1 <= row.deletion_gain.low <= 0.2 <= row.deletion_gain.high <= 0.3
    assert row.inside.value == pytest.approx(0.7) and row.area == pytest.approx(0.1)
    assert row.pointing.value == 1
    assert [level.similarity for level in row.randomisation] == [0.9, 0.1]
    assert list(row.unchecked) == [] and row.trusted
    assert other.n == 1 and other.deletion_gain is None and other.failed == ()
    header, first, second = csv_lines(row, other)
    assert len(header.split(",")) == len(first.split(",")) == len(second.split(","))
    assert dict(zip(header.split(","), first.split(","), strict=True))["survives"] == "0.1"


def test_a_missing_check_is_not_passed() -> None:
    (row,) = summarise([entry("a", **good()), entry("b", **good())], [])
    assert list(row.failed) == [] and list(row.unchecked) == ["randomisation"] and not row.trusted
    assert text_of(row).endswith("  randomisation not checked")
    header, line = csv_lines(row)
    assert header.endswith(",failed,unchecked") and line.endswith(",,randomisation")
    (row,) = summarise([entry("a")], [{"method": "m", "layer": "l", "levels": [level("tower", 0.1)]}])
    assert list(row.unchecked) == ["deletion", "insertion", "stability"] and not row.trusted


def test_a_bad_method_fails_every_check() -> None:
    bad = good(-0.1) | {"completeness_gap": 0.4, "stability": 0.2, "inside": 0.1, "area": 0.2}
    entries = [entry("a", **bad), entry("b", **bad)]
    randomised = [{"method": "m", "layer": "l", "levels": [level("head", 0.1), level("tower", 0.8)]}]
    (row,) = summarise(entries, randomised)
    assert list(row.failed) == [
        "incomplete: the sum misses 40% of the difference; use more steps",
        "deletion no better than a random order",
        "insertion no better than a random order",
        "survives shuffled weights: rank correlation 0.80",
        "unstable: rank correlation 0.20 under 5% noise",
        "no more inside the lesion than its share of the picture",
    ]


def test_maps_whose_absolute_values_survive_fail_despite_random_signs() -> None:
    """A map of edges, whose signs the weights toss: as it is, it is like no other; in size it stays the same."""
    rng = np.random.default_rng(0)
    edges = np.eye(32).repeat(2, 0).repeat(2, 1)[None] + rng.random((1, 64, 64)) / 9
    signs = [rng.choice([-1.0, 1.0], edges.shape) for _ in range(2)]
    old, new = (AttributionMap("l", edges.ravel() * sign.ravel(), edges * sign, None, None) for sign in signs)
    similarity = map_similarity([(old, new), (new, old)])
    assert abs(similarity["similarity"]) < 0.1 and similarity["absolute_similarity"] == pytest.approx(1)
    assert similarity["documents"] == 2 and similarity["structural_similarity"] < 0.5
    randomised = [{"method": "m", "layer": "l", "levels": [level("head", 0.9), {"randomised": "tower"} | similarity]}]
    (row,) = summarise([entry("a", **good()), entry("b", **good())], randomised)
    assert list(row.failed) == ["survives shuffled weights: rank correlation of absolute values 1.00"]
    header, line = csv_lines(row)
    assert float(dict(zip(header.split(","), line.split(","), strict=True))["survives"]) == pytest.approx(1)


def test_at_the_prompt_words_are_compared_and_image_tokens_are_not() -> None:
    words = np.arange(60) >= 50
    first, second = (np.where(words, np.resize(order, 60), 0.0) for order in (np.arange(1, 11), np.arange(10, 0, -1)))
    old, new = (AttributionMap("prompt", values, None, values, None, words=words) for values in (first, second))
    assert map_similarity([(old, new)])["similarity"] == pytest.approx(-1)
    plain_old, plain_new = (AttributionMap("prompt", values, None, values, None) for values in (first, second))
    assert map_similarity([(plain_old, plain_new)])["similarity"] > 0.5, "what 50 zeros would make of it"


def test_one_group_is_no_evidence() -> None:
    (row,) = summarise([entry("a", **good()), entry("a", **good())], [])
    assert np.isnan(row.deletion_gain.low)
    assert list(row.failed) == [
        "deletion no better than a random order (one group, so no interval)",
        "insertion no better than a random order (one group, so no interval)",
        "no more inside the lesion than its share of the picture (one group, so no interval)",
    ]


def test_a_gain_whose_interval_contains_zero_fails() -> None:
    (row,) = summarise([entry(str(place), **good(gain)) for place, gain in enumerate((0.3, -0.2, 0.2, -0.1))], [])
    assert row.deletion_gain.low < 0 < row.deletion_gain.value
    assert list(row.failed) == ["deletion no better than a random order", "insertion no better than a random order"]


def test_inside_is_given_for_hits_and_errors() -> None:
    """An error's map explains another class than the lesion's, and may lie elsewhere."""
    entries = [entry("a", **good()), entry("b", **good())]
    entries += [{**entry(group, **(good() | {"inside": 0.3})), "hit": False} for group in "cd"]
    (row,) = summarise(entries, [])
    assert [getattr(row, name).value for name in ("inside", "inside_hits", "inside_errors")] == pytest.approx(
        [0.5, 0.7, 0.3]
    )
    header, line = csv_lines(row)
    columns = dict(zip(header.split(","), line.split(","), strict=True))
    assert (float(columns["inside_hits"]), float(columns["inside_errors"])) == pytest.approx((0.7, 0.3))
    head, said = text_of(row).splitlines()
    assert head.split("  inside  ")[1].split()[:2] == ["hits", "errors"] and "0.50    0.70  0.30" in said
    assert summarise(entries[:2], [])[0].inside_errors is None


def test_bootstrap_resamples_whole_groups() -> None:
    values = {"a": [0.1, 0.3], "b": [0.5], "c": [0.2, 0.2, 0.2]}
    entries = [entry(group, stability=value) for group, several in values.items() for value in several]
    (row,) = summarise(entries, [])
    drawn = np.random.default_rng(0).integers(0, 3, (2000, 3))
    sums, counts = np.array([0.4, 0.5, 0.6]), np.array([2, 1, 3])
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    assert row.stability.to_dict() == {
        "value": pytest.approx(0.25),
        "low": pytest.approx(low, abs=1e-5),
        "high": pytest.approx(high, abs=1e-5),
    }


def test_levels_are_means_over_processes_weighted_by_documents() -> None:
    randomised = [
        {"method": "m", "layer": "l", "levels": [level("head", 0.2, 1), level("tower", 0.0, 1, None)]},
        {"method": "m", "layer": "l", "levels": [level("head", 0.6, 3, 0.9, 0.4), level("tower", 0.4, 3)]},
        {"method": "other", "layer": "l", "levels": [level("head", 1.0, 9)]},
    ]
    (row,) = summarise([entry("a")], randomised)
    assert [level.to_dict() for level in row.randomisation] == [
        {
            "randomised": "head",
            "similarity": pytest.approx(0.5),
            "absolute_similarity": pytest.approx(0.3),
            "structural_similarity": pytest.approx(0.8),
        },
        {
            "randomised": "tower",
            "similarity": pytest.approx(0.3),
            "absolute_similarity": 0.0,
            "structural_similarity": None,
        },
    ]


def test_an_incomplete_cascade_is_a_missing_check() -> None:
    entries = [entry("a", **good(0.2)), entry("b", **good(0.3)), entry("c", **good(0.2))]
    (row,) = summarise(entries, [{"method": "m", "layer": "l", "levels": [level("head", 0.9), level("LLM", 0.1)]}])
    assert "randomisation" in row.unchecked and not row.trusted
    # Another process lacks a level in the middle: the order is the cascade's all the same.
    parts = [
        [level("head", 0.9), level("tower", 0.1)],
        [level(name, 0.9) for name in RANDOMISATION_LEVELS[:-1]] + [level("tower", 0.1)],
    ]
    (row,) = summarise(entries, [{"method": "m", "layer": "l", "levels": levels} for levels in parts])
    assert [level.randomised for level in row.randomisation] == list(RANDOMISATION_LEVELS)
    assert list(row.failed) == [] and row.trusted
