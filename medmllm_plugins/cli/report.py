"""``medmllm report``: one page of any mix of runs, with its tables and figures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medmllm_plugins.report.report_files import write_report


def report(folders: Sequence[Path], output: Path) -> list[str]:
    """Write the report; returns the lines to print: the verdicts, what is missing, and where the page is.

    Args:
        folders: run folders.
        output: the page.

    Raises:
        DataError: a folder is no run folder.
        OptionError: ``output`` is no place for a page.
    """
    made = write_report(folders, output)
    lines = made.sentences()
    lines += [f"Missing: {one}" for one in made.notes.missing]
    return [*lines, f"Report: {output}"]
