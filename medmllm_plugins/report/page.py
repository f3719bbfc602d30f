"""The HTML page of a report: one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Final
from urllib.parse import quote

from markupsafe import Markup

from medmllm_plugins import __version__
from medmllm_plugins.report.assemble import Report
from medmllm_plugins.report.display_names import CONTROLS
from medmllm_plugins.report.figures.figure_style import marker_path
from medmllm_plugins.report.methods_text import command_line, dataset_citations, prompts
from medmllm_plugins.report.tables.report_table import Table
from medmllm_plugins.report.templating import anchor, environment, template_source
from medmllm_plugins.results.run_reader import RunFolder
from medmllm_plugins.utils.json_values import clean

STYLES: Final = (
    *("base", "bar", "tables", "figures", "answer", "signal", "errors", "models", "probabilities", "layers"),
    *("robustness", "maps", "appendix", "narrow", "print"),
)
"""Style sheets in ``templates/page/css``, in order: later ones override earlier ones."""
SCRIPTS: Final = ("state", "tables", "charts", "signal", "answer", "errors", "maps", "models")
"""Scripts in ``templates/page/js``, in order; they run as one."""
APPENDIX_TABLES: Final = (*("health", "parsing", "unparsed", "label_scores"),)
"""Tables of a data set that only the appendix shows."""
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


class TableIds:
    """Gives tables ids that links can lead to; a table that the page shows twice gets another the second time."""

    def __init__(self) -> None:
        self._shown: Counter[str] = Counter()

    def __call__(self, table: Table) -> str:
        """Return the id of a table that is about to be shown."""
        name = f"table-{anchor(table.stem)}"
        self._shown[name] += 1
        return name if self._shown[name] == 1 else f"{name}-again-{self._shown[name]}"


def render(report: Report, files_folder: str, table_paths: Mapping[str, str]) -> str:
    """Return the HTML of a report.

    Args:
        report: the report.
        files_folder: name of the folder with tables and figures, next to the page.
        table_paths: path of each table in that folder, by the table's stem.
    """
    runs = report.collection.runs
    scripts = [_joined("js", SCRIPTS, ".js")]
    if any(drawing.interactive for drawing in report.drawings()):
        scripts.insert(0, _bokeh_script())
    context: dict[str, Any] = {
        "report": report,
        "files_folder": files_folder,
        "version": __version__,
        "shorten": LongText(),
        "table_id": TableIds(),
        "max_rows": MAX_ROWS,
        "marker_path": marker_path,
        "markup": Markup,  # only for figures, in whose SVG matplotlib escapes every text, and whose JSON has no "<"
        "prompts": prompts(report.collection),
        "commands": [(run.name, command_line(run)) for run in runs],
        "manifests": [(run.name, json.dumps(_manifest(run), indent=1, ensure_ascii=False)) for run in runs],
        "csv_path": lambda table: quote(f"{files_folder}/{table_paths[table.stem]}"),
        "appendix_tables": APPENDIX_TABLES,
        "control_names": CONTROLS,
        "citations": {section.dataset.name: dataset_citations(section.dataset) for section in report.sections},
    }
    pages = environment(autoescape=True)

    def bodies(*sections: tuple[str, str]) -> list[tuple[str, str, Markup]]:
        """Return name, title and HTML of each section that has something to show."""
        html: dict[str, str] = {}
        # The answer is last, since its links lead only to elements that the other sections have.
        for name, _ in sorted(sections, key=lambda section: section[0] == "answer"):
            ids = frozenset(re.findall(r' id="([^"]+)"', "".join(html.values())))
            html[name] = pages.get_template(f"page/{name}.html").render(context, ids=ids)
        return [(name, title, Markup(html[name])) for name, title in sections if html[name].strip()]  # our templates

    return pages.get_template("page/shell.html").render(
        context,
        bodies=bodies,
        css=Markup(_joined("css", STYLES, ".css")),  # our own files
        scripts=[Markup(script) for script in scripts],  # our own, and that of the installed Bokeh
        policy=_content_security_policy(scripts),
    )


def _joined(folder: str, names: Sequence[str], suffix: str) -> str:
    return "\n".join(template_source(f"page/{folder}/{name}{suffix}") for name in names)


def _bokeh_script() -> str:
    """Return BokehJS from the installed package, so that the page needs no network."""
    return files("bokeh").joinpath("server", "static", "js", "bokeh.min.js").read_text("utf-8").strip()


def _content_security_policy(scripts: Sequence[str]) -> str:
    """Return a policy under which the page loads nothing, sends nothing, and runs only the scripts given."""
    digests = [base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii") for script in scripts]
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}; "
        "base-uri 'none'; form-action 'none'"
    )


def _manifest(run: RunFolder) -> dict[str, Any]:
    """Return a manifest without the list of plugins."""
    return {key: value for key, value in run.manifest.to_dict().items() if key != "plugins"}
