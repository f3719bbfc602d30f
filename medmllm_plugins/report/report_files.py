"""The report on disk: the page, and beside it what a paper or a script needs."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from medmllm_plugins.errors import OptionError
from medmllm_plugins.report.assemble import Report, build, render
from medmllm_plugins.report.run_collection import collect_runs
from medmllm_plugins.utils.atomic_files import write_whole

_REPORT: Final = "report.json"
_FOLDERS: Final = ("tables", "figures")
_OWN: Final = re.compile(r"(?:tables|figures)/[^/\\\0.][^/\\\0]*\.(?:csv|svg|png)")
_LONGEST: Final = 120
"""Bytes of a data set's name in a file's; a disk allows 255 with what is put before and behind."""


def make(folders: Sequence[Path], output: Path) -> Report:
    """Read run folders and write their report.

    Args:
        folders: run folders.
        output: the page, ``….html``. Beside it comes the folder ``…_files`` with ``report.json``, ``methods.txt``,
            ``tables/*.csv`` and ``figures/*.svg`` and ``*.png``; those of an earlier report are replaced, and other
            files there are left as they are.

    Raises:
        OptionError: ``output`` is no HTML file's name, or its place cannot be written.
        DataError: a folder is no run folder.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise OptionError(f"Expected argument `output` to end in .html, but got {str(output)!r}: give -o report.html.")
    report = build(collect_runs(folders))
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
    contents = _contents(report)
    # What an earlier report of other runs left must not look like this one's; what somebody else put here is theirs.
    for name in _earlier(beside / _REPORT):
        (beside / name).unlink(missing_ok=True)
    for folder in _FOLDERS:
        (beside / folder).mkdir(parents=True, exist_ok=True)
    told = report.to_dict() | {"files": sorted(contents)}
    # First, so that the next report knows the files of one that was interrupted.
    write_whole(beside / _REPORT, json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(beside / "methods.txt", report.methods.text())
    for name, content in contents.items():
        if isinstance(content, str):
            write_whole(beside / name, content)
        else:
            draft = (beside / name).with_name(f".{os.getpid()}.tmp")
            draft.write_bytes(content)
            os.replace(draft, beside / name)


def _contents(report: Report) -> dict[str, str | bytes]:
    """Tables and figures by their paths in the folder."""
    heads = plain_names([section.part.name for section in report.sections])
    found: dict[str, str | bytes] = {f"tables/{one.stem}.csv": one.csv() for one in (report.runs, report.data)}
    for section in report.sections:
        name = section.part.name
        for table in section.tables():
            found[f"tables/{heads[name]}{table.stem.removeprefix(name)}.csv"] = table.csv()
        for drawing in section.drawings():
            path = f"figures/{heads[name]}{drawing.stem.removeprefix(name)}"
            found |= {f"{path}.svg": drawing.svg, f"{path}.png": drawing.png}
    return found


def _earlier(path: Path) -> list[str]:
    """Paths of the tables and figures that an earlier report lists, as far as they are such paths."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        names = told["files"] if told["medmllm_report"] else []
        return [name for name in names if isinstance(name, str) and _OWN.fullmatch(name)]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []  # no report, or a damaged one: better to leave a file too many than to take one of somebody else's


def plain_names(names: Sequence[str]) -> dict[str, str]:
    """For each name one with nothing in it that a file's name must not have; a data set may be called anything.

    No two are alike, also where a disk takes large letters for small ones, and all are short enough to take an ending.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(names):
        plain = _plain(name)
        tries = (plain, *(f"{plain}-{turn}" for turn in range(2, len(names) + 2)))
        found[name] = next(one for one in tries if one.casefold() not in taken)
        taken.add(found[name].casefold())
    return found


def _plain(name: str) -> str:
    kept = "".join(one if one.isalnum() or one in "._-" else "_" for one in unicodedata.normalize("NFC", name))
    return kept.encode("utf-8")[:_LONGEST].decode("utf-8", "ignore").lstrip(".") or "unnamed"
