"""Off a terminal a run says how far it is, and what attributions will cost."""

from __future__ import annotations

import re

import pytest
from support.host_command import Command

from medmllm_plugins.attribution import explainer
from medmllm_plugins.utils import progress


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line at once, and ever again: nothing here takes minutes."""
    for name, value in (("FIRST", 0.0), ("EVERY", 0.0), ("BEAT", 0.001)):
        monkeypatch.setattr(progress, name, value)


def test_a_run_says_how_far_it_is(command: Command, talkative: None) -> None:
    ended = command("--limit", "20")
    assert re.search(r"^medm_vl: \d+ of 20 documents \(\d+%\), ", ended.err, re.MULTILINE)
    assert re.search(r"^medm_vl: 20 documents done in ", ended.err, re.MULTILINE)


@pytest.mark.slow
def test_fitting_probes_says_how_far_it_is(command: Command, talkative: None) -> None:
    ended = command("--tasks", "med_probe_demo", "--limit", "400", "--batch_size", "64")
    assert re.search(r"^med_probe_demo: fitting probes: \d+ of \d+ sites", ended.err, re.MULTILINE), ended.err[-500:]


def test_the_log_says_what_attributions_cost(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def explain(self: explainer.Explainer, item: explainer.AttributionItem) -> None:
        self._first = (30.0, 1.0)

    monkeypatch.setattr(explainer.Explainer, "explain", explain)
    monkeypatch.setattr(explainer.Explainer, "finish", lambda self: None)
    ended = command("--tasks", "med_attr_demo:n=2", "--limit", "3")
    assert re.search(r"attributions take about .+ more for \d+ documents?, judged by the first", ended.out)
