"""The page as a whole in a real browser: accessibility."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.browser import show, violations
from support.run_folders import Folder, outcomes

from medmllm_plugins.report.report_files import write_report

pytestmark = pytest.mark.chromium


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    made = Folder(root / "a")
    made.answers("med_probe_toy", outcomes()).probes("med_probe_toy")
    made.answers("med_cls_toy:image=blank", outcomes(skill=0, seed=5), image="blank")
    made.attributions("med_attr_toy", documents=6)
    other = Folder(root / "b", "model-b").answers("med_probe_toy", outcomes(seed=4, skill=1)).probes("med_probe_toy")
    baseline = Folder(root / "c", "baseline pixels", baseline="pixels").answers(
        "med_cls_toy", outcomes(skill=3, seed=9)
    )
    write_report([made.folder, other.folder, baseline.folder], root / "report.html")
    return root / "report.html"


@pytest.mark.parametrize("width", [1440, 375])
@pytest.mark.parametrize("dark", [False, True])
def test_no_accessibility_violation(browser: Any, page: Path, width: int, dark: bool) -> None:
    show(browser, page, width, dark=dark)
    assert violations(browser) == []
    browser.execute_script("document.querySelectorAll('details').forEach(item => item.open = true)")
    assert violations(browser) == []
