"""The report on disk: the page, and next to it files for papers and scripts."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.errors import OptionError
from medmllm_plugins.report.assemble import Report, build_report
from medmllm_plugins.report.page import render
from medmllm_plugins.report.run_collection import collect_runs
from medmllm_plugins.report.tables.data_dictionary import data_dictionary
from medmllm_plugins.utils.atomic_files import write_whole

_REPORT: Final = "report.json"
_FOLDERS: Final = ("tables", "figures")
DICTIONARY: Final = "tables/README.md"
"""Definitions of all columns of the tables."""
_OWN: Final = re.compile(r"(?:tables|figures)/[^/\\\0.][^/\\\0]*\.(?:csv|md|pdf|svg|png)")
_MAX_NAME: Final = 120
"""Bytes of a data set's name in a file name; file systems allow 255 with prefix and suffix."""


def write_report(folders: Sequence[Path], output: Path, *, images: bool = True) -> Report:
    """Read run folders and write their report.

    Args:
        folders: run folders.
        output: the page, ``….html``. The folder ``…_files`` next to it gets ``report.json``, ``methods.txt``,
            ``tables/*.csv`` with their data dictionary, and ``figures/*.pdf``, ``*.svg`` and ``*.png``; those of an
            earlier report are replaced, and other files are left alone.
        images: whether the page has pictures of documents and maps.

    Raises:
        OptionError: ``output`` is not an HTML file name, or cannot be written.
        DataError: a folder is not a run folder.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise OptionError(f"Expected argument `output` to end in .html, got {str(output)!r}. Use -o report.html.")
    report = build_report(collect_runs(folders), images=images)
    files_folder = output.with_name(f"{output.stem}_files")
    html = render(report, files_folder.name, table_paths(report))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _write_files(files_folder, report)
        write_whole(output, html)
    except OSError as error:
        raise OptionError(
            f"{output}: expected a path that can be written, got {error}. Choose another path with -o."
        ) from error
    return report


def read_record(output: Path) -> dict[str, Any]:
    """Return the content of ``report.json`` beside a page that was written."""
    path = output.with_name(f"{output.stem}_files") / _REPORT
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def _write_files(folder: Path, report: Report) -> None:
    contents = _contents(report)
    # Files of an earlier report must not be mistaken for this one's; other people's files stay.
    for name in _files_of_earlier_report(folder / _REPORT):
        (folder / name).unlink(missing_ok=True)
    for subfolder in _FOLDERS:
        (folder / subfolder).mkdir(parents=True, exist_ok=True)
    record = report.record(sorted(contents)).to_dict()
    # Written first, so that the next report knows the files even if this one is interrupted.
    write_whole(folder / _REPORT, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(folder / "methods.txt", report.methods.text())
    for name, content in contents.items():
        if isinstance(content, str):
            write_whole(folder / name, content)
        else:
            draft = (folder / name).with_name(f".{os.getpid()}.tmp")
            draft.write_bytes(content)
            os.replace(draft, folder / name)


def _contents(report: Report) -> dict[str, str | bytes]:
    """Return the tables, their data dictionary and the figures by their paths in the folder."""
    names = file_names([section.dataset.name for section in report.sections])
    paths = table_paths(report)
    tables = {paths[table.stem]: table for table in report.tables() if table.rows}
    figures: dict[str, bytes] = {}
    for section in report.sections:
        name = section.dataset.name
        for drawing in section.figures.values():
            path = f"figures/{names[name]}{drawing.stem.removeprefix(name)}"
            figures |= {f"{path}{ending}": content for ending, content in drawing.files.items()}
    dictionary = data_dictionary({Path(path).name: table for path, table in tables.items()})
    return {**{path: table.csv() for path, table in tables.items()}, DICTIONARY: dictionary, **figures}


def table_paths(report: Report) -> dict[str, str]:
    """Return the path of each table's CSV file in the folder, by the table's stem."""
    names = file_names([section.dataset.name for section in report.sections])
    paths = {table.stem: f"tables/{table.stem}.csv" for table in (report.runs, report.data)}
    for section, documents in zip(report.sections, report.documents, strict=True):
        name = section.dataset.name
        for table in (*section.filled_tables, documents):
            paths[table.stem] = f"tables/{names[name]}{table.stem.removeprefix(name)}.csv"
    return paths


def _files_of_earlier_report(path: Path) -> list[str]:
    """Return the paths of tables and figures that an earlier report lists, as far as they are such paths."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        names = record["files"] if record["medmllm_report"] else []
        return [name for name in names if isinstance(name, str) and _OWN.fullmatch(name)]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []  # no report, or a damaged one: rather leave a file than delete somebody else's


def file_names(names: Sequence[str]) -> dict[str, str]:
    """Return a valid file name for each data set, whose name may have any characters.

    File names differ even if case is ignored, and are short enough for a suffix.
    """
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(names):
        letters = (
            letter if letter.isalnum() or letter in "._-" else "_" for letter in unicodedata.normalize("NFC", name)
        )
        cut_name = "".join(letters).encode("utf-8")[:_MAX_NAME].decode("utf-8", "ignore").lstrip(".") or "unnamed"
        candidates = (cut_name, *(f"{cut_name}-{index}" for index in range(2, len(names) + 2)))
        chosen[name] = next(candidate for candidate in candidates if candidate.casefold() not in taken)
        taken.add(chosen[name].casefold())
    return chosen
