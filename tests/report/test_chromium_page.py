"""The page as a whole in a real browser: accessibility, size, widths, and the bar."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from support.browser import press, show, violations
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


def test_two_models_fit_eight_screens_ten_sheets_and_three_megabytes(browser: Any, page: Path) -> None:
    show(browser, page, 1440)
    assert browser.execute_script("return document.documentElement.scrollHeight") <= 8 * 900
    printed = browser.execute_cdp_cmd(
        "Page.printToPDF", {"printBackground": True, "paperWidth": 8.27, "paperHeight": 11.69}
    )
    assert len(re.findall(rb"/Type\s*/Page\b", base64.b64decode(printed["data"]))) <= 10
    assert page.stat().st_size < 3_000_000


@pytest.mark.parametrize("width", [1440, 1024, 720, 375])
def test_nothing_is_cut_at_any_width(browser: Any, page: Path, width: int) -> None:
    show(browser, page, width)  # 720 pixels are a window of 1,440 at 200% zoom
    browser.execute_script("document.querySelectorAll('main details').forEach(item => item.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    outside = """
        return [...document.querySelectorAll('.interactive, .headline, .chip')].filter(item => {
            const box = item.getBoundingClientRect();
            return item.getClientRects().length && (box.left < 0 || box.right > innerWidth);
        }).map(item => item.className + item.textContent.slice(0, 40))
    """
    assert browser.execute_script(outside) == []


def test_the_bar_stays_and_an_address_keeps_its_choices(browser: Any, page: Path) -> None:
    show(browser, page, 1440)
    browser.execute_script("document.querySelector('#layers').scrollIntoView()")
    assert browser.execute_script("return document.querySelector('.top-bar').getBoundingClientRect().top") == 0
    press(browser, "[data-shows='1']", " ")
    address = browser.execute_script("return location.href")
    assert "hide=1" in address
    browser.get("about:blank")
    browser.get(address)
    hidden = (
        "return [...document.querySelectorAll('[data-series=\"1\"]')].every(item => item.classList.contains('off'))"
    )
    assert browser.execute_script(hidden)
    assert not browser.execute_script("return document.querySelector(\"[data-shows='1']\").checked")
