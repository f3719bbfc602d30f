"""The report on disk: the page, and beside it what a paper or a script needs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from medmllm_plugins.errors import OptionError
from medmllm_plugins.metrics.files import write_whole
from medmllm_plugins.report.gathering import gather
from medmllm_plugins.report.page import Report, build, render


def make(folders: Sequence[Path], output: Path) -> Report:
    """Read run folders and write their report.

    Args:
        folders: run folders.
        output: the page, ``….html``. Beside it comes the folder ``…_files`` with ``report.json``, ``methods.txt``,
            ``tables/*.csv`` and ``figures/*.svg`` and ``*.png``; files of an earlier report there are replaced.

    Raises:
        OptionError: ``output`` is no HTML file's name, or its place cannot be written.
        DataError: a folder is no run folder.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise OptionError(f"Expected argument `output` to end in .html, but got {str(output)!r}: give -o report.html.")
    report = build(gather(folders))
    beside = output.with_name(f"{output.stem}_files")
    html = render(report, beside.name)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _write_beside(beside, report)
        write_whole(output, html)
    except OSError as error:
        raise OptionError(f"Expected argument `output` to be a place that can be written, but got {error}.") from error
    return report


def _write_beside(beside: Path, report: Report) -> None:
    for name in ("tables", "figures"):
        # What an earlier report of other runs left must not look like this one's.
        shutil.rmtree(beside / name, ignore_errors=True)
        (beside / name).mkdir(parents=True)
    text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(beside / "report.json", text)
    write_whole(beside / "methods.txt", report.methods.text())
    for table in report.tables():
        write_whole(beside / "tables" / f"{plain_name(table.stem)}.csv", table.csv())
    for drawing in report.drawings():
        stem = plain_name(drawing.stem)
        write_whole(beside / "figures" / f"{stem}.svg", drawing.svg)
        draft = beside / "figures" / f".{stem}.png.{os.getpid()}.tmp"
        draft.write_bytes(drawing.png)
        os.replace(draft, beside / "figures" / f"{stem}.png")


def plain_name(stem: str) -> str:
    """A stem with nothing in it that a file's name must not have; a data set may be called anything."""
    kept = "".join(one if one.isalnum() or one in "._-" else "_" for one in stem)
    return kept.lstrip(".")[:120] or "unnamed"
