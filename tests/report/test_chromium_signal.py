"""Ladders and layer charts in a real browser: links to layers, controls on demand, facts under the mouse."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from report.test_ladder import INTERCHANGE, estimate, probed
from support.browser import press, show
from support.run_folders import Folder, outcomes

from medmllm_plugins.report.report_files import write_report

pytestmark = pytest.mark.chromium


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("signal")
    handover: dict[str, Any] = {"named": "unread hand-over", "readable_until": "connector (mean)"}
    made = probed(root / "a", "model-a"), probed(root / "b", "model-b", **handover)
    baseline = Folder(root / "c", "baseline resnet", baseline="timm").answers("med_cls_toy", outcomes(skill=5, seed=9))
    write_report([*(folder.folder for folder in made), baseline.folder], root / "report.html")
    return root / "report.html"


def wait_for(browser: Any, script: str, seconds: float = 30) -> Any:
    """Return what a script returns as soon as it is true."""
    end = time.monotonic() + seconds
    while True:
        result = browser.execute_script(script)
        if result or time.monotonic() > end:
            return result
        time.sleep(0.1)


def draw_all(browser: Any) -> None:
    """Scroll until all figures of both sections are drawn."""
    for section in ("signal", "layers"):
        browser.execute_script(f"document.getElementById('{section}').scrollIntoView({{behavior: 'instant'}})")
        drawn = f"""
            return [...document.querySelectorAll('#{section} :is(.ladder, .layer-chart) .interactive')]
                .every(element => page.plots.has(element.id))
        """
        assert wait_for(browser, drawn), section


VISIBLE = """
    return [...document.querySelectorAll('.layer-chart .interactive')].flatMap(element =>
        [...page.plots.get(element.id).model.document.all_models]
            .filter(model => 'visible' in model.attributes && model.visible)
            .filter(model => model.tags.some(tag => String(tag).startsWith(arguments[0])))
            .map(model => element.closest('.layer-chart').id + ' ' + model.tags[0]))
