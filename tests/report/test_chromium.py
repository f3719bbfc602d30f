"""The page in a real browser: no error, no request to any host, and everything works with keys."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.run_folders import Folder, outcomes

from medmllm_plugins.report.report_files import write_report

pytestmark = pytest.mark.chromium

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find(*names: str) -> str:
    """Path of a program; a skip that names it where there is none."""
    result = next((path for name in names if (path := shutil.which(name))), None)
    if result is None:
        pytest.skip(f"no {names[0]} on this machine: apt-get install chromium chromium-driver")
    return result


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


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    chromium, chromedriver = find("chromium", "chromium-browser"), find("chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for item in (*OPTIONS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(item)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    try:
        yield driver
    finally:
        driver.quit()


def show(browser: Any, page: Path, width: int = 1280, *, dark: bool = False, media: str = "") -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
    browser.get(page.as_uri())


def requests(browser: Any, page: Path) -> list[str]:
    """Addresses that the page asked for; the browser's own first tab asks for parts of the browser."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    return [item["request"]["url"] for item in sent if item["documentURL"] == page.as_uri()]


def press(browser: Any, selector: str, *keys: str) -> None:
    """Focus an element as a keyboard does, and press keys."""
    from selenium.webdriver.common.by import By

    element = browser.find_element(By.CSS_SELECTOR, selector)
    browser.execute_script("arguments[0].focus()", element)
    element.send_keys(*keys)


def shown_cards(browser: Any) -> int:
    count: int = browser.execute_script(
        "return [...document.querySelectorAll('.card')].filter(one => one.offsetParent !== null).length"
    )
    return count


def test_it_loads_without_an_error_and_asks_no_host(browser: Any, page: Path) -> None:
    show(browser, page)
    asked = [url for url in requests(browser, page) if not url.startswith("data:")]
    assert asked == [page.as_uri()]
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.classList.contains('scripted')")
    assert browser.execute_script("return document.images.length") == 0, "a document's text became an image"
    assert browser.execute_script("return document.scripts.length") == 1


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_screen(browser: Any, page: Path, width: int, dark: bool, tmp_path: Path) -> None:
    show(browser, page, width, dark=dark)
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.save_screenshot(str(tmp_path / "screen.png"))
    back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    ink = browser.execute_script("return getComputedStyle(document.querySelector('figure svg text')).fill")
    light = [sum(map(int, item[4:-1].split(","))) > 382 for item in (back, ink)]
    assert light == ([False, True] if dark else [True, False]), (back, ink)


def test_numbers_in_tables_sort_by_keys(browser: Any, page: Path) -> None:
    show(browser, page)
    column = """
        const table = document.querySelector('#good table.sortable');
        const place = [...table.tHead.rows[0].cells].findIndex(one => one.textContent.trim() === 'Accuracy');
        return [place, [...table.tBodies[0].rows].map(row => row.cells[place].dataset.sort)];
    """
    place, _ = browser.execute_script(column)
    head = f"#good table.sortable thead th:nth-child({place + 1})"
    press(browser, f"{head} button", "\ue007")  # Enter
    down = [float(item) for item in browser.execute_script(column)[1]]
    assert down == sorted(down, reverse=True) and len(down) > 2
    press(browser, f"{head} button", " ")
    up = [float(item) for item in browser.execute_script(column)[1]]
    assert up == sorted(up)
    assert browser.execute_script(f"return document.querySelector('{head}').getAttribute('aria-sort')") == "ascending"


def test_filters_of_the_gallery(browser: Any, page: Path) -> None:
    show(browser, page)
    everything = shown_cards(browser)
    assert everything == 6 * 4 + 1 + 2 + 1
    press(browser, "[data-filter=method]", "occlusion")
    assert shown_cards(browser) == 4 and "4 of 28" in browser.execute_script("return count.textContent")
    press(browser, "[data-filter=layer]", "prompt")
    assert shown_cards(browser) == 2
    browser.execute_script(
        "for (const one of document.querySelectorAll('[data-filter]')) {"
        " one.value = ''; one.dispatchEvent(new Event('change')); }"
    )
    press(browser, "[data-filter=correct]", "wrong")
    misses = shown_cards(browser)
    assert 0 < misses < everything


