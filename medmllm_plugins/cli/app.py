"""The command ``medmllm``: thin, each subcommand prints what a function of another room returns."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medmllm_plugins import __version__
from medmllm_plugins.errors import MedMLLMError, OptionError, shown
from medmllm_plugins.utils.suggestions import did_you_mean


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["lmms-eval"]:  # everything behind it is the host's, its own --help too
            return _host(words[1:])
        arguments = _parser().parse_args(words)
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except MedMLLMError as error:
        print(f"medmllm: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # as of `medmllm datasets | head`, which wants no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interrupt:
        if isinstance(interrupt, SystemExit):  # a run has said how it goes on, see runtime/signals.py
            raise
        print("medmllm: interrupted. Start the same command again; no file is left half-written.", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="medmllm", description="Medical image classification for lmms-eval.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"medmllm-plugins {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("doctor", _doctor, "what is installed, found and missing, and the command that mends it"),
        ("models", _models, "the models there are, with their sizes"),
        ("datasets", _datasets, "the data sets there are, and which of them are on this machine"),
        ("plugins", _plugins, "the plugins found, what they bring, and what failed"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="print JSON")
        command.set_defaults(run=run)
        if name in ("doctor", "datasets"):
            command.add_argument("--all", action="store_true", help="every missing data set in full, not in one line")
        if name == "datasets":
            command.add_argument("names", nargs="*", metavar="NAME", help="these only")
            command.add_argument(
                "--check", action="store_true", help="read them whole and look for leaks; exit status 1 if one leaks"
            )
    _add_task_commands(commands)
    _add_baseline(commands)
    text = "compare two runs on the same data: differences with paired tests that respect groups"
    comparing = commands.add_parser("compare", help=text, description=text)
    comparing.add_argument("first", type=Path, metavar="RUN_A", help="run folder, or its --output_path")
    comparing.add_argument("second", type=Path, metavar="RUN_B", help="run folder, or its --output_path")
    comparing.add_argument("--json", action="store_true", help="print JSON")
    comparing.set_defaults(run=_compare)
    _add_diagnose(commands)
    _add_selfcheck(commands)
    _add_attribute(commands)
    text = "one page of runs to read: how good, where it is lost, what it looked at, how it was made"
    reporting = commands.add_parser("report", help=text, description=text, allow_abbrev=False)
    reporting.add_argument(
        "folders", nargs="+", type=Path, metavar="RUN_DIR", help="run folders, or the --output_path of several"
    )
    reporting.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE.html",
        help="the page; tables, figures and report.json come beside it, in FILE_files (default: report.html)",
    )
    reporting.set_defaults(run=_report)
    commands.add_parser("lmms-eval", help="any lmms-eval command, with our tasks known to all of them")
    return parser


def _add_task_commands(commands: Any) -> None:
    text = "make a task of your own images or volumes, or list the tasks there are"
    task = commands.add_parser("task", help=text, description=text).add_subparsers(required=True, metavar="COMMAND")
    text = "the tasks there are, and their files"
    listing = task.add_parser("list", help=text, description=text)
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_task_list)
    text = "check your own images or volumes, and write a task for them (docs/own-data.md)"
    new = task.add_parser("new", help=text, description=text, allow_abbrev=False)
    new.add_argument("name", metavar="NAME", help="lower-case letters, digits and underscores")
    new.add_argument("--images", required=True, metavar="DIR|GLOB", help="the folder, or a pattern in quotes")
    new.add_argument(
        "--labels", required=True, metavar="CSV|folders", help="a table, or: folders are named like classes"
    )
    new.add_argument("--image-column", metavar="COLUMN", help="the column that names images")
    new.add_argument("--label-column", metavar="COLUMN", help="the column of classes")
    new.add_argument("--group", metavar="COLUMN", help="the column of patients, or `none`")
    new.add_argument("--fold", metavar="COLUMN", help="the column of train, validation and test, or `none`")
    new.add_argument(
        "--fold-map",
        default="",
        metavar="A=FOLD,…",
        help="what other values of that column mean: train, validation, test, or none to leave their rows out",
    )
    new.add_argument(
        "--classes", default="", metavar="A,B,C", help="the classes in order; 0=normal,1=pneumonia names them"
    )
    new.add_argument("--positive", metavar="CLASS", help="the class whose sensitivity is reported")
    new.add_argument("--modality", default="", metavar="TEXT", help='what the images are: "chest X-ray"')
    new.add_argument("--multilabel", action="store_true", help="an image may have several classes, or none")
    new.add_argument("--ordinal", action="store_true", help="the classes are grades, in the order of --classes")
    new.add_argument("--frame", help="first, middle, all or a number: which frame of DICOM films (cine) is shown")
    new.add_argument("--unit", choices=("HU", "any"), help="HU: NIfTI, NRRD or npy volumes are CT in Hounsfield units")
    new.add_argument("--overwrite", action="store_true", help="replace the task of that name")
    new.add_argument("--output", default="", metavar="DIR", help="folder for the task file, instead of your own tasks'")
    new.set_defaults(run=_task_new)


def _add_baseline(commands: Any) -> None:
    text = "train an ordinary classifier for tasks, and score it as a model is scored"
    command = commands.add_parser("baseline", help=text, description=text, allow_abbrev=False)
    command.add_argument("tasks", nargs="+", metavar="TASK", help="tasks, as an evaluation names them")
    command.add_argument(
        "--method",
        default="pixels",
        help="majority (of the train fold), pixels (logistic regression), or timm:NAME (fine-tuned); default: pixels",
    )
    command.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="as --output_path of lmms-eval")
    command.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    command.add_argument("--weights", type=Path, metavar="FILE", help="timm: pretrained weights")
    command.add_argument("--epochs", type=int, help="timm: at most so many rounds")
    command.add_argument("--device", help="timm: where to train")
    command.set_defaults(run=_baseline)


def _add_diagnose(commands: Any) -> None:
    text = "compute what probes tell anew from the features that a med_probe run left; no model needed"
    command = commands.add_parser("diagnose", help=text, description=text, allow_abbrev=False)
    command.add_argument("folder", type=Path, metavar="RUN_DIR", help="run folder, or its --output_path")
    command.add_argument("--task", action="append", default=[], metavar="TASK", help="this one only; may be repeated")
    command.add_argument(
        "--protocol",
        default="linear",
        help="linear (logistic regression, the default), paper (the two-layer MLP of arXiv 2604.08333), or a plugin's",
    )
    command.add_argument("--grid", default="", metavar="C,C,…", help="inverse L2 strengths to choose from")
    command.add_argument("--pooling", default="", metavar="A,B", help="these only: mean, last, cls, max, answer")
    command.add_argument("--layers", default="", metavar="A,B", help="these only, beside those the diagnosis rests on")
    command.add_argument("--width", type=int, default=0, metavar="N", help="project every layer at random to N numbers")
    command.add_argument(
        "--folds", type=int, default=0, metavar="N", help="fit again on N further divisions into folds"
    )
    command.add_argument("--permutations", type=int, metavar="N", help="refits on permuted labels (20; paper: 0)")
    command.add_argument("--controls", type=int, metavar="N", help="drawings of the control task (3; paper: 1)")
    command.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    command.add_argument("--reference", type=Path, metavar="RUN_DIR", help="run of a reference classifier")
    command.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: the run folder)")
    command.add_argument("--device", help="where to fit: cpu or cuda")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_diagnose)


def _add_attribute(commands: Any) -> None:
    from medmllm_plugins.prompts.attribution_options import BASELINES, METHODS, AttributionOptions

    usual = AttributionOptions()
    text = "explain chosen documents of a run again, by other methods or at other layers; loads the run's model"
    command = commands.add_parser("attribute", help=text, description=text, allow_abbrev=False)
    command.add_argument("folder", type=Path, metavar="RUN_DIR", help="run folder, or its --output_path")
    command.add_argument(
        "--ids", nargs="+", required=True, metavar="ID", help="documents, as the run's files name them"
    )
    command.add_argument(
        "--method", nargs="+", default=list(METHODS), metavar="NAME", help=f"of {', '.join(METHODS)}, …"
    )
    command.add_argument("--layer", nargs="+", default=[], metavar="LAYER", help="such as vision.12, connector, llm.20")
    command.add_argument("--target", default=usual.target, help="decision (the default), truth, answer, or a class")
    command.add_argument("--baseline", default=usual.baseline, choices=BASELINES, help="what images are compared with")
    command.add_argument("--steps", type=int, default=usual.steps, metavar="N", help="points of a path")
    command.add_argument("--task", metavar="TASK", help="whose documents, where the run has several tasks")
    command.add_argument("--device", help="where to compute: cpu, cuda")
    command.add_argument(
        "--batch_size", type=int, default=8, metavar="N", help="rows that go through the model together"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_attribute)


def _add_selfcheck(commands: Any) -> None:
    text = "break the demo model on purpose, in every stage, and see whether the diagnosis names the broken one"
    command = commands.add_parser("selfcheck", help=text, description=text, allow_abbrev=False)
    command.add_argument("--seeds", type=int, default=20, metavar="N", help="rounds; 13 trials each (default: 20)")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_selfcheck)


def _host(words: list[str]) -> int:
    from medmllm_plugins.host.command_line import judge_every_evaluation
    from medmllm_plugins.host.entry_point import register_models
    from medmllm_plugins.host.task_manager_hook import install_task_hook

    judge_every_evaluation()
    install_task_hook()
    register_models()
    from lmms_eval.cli.dispatch import main as host_main

    sys.argv = ["lmms-eval", *words]
    host_main()
    return 0


def _print(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))


def _doctor(arguments: argparse.Namespace) -> int:
    from medmllm_plugins.cli.doctor import brief, examine

    findings = examine()
    if arguments.json:
        _print([finding.to_dict() for finding in findings])
    else:
        findings = findings if arguments.all else brief(findings)
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            print(f"{finding.state:<8} {finding.what:<{width}}  {finding.detail}")
            if finding.mend:
                print(f"{'':<8} {'':<{width}}  -> {finding.mend}")
    return int(any(finding.state == "broken" for finding in findings))


def _models(arguments: argparse.Namespace) -> int:
    from medmllm_plugins.cli.doctor import models

    rows = models()
    if arguments.json:
        _print(rows)
        return 0
    for row in rows:
        print(f"{row['name']}: {row['summary']}")
        for size, source in row["sizes"].items():
            print(f"    pretrained={size:<12} {source}")
        if row["licence"]:
            print(f"    licence  {row['licence']}")
    return 0


def _task_new(arguments: argparse.Namespace) -> int:
    from medmllm_plugins.cli.new_task import NewTaskOptions, create

    create(NewTaskOptions(**{key: value for key, value in vars(arguments).items() if key != "run"}), print)
    return 0


def _baseline(arguments: argparse.Namespace) -> int:
    from medmllm_plugins.cli.baseline import baseline
    from medmllm_plugins.reference.reference_methods import make_classifier

    def make() -> Any:
        chosen = {"weights": arguments.weights, "epochs": arguments.epochs, "device": arguments.device}
        return make_classifier(arguments.method, seed=arguments.seed, **chosen)

    folder = baseline(arguments.tasks, arguments.method, make, output=arguments.output, say=print, seed=arguments.seed)
    print(f"Details: {folder}")
    return 0


def _task_list(arguments: argparse.Namespace) -> int:
    from medmllm_plugins.cli.new_task import faulty_task_files, tasks

    rows = tasks()
    for fault in faulty_task_files():
        print(f"Left out: {fault}", file=sys.stderr)
    if arguments.json:
        _print(rows)
        return 0
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        print(f"{row['name']:<{width}}  {row['from']:<10}  {row['file']}")
    return 0


def _check_datasets(arguments: argparse.Namespace) -> int:
    from medmllm_plugins.cli.datasets import check_sets, lines, status

    reports = check_sets(arguments.names)
    if arguments.json:
        _print([report.to_dict() for report in reports])
    else:
        for report in reports:
            print("\n".join(lines(report)))
    return status(reports, bool(arguments.names))


def _datasets(arguments: argparse.Namespace) -> int:
    from medmllm_plugins.cli.doctor import datasets

    if arguments.check:
        return _check_datasets(arguments)
    rows = datasets()
    names = [row["name"] for row in rows]
    if unknown := sorted(set(arguments.names) - set(names)):
        hint = did_you_mean(unknown[0], names) or "`medmllm datasets` lists all."
        raise OptionError(f"Expected the name of a data set, got {shown(unknown[0])}. {hint}")
    rows = [row for row in rows if not arguments.names or row["name"] in arguments.names]
    if arguments.json:
        _print(rows)
        return 0
    whole = arguments.all or bool(arguments.names)
    for row in sorted(rows, key=lambda row: not row["found"]):
        if not (whole or row["found"]):
            continue
        print(f"{row['name']}: {row['title']}")
        print(f"    task     {row['task'] or 'none'}")
        print(f"    classes  {', '.join(row['classes'])}")
        print(f"    licence  {row['licence']}")
        print(f"    found    {row['found']}" if row["found"] else f"    missing  looked at {row['looked_at']}")
        if row["mend"]:
            print(f"    -> {row['mend']}")
    if missing := [row["name"] for row in rows if not (whole or row["found"])]:
        print(f"missing: {', '.join(missing)}")
        print("    -> medmllm datasets NAME says where to get one; medmllm datasets --all lists all")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from medmllm_plugins.results.comparison import compare_runs, render
    from medmllm_plugins.results.run_folders import one_run

    compared, warnings = compare_runs(one_run(arguments.first), one_run(arguments.second))
    if arguments.json:
        _print({"comparisons": [one.to_dict() for one in compared], "warnings": warnings})
        return 0
    print(render(compared))
    for warning in warnings:
        print(f"Warning: {warning}")
    return 0


def _diagnose(arguments: argparse.Namespace) -> int:
    from medmllm_plugins.cli.diagnose import diagnose
    from medmllm_plugins.probes.analysis_text import render
    from medmllm_plugins.probes.probe_options import Options, default_refits, parse_strengths
    from medmllm_plugins.results.run_folders import one_run

    permutations, controls = default_refits(arguments.protocol)
    options = Options(
        protocol=arguments.protocol,
        **({"strengths": parse_strengths(arguments.grid)} if arguments.grid else {}),
        poolings=tuple(filter(None, arguments.pooling.split(","))),
        layers=tuple(filter(None, arguments.layers.split(","))),
        width=arguments.width,
        permutations=permutations if arguments.permutations is None else arguments.permutations,
        controls=controls if arguments.controls is None else arguments.controls,
        repeats=arguments.folds,
        seed=arguments.seed,
    )
    found = diagnose(
        one_run(arguments.folder, holding="features"),
        options,
        tasks=arguments.task,
        reference=None if arguments.reference is None else one_run(arguments.reference),
        output=arguments.output,
        device=arguments.device,
    )
    if arguments.json:
        _print([analysis.to_dict() for analysis in found])
    else:
        print("\n\n".join(render(analysis) for analysis in found))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from medmllm_plugins.cli.report import report
    from medmllm_plugins.results.run_folders import run_folders

    folders = [run for folder in arguments.folders for run in run_folders(folder)]
    for line in report(list(dict.fromkeys(folders)), arguments.output):
        print(line)
    return 0


def _attribute(arguments: argparse.Namespace) -> int:
    from medmllm_plugins.attribution.checks.check_summary import format_summary
    from medmllm_plugins.cli.attribute import attribute
    from medmllm_plugins.prompts.attribution_options import AttributionOptions
    from medmllm_plugins.results.run_folders import one_run

    asked = AttributionOptions(
        methods=tuple(arguments.method),
        layers=tuple(arguments.layer),
        target=arguments.target,
        baseline=arguments.baseline,
        steps=arguments.steps,
    )
    index = attribute(
        one_run(arguments.folder),
        arguments.ids,
        asked,
        task=arguments.task,
        device=arguments.device,
        batch=arguments.batch_size,
    )
    if arguments.json:
        _print(index)
    else:
        print(format_summary(index))
    return 0


def _selfcheck(arguments: argparse.Namespace) -> int:
    from medmllm_plugins.cli.selfcheck import check_demo

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    report = check_demo(arguments.seeds, say)
    if arguments.json:
        _print(report.to_dict())
    else:
        print(report.render())
    return int(not report.passed)


def _plugins(arguments: argparse.Namespace) -> int:
    from medmllm_plugins.data.loading.catalogue import read_catalogue
    from medmllm_plugins.plugins.manager import get_manager

    read_catalogue()  # which logs declarations that are left out
    found = get_manager().describe()
    if arguments.json:
        _print(found)
        return 0
    for plugin in found["plugins"]:
        state = " (disabled)" if plugin["disabled"] else ""
        print(f"{plugin['name']}{state}: {plugin['distribution']} {plugin['version']}")
        print(f"    hooks: {', '.join(plugin['hooks']) or 'none'}")
        for what in ("models", "datasets", "tasks", "probes", "attributions"):
            if plugin[what]:
                print(f"    {what}: {', '.join(plugin[what])}")
    for failure in found["failures"]:
        origin = f" ({failure['distribution']} {failure['version']})" if failure["distribution"] else ""
        where = f"{failure['stage']}{f' of {hook}' if (hook := failure['hook']) else ''}"
        print(f"FAILED {failure['plugin']}{origin}: {where}: {failure['message']}")
    for notice in found["notices"]:
        print(f"SLOW {notice}")
    return 0
