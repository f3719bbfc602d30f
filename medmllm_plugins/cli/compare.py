"""``medmllm compare``: two runs on the same data, compared with paired tests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmllm_plugins.cli.console import JsonFlag, new_app, print_json
from medmllm_plugins.results.comparison import compare_runs, render
from medmllm_plugins.results.run_folders import one_run, run_label

app = new_app()


@app.command(epilog="Example: medmllm compare results_a results_b")
def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run folder, or the --output_path of a run.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="A run folder, or the --output_path of a run.")],
    json: JsonFlag = False,
) -> None:
    """Compare two runs on the same data with paired tests.

    The tests resample groups, such as patients, not single images.
    """
    first, second = one_run(run_a), one_run(run_b)
    comparisons, warnings = compare_runs(first, second)
    runs = {"first": first, "second": second}
    if json:
        named = {name: {"label": run_label(folder), "folder": str(folder)} for name, folder in runs.items()}
        print_json({**named, "comparisons": [item.to_dict() for item in comparisons], "warnings": warnings})
        return
    for name, folder in runs.items():
        print(f"{name:<6}  {run_label(folder)}: {folder}")
    print(f"\n{render(comparisons)}\n\nThe difference is second minus first, in percentage points.")
    for warning in warnings:
        print(f"Warning: {warning}")
