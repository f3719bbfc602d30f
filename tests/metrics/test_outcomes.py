"""An outcome survives JSON and refuses what contradicts itself."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.outcomes import STATUSES, Outcome

_text = st.text(max_size=12)
_scores = st.none() | st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5).map(tuple)


@settings(max_examples=100)
@given(_text, _text, _text, st.none() | _text, st.sampled_from(STATUSES[1:]), _scores)
def test_round_trip_through_json(identifier, group, label, predicted, unparsed, scores):
    status = unparsed if predicted is None else "parsed"
    outcome = Outcome(identifier, group, label, predicted, status, scores)
    again = Outcome.from_dict(json.loads(json.dumps(outcome.to_dict(), allow_nan=False)))
    assert again == outcome
    assert hash(again) == hash(outcome)


@pytest.mark.parametrize(
    ("predicted", "status", "scores", "words"),
    [
        ("benign", "guessed", None, "'guessed'"),
        (None, "parsed", None, "predicted=None"),
        ("benign", "refusal", None, "predicted='benign'"),
        ("benign", "parsed", (0.0, math.nan), "finite"),
        ("benign", "parsed", (0.0, -math.inf), "float32"),
    ],
)
def test_contradictions_name_the_document(predicted, status, scores, words):
    with pytest.raises(DataError, match="Document 'a7'") as raised:
        Outcome("a7", "g", "benign", predicted, status, scores)
    assert words in str(raised.value)


def test_missing_keys_are_named():
    with pytest.raises(DataError, match=r"\['group', 'status'\]"):
        Outcome.from_dict({"id": "a", "label": "x", "predicted": None})
