"""Every command that the software or its documentation suggests can be copied: command, options and tasks exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import find_subcommand, options_of, takes_arguments

import medmllm_plugins
from medmllm_plugins.errors import OptionError
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.prompts.task_names import split_name, task_names

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
        tasks = arguments[:1] if name == "baseline" else []
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
