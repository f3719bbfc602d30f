"""The envelope: what goes in comes out, and whatever else is text."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medmllm_plugins.host.envelope import VERSION, pack, unpack
from medmllm_plugins.runtime.journal import Reply

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def envelope(**changes: Any) -> str:
    """An envelope as another model might have written it: ours, with changes."""
    return json.dumps({"medmllm": VERSION, "text": "benign", "scores": [-1.0, -2.0], **changes})


@given(st.text(), st.none() | st.lists(FINITE, max_size=8).map(tuple))
@example('{"medmllm": 1, "text": "nested", "scores": null}', (-1.5,))
@example('"\\\n\t\x00 {}', (-0.0, 5e-324, -sys.float_info.max, sys.float_info.max))
@example("", None)
def test_round_trip(text: str, scores: tuple[float, ...] | None) -> None:
    packed = pack(Reply(text, scores))
    assert unpack(packed) == Reply(text, scores)
    # The response cache and the samples file store it as text, on one line.
    assert "\n" not in packed
    assert json.loads(packed) == {"medmllm": VERSION, "text": text, "scores": scores if scores is None else [*scores]}


@given(st.text())
@example("benign")
@example("")
@example(" " + envelope())
@example(envelope() + " ")
@example("[" + envelope() + "]")
@example('{"text": "benign", "medmllm": 1, "scores": null}')
@example('{"medmllm"')
def test_any_other_text_is_itself(text: str) -> None:
    reply = unpack(text)
    assert reply.text == text or text.strip() == envelope()
    if text.strip() != envelope():
        assert reply.scores is None


@pytest.mark.parametrize(
    "response",
    [
        envelope(medmllm=2),
        envelope(medmllm=0),
        envelope(medmllm="1"),
        envelope(medmllm=None),
        envelope(medmllm=[1]),
        envelope(text=None),
        envelope(text=5),
        envelope(text=["benign"]),
        envelope(text={"text": "benign"}),
        '{"medmllm": 1, "scores": null}',
        '{"medmllm": 1}',
        '{"medmllm": 1, "text": "benign", "scores": null',
        '{"medmllm": 1, "text": "benign", "scores": null} and more',
        '{"medmllm": 1, "text": "benign", "scores": [1,]}',
    ],
)
def test_what_merely_looks_alike_is_text(response: str) -> None:
    assert unpack(response) == Reply(response)


@pytest.mark.parametrize(
    "response",
    [
        envelope(scores=5),
        envelope(scores="12"),
        envelope(scores={"1": 2}),
        envelope(scores=["x"]),
        envelope(scores=[None]),
        envelope(scores=[[1.0]]),
        envelope(scores=[True, False]),
        envelope(scores=["1.5"]),
        # Whole numbers that no float can hold, and that int() refuses to read.
        '{"medmllm": 1, "text": "benign", "scores": [' + "9" * 400 + "]}",
        '{"medmllm": 1, "text": "benign", "scores": [' + "9" * 5000 + "]}",
        '{"medmllm": ' + "[" * 100_000,
        '{"medmllm": true, "text": "benign", "scores": null}',
        '{"medmllm": 1, "text": "benign"}',
    ],
    ids=lambda response: response[:60],
)
def test_scores_that_are_no_scores_make_it_text(response: str) -> None:
    """The host would try a raising document five times and then stop the whole evaluation."""
    assert unpack(response) == Reply(response)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300)
@given(JSON, JSON, JSON)
@example(VERSION, "benign", [[1.0]])
def test_no_json_makes_it_raise(version: Any, text: Any, scores: Any) -> None:
    response = json.dumps({"medmllm": version, "text": text, "scores": scores})
    reply = unpack(response)
    assert isinstance(reply.text, str)
    if version != VERSION or not isinstance(text, str):
        assert reply == Reply(response)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_overflow_of_our_own_model_is_not_hidden(score: float) -> None:
    """It must reach the scoring, which says what to do; as text it would pass for an odd answer."""
    reply = unpack(pack(Reply("benign", (score, -1.0))))
    assert reply.text == "benign"
    assert reply.scores is not None and repr(reply.scores[0]) == repr(score)
