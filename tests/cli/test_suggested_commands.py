"""Every command that the software or its documentation suggests can be copied: command, options and tasks exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.command_line import find_subcommand, options_of, subcommands, takes_arguments
from support.run_folders import Folder, outcomes

import medmllm_plugins
from medmllm_plugins.errors import OptionError
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.prompts.task_names import split_name, task_names, task_settings
from medmllm_plugins.report.answer.next_step import INTERFACE_REPAIRS, STAGE_REPAIRS, UNREAD_REPAIRS
from medmllm_plugins.report.run_collection import collect_runs
from medmllm_plugins.report.sections import build_section
from medmllm_plugins.runtime.repair_candidates import RepairOptions

PACKAGE = Path(medmllm_plugins.__file__).parent
ROOT = Path(__file__).parents[2]
VALUE = "VALUE"
"""Replaces the gaps of f-strings, which are known only when the software runs."""
HOST_OPTIONS = {
    "--model", "--model_args", "--tasks", "--batch_size", "--output_path", "--limit", "--num_fewshot", "--log_samples",
    "--use_cache", "--gen_kwargs", "--include_path", "--seed", "--verbosity",
}  # fmt: skip


def texts(path: Path) -> Iterator[str]:
    """The texts of a module, comments and docstrings left aside; of f-strings with :data:`VALUE` in the gaps."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside, docs = set(), set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # a text that stands alone as a statement is documentation
            docs |= {
                id(item.value) for item in body if isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)
            }
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside | docs:
            yield node.value


_COMMAND = re.compile(r"`((?:medmllm|lmms-eval) [^`]+)`|((?:medmllm|lmms-eval) (?:[a-z]+ |--)[^`().;]*)")


def suggested(text: str) -> Iterator[str]:
    """The commands in a text: in backquotes, or bare up to the end of the clause."""
    for match in _COMMAND.finditer(text):
        yield (match[1] or match[2]).strip().removesuffix(",").rstrip(":")


def from_package() -> list[tuple[str, str]]:
    return [
        (path.relative_to(PACKAGE).as_posix(), command)
        for path in sorted(PACKAGE.rglob("*.py"))
        for text in texts(path)
        for command in suggested(text)
    ]


def from_docs() -> list[tuple[str, str]]:
    rows = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ") if path.is_file() else ""
        for line in text.splitlines():
            code = re.fullmatch(r" {4}((?:medmllm|lmms-eval) .*)", line)
            if code:
                rows.append((path.name, code[1].partition("  #")[0]))
    return rows


def fault(command: str, own_tasks: set[str] = frozenset()) -> str:  # type: ignore[assignment]
    """What is wrong with a command; an empty text where it can be copied, gaps and CAPITALS filled in."""
    try:
        words = shlex.split(command)
    except ValueError:
        return "it cannot be split into words"
    program, words = words[0], words[1:]
    if program == "medmllm" and words[:1] == ["lmms-eval"]:
        program, words = "lmms-eval", words[1:]
    if program == "lmms-eval":
        options, tasks = HOST_OPTIONS, words[words.index("--tasks") + 1].split(",") if "--tasks" in words else []
        if tasks == ["list"]:  # the host lists its tasks
            tasks = []
        elif words and words[0].startswith("--") and "--model" not in words:
            return "lmms-eval needs --model"
    else:
        name, arguments = find_subcommand(words)
        if not name:
            return f"there is no command {' '.join(words[:1])!r}" if words else ""
        options = options_of(name)
        tasks = arguments[:1] if name in ("baseline", "repair") else []
        if not arguments and takes_arguments(name):
            return f"{name} needs arguments"
    for word in words:
        if word.startswith("-") and word.partition("=")[0] not in options and VALUE not in word:
            return f"there is no option {word}"
    names = {*task_names(), *own_tasks}
    for task in tasks:
        try:
            base = split_name(task)[0] if VALUE not in task and "…" not in task else VALUE
        except OptionError:
            return f"there is no task {task}"
        if base not in names and VALUE not in base and not base.isupper() and "*" not in base:
            return f"there is no task {base}"
    return ""


def test_the_software_suggests_commands_that_exist() -> None:
    suggestions = from_package()
    assert len(suggestions) > 10, "the commands are not found any more"
    wrong = [f"{path}: {command}: {why}" for path, command in suggestions if (why := fault(command))]
    assert not wrong, "\n".join(wrong)


def test_the_documentation_shows_commands_that_exist() -> None:
    suggestions = from_docs()
    assert len(suggestions) > 10, "the commands are not found any more"
    own = {
        "chest",
        "lungs",
        *(f"{prefix}{name}" for prefix in ("med_probe_", "med_attr_") for name in ("chest", "lungs")),
    }
    own |= {"med_cls_example", "example"}  # of examples/plugin
    models = {"llava_hf", "my_vl", *get_manager().models()}
    assert models
    wrong = [f"{path}: {command}: {why}" for path, command in suggestions if (why := fault(command, own))]
    assert not wrong, "\n".join(wrong)