"""


def visible(browser: Any, kind: str) -> set[str]:
    """Marked stages or shown controls of the layer charts that are drawn."""
    return set(browser.execute_script(VISIBLE, kind))


@pytest.mark.parametrize("width", [1440, 375])
@pytest.mark.parametrize("dark", [False, True])
def test_ladders_and_charts_fit_and_fail_in_nothing(browser: Any, page: Path, width: int, dark: bool) -> None:
    show(browser, page, width, dark=dark)
    draw_all(browser)
    edges = """
        return [...document.querySelectorAll('.ladder figure, .layer-chart figure')].map(element => {
            const outer = element.getBoundingClientRect();
            const inner = element.querySelector('.interactive').getBoundingClientRect();
            return [outer.left, inner.left, inner.right, outer.right, inner.height];
        })
    """
    boxes = browser.execute_script(edges)
    assert len(boxes) == 4
    for outer_left, left, right, outer_right, height in boxes:
        assert 0 <= outer_left <= left < right <= outer_right <= width and height > 250
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def test_two_models_take_few_screens(browser: Any, page: Path) -> None:
    show(browser, page, 1440)
    draw_all(browser)
    heights = "return ['signal', 'layers'].map(id => document.getElementById(id).getBoundingClientRect().height)"
    assert sum(browser.execute_script(heights)) <= 2.3 * 900


@pytest.mark.parametrize("width", [1440, 375])
def test_a_stage_opens_its_layers(browser: Any, page: Path, width: int) -> None:
    show(browser, page, width)
    press(browser, ".ladder:nth-of-type(2) [data-stage=connector]", "\ue007")  # Enter
    assert wait_for(browser, "return document.querySelector('.layer-chart.marked')?.id") == "layers-toy-2"
    top = (
        "const top = document.getElementById('layers-toy-2').getBoundingClientRect().top; return top >= 0 && top < 300"
    )
    assert wait_for(browser, top), "the chart is in view"
    marked = {"layers-toy-1 stage-connector", "layers-toy-2 stage-connector"}
    draw_all(browser)
    assert visible(browser, "stage-") == marked
    assert (
        browser.execute_script("return document.querySelector('.marked[role=status]').textContent")
        == "Marked: connector"
    )
    hash_of = "return location.hash"
    assert browser.execute_script(hash_of) == "#layers?stage=connector&chart=layers-toy-2"
    press(browser, "#unmark", "\ue007")
    assert visible(browser, "stage-") == set() and browser.execute_script(hash_of) == "#layers"


def test_an_address_opens_a_stage(browser: Any, page: Path) -> None:
    show(browser, page, 1440)
    browser.get(f"{page.as_uri()}#layers?stage=llm&controls=task.lens")
    browser.refresh()
    draw_all(browser)
    assert visible(browser, "stage-") == {"layers-toy-1 stage-llm", "layers-toy-2 stage-llm"}
    assert {entry.partition(" ")[2] for entry in visible(browser, "control-")} == {"control-task", "control-lens"}
    checked = "return [...document.querySelectorAll('#controls :checked')].map(box => box.dataset.control)"
    assert browser.execute_script(checked) == ["task", "lens"]


def test_each_control_is_shown_on_demand(browser: Any, page: Path) -> None:
    show(browser, page, 1440)
    draw_all(browser)
    assert visible(browser, "control-") == set(), "only the band of all is shown at first"
    press(browser, "[data-control=random]", " ")
    expected = {f"layers-toy-{index} control-random" for index in (1, 2)}
    assert visible(browser, "control-") == expected
    assert "controls=random" in browser.execute_script("return location.hash")
    press(browser, "[data-shows='0']", " ")
    press(browser, "[data-shows='0']", " ")
    assert visible(browser, "control-") == expected, "hiding and showing a model changes no control"
    press(browser, "[data-control=random]", " ")
    assert visible(browser, "control-") == set()


def test_marks_and_controls_are_kept_when_colours_change(browser: Any, page: Path) -> None:
    show(browser, page, 1440)
    draw_all(browser)
    press(browser, "[data-control=pixels]", " ")
    old = browser.execute_script("return [...page.plots.values()].length")
    browser.execute_script("window.before = new Set(page.plots.values())")
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    assert wait_for(browser, "return [...page.plots.values()].every(view => !window.before.has(view))")
    assert browser.execute_script("return [...page.plots.values()].length") == old
    assert {entry.partition(" ")[2] for entry in visible(browser, "control-")} == {"control-pixels"}


PLACES = """
    const view = page.plots.get(document.querySelector(`${arguments[0]} .interactive`).id);
    const box = view.el.getBoundingClientRect();
    return view.model.renderers.map(item => item.data_source).filter(source => source.columns().includes(arguments[1]))
        .flatMap(source => Array.from(source.get_column('x'), (x, index) => [
            box.left + view.frame.x_scale.compute(x),
            box.top + view.frame.y_scale.compute(source.get_column('y')[index]),
        ]));
"""
TOOLTIP = """
    const deep = root => [...root.querySelectorAll('*')].flatMap(
        element => [element, ...(element.shadowRoot ? deep(element.shadowRoot) : [])]);
    const tips = deep(document).filter(element => element.classList.contains('bk-Tooltip'));
    return tips.filter(tip => tip.getClientRects().length).map(tip => (tip.shadowRoot ?? tip).textContent).join(' ');
