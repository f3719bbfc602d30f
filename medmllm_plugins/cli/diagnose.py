"""``medmllm diagnose``: probes fitted again on the features that a run recorded; no model needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from medmllm_plugins.cli.console import JsonFlag, new_app, print_json
from medmllm_plugins.errors import DataError, OptionError, print_error
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.models.options import resolve_device
from medmllm_plugins.probes.analysis import analyse
from medmllm_plugins.probes.analysis_text import render
from medmllm_plugins.probes.probe_options import Options, default_counts, parse_strengths
from medmllm_plugins.probes.reference_run import Reference, find_reference, read_reference
from medmllm_plugins.prompts.task_names import probing_command
from medmllm_plugins.results.feature_store import FeatureStore
from medmllm_plugins.results.file_names import FEATURES, OUTCOMES, PROBES, file_stem
from medmllm_plugins.results.outcome_files import RunResults, load_run
from medmllm_plugins.results.probe_files import SUFFIXES, read_probes, write_probes
from medmllm_plugins.results.probe_records import ProbeAnalysis
from medmllm_plugins.results.run_folders import one_run
from medmllm_plugins.results.seal import update_seal

app = new_app()


@app.command(epilog="Example: medmllm diagnose results --folds 5")
def diagnose(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run folder, or the --output_path of a run.")],
    task: Annotated[list[str] | None, typer.Option(metavar="TASK", help="Only this task; may be repeated.")] = None,
    protocol: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="linear (logistic regression), paper (the two-layer MLP of arXiv 2604.08333), or a plugin's.",
        ),
    ] = "linear",
    grid: Annotated[str, typer.Option(metavar="C,C,…", help="Inverse L2 strengths to choose from.")] = "",
    pooling: Annotated[
        str, typer.Option(metavar="A,B", help="Only these poolings: mean, last, cls, max, answer.")
    ] = "",
    layers: Annotated[
        str, typer.Option(metavar="A,B", help="Only these layers, with those that the diagnosis needs.")
    ] = "",
    width: Annotated[int, typer.Option(metavar="N", help="Project every layer at random to N dimensions.")] = 0,
    folds: Annotated[int, typer.Option(metavar="N", help="Fit again on N further divisions into folds.")] = 0,
    permutations: Annotated[
        int | None, typer.Option(metavar="N", help="Label permutations (linear: 20; paper: 0).")
    ] = None,
    controls: Annotated[
        int | None, typer.Option(metavar="N", help="Draws of the control task (linear: 3; paper: 1).")
    ] = None,
    refits: Annotated[
        int | None, typer.Option(metavar="N", help="Refits on resampled train folds (linear: 20; paper: 0).")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the random generators.")] = 0,
    reference: Annotated[
        Path | None, typer.Option(metavar="RUN_DIR", help="The run of a reference classifier (medmllm baseline).")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; default: the run folder.")] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Where to fit: cpu or cuda.")] = None,
    json: JsonFlag = False,
) -> None:
    """Fit the probes of a med_probe run again, without the model.

    The features that the run recorded are read from its folder.
    """
    default_permutations, default_controls, default_refits = default_counts(protocol)
    options = Options(
        protocol=protocol,
        **({"strengths": parse_strengths(grid)} if grid else {}),
        poolings=tuple(filter(None, pooling.split(","))),
        layers=tuple(filter(None, layers.split(","))),
        width=width,
        permutations=default_permutations if permutations is None else permutations,
        controls=default_controls if controls is None else controls,
        repeats=folds,
        refits=default_refits if refits is None else refits,
        seed=seed,
    )
    folder = one_run(run_dir, holding="features")
    run = load_run(folder)
    for warning in run.warnings:
        print_error(f"Warning: {warning}")
    recorded = _tasks_with_features(run)
    if unknown := sorted(set(task or ()) - set(recorded)):
        raise OptionError(f"Expected tasks with features, {recorded}, got {unknown}.")
    target = _output_folder(folder, output, options)
    torch_device = None if device is None else resolve_device(device)
    reference_run = None if reference is None else one_run(reference)
    analyses = []
    for name in task or recorded:
        store = open_store(run, name)
        reference_answers = _reference(folder, reference_run, store)
        earlier = _earlier_analysis(run, name)
        analysis = analyse(
            store,
            _outcomes(run, name),
            options,
            reference=reference_answers,
            anchors=None if earlier is None else earlier.anchors,
            patching=None if earlier is None else earlier.patching,
            masked=None if earlier is None or earlier.shortcuts is None else earlier.shortcuts.masked_answers,
            device=torch_device,
        )
        write_probes(target, file_stem(name), analysis)
        analyses.append(analysis)
        if target.resolve() == folder.resolve():
            update_seal(folder, [f"{file_stem(name)}{suffix}" for suffix in SUFFIXES])
    if json:
        print_json([analysis.to_dict() for analysis in analyses])
    else:
        print("\n\n".join(render(analysis) for analysis in analyses))


def _tasks_with_features(run: RunResults) -> list[str]:
    recorded = [task for task in run.manifest.tasks if (run.folder / FEATURES / file_stem(task)).is_dir()]
    if recorded:
        return recorded
    if run.manifest.finished is None:
        raise DataError(
            f"{run.folder}: expected a finished run, got one that was stopped. Its answers are saved: start the same "
            "command again to continue."
        )
    command = probing_command(run.manifest.command or {}, next(iter(run.manifest.tasks), "med_cls_demo"))
    raise DataError(
        f"{run.folder}: expected features of a med_probe task, got none.{f' Run one: {command}' if command else ''}"
    )


def _output_folder(folder: Path, output: Path | None, options: Options) -> Path:
    """Return the folder to write to, made if need be; a part of the curves must not replace all of them."""
    if output is None and (options.layers or options.poolings):
        raise OptionError(
            "Expected argument `output` when only some layers or poolings are fitted, because the run's own files hold "
            "all of them. Name a folder with --output."
        )
    target = folder if output is None else output
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"Expected `output` to be a folder, but {target} is none ({error.strerror}).") from error
    return target


def _outcomes(run: RunResults, task: str) -> Sequence[Outcome]:
    if task not in run.outcomes:
        raise DataError(
            f"{run.folder / (file_stem(task) + OUTCOMES)}: expected the scored answers of {task}, got no file. Copy "
            "the run folder again."
        )
    return run.outcomes[task]


def open_store(run: RunResults, task: str) -> FeatureStore:
    """Open the features of a task, checked to be those of the run and undamaged.

    Raises:
        DataError: they are damaged, or of another model or data set.
    """
    run.require_sealed(f"{FEATURES}/{file_stem(task)}/")
    store = FeatureStore(run.folder / FEATURES / file_stem(task))
    store.check()
    model = run.manifest.model
    for what, expected, actual in (
        ("model", model and model.fingerprint, store.header.model_fingerprint),
        ("data set", run.manifest.tasks[task].dataset_fingerprint, store.header.dataset_fingerprint),
    ):
        if expected != actual:
            raise DataError(
                f"{store.folder}: expected features of the run's own {what} (fingerprint {str(expected)[:12]}…), got "
                f"those of another ({actual[:12]}…). Do not mix run folders; run the task again."
            )
    return store


def _earlier_analysis(run: RunResults, task: str) -> ProbeAnalysis | None:
    """Return the analysis that the run wrote; none, with a warning, where its file changed."""
    try:
        run.require_sealed(f"{file_stem(task)}{PROBES}")
        return read_probes(run.folder, file_stem(task))
    except DataError as error:
        print_error(f"Warning: the anchors and the answers about masked images of {task} are left out: {error}")
        return None


def _reference(folder: Path, reference: Path | None, store: FeatureStore) -> Reference | None:
    fingerprint = store.header.dataset_fingerprint
    if reference is not None and reference.resolve() == folder.resolve():
        raise OptionError(f"Expected `reference` to be another run than {folder}, got the run itself.")
    return find_reference(folder, fingerprint) if reference is None else read_reference(reference, fingerprint)
