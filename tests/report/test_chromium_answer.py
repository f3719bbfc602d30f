"""The first screen in a real browser: it fits, every chip leads to its evidence, commands are copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.browser import press, show
from support.run_folders import Folder, outcomes

from medmllm_plugins.report.report_files import write_report

pytestmark = pytest.mark.chromium

ARGUMENTS = "pretrained=hub/a-checkpoint-with-a-long-name"


def full(folder: Path, name: str, seed: int) -> Folder:
    """A run with all that the first screen shows."""
    made = Folder(folder, name)
    made.manifest["command"]["model_args"] = ARGUMENTS
    made.write()
    made.answers("med_probe_demo", outcomes(seed=seed), dataset="demo").probes("med_probe_demo")
    made.answers("med_cls_demo:image=blank", outcomes(skill=0, seed=5), image="blank", dataset="demo")
    rows = [row for variant in "AB" for row in outcomes(seed=ord(variant), variant=variant)]
    made.answers("med_cls_demo:order=varied", rows, order="varied", dataset="demo")
    made.answers("med_cls_demo:paraphrase=all", rows, paraphrase="all", dataset="demo")
    return made.attributions("med_attr_demo", documents=2)


def write(root: Path, *folders: Folder) -> Path:
    for folder in folders:
        for task in folder.manifest["tasks"]:
            folder.tell(task, dataset="demo")
    write_report([folder.folder for folder in folders], root / "report.html")
    return root / "report.html"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("one")
    return write(root, full(root / "a", "model-a", 0))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    useless = [row for row in outcomes(skill=0, seed=9)]
    baseline = Folder(root / "c", "baseline pixels", baseline="pixels").answers("med_cls_demo", useless)
    return write(root, full(root / "a", "model-a", 0), full(root / "b", "another model", 4), baseline)


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_first_screen_fits(browser: Any, name: str, request: pytest.FixtureRequest) -> None:
    show(browser, request.getfixturevalue(name), 1440)
    bottoms = browser.execute_script(
        "return ['.headline', '.trust', '.first-screen figure', '.first-screen .next-step']"
        ".map(item => document.querySelector(item).getBoundingClientRect().bottom)"
    )
    assert min(bottoms) > 0 and max(bottoms) <= 900, bottoms
    top = browser.execute_script("return document.querySelector('.headline').getBoundingClientRect().top")
    assert top >= browser.execute_script("return document.querySelector('.top-bar').getBoundingClientRect().bottom")
    assert len(browser.execute_script("return document.querySelector('.headline').textContent").split()) <= 25 + 4
    assert browser.execute_script("return document.querySelector('.first-screen .interactive').childElementCount") == 1


@pytest.mark.parametrize("width", [1440, 375])
def test_every_chip_leads_to_its_evidence(browser: Any, two: Path, width: int) -> None:
    show(browser, two, width)
    count = browser.execute_script("return document.querySelectorAll('a.trust-chip').length")
    assert count >= 10
    for index in range(count):
        for _ in range(2):  # again where the address is that already
            browser.execute_script(
                "document.querySelectorAll('#answer ~ section details').forEach(d => d.open = false)"
            )
            browser.execute_script(f"document.querySelectorAll('a.trust-chip')[{index}].click()")
            browser.execute_async_script("setTimeout(arguments[0], 60)")
            seen = browser.execute_script(
                f"const chip = document.querySelectorAll('a.trust-chip')[{index}];"
                "const target = document.getElementById(decodeURIComponent(chip.hash.slice(1)));"
                "return [chip.hash, target !== null && target.checkVisibility(),"
                " target?.tagName !== 'DETAILS' || target.open, target?.getBoundingClientRect().height > 20]"
            )
            assert seen[1:] == [True, True, True], seen


def test_a_useless_reference_is_not_compared_with(browser: Any, two: Path) -> None:
    show(browser, two, 1440)
    said = browser.execute_script("return document.getElementById('answer').textContent")
    assert "reference no better than guessing: not used" in said
    assert "above the reference" not in said and "than the pixel baseline" not in said
    assert "it is not used as a reference" in " ".join(said.split())


def test_a_limit_is_on_the_first_screen(browser: Any, tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").answers("med_cls_demo", outcomes(count=64), documents=480, questions=480)
    made.manifest["command"]["limit"] = 64.0
    show(browser, write(tmp_path, made), 1440)
    chip = browser.execute_script(
        "const chip = document.querySelector('.trust-chip'), box = chip.getBoundingClientRect();"
        "return [chip.innerText.trim(), chip.classList.contains('caution'), box.top >= 0 && box.bottom <= 900]"
    )
    assert chip[0].endswith("first 64 of 480 images only") and chip[1:] == [True, True]
    assert "the first 64 of 480 images" in browser.execute_script(
        "return document.querySelector('.headline').innerText"
    )


@pytest.mark.parametrize("allowed", [True, False])
def test_a_command_is_copied(browser: Any, one: Path, allowed: bool) -> None:
    show(browser, one, 1440)
    line = browser.execute_script("return document.querySelector('.line').textContent")
    assert line.startswith("medmllm repair med_cls_demo --model model-a --model_args ") and "  " not in line
    browser.execute_script(
        "navigator.clipboard.writeText = async text => { if (!arguments[0]) throw new Error(); window.copied = text; }",
        allowed,
    )
    press(browser, ".copy", "\ue007")  # Enter
    browser.execute_async_script("setTimeout(arguments[0], 60)")
    copied = browser.execute_script("return window.copied ?? getSelection().toString()")
    assert copied.replace("\n", "") == line
    said = browser.execute_script("return document.getElementById('copy-status').textContent")
    assert said == ("Copied" if allowed else "Selected: copy it with the keyboard")


def test_a_phone_shows_the_strip_whole(browser: Any, two: Path) -> None:
    show(browser, two, 375)
    browser.execute_async_script("setTimeout(arguments[0], 500)")
    box = browser.execute_script(
        "const box = item => item.getBoundingClientRect();"
        "const plot = document.querySelector('.first-screen .interactive');"
        "return [box(plot).left, box(plot.firstElementChild).left, box(plot.firstElementChild).right, box(plot).right,"
        " box(document.querySelector('.first-screen figure')).right]"
    )
    assert box == sorted(box) and box[-1] <= 375, box
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 375


def test_without_script_the_strip_is_there_and_no_button(browser: Any, one: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    show(browser, one, 1440)
    from selenium.webdriver.common.by import By

    assert browser.find_element(By.CSS_SELECTOR, ".first-screen .plot svg").is_displayed()
    assert not browser.find_element(By.CSS_SELECTOR, ".copy").is_displayed()
    assert browser.find_element(By.CSS_SELECTOR, ".line").is_displayed()
