"""``medmllm repair``: the cheapest change of a model that helps, on held-out documents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from medmllm_plugins.cli.console import JsonFlag, MultiValueCommand, new_app, print_json, print_table
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.errors import OptionError, print_error
from medmllm_plugins.host.model_arguments import local_device
from medmllm_plugins.interventions.repair_effects import parameters_in_words
from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.models.model_loading import load_model
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.plugins.specs import ModelSpec
from medmllm_plugins.prompts.task_names import task_settings
from medmllm_plugins.prompts.task_settings import TaskSettings
from medmllm_plugins.results import scoring
from medmllm_plugins.results.file_names import REPAIR_FOLDERS, file_stem
from medmllm_plugins.results.outcome_files import read_answers, read_outcomes
from medmllm_plugins.results.repair_files import write_repairs
from medmllm_plugins.results.repair_records import RepairResult, RepairStudy
from medmllm_plugins.runtime.answer_loop import AnswerOptions
from medmllm_plugins.runtime.answering import model_entry
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.repair_candidates import CANDIDATES, RepairOptions
from medmllm_plugins.runtime.repair_study import RepairRunner
from medmllm_plugins.utils.suggestions import did_you_mean

DEFAULTS: Final = RepairOptions()
COLUMNS: Final = ("repair", "parameters", "seconds", "accuracy", "gain", "shuffled", "fixed", "broken", "")
app = new_app()


@app.command(
    cls=MultiValueCommand,
    epilog="Example: medmllm repair med_cls_demo --model medm_vl --model_args pretrained=demo --output results",
)
def repair(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task, named as for an evaluation.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="The model, as for an evaluation.")],
    model_args: Annotated[str, typer.Option("--model_args", metavar="ARGS", help="pretrained=CHECKPOINT and more.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for run and repairs.")] = Path(),
    candidates: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help=f"Of {', '.join(CANDIDATES)}; default: all.")
    ] = None,
    also: Annotated[list[str] | None, typer.Option(metavar="TASK...", help="Further tasks to test on.")] = None,
    minutes: Annotated[
        float | None, typer.Option(metavar="N", help="Time for all training; default: no limit.")
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Maximum number of updates.")] = DEFAULTS.steps,
    batch: Annotated[int, typer.Option(metavar="N", help="Examples in an update.")] = DEFAULTS.batch,
    rate: Annotated[float, typer.Option(metavar="N", help="Learning rate at width 256.")] = DEFAULTS.rate,
    rank: Annotated[int, typer.Option(metavar="N", help="Rank of adapters and LoRA.")] = DEFAULTS.rank,
    vectors: Annotated[int, typer.Option(metavar="N", help="Vectors of the soft prompt.")] = DEFAULTS.vectors,
    block: Annotated[int | None, typer.Option(metavar="N", help="LLM block with an adapter; default: middle.")] = None,
    train: Annotated[
        int | None, typer.Option(metavar="N", help="Maximum number of train documents.")
    ] = DEFAULTS.train_limit,
    validation: Annotated[
        int | None, typer.Option(metavar="N", help="Maximum number of validation documents.")
    ] = DEFAULTS.validation_limit,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Maximum number of test documents.")] = None,
    batch_size: Annotated[
        int, typer.Option("--batch_size", metavar="N", help="Questions answered together.")
    ] = DEFAULTS.batch_size,
    controls: Annotated[bool, typer.Option(help="Fit on shuffled labels as well.")] = True,
    curve: Annotated[
        list[int] | None, typer.Option(metavar="N...", help="Train documents of the learning curve; 0 for none.")
    ] = None,
    checkpointing: Annotated[bool, typer.Option(help="Recompute activations, which saves memory.")] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the random generators.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Find the cheapest change of a model that helps.

    The model stays frozen: repairs are fitted on the train fold, chosen on the validation fold and tested once on the
    test fold. The same command resumes what was interrupted.
    """
    options = RepairOptions(
        candidates=tuple(candidates or ()),
        also=tuple(also or ()),
        rank=rank,
        vectors=vectors,
        block=block,
        steps=steps,
        batch=batch,
        rate=rate,
        batch_size=batch_size,
        train_limit=train,
        validation_limit=validation,
        test_limit=limit,
        curve=DEFAULTS.curve if curve is None else tuple(count for count in curve if count),
        controls=controls,
        minutes=minutes,
        checkpointing=checkpointing,
        seed=seed,
    )
    spec, loading = _model(model), _loading(model, model_args)
    settings = _checked(task, task_settings(task))
    run = EvaluationRun()
    run.output_path = str(output)
    run.note(command={"repair": task, "model": model, "model_args": model_args}, seed=seed)
    run.expected = frozenset([task])
    with run.stage("data"):
        data = load_dataset(settings.dataset, on_error=settings.on_error)
    with run.stage("load", loading.device):
        loaded = load_model(spec, loading)
    for warning in loaded.weight_warnings:
        print_error(f"Warning: {loading.pretrained}: {warning}; its answers may be meaningless.")
    folder = output / REPAIR_FOLDERS / f"{file_stem(task)}-{loaded.fingerprint[:8]}"
    runner = RepairRunner(loaded, task, settings, data, options, folder, model=loading.pretrained)
    with run.stage("repair", str(loaded.device)):
        study = runner.run()
    if not runner.is_first:
        return
    run.model(model_entry(loaded, loading, AnswerOptions(model=model, batch_size=batch_size)))
    written = _write(run, task, settings, data, study, runner.answers_before)
    if json:
        print_json(study.to_dict())
        return
    print_study(study, folder)
    print(f"Details: {written}")


