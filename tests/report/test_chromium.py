"""The page in a real browser: no error, no request to any host, and everything works with keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.browser import press, requests, show
from support.run_folders import Folder, outcomes

from medmllm_plugins.report.report_files import write_report

pytestmark = pytest.mark.chromium

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chromium")
    made = Folder(root / "a")
    made.answers("med_cls_toy", outcomes(), said=[EVIL, "x" * 1_000_000, "hm"])
    made.answers("med_probe_toy", outcomes()).probes("med_probe_toy")
    made.answers("med_cls_toy:image=blank", outcomes(skill=0, seed=5), image="blank")
    made.attributions("med_attr_toy", documents=6, answer=EVIL)
    made.attributions("med_attr_toy3d", documents=2, slices=8, methods=("occlusion",), layers=("pixels",))
    other = Folder(root / "b", "model-b").answers("med_probe_toy", outcomes(seed=4, skill=1)).probes("med_probe_toy")
    baseline = Folder(root / "c", "baseline pixels", baseline="pixels").answers(
        "med_cls_toy", outcomes(skill=3, seed=9)
    )
    write_report([made.folder, other.folder, baseline.folder], root / "report.html")
    return root / "report.html"


def test_it_loads_without_an_error_and_asks_no_host(browser: Any, page: Path) -> None:
    show(browser, page)
    asked = [url for url in requests(browser, page) if not url.startswith("data:")]
    assert asked == [page.as_uri()]
    # BokehJS notes how long it took, as information.
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
    assert browser.execute_script("return document.documentElement.classList.contains('scripted')")
    sources = "return [...document.images].map(item => item.getAttribute('src') || 'data:')"
    assert all(source.startswith("data:") for source in browser.execute_script(sources)), "a text became an image"
    run = "return [...document.scripts].filter(item => item.type !== 'application/json').length"
    assert browser.execute_script(run) == 2, "BokehJS and our own"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_screen(browser: Any, page: Path, width: int, dark: bool, tmp_path: Path) -> None:
    show(browser, page, width, dark=dark)
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.save_screenshot(str(tmp_path / "screen.png"))
    back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    ink = browser.execute_script("return getComputedStyle(document.querySelector('.headline')).color")
    light = [sum(map(int, item[4:-1].split(","))) > 382 for item in (back, ink)]
    assert light == ([False, True] if dark else [True, False]), (back, ink)


def test_numbers_in_tables_sort_by_keys(browser: Any, page: Path) -> None:
    show(browser, page)
    column = """
        const table = document.querySelector('#models table.sortable');
        const place = [...table.tHead.rows[0].cells].findIndex(one => one.textContent.trim() === 'Accuracy');
        return [place, [...table.tBodies[0].rows].map(row => row.cells[place].dataset.sort)];
    """
    place, _ = browser.execute_script(column)
    head = f"#models table.sortable thead th:nth-child({place + 1})"
    press(browser, f"{head} button", "\ue007")  # Enter
    down = [float(item) for item in browser.execute_script(column)[1]]
    assert down == sorted(down, reverse=True) and len(down) > 2
    press(browser, f"{head} button", " ")
    up = [float(item) for item in browser.execute_script(column)[1]]
    assert up == sorted(up)
    assert browser.execute_script(f"return document.querySelector('{head}').getAttribute('aria-sort')") == "ascending"


def test_models_are_hidden_everywhere(browser: Any, page: Path) -> None:
    show(browser, page)
    seen = """
        return [...document.querySelectorAll('[data-series="0"]')]
            .filter(one => getComputedStyle(one).display !== 'none').length
    """
    assert browser.execute_script(seen) > 10
    # How the runs were made is told of all.
    named = """
        return [...document.querySelectorAll('figure svg text, .matrix caption, .sortable th, .card dd')]
            .filter(one => !one.closest('#appendix') && one.getClientRects().length)
            .filter(one => one.textContent.includes('model-a'))
            .map(one => one.textContent + one.closest('section').id)
    """
    assert len(browser.execute_script(named)) > 4
    press(browser, "[data-shows='0']", " ")
    assert browser.execute_script(seen) == 0
    assert browser.execute_script(named) == []
    press(browser, "[data-shows='0']", " ")
    assert browser.execute_script(seen) > 10


def test_everything_can_be_reached_by_keys(browser: Any, page: Path) -> None:
    show(browser, page)
    wanted = browser.execute_script(
        "return [...document.querySelectorAll('a[href], button, input, select, summary, [tabindex]')]"
        ".filter(one => one.tabIndex < 0).length"
    )
    assert wanted == 0
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys("\ue004").perform()  # Tab
    assert browser.execute_script("return document.activeElement.className") == "skip"


def test_a_huge_answer_is_cut_and_the_whole_folded_away(browser: Any, page: Path) -> None:
    show(browser, page)
    heights = browser.execute_script(
        "document.querySelectorAll('#appendix details:not(.whole)').forEach(item => item.open = true);"
        "return [...document.querySelectorAll('#appendix tbody tr')].map(item => item.getBoundingClientRect().height)"
    )
    assert heights and max(heights) < 400
    words = browser.execute_script(
        "return [...document.querySelectorAll('details.whole pre')].map(one => one.textContent.length)"
    )
    assert max(words) == 100_000
    assert browser.execute_script(f"return document.body.textContent.includes({json.dumps(EVIL)})")


def test_it_reads_without_script_and_prints(browser: Any, page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    show(browser, page)
    from selenium.webdriver.common.by import By

    assert browser.find_element(By.CSS_SELECTOR, ".headline").is_displayed()
    assert not browser.find_element(By.ID, "filters").is_displayed()
    assert browser.find_element(By.CSS_SELECTOR, "#models table.sortable td").is_displayed()
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    assert len(printed["data"]) > 50_000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two models of 18 classes with long names, one of which is nearly always right."""
    root = tmp_path_factory.mktemp("many")
    labels = [f"a long name of class {place:02d}" for place in range(18)]
    folders = []
    for turn, skill in enumerate((1.0, 9.0)):
        made = Folder(root / str(turn), f"model-{turn}")
        made.answers("med_cls_toy", outcomes(count=360, labels=labels, skill=skill, seed=turn), labels=labels)
        folders.append(made.probes("med_probe_toy", layers=4, seed=turn).folder)
    write_report(folders, root / "many.html")
    return root / "many.html"


