"""``medmllm report``: one page about any mix of runs, with its tables and figures in a folder beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmllm_plugins.cli.console import new_app
from medmllm_plugins.report.report_files import write_report
from medmllm_plugins.results.run_folders import run_folders

app = new_app()


@app.command(epilog="Example: medmllm report results -o report.html")
def report(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR", help="Run folders, or the --output_path of several runs.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.html",
            help="The page; its tables, figures and report.json go to the folder FILE_files.",
        ),
    ] = Path("report.html"),
) -> None:
    """Write one page about any mix of runs.

    It shows how accurate each model is, where it loses the signal, what it used of the image, and the methods.
    """
    runs = dict.fromkeys(run for folder in run_dirs for run in run_folders(folder))
    page = write_report(list(runs), output)
    for sentence in page.sentences():
        print(sentence)
    for missing in page.notes.missing:
        print(f"Missing: {missing}")
    print(f"Report: {output}")
