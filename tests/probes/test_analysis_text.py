"""The text that ``medmllm diagnose`` prints."""

from __future__ import annotations

from support.run_folders import probes

from medmllm_plugins.probes.analysis_text import render
from medmllm_plugins.results.probe_records import ProbeAnalysis


def test_anchors_and_shortcuts_are_printed_with_their_figures() -> None:
    content = probes("med_probe_toy")
    content["anchors"]["not_run"] = {"positive": "volumes take no marks."}
    lines = [" ".join(line.split()) for line in render(ProbeAnalysis.from_dict(content)).splitlines()]
    assert "text 40 90.0 85.0 to 95.0 50.0 100.0 answered" in lines
    assert "No positive anchor: volumes take no marks." in lines
    assert "control.border 60.0 50.0 0.70" in lines
    assert "answers 100 80.0 55.0 +25.0 +20.0 to +30.0" in lines
    assert "scanner 2 60.0 55.0 to 65.0 0.0100 connector (mean) 90.0" in lines
    assert "all together - 65.0 60.0 to 70.0 0.0200 - -" in lines
    assert "Column 'site' is left out: expected at least two values." in lines and "Note: A note." in lines
    assert any("fidelity loss" in line and "+12.0 +7.0 to +17.0 0.30 0.97 supported" in line for line in lines)