def parse(command: str) -> str:
    """What is wrong with a command; an empty text where its parser takes it, else an error. Nothing is run."""
    words = shlex.split(command)
    if words[0] == "lmms-eval":
        return fault(command)
    name, arguments = find_subcommand(words[1:])
    try:
        context = subcommands()[name].make_context(name, list(arguments))
        RepairOptions(candidates=tuple(context.params.get("candidates") or ()))
        if name == "repair":
            assert context.params["model_args"].startswith("pretrained=")
            task_settings(context.params["task"])
    except OptionError as error:
        return str(error)
    return fault(command)


@pytest.mark.parametrize(
    ("task", "checkpoint"),
    [
        ("med_probe_demo:n=16", "demo"),
        ("med_probe_busi_letter", "models/stage 2"),
        ("med_cls_covid19_ct:paraphrase=2", "it's"),
    ],
)
def test_every_command_of_the_next_step_can_be_copied(tmp_path: Path, task: str, checkpoint: str) -> None:
    """Each rule of the box in turn, on several data sets, with checkpoints that a shell would split."""
    data_set = task.removeprefix("med_probe_").removeprefix("med_cls_").partition(":")[0].removesuffix("_letter")
    facts = {"dataset": data_set, "protocol": "letter" if "_letter" in task else "closed_set"}
    rows = outcomes()
    mute = [replace(row, predicted=None, status="refusal") for row in rows]
    folders = [
        Folder(tmp_path / "a", "medm_vl", fingerprint="a" * 64).answers(task, rows, **facts),
        Folder(tmp_path / "b", "medm_vl", fingerprint="b").answers(task, mute, **facts),
        Folder(tmp_path / "c", "medm_vl", fingerprint="c").answers(task, rows, documents=480, **facts),
        Folder(tmp_path / "d", "medm_vl", fingerprint="a" * 64).answers(task, rows, **facts).repairs(task),
        Folder(tmp_path / "g", "medm_vl", fingerprint="g").answers(task, rows, **facts).repairs(task, helps=False),
        Folder(tmp_path / "e", "baseline pixels", baseline="pixels").answers(task, mute, **facts),
    ]
    for mode in ("connector", None):
        made = Folder(tmp_path / f"probed {mode}", "medm_vl", fingerprint=f"p {mode}")
        folders.append(made.answers(task, rows, **facts).probes(task, named=mode))
    for folder in folders[:5] + folders[6:]:
        folder.manifest["command"] |= {"model_args": f"pretrained={checkpoint},dtype=float32,api_key=x"}
        folder.write()
    (part,) = collect_runs([folder.folder for folder in folders]).datasets
    steps = build_section(part).answer.steps
    kinds = {"unread", "limited", "repaired", "not_repaired", "connector", "no_loss"}
    assert {step.kind for step in steps} == kinds
    lines = {command.line for step in steps for command in step.commands}
    assert {" ".join(line.split()[:2]) for line in lines} >= {"medmllm repair", "medmllm baseline", "lmms-eval --model"}
    wrong = [f"{line}: {why}" for line in sorted(lines) if (why := parse(line))]
    assert not wrong, "\n".join(wrong)
    assert all(checkpoint in "".join(shlex.split(line)) for line in lines if "--model_args" in line)
    assert not any("api_key" in line for line in lines)


@pytest.mark.parametrize("names", [*STAGE_REPAIRS.values(), *INTERFACE_REPAIRS.values(), UNREAD_REPAIRS])
def test_suggested_repairs_exist(names: tuple[str, ...]) -> None:
    line = shlex.join(["medmllm", "repair", "med_cls_demo", "--model", "medm_vl", "--model_args", "pretrained=demo"])
    assert parse(f"{line} --candidates {' '.join(names)}") == ""
    assert "Expected candidates among" in parse(f"{line} --candidates nothing")
    assert "no task med_cls_bussi" in fault("medmllm repair med_cls_bussi --model x")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("medmllm baseline med_cls_hospct", "no task med_cls_hospct"),
        ("medmllm baselin med_cls_busi", "no command 'baselin'"),
        ("medmllm baseline timm:resnet", "no task timm"),
        ("medmllm diagnose", "needs arguments"),
        ("medmllm task new x --fold-mop a=train", "no option --fold-mop"),
        ("lmms-eval --tasks med_probe_NAME", "needs --model"),
        ("lmms-eval --model x --task med_cls_busi", "no option --task"),
        ("lmms-eval --model x --tasks med_cls_demo,med_cls_bussi", "no task med_cls_bussi"),
    ],
)
def test_wrong_commands_are_found(command: str, says: str) -> None:
    """Else the two above could not fail."""
    assert says in fault(command)


@pytest.mark.parametrize(
    "command",
    ["medmllm baseline med_cls_busi", "medmllm datasets", "lmms-eval --model x --tasks med_cls_busi:order=varied"],
)
def test_right_commands_are_not(command: str) -> None:
    assert fault(command) == ""