def _model(name: str) -> ModelSpec:
    specs = get_manager().models()
    spec = specs.get(name)
    if spec is None or spec.wrapper is not None:
        hint = did_you_mean(name, specs) or "`medmllm models` lists all."
        raise OptionError(f"Expected a model that this package or a plugin loads, got {name!r}. {hint}")
    return spec


def _loading(model: str, text: str) -> LoadOptions:
    """Read ``--model_args``."""
    pairs = dict(part.partition("=")[::2] for part in text.split(",") if part)
    if unknown := sorted(set(pairs) - set(LoadOptions.__slots__)):
        raise OptionError(f"{model}: expected model arguments among {', '.join(LoadOptions.__slots__)}, got {unknown}.")
    if "pretrained" not in pairs:
        raise OptionError(f"{model}: expected --model_args with pretrained=CHECKPOINT, got {text!r}.")
    pairs["device"] = local_device(pairs.get("device", "auto"))
    options = LoadOptions(**pairs)
    if options.repair is not None:
        raise OptionError("Expected a model without a repair, got repair=. Repairs are not stacked.")
    options.check()
    return options


def _checked(task: str, settings: TaskSettings) -> TaskSettings:
    if settings.folds != ("test",) or settings.image != "shown":
        raise OptionError(
            f"{task}: expected the test fold with its images, since repairs learn from the others, got "
            f"{'+'.join(settings.folds)} with image={settings.image}."
        )
    return settings


def _write(
    run: EvaluationRun, task: str, settings: TaskSettings, data: Dataset, study: RepairStudy, answers: Path
) -> Path:
    """Write a run folder with the answers before any repair, and the study."""
    folder = run.folder_for("repair")
    outcomes, texts = read_outcomes(answers), read_answers(answers)
    documents = len({outcome.document for outcome in outcomes})
    summary = scoring.score(outcomes, settings)
    run.task(task, **scoring.facts(settings, data, documents=documents, questions=len(outcomes)))
    scoring.write(folder, task, summary, outcomes, texts, data)
    write_repairs(folder, file_stem(task), study)
    run.scored(task, summary)
    return folder


def print_study(study: RepairStudy, folder: Path) -> None:
    """Print a study as a table, and its result in words."""
    print(f"{study.task}: {study.accuracy.percent()} of {study.n} questions without a repair")
    rows = [_row(repair) for repair in study.repairs]
    print_table(COLUMNS, rows, ("  ".join(part for part in row if part) for row in rows))
    print("* no cheaper repair gains as much on the validation fold")
    for name, reason in study.left_out.items():
        print(f"Not tried: {name}: {reason}")
    print(study.sentence)
    if study.best and (fitted := study.of(study.best).folder):
        print(f"Use it: --model_args …,repair={folder / fitted}")


def _row(repair: RepairResult) -> tuple[str, ...]:
    notes = [repair.setting] if repair.setting else []
    for transfer in repair.transfers:
        if transfer.gain.low > 0 or transfer.gain.high < 0:
            notes.append(f"{transfer.task} {100 * transfer.gain.value:+.1f}")
    return (
        f"{repair.name}{' *' if repair.pareto else ''}",
        parameters_in_words(repair.parameters),
        f"{repair.seconds:.0f} s",
        f"{repair.accuracy.value:.1%}",
        _points(repair.gain),
        _points(repair.shuffled_gain) if known(repair.shuffled_gain) else "",
        f"+{repair.fixed}",
        f"-{repair.broken}",
        "; ".join(notes),
    )


def _points(gain: Estimate) -> str:
    return f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
