"""The error browser and the maps in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.browser import press, requests, show, violations
from support.run_folders import FINDINGS, LABELS, Folder, findings, outcomes
from support.toy_layout import fingerprint, toy_spec

from medmllm_plugins.report import run_collection
from medmllm_plugins.report.report_files import write_report

pytestmark = pytest.mark.chromium

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"
RTL = "\u05d0\u05d1\u05d2 normal?"
LEFT, RIGHT, ESCAPE, ENTER, TAB = "\ue012", "\ue014", "\ue00c", "\ue007", "\ue004"
COUNT = 60
ASKED = "USER: <image> What is it? <b>"
THUMBS = "return [...document.querySelectorAll('.thumb')].map(item => item.getAttribute('aria-label'))"
STATUS = "return document.querySelector('.browse-status').textContent"
TITLE = "return document.getElementById('document').open && document.getElementById('document-title').textContent"
PROMPTS = "return [...document.querySelectorAll('.document-facts > details > pre')].map(item => item.textContent)"
PICTURE = """
    const box = document.querySelector('.document-picture svg').viewBox.baseVal;
    const image = document.querySelector(document.querySelector('.document-picture use').getAttribute('href'));
    return [box.y, box.width, box.height, image.getAttribute('href').slice(0, 23), image.getBBox().height];
