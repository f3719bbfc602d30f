"""A real browser for tests of pages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

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


@contextmanager
def start_browser(profile: Path) -> Iterator[Any]:
    """Start Chromium without a window; its log has what the console and the network saw."""
    chromium, chromedriver = find("chromium", "chromium-browser"), find("chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for item in (*OPTIONS, f"--user-data-dir={profile}"):
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


AXE = """
    const done = arguments[arguments.length - 1];
    axe.run(document, {resultTypes: ['violations']}).then(result => done(result.violations.map(rule =>
        `${rule.id}: ` + rule.nodes.slice(0, 3)
            .map(node => node.html.slice(0, 160) + ' ' + node.failureSummary).join(' | ')
    )));
"""


def violations(browser: Any) -> list[str]:
    """Return what axe-core finds on the page as it is."""
    browser.execute_script(files("axe_core_python").joinpath("axe.min.js").read_text("utf-8"))
    result: list[str] = browser.execute_async_script(AXE)
    return result
