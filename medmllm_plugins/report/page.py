"""The HTML page of a report: one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any, Final

from markupsafe import Markup

from medmllm_plugins import __version__
from medmllm_plugins.report.assemble import Report
from medmllm_plugins.report.methods_text import command_line, dataset_citations, prompts
from medmllm_plugins.report.templating import environment, template_source
from medmllm_plugins.results.run_reader import RunFolder
from medmllm_plugins.utils.json_values import clean

MAX_ROWS: Final = 300
"""Rows of a table on the page; the CSV file has all."""
MAX_CHARACTERS: Final = 100_000
"""Characters of one long text on the page."""
MAX_TOTAL: Final = 1_500_000
"""Characters of all long texts on the page together."""


class LongText:
    """Cuts long texts for the page, and limits their total length."""

    def __init__(self) -> None:
        self._left = MAX_TOTAL

    def __call__(self, value: object) -> tuple[str, int]:
        """Return as much of a text as the page can hold, and the number of characters that are left out."""
        full = clean(value)
        shown = full[: min(MAX_CHARACTERS, max(2_000, self._left))]
        self._left -= len(shown)
        return shown, len(full) - len(shown)


def render(report: Report, files_folder: str) -> str:
    """Return the HTML; ``files_folder`` is the name of the folder with tables and figures, next to the page."""
    script, runs = template_source("report.js"), report.collection.runs
    return (
        environment(autoescape=True)
        .get_template("report.html")
        .render(
            report=report,
            files_folder=files_folder,
            version=__version__,
            css=Markup(template_source("report.css")),  # our own file
            script=Markup(script),  # likewise
            policy=_content_security_policy(script),
            shorten=LongText(),
            max_rows=MAX_ROWS,
            markup=Markup,  # only for figures, in whose SVG matplotlib escapes every text
            prompts=prompts(report.collection),
            commands=[(run.name, command_line(run)) for run in runs],
            manifests=[(run.name, json.dumps(_manifest(run), indent=1, ensure_ascii=False)) for run in runs],
            citations={section.dataset.name: dataset_citations(section.dataset) for section in report.sections},
        )
    )


def _content_security_policy(script: str) -> str:
    """Return a policy under which the page loads nothing, sends nothing, and runs only its own script."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _manifest(run: RunFolder) -> dict[str, Any]:
    """Return a manifest without the list of plugins."""
    return {key: value for key, value in run.manifest.to_dict().items() if key != "plugins"}