"""


def write(root: Path, dimensions: int) -> Path:
    """A page of two models; the first has other orders, a blank image and maps."""
    with pytest.MonkeyPatch.context() as patch:
        spec = toy_spec(dimensions=dimensions, count=COUNT)
        patch.setattr(run_collection, "dataset_specs", lambda: {"toy": spec})
        view = {"slices": 4, "montage": True, "plane": "axial", "window": None} if dimensions == 3 else None
        facts: dict[str, Any] = {"dataset_fingerprint": fingerprint(spec), "view": view}
        made = Folder(root / "a")
        made.answers("med_cls_toy", outcomes(count=COUNT), said=[EVIL, RTL, "long " * 2_000], prompt=ASKED, **facts)
        made.answers(
            "med_cls_toy:image=blank", outcomes(count=COUNT, skill=0, seed=5), image="blank", said=[EVIL], **facts
        )
        made.attributions("med_attr_toy", documents=8, labels=LABELS)
        other = Folder(root / "b", "model-b").answers("med_cls_toy", outcomes(count=COUNT, seed=4, skill=0.5), **facts)
        write_report([made.folder, other.folder], root / "report.html")
    return root / "report.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("errors"), 2)


@pytest.fixture
def quiet(browser: Any) -> Iterator[Any]:
    """A browser whose console must stay empty."""
    yield browser
    assert browser.get_log("browser") == []


def click(browser: Any, selector: str) -> None:
    from selenium.webdriver.common.by import By

    element = browser.find_element(By.CSS_SELECTOR, selector)
    # At once, since the page scrolls smoothly and would move the element away from under the pointer.
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", element)
    element.click()


def keys(browser: Any, *pressed: str) -> None:
    """Press keys where the focus is."""
    browser.switch_to.active_element.send_keys(*pressed)


def test_the_worst_error_is_two_clicks_from_the_headline(quiet: Any, page: Path) -> None:
    show(quiet, page, 1440)
    click(quiet, ".top-bar a[href='#errors']")
    labels = quiet.execute_script(THUMBS)
    shares = [float(label.split("wrong, ")[1].removeprefix("> ").split("%")[0]) for label in labels if "%" in label]
    assert shares == sorted(shares, reverse=True) and len(shares) > 5
    click(quiet, ".thumb")
    assert labels[0].startswith(quiet.execute_script(TITLE) + ":")
    assert quiet.execute_script(PICTURE) == [0, 512, 384, "data:image/webp;base64,", 384]
    assert "640 × 480 pixels, shown at 512 × 384" in quiet.execute_script(
        "return document.querySelector('.document-picture').textContent"
    )
    assert [url for url in requests(quiet, page) if not url.startswith("data:")] == [page.as_uri()]


def test_everything_by_keys(quiet: Any, page: Path) -> None:
    show(quiet, page, 1440)
    press(quiet, ".thumb", ENTER)
    first = quiet.execute_script(TITLE)
    assert first and quiet.execute_script("return document.activeElement.matches('[data-close]')")
    keys(quiet, RIGHT)
    second = quiet.execute_script(TITLE)
    assert second not in (False, first)
    assert quiet.execute_script("return document.querySelector('.document-position').textContent").startswith("2 of ")
    keys(quiet, LEFT)
    assert quiet.execute_script(TITLE) == first
    keys(quiet, RIGHT)
    for _ in range(30):  # the focus stays in the dialog, apart from the browser's own bar
        keys(quiet, TAB)
        assert quiet.execute_script("return !!document.activeElement.closest('#document, body:not(:focus-within)')")
    keys(quiet, ESCAPE)
    assert quiet.execute_script(TITLE) is False
    focused = quiet.execute_script("return document.activeElement.getAttribute('aria-label')")
    assert focused.startswith(f"{second}:"), "the focus returns to the document that was shown last"


def test_cells_filter_the_thumbnails(quiet: Any, page: Path) -> None:
    show(quiet, page, 1440)
    cell = ".confusion-box.chosen [data-cell='0,1']"
    count = int(quiet.execute_script(f'return document.querySelector("{cell} b").textContent'))
    press(quiet, cell, ENTER)
    assert quiet.execute_script(f"return document.querySelector(\"{cell}\").getAttribute('aria-pressed')") == "true"
    labels = quiet.execute_script(THUMBS)
    assert len(labels) == count > 0
    assert all("true class benign, answered malignant, wrong" in label for label in labels)
    assert quiet.execute_script(STATUS).startswith(f"{count} of {COUNT} documents")
    press(quiet, ".confusion-box.chosen [data-cell='2,2']", " ")
    labels = quiet.execute_script(THUMBS)
    assert labels and all("true class normal, answered normal, correct" in label for label in labels)
    press(quiet, ".confusion-box.chosen [data-cell='2,-1']", ENTER)
    labels = quiet.execute_script(THUMBS)
    assert labels and all("answered unreadable, wrong" in label for label in labels)
    press(quiet, ".confusion-box.chosen [data-cell='2,-1']", ENTER)
    pressed = "return document.querySelectorAll('.confusion [aria-pressed=true]').length"
    assert quiet.execute_script(pressed) == 0


def test_an_address_opens_the_same_view(quiet: Any, page: Path) -> None:
    show(quiet, page, 1440)
    click(quiet, ".top-bar a[href='#errors']")
    press(quiet, ".browse-models label:nth-of-type(2) input", " ")
    press(quiet, "[data-filter-by=label]", "malignant")
    press(quiet, "[data-filter-by=from]", "40")
    press(quiet, "[data-filter-by=correct]", " ")
    press(quiet, ".thumb", ENTER)
    keys(quiet, RIGHT)
    before = [quiet.execute_script(item) for item in (THUMBS, STATUS, TITLE)]
    assert before[2] and "malignant" in before[0][0]
    address = quiet.execute_script("return location.href")
    assert "#errors?" in address and "doc=" in address
    quiet.get("about:blank")
    quiet.get(address)
    assert [quiet.execute_script(item) for item in (THUMBS, STATUS, TITLE)] == before
    chosen = "return document.querySelector('.confusion-box.chosen').dataset.model"
    assert quiet.execute_script(chosen) == "1"
    keys(quiet, ESCAPE)
    assert "doc=" not in quiet.execute_script("return location.href")
    click(quiet, "[data-clear]")
    assert "label=" not in quiet.execute_script("return location.href")


def test_search_group_and_all_models_wrong(quiet: Any, page: Path) -> None:
    show(quiet, page, 1440)
    everything = len(
        quiet.execute_script("return JSON.parse(document.querySelector('.error-browser script').text).questions")
    )
    assert everything == COUNT
    errors = int(quiet.execute_script(STATUS).split()[0])
    press(quiet, "[data-filter-by=all-wrong]", " ")
    both = int(quiet.execute_script(STATUS).split()[0])
    assert 0 < both < errors
    click(quiet, "[data-clear]")
    press(quiet, "[data-filter-by=find]", "ONERROR")
    found = int(quiet.execute_script(STATUS).split()[0])
    assert 0 < found < errors
    click(quiet, "[data-clear]")
    press(quiet, "[data-filter-by=correct]", " ")
    press(quiet, "[data-filter-by=group]", "patient-7")
    assert quiet.execute_script(STATUS).startswith("2 of ")


def test_hidden_models_are_hidden_here_too(quiet: Any, page: Path) -> None:
    show(quiet, page, 1440)
    press(quiet, "[data-shows='0']", " ")
    assert quiet.execute_script("return document.querySelector('.confusion-box.chosen').dataset.model") == "1"
    press(quiet, ".thumb", ENTER)
    text = quiet.execute_script("return document.querySelector('.document-facts').textContent")
    assert "model-b" in text and "model-a" not in text


def test_hostile_texts_stay_texts(quiet: Any, page: Path) -> None:
    show(quiet, page, 1440)
    quiet.execute_script("window.alert = () => { document.title = 'broken' }")
    press(quiet, "[data-filter-by=answer]", "unreadable")
    texts = []
    press(quiet, ".thumb", ENTER)
    for _ in range(8):
        texts += quiet.execute_script(
            "return [...document.querySelectorAll('.document-facts pre')].map(item => [item.textContent, item.dir])"
        )
        assert quiet.execute_script("return document.documentElement.scrollWidth") <= 1440
        keys(quiet, RIGHT)
    said = dict(texts)
    assert {EVIL, RTL} <= said.keys() and set(said.values()) == {"auto"}
    assert quiet.execute_script("return document.title") != "broken"
    assert quiet.execute_script("return document.images.length") == 0, "a document's text became an image"


def test_related_answers_and_prompt(quiet: Any, page: Path) -> None:
    show(quiet, page, 1440)
    press(quiet, ".thumb", ENTER)
    text = quiet.execute_script("return document.querySelector('.document-facts').innerText")
    assert "Asked otherwise: " in text and "blank image" in text and "Answer, word for word" in text
    bars = quiet.execute_script(
        "return [...document.querySelector('.bars').querySelectorAll('.fill')].map(bar => parseFloat(bar.style.width))"
    )
    assert len(bars) == 3 and sum(bars) == pytest.approx(100, abs=0.1)
    assert quiet.execute_script(PROMPTS) == [ASKED]


def test_the_prompt_is_that_of_the_finding(quiet: Any, tmp_path: Path) -> None:
    made = Folder(tmp_path / "a")
    prompts = {name: f"Is there {name.lower()}?" for name in FINDINGS}
    made.multilabel("med_cls_findings", findings(count=8), prompt="the first", prompts=prompts)
    write_report([made.folder], tmp_path / "report.html")
    show(quiet, tmp_path / "report.html", 1440)
    press(quiet, ".thumb", ENTER)
    shown = []
    for _ in range(6):
        finding = str(quiet.execute_script(TITLE)).split()[-1]
        assert quiet.execute_script(PROMPTS) == [prompts[finding]]
        shown.append(finding)
        keys(quiet, RIGHT)
    assert len(set(shown)) > 1


def test_slices_of_volumes(browser: Any, tmp_path: Path) -> None:
    show(browser, write(tmp_path, 3), 1440)
    press(browser, ".thumb", ENTER)
    assert browser.execute_script(PICTURE) == [80, 40, 40, "data:image/webp;base64,", 160]
    press(browser, ".document-picture input[type=range]", RIGHT)
    assert browser.execute_script(PICTURE)[0] == 120
    assert browser.execute_script("return document.querySelector('.document-picture output').textContent") == "4 of 4"
    assert browser.execute_script(TITLE), "the arrow moved the slice, not the document"
    assert browser.get_log("browser") == []


def test_maps_open_the_dialog_of_their_document(quiet: Any, page: Path) -> None:
    show(quiet, page, 1440)
    press(quiet, ".card .open-document", ENTER)
    assert quiet.execute_script(TITLE) == "doc-00000"
    opacity = "return getComputedStyle(document.querySelector('.document-picture .layer')).opacity"
    assert quiet.execute_script(opacity) == "0.6"
    press(quiet, ".document-picture input[type=range]", "\ue010")  # End
    assert quiet.execute_script(opacity) == "1"
    maps = "return [...document.querySelectorAll('.document-map option')].map(item => item.textContent)"
    assert quiet.execute_script(maps) == [
        "no map",
        *(f"{method} at {layer}, model-a (tiny)"
          for method in ("integrated gradients", "grad cam") for layer in ("pixels", "vision.05")),
        "occlusion at prompt, model-a (tiny)",
    ]  # fmt: skip
    press(quiet, ".document-map select", "no map")
    assert quiet.execute_script("return !document.querySelector('.document-picture .layer')")
    assert quiet.execute_script(PICTURE)[1:3] == [512, 384]
    keys(quiet, ESCAPE)
    assert quiet.execute_script("return !!document.activeElement.closest('.card')")


def test_the_gallery_shows_few_at_first(quiet: Any, page: Path) -> None:
    show(quiet, page, 1440)
    shown = "return [...document.querySelectorAll('.card')].filter(card => card.offsetParent !== null).length"
    assert quiet.execute_script(shown) == 24
    press(quiet, "#all-cards", ENTER)
    assert quiet.execute_script(shown) == 33
    press(quiet, "[data-filter=layer]", "prompt")
    assert quiet.execute_script(shown) == 1
    assert "map-layer=" in quiet.execute_script("return location.hash")


def test_for_and_against_have_one_colour_on_the_page(quiet: Any, page: Path) -> None:
    show(quiet, page, 1440)
    scale = "return getComputedStyle(document.querySelector('.map-legend .two-sided')).backgroundImage"
    colours = quiet.execute_script(scale)
    assert colours.startswith("linear-gradient(to right, rgb(127, 59, 8)") and colours.endswith("rgb(45, 0, 75))")
    words = """
        const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
        return ['for', 'against'].map(side => {
            canvas.clearRect(0, 0, 1, 1);
            canvas.fillStyle = getComputedStyle(document.querySelector(`.tokens .${side}`)).getPropertyValue('--map');
            canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data];
        });
    """
    (red, _, blue, _), (other_red, _, other_blue, _) = quiet.execute_script(words)
    assert blue > red and other_red > other_blue, "purple speaks for, orange against, as in the maps"
    series = quiet.execute_script(
        "const style = getComputedStyle(document.documentElement);"
        "return [0, 1, 2, 3, 4, 5].map(number => style.getPropertyValue(`--series-${number}`).trim())"
    )
    own = quiet.execute_script(
        "const style = getComputedStyle(document.documentElement);"
        "return ['--map-for', '--map-against'].map(name => style.getPropertyValue(name).trim())"
    )
    assert not set(own) & set(series)


def test_checks_are_told_in_words(quiet: Any, page: Path) -> None:
    show(quiet, page, 1440)
    cells = quiet.execute_script(
        "return [...document.querySelectorAll('.map-checks tbody td')].map(cell => cell.innerText)"
    )
    assert any(cell.startswith("✓ pass") for cell in cells) and any(cell.startswith("✗ fail") for cell in cells)
    assert any(cell.startswith("○ not made") for cell in cells)


@pytest.mark.parametrize("media", ["", "print"])
def test_without_script_and_in_print_the_worst_errors_are_listed(browser: Any, page: Path, media: str) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not media})
    show(browser, page, 1440 if not media else 718, media=media)
    from selenium.webdriver.common.by import By

    items = browser.find_elements(By.CSS_SELECTOR, ".worst-errors li")
    assert len(items) == 12 and all(item.is_displayed() for item in items)
    assert all(item.find_element(By.CSS_SELECTOR, "svg").size["width"] > 40 for item in items)
    assert "true class" in items[0].text and "answered" in items[0].text
    assert not browser.find_element(By.CSS_SELECTOR, ".browse-filters").is_displayed()
    assert all(box.is_displayed() for box in browser.find_elements(By.CSS_SELECTOR, ".confusion-box"))


@pytest.mark.parametrize("width", [1440, 900, 375])
def test_matrix_and_thumbnails_are_whole(quiet: Any, page: Path, width: int) -> None:
    show(quiet, page, width)
    matrix, first = quiet.execute_script(
        "return ['.confusion-box.chosen', '.thumbs'].map(name => {"
        " const box = document.querySelector(name).getBoundingClientRect();"
        " return [box.left, box.right, box.top, box.bottom]; })"
    )
    assert quiet.execute_script("return document.documentElement.scrollWidth") <= width
    assert max(matrix[1], first[1]) <= width
    assert matrix[1] <= first[0] if width == 1440 else matrix[3] <= first[2]
    press(quiet, ".thumb", ENTER)
    dialog = quiet.execute_script(
        "const box = document.getElementById('document'); return [box.scrollWidth, box.clientWidth, box.clientHeight]"
    )
    assert dialog[0] <= dialog[1] <= width and dialog[2] <= 900


@pytest.mark.parametrize("dark", [False, True])
def test_the_open_dialog_is_accessible(quiet: Any, page: Path, dark: bool) -> None:
    show(quiet, page, 1440, dark=dark)
    press(quiet, ".card .open-document", ENTER)
    assert violations(quiet) == []


def test_long_ids_and_codes_in_ids_survive_the_address(quiet: Any, tmp_path: Path) -> None:
    strange = ["a%41?&=#+é/" + "y" * 500, EVIL, "%", "\u202edoc"]
    rows = [replace(row, id=name, document=name) for row, name in zip(outcomes(skill=-3), strange, strict=False)]
    made = Folder(tmp_path / "a").answers("med_cls_toy", rows)
    write_report([made.folder], tmp_path / "report.html")
    show(quiet, tmp_path / "report.html", 1440)
    press(quiet, ".thumb", ENTER)
    for _ in range(4):
        title, address = quiet.execute_script(TITLE), quiet.execute_script("return location.href")
        quiet.get("about:blank")
        quiet.get(address)
        assert quiet.execute_script(TITLE) == title
        keys(quiet, RIGHT)
    assert json.dumps(title) and quiet.execute_script("return document.documentElement.scrollWidth") <= 1440


def test_opacity_of_the_gallery_and_slices_of_a_map(quiet: Any, tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes(count=COUNT))
    made.attributions("med_attr_toy", documents=2, slices=8, methods=("occlusion",), layers=("pixels",))
    write_report([made.folder], tmp_path / "report.html")
    show(quiet, tmp_path / "report.html", 1440)
    opacity = "return getComputedStyle(document.querySelector('.card .layer')).opacity"
    assert quiet.execute_script(opacity) == "0.6"
    press(quiet, "#opacity", "\ue011")  # Home
    assert quiet.execute_script(opacity) == "0"
    press(quiet, ".card .open-document", ENTER)
    slices = "const box = document.querySelector('.document-picture svg').viewBox.baseVal; return box.y / box.height"
    assert quiet.execute_script(slices) == 4
    press(quiet, ".document-picture input[type=range]", LEFT)
    assert quiet.execute_script(slices) == 3
    press(quiet, ".document-map select", "no map")  # the original, of which there are slices as well
    assert quiet.execute_script(slices) == 4


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two models of 18 classes with long names, one of which is nearly always right."""
    root = tmp_path_factory.mktemp("classes")
    labels = [f"a long name of class {number:02d}" for number in range(18)]
    folders = []
    for turn, skill in enumerate((1.0, 9.0)):
        made = Folder(root / str(turn), f"model-{turn}")
        rows = outcomes(count=360, labels=labels, skill=skill, seed=turn)
        folders.append(made.answers("med_cls_toy", rows, labels=labels).folder)
    write_report(folders, root / "many.html")
    return root / "many.html"