"""


def hover(browser: Any, figure: str, column: str, index: int) -> str:
    """Move the mouse to the mark of a row of data that has a column; return the text of the tooltip."""
    into_view = f"document.querySelector('{figure}').scrollIntoView({{behavior: 'instant', block: 'center'}})"
    browser.execute_script(into_view)
    for _ in range(10):  # a busy machine may take the mouse for still
        time.sleep(0.3)
        x, y = browser.execute_script(PLACES, figure, column)[index]
        for step in (6, 0):
            browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x + step, "y": y + step})
            time.sleep(0.2)
        if text := wait_for(browser, TOOLTIP, 1):
            return str(text)
    return ""


@pytest.mark.parametrize(
    ("index", "facts"),
    [
        (3, ("vision.03", "mean token", "%", "–", "0.0020")),
        (7, ("connector", "mean token", "80.0%", "75.0–85.0", "0.0020")),
    ],
)
def test_hover_tells_the_facts_of_a_layer(browser: Any, page: Path, index: int, facts: tuple[str, ...]) -> None:
    show(browser, page, 1440)
    draw_all(browser)
    said = hover(browser, "#layers-toy-1", "pooling", index)
    for fact in facts:
        assert fact in said, (fact, said)


def test_hover_tells_the_facts_of_a_loss(browser: Any, page: Path) -> None:
    show(browser, page, 1440)
    draw_all(browser)
    said = hover(browser, ".ladder", "change", 1)
    for fact in ("vision tower to connector", "−12.0 points (7–17)", "supported", "why connector"):
        assert fact in said, (fact, said)


PANELS = """
    const figure = document.querySelector('.interactive[aria-label*="Interventions in"]');
    figure.scrollIntoView({behavior: 'instant'});
    const view = page.plots.get(figure.id);
    return view && view.child_views.map(child => [child.model.above[0].text, child.frame.bbox.height]);
"""


@pytest.mark.parametrize("width", [1440, 375])
def test_panels_of_interventions_are_drawn(browser: Any, tmp_path: Path, width: int) -> None:
    made = probed(tmp_path / "a")
    points = [
        {"layer": layer, "tokens": tokens, "donor": donor, "n": 40, "effect": estimate(value), "flips": estimate(value)}
        for donor, share in (("other class", 1.0), ("noise", 0.1))
        for layer, tokens, value in (("connector", "all", share), ("llm.11", "image", 0.2), ("llm.11", "last", share))
    ]
    record = INTERCHANGE | {"task": "med_probe_toy", "points": points}
    (made.folder / "med_probe_toy.interchange.json").write_text(json.dumps(record), "utf-8")
    write_report([made.folder], tmp_path / "report.html")
    show(browser, tmp_path / "report.html", width)
    browser.execute_script("document.querySelectorAll('#signal details').forEach(item => item.open = true)")
    panels = wait_for(browser, PANELS)
    assert [title for title, _ in panels] == ["readable by a probe", "used (interchange)"]
    assert all(height > 100 for _, height in panels), panels
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []


def test_a_hidden_model_has_no_ladder_and_no_chart(browser: Any, page: Path) -> None:
    show(browser, page, 1440)
    titles = """
        return [...document.querySelectorAll('.ladder, .layer-chart')].filter(element => element.offsetParent)
            .map(element => element.querySelector('figcaption').textContent)
    """
    assert len(browser.execute_script(titles)) == 4
    press(browser, "[data-shows='0']", " ")
    left = browser.execute_script(titles)
    assert len(left) == 2 and all("model-b" in title for title in left)


def test_paper_and_a_page_without_script_have_the_static_figures(browser: Any, page: Path) -> None:
    drawn = """
        return [...document.querySelectorAll('.ladder figure, .layer-chart figure')].map(element =>
            [element.querySelector('.plot svg').getBoundingClientRect().height > 100,
             element.querySelector('.interactive').getBoundingClientRect().height > 0])
    """
    show(browser, page, 1440, media="print")
    assert browser.execute_script(drawn) == [[True, False]] * 4
    assert browser.execute_script("return document.getElementById('controls').offsetParent") is None
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    show(browser, page, 1440)
    from selenium.webdriver.common.by import By

    assert all(figure.is_displayed() for figure in browser.find_elements(By.CSS_SELECTOR, ".ladder .plot svg"))
    assert not browser.find_element(By.ID, "controls").is_displayed()
    assert browser.find_element(By.CSS_SELECTOR, "[data-stage=llm]").get_attribute("href").endswith("#layers-toy-1")
