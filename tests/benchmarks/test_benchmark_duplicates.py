"""The benchmark of near-duplicates: both sides find the same pairs, and a difference stops it."""

import pytest

from benchmarks import duplicates
from medmllm_plugins.data.core.duplicates import near_duplicates
from medmllm_plugins.errors import ModelError


def test_both_sides_find_the_copies_of_made_up_scans():
    pictures = duplicates.scans(200)
    expected, pairs = duplicates.all_pairs(pictures), near_duplicates(pictures)
    duplicates.check(expected, pairs)
    same_patient = pairs[:, 0] // duplicates.COPIES == pairs[:, 1] // duplicates.COPIES
    assert len(pairs) > 500 and same_patient.mean() > 0.9
    with pytest.raises(ModelError, match="same pairs"):
        duplicates.check(expected, pairs[::2])