@pytest.mark.parametrize(("width", "media"), [(1280, ""), (718, "print")])
def test_many_classes_are_seen_whole(quiet: Any, many: Path, width: int, media: str) -> None:
    show(quiet, many, width, media=media)
    boxes = quiet.execute_script("""
        return [...document.querySelectorAll('.confusion-box')].filter(box => box.offsetParent).map(box => {
            const [outer, table] = [box, box.querySelector('table')].map(item => item.getBoundingClientRect());
            return [outer.left, outer.right, table.left, table.right];
        })
    """)
    assert len(boxes) == (2 if media else 1)
    for left, right, inner_left, inner_right in boxes:
        assert left <= inner_left and inner_right <= right + 1 and right <= width


def test_names_of_classes_stay_while_a_matrix_is_scrolled(quiet: Any, many: Path) -> None:
    show(quiet, many, 375)
    scrolled, left = quiet.execute_script("""
        const table = document.querySelector('.confusion-box.chosen table'), box = table.closest('.scroll');
        box.scrollLeft = 200;
        const name = table.tBodies[0].rows[0].cells[0].getBoundingClientRect();
        return [box.scrollLeft, name.left - box.getBoundingClientRect().left];
    """)
    assert scrolled == 200 and 0 <= left < 2


CONTRAST = """
    const context = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
    const linear = part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    const light = (...layers) => {
        for (const layer of layers) { context.fillStyle = layer; context.fillRect(0, 0, 1, 1); }
        const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map(part => linear(part / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratios = [];
    const cell = document.querySelector('.confusion-box.chosen td');
    for (let share = 0; share <= 100; share += 2) {
        cell.style.setProperty('--share', `${share}%`);
        const [back, ink] = [cell, cell.firstElementChild].map(item => getComputedStyle(item));
        const [under, over] = [light(back.backgroundColor), light(back.backgroundColor, ink.color)];
        ratios.push((Math.max(under, over) + 0.05) / (Math.min(under, over) + 0.05));
    }
    return [Math.min(...ratios), ratios[0]];
"""


@pytest.mark.parametrize(("dark", "media"), [(False, ""), (True, ""), (True, "print")])
def test_counts_can_be_read_on_every_shade(quiet: Any, many: Path, dark: bool, media: str) -> None:
    show(quiet, many, dark=dark, media=media)
    worst, on_card = quiet.execute_script(CONTRAST)
    assert 4.5 <= worst < on_card, "shaded, and still readable"