CONTRAST = """
    const context = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
    const linear = one => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4;
    const light = (...layers) => {
        for (const layer of layers) { context.fillStyle = layer; context.fillRect(0, 0, 1, 1); }
        const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map(one => linear(one / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const worst = [];
    for (const tone of ['plain']) {
        const cell = document.querySelector(`.matrix.${tone} td`);
        const card = getComputedStyle(cell.closest('.matrix-box')).backgroundColor;
        for (let share = 0; share <= 100; share += 0.5) {
            cell.style.setProperty('--share', `${share}%`);
            const style = getComputedStyle(cell);
            const [back, ink] = [light(card, style.backgroundColor), light(card, style.color)];
            worst.push((Math.max(back, ink) + 0.05) / (Math.min(back, ink) + 0.05));
        }
    }
    return Math.min(...worst);
"""


@pytest.mark.parametrize(("dark", "media"), [(False, ""), (True, ""), (True, "print")])
def test_counts_can_be_read_on_every_shade(browser: Any, page: Path, dark: bool, media: str) -> None:
    show(browser, page, dark=dark, media=media)
    assert browser.execute_script(CONTRAST) >= 4.5


def test_a_phone_shows_the_result_at_once(browser: Any, many: Path) -> None:
    show(browser, many, 375)
    browser.execute_script("document.querySelector('.headline').scrollIntoView()")
    edges = """
        return ['.headline', '#answer .interactive', '#answer pre'].map(
            item => document.querySelector(item).getBoundingClientRect()).map(box => [box.left, box.right]);
    """
    for left, right in browser.execute_script(edges):
        assert 0 <= left < right <= 375


def test_names_of_rows_stay_while_a_table_is_scrolled(browser: Any, many: Path) -> None:
    show(browser, many, 375)
    stays = """
        return ['#models table.sortable'].map(one => {
            const table = document.querySelector(one), box = table.closest('.scroll');
            box.scrollLeft = 200;
            const name = table.tBodies[0].rows[0].cells[0].getBoundingClientRect();
            return [box.scrollLeft, name.left - box.getBoundingClientRect().left];
        })
    """
    for scrolled, left in browser.execute_script(stays):
        assert scrolled == 200 and 0 <= left < 2


def test_paper_says_what_it_leaves_out(browser: Any, page: Path) -> None:
    show(browser, page, media="print")
    content = """
        return [...document.querySelectorAll('details:not([open])')].filter(item => item.getClientRects().length)
            .map(item => getComputedStyle(item.querySelector('summary'), '::after').content)
    """
    notes = browser.execute_script(content)
    assert len(notes) > 5 and all("not printed" in note for note in notes)
    drawn = """
        return [...document.querySelectorAll('.has-interactive')].filter(item => item.getClientRects().length)
            .map(item => [item.querySelector('.interactive'), item.querySelector('.plot svg')])
            .map(([live, still]) => [getComputedStyle(live).display, still.getClientRects().length])
    """
    figures = browser.execute_script(drawn)
    assert len(figures) > 2 and all(live == "none" and static == 1 for live, static in figures)


def test_a_name_turns_no_sentence_around(browser: Any, tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes(count=20), dataset="toy\u202e set")
    write_report([made.folder], tmp_path / "report.html")
    show(browser, tmp_path / "report.html")
    turned = """
        const words = document.querySelector(".headline").firstChild, box = document.createRange();
        const left = place => {
            box.setStart(words, place);
            box.setEnd(words, place + 1);
            return box.getBoundingClientRect().left;
        };
        const start = words.data.indexOf('model-a');
        return left(start) < left(start + 3);
    """
    assert browser.execute_script(turned)
