"""Yes/no answers about one finding."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medmllm_plugins.answers.yes_no import parse_finding

TABLE = yaml.safe_load((Path(__file__).parent / "read_by_hand.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("text", "status", "label"), TABLE["findings"])
def test_reads_as_a_person_does(text: str, status: str, label: str | None) -> None:
    answer = parse_finding(text, "pneumothorax", ("collapsed lung",))
    assert (answer.status, answer.label) == (status, label)


@given(st.text(max_size=200))
def test_any_text_is_read(text: str) -> None:
    answer = parse_finding(text, "pneumothorax")
    assert (answer.label is not None) == (answer.status == "parsed")
    assert answer.label in (None, "yes", "no")
