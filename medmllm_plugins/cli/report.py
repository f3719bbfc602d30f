"""``medmllm report``: one page about any mix of runs, with its tables and figures in a folder beside it."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from medmllm_plugins.cli.console import JsonFlag, new_app, print_json
from medmllm_plugins.errors import print_error
from medmllm_plugins.report.report_files import read_record, write_report
from medmllm_plugins.results.run_folders import run_folders
from medmllm_plugins.utils.plain_text import quantity

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
    no_images: Annotated[bool, typer.Option("--no-images", help="Leave out all pictures of documents.")] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    json: JsonFlag = False,
) -> None:
    """Write one page about any mix of runs.

    It shows how accurate each model is, where it loses the signal, what it used of the image, and the methods.
    """
    runs = dict.fromkeys(run for folder in run_dirs for run in run_folders(folder))
    page = write_report(list(runs), output, images=not no_images)
    if json:
        print_json(read_record(output))
    else:
        for sentence in page.headlines():
            print(sentence)
    # The last line, on either stream, says where the page is.
    missing = len(page.notes.missing)
    notes = f" It names {quantity(missing, 'missing part')} and how to get {'it' if missing == 1 else 'them'}."
    print(f"Report: {output}.{notes if missing else ''}", file=sys.stderr if json else sys.stdout)
    if open_page and not webbrowser.open(output.resolve().as_uri()):
        print_error(f"No browser could be started: open {output} yourself.")
