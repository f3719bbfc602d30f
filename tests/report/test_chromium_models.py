"""Models, probabilities and robustness in a real browser: figures are drawn, models hide, nothing is wider than it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.browser import press, show, violations
from support.run_folders import Folder, outcomes

from medmllm_plugins.report.report_files import write_report

pytestmark = pytest.mark.chromium

SECTIONS = ("models", "probabilities", "robustness")
SCOPE = ":is(#models, #probabilities, #robustness)"
DEEP = """
    const svgs = root => [...root.querySelectorAll('*')].flatMap(item =>
        [...(item.tagName === 'svg' ? [item] : []), ...(item.shadowRoot ? svgs(item.shadowRoot) : [])]);
    const figures = [...document.querySelectorAll(arguments[0] + ' .interactive')]
        .filter(item => !item.closest('details:not([open])'));
"""
"""Bokeh draws inside shadow trees."""
DRAWN = f"{DEEP} return [figures.length, figures.filter(item => svgs(item).length).length];"
WORDS = """
    return [...document.querySelectorAll(arguments[0] + ' .interactive')].map(item => {
        const texts = [];
        for (const model of Bokeh.documents.flatMap(doc => [...doc.all_models]))
            if (model.type === 'GlyphRenderer' && model.glyph.type === 'Text' && model.visible)
                texts.push(...model.data_source.data.text);
        return texts;
    })[0];
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    folders = []
    for seed, name in enumerate(("model-a", "model-b")):
        rows = outcomes(seed=seed, skill=1 + seed)
        made = Folder(root / name, name).answers("med_cls_toy", rows, positive="malignant")
        made.answers("med_cls_toy:image=blank", outcomes(skill=0, seed=5 + seed), image="blank")
        made.answers("med_cls_toy_letter", outcomes(seed=8 + seed), protocol="letter")
        varied = [row for turn in range(3) for row in outcomes(seed=turn, variant=f"order {turn}")]
        made.answers("med_cls_toy:order=varied", varied, order="varied")
        columns = {row.document or "": {"scanner": "AB"[index % 2]} for index, row in enumerate(rows)}
        made.folds([(row.document or "", row.group, "test") for row in rows], columns)
        folders.append(made.folder)
    write_report(folders, root / "report.html")
    return root / "report.html"


def draw_all(browser: Any) -> None:
    """Scroll to each figure of the three sections that is shown, until it is drawn."""
    from selenium.webdriver.support.wait import WebDriverWait

    count, _ = browser.execute_script(DRAWN, SCOPE)
    assert count >= 6
    for index in range(count):
        browser.execute_script(f"{DEEP} figures[arguments[1]].scrollIntoView({{behavior: 'instant'}});", SCOPE, index)
        ready = f"{DEEP} return svgs(figures[arguments[1]]).length;"
        WebDriverWait(browser, 30).until(
            lambda driver, script=ready, at=index: bool(driver.execute_script(script, SCOPE, at))
        )


@pytest.mark.parametrize("width", [1440, 1024, 375])
def test_figures_are_drawn_whole_and_nothing_is_wider_than_the_page(browser: Any, page: Path, width: int) -> None:
    show(browser, page, width)
    draw_all(browser)
    browser.execute_script("document.querySelectorAll('main details').forEach(item => item.open = true)")
    draw_all(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    too_wide = f"""{DEEP}
        return figures.filter(item => {{
            const svg = svgs(item)[0].getBoundingClientRect(), card = item.closest('figure').getBoundingClientRect();
            return svg.left < card.left || svg.right > card.right || svg.width < 0.6 * card.width;
        }}).length;
    """
    assert browser.execute_script(too_wide, SCOPE) == 0
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def test_three_figures_on_probabilities_stand_in_a_row(browser: Any, page: Path) -> None:
    show(browser, page, 1440)
    draw_all(browser)
    tops = browser.execute_script(
        "return [...document.querySelectorAll('#probabilities > .trio > figure .interactive')]"
        ".map(item => Math.round(item.getBoundingClientRect().top + scrollY))"
    )
    assert len(tops) == 3 and len(set(tops)) == 1


def test_the_three_sections_fit_their_budget(browser: Any, page: Path) -> None:
    show(browser, page, 1440)
    draw_all(browser)
    heights = browser.execute_script(
        "return arguments[0].map(name => document.getElementById(name).getBoundingClientRect().height)", SECTIONS
    )
    # The fixture has subgroups, too, which stand beside the changed questions.
    assert sum(heights) <= 2.2 * 900, heights


def test_a_hidden_model_leaves_figures_and_tables(browser: Any, page: Path) -> None:
    show(browser, page, 1440)
    draw_all(browser)
    assert any("model-a" in word for word in browser.execute_script(WORDS, SCOPE))
    rows = "return [...document.querySelectorAll('#models tbody tr[data-series=\"0\"]')].map(row => row.offsetHeight)"
    assert any(browser.execute_script(rows))
    press(browser, "[data-shows='0']", " ")
    words = browser.execute_script(WORDS, SCOPE)
    assert not any("model-a" in word for word in words) and any("model-b" in word for word in words)
    assert not any(browser.execute_script(rows))
    press(browser, "[data-shows='0']", " ")
    assert any("model-a" in word for word in browser.execute_script(WORDS, SCOPE))


def test_a_wide_table_says_that_it_scrolls_until_its_end(browser: Any, page: Path) -> None:
    show(browser, page, 375)
    state = """
        const box = document.querySelector('#models .scroll:has(table)');
        box.scrollLeft = arguments[0];
        return new Promise(done => setTimeout(() => done([
            box.classList.contains('overflows'), getComputedStyle(box.nextElementSibling).display]), 300));
    """
    assert browser.execute_script(state, 0) == [True, "block"]
    assert browser.execute_script(state, 10_000) == [False, "none"]
    show(browser, page, 1440)
    assert browser.execute_script(state, 0) == [False, "none"], "it fits"


def test_static_figures_without_script(browser: Any, page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    show(browser, page, 375)
    from selenium.webdriver.common.by import By

    plots = browser.find_elements(By.CSS_SELECTOR, f"{SCOPE} figure > .plot svg")
    shown = [plot for plot in plots if plot.is_displayed()]
    assert len(shown) >= 6 and all(plot.size["width"] > 250 for plot in shown)
    assert not any(item.is_displayed() for item in browser.find_elements(By.CSS_SELECTOR, f"{SCOPE} .interactive"))


@pytest.mark.parametrize("dark", [False, True])
def test_the_sections_are_accessible(browser: Any, page: Path, dark: bool) -> None:
    show(browser, page, 1440, dark=dark)
    draw_all(browser)
    named = [item for item in violations(browser) if any(f"#{section}" in item for section in SECTIONS)]
    assert named == []
