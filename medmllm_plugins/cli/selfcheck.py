"""``medmllm selfcheck``: the diagnosis tried on the demo model, broken on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmllm_plugins.cli.console import JsonFlag, new_app, print_json
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import load_dataset
from medmllm_plugins.errors import OptionError
from medmllm_plugins.models.formats.medm_vl import load
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.plugins.specs import DEMO
from medmllm_plugins.probes.validation.selfcheck import selfcheck as run_selfcheck
from medmllm_plugins.probes.validation.selfcheck import trials_for_seed
from medmllm_plugins.probes.validation.selfcheck_report import Report
from medmllm_plugins.probes.validation.twin_selfcheck import TWIN_STRENGTH, TwinReport, planned_faults, twin_selfcheck
from medmllm_plugins.utils.progress import Progress

app = new_app()


@app.command(epilog="Example: medmllm selfcheck --seeds 2")
def selfcheck(
    seeds: Annotated[
        int, typer.Option(metavar="N", help="Rounds of 21 trials each; with --twin, of one trial for each fault.")
    ] = 20,
    twin: Annotated[
        bool, typer.Option("--twin", help="Test twin patching instead, with the healthy demo as the twin.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every trial's analysis to a new file of JSON lines.")
    ] = None,
    json: JsonFlag = False,
) -> int:
    """Check that the diagnosis finds faults planted in the demo.

    Every stage is broken in turn, in ways that destroy the class and in ways that only change its form. Healthy and
    harmlessly edited models and simulated stages without loss must cause no alarm. With --twin, patching with the
    healthy demo must name the stages that are broken. The exit status is 1 if the diagnosis is wrong too often.
    """
    if seeds < 1:
        raise OptionError(f"Expected argument `seeds` to be at least 1, got {seeds}.")
    if output is not None and output.exists():
        raise OptionError(f"{output}: expected a new file for argument `output`, got one that exists.")
    model = load(LoadOptions(DEMO, device="cpu", dtype="float32"))
    data = load_dataset(dataset_specs()["demo"])
    report: Report | TwinReport
    trials = sum(len(planned_faults(seed, TWIN_STRENGTH) if twin else trials_for_seed(seed)) for seed in range(seeds))
    with Progress("selfcheck", trials, "trials") as progress:

        def count(summary: str) -> None:
            progress.note = summary
            progress.update()

        if twin:
            report = twin_selfcheck(model, data, seeds=range(seeds), say=count, output=output)
        else:
            report = run_selfcheck(model, data, seeds=range(seeds), say=count, output=output)
    if json:
        print_json(report.to_dict())
    else:
        print(report.render())
    return int(not report.passed)