def test_opacity_and_slices_by_keys(browser: Any, page: Path) -> None:
    show(browser, page)
    opacity = "return getComputedStyle(document.querySelector('.layer')).opacity"
    assert browser.execute_script(opacity) == "0.6"
    press(browser, "#opacity", "\ue010")  # End
    assert browser.execute_script(opacity) == "1"
    press(browser, "#opacity", "\ue011")  # Home
    assert browser.execute_script(opacity) == "0"
    boxes = (
        "return [...document.querySelector('input.slice').closest('.card').querySelectorAll('.pair svg')]"
        ".map(one => one.viewBox.baseVal.y / one.viewBox.baseVal.height)"
    )
    assert browser.execute_script(boxes) == [4, 4]
    press(browser, "input.slice", "\ue014")  # right arrow
    assert browser.execute_script(boxes) == [5, 5]
    assert browser.execute_script("return document.querySelector('.card output').textContent") == "6 of 8"


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
            .filter(one => !one.closest('#made') && one.getClientRects().length && one.textContent.includes('model-a'))
            .map(one => one.textContent + one.closest('section').id)
    """
    assert len(browser.execute_script(named)) > 10
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
        "return [...document.querySelectorAll('#answers tbody tr')].map(one => one.getBoundingClientRect().height)"
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

    assert browser.find_element(By.CSS_SELECTOR, ".verdict").is_displayed()
    assert not browser.find_element(By.ID, "filters").is_displayed()
    assert browser.find_element(By.CSS_SELECTOR, "#good table.sortable td").is_displayed()
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
    for (const tone of ['blue', 'green']) {
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
    edges = """
        const marks = [...document.querySelectorAll('#good figure [data-series="1"] use')];
        const head = [...document.querySelectorAll('#good table.sortable:first-of-type thead th')]
            .find(one => one.textContent.trim() === 'Accuracy');
        const cell = document.querySelector('#good table.sortable tbody').rows[0].cells[head.cellIndex];
        return [...marks, head, cell].map(one => one.getBoundingClientRect().right);
    """
    result = browser.execute_script(edges)
    assert len(result) > 3 and max(result) <= 375 - 16
    size = "return document.querySelector('#good figure svg text').getBoundingClientRect().height"
    assert browser.execute_script(size) > 8, "the words are too small to be read"


def test_names_of_rows_stay_while_a_table_is_scrolled(browser: Any, many: Path) -> None:
    show(browser, many, 375)
    stays = """
        return ['#good table.sortable', 'table.matrix'].map(one => {
            const table = document.querySelector(one), box = table.closest('.scroll');
            box.scrollLeft = 200;
            const name = table.tBodies[0].rows[0].cells[0].getBoundingClientRect();
            return [box.scrollLeft, name.left - box.getBoundingClientRect().left];
        })
    """
    for scrolled, left in browser.execute_script(stays):
        assert scrolled == 200 and 0 <= left < 2


@pytest.mark.parametrize(("width", "media"), [(1280, ""), (718, "print")])
def test_many_classes_are_seen_whole(browser: Any, many: Path, width: int, media: str) -> None:
    show(browser, many, width, media=media)
    boxes = """
        return [...document.querySelectorAll('#answers .matrix-box')].map(box => {
            const [outer, table] = [box, box.querySelector('table')].map(one => one.getBoundingClientRect());
            return [outer.left, outer.right, outer.top, outer.bottom, table.left, table.right];
        })
    """
    result = browser.execute_script(boxes)
    assert len(result) == 2
    for left, right, _, _, inner_left, inner_right in result:
        assert left <= inner_left and inner_right <= right and right <= width
    assert result[0][3] <= result[1][2], "they stand below each other"


def test_paper_shows_what_is_folded_on_the_screen(browser: Any, page: Path) -> None:
    show(browser, page)
    closed = "return document.querySelectorAll('details:not([open], .whole, .screen)').length"
    before = browser.execute_script(closed)
    assert before > 0
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script(closed) == 0
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(closed) == before
    show(browser, page, media="print")  # without the script's help
    assert browser.execute_script(closed) == before
    heights = """
        return [...document.querySelectorAll('details:not([open], .whole, .screen) > .scroll')]
            .map(one => one.checkVisibility({contentVisibilityAuto: true}) ? one.getBoundingClientRect().height : 0)
    """
    assert min(browser.execute_script(heights)) > 20
    content = """
        return [...document.querySelectorAll('details.whole, details.screen')]
            .map(one => getComputedStyle(one.querySelector('summary'), '::after').content)
    """
    assert all("not printed" in item for item in browser.execute_script(content))


def test_colours_of_attributions_have_a_key(browser: Any, page: Path) -> None:
    show(browser, page)
    browser.execute_script("document.querySelector('.card .key').scrollIntoView({behavior: 'instant'})")
    bar = "return getComputedStyle(document.querySelector('.card .key .bar')).backgroundImage"
    result = browser.execute_script(bar)
    assert result.startswith("linear-gradient(to right, rgb(127, 59, 8)") and result.endswith("rgb(45, 0, 75))")
    said = browser.execute_script("return document.querySelector('.card .key').innerText").split()
    assert said == ["−0.500", "against", "0.500", "for"]


def test_a_name_turns_no_sentence_around(browser: Any, tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes(count=20), dataset="toy\u202e set")
    write_report([made.folder], tmp_path / "report.html")
    show(browser, tmp_path / "report.html")
    turned = """
        const words = document.querySelector('.verdict').firstChild, box = document.createRange();
        const left = place => {
            box.setStart(words, place);
            box.setEnd(words, place + 1);
            return box.getBoundingClientRect().left;
        };
        const start = words.data.indexOf('model-a');
        return left(start) < left(start + 3);
    """
    assert browser.execute_script(turned)
