"""What README and docs show exists: commands, flags, tasks, models, links, files, and the tables of names."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from support.command_line import find_subcommand, options_of, subcommands

from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.readers.intensity_windows import WINDOWS
from medmllm_plugins.errors import MedMLLMError
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.prompts.task_names import split_name, task_settings
from medmllm_plugins.prompts.task_settings import ARGUMENTS

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
WRITTEN = tuple(page for page in PAGES if page.name != "commands.md")
"""Pages that are not made from the help of the commands, which tests/docs/test_site.py compares."""
EXAMPLES = {"of_mine", "example_vl", "small_mllm", "med_cls_example", "chest", "shapes", "balls"}
"""Models and tasks that a page makes before it uses them: the example plugins', own-data.md's and the tutorials'."""
HOST_MODELS = {"dummy", "openai", "vllm"}
SOURCE = re.compile(r"\bMEDMLLM_[A-Z_]+\b")


def blocks(page: Path) -> Iterator[tuple[int, str, str]]:
    """Code blocks of a page: line, language (empty where none is named) and text."""
    fence, language, start, body = False, "", 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").split("\n"), start=1):
        if line.startswith("```"):
            if fence:
                yield start, language, "\n".join(body)
            fence, language, start, body = not fence, line[3:].strip(), number, []
        elif fence:
            body.append(line)
        elif line.startswith("    ") and not line.lstrip().startswith("|"):
            yield number, "", line[4:]


def commands() -> Iterator[tuple[str, str]]:
    """Every command that a page shows in a code block, with where it stands."""
    for page in WRITTEN:
        for number, language, text in blocks(page):
            if language in ("", "console", "sh", "bash"):
                for line in text.split("\n"):
                    for part in line.split("&&"):
                        command = part.split(" #")[0].strip().removeprefix("$ ")
                        command = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", command)
                        if re.match(r"(medmllm|lmms-eval|python -m benchmarks|torchrun)\b", command):
                            yield f"{page.relative_to(ROOT)}:{number}", command


def mentions() -> Iterator[tuple[str, str]]:
    """Every command in the middle of a sentence."""
    for page in WRITTEN:
        for command in re.findall(r"`((?:medmllm|lmms-eval) [^`\n]+)`", page.read_text(encoding="utf-8")):
            yield page.name, command


SHOWN = list(commands())
MENTIONED = list(mentions())


def host_flags() -> set[str]:
    """Flags of lmms-eval's command, read from its source: importing it takes seconds."""
    spec = importlib.util.find_spec("lmms_eval")
    assert spec is not None and spec.submodule_search_locations
    source = (Path(spec.submodule_search_locations[0]) / "__main__.py").read_text(encoding="utf-8")
    return set(re.findall(r"[\"'](--?[A-Za-z][\w-]*)[\"']", source))


def exists(task: str) -> bool:
    base = task.split(":")[0]
    split_name(task)  # its arguments are known
    if base in EXAMPLES or base.removeprefix("med_attr_").removeprefix("med_probe_") in EXAMPLES:
        return True
    entry = get_manager().tasks().get(base)
    if entry is not None and entry.kind == "group":
        return True
    try:
        task_settings(task)
    except MedMLLMError:
        return False
    return True


def test_the_pages_show_commands() -> None:
    """Else the tests below hold of nothing."""
    assert len(SHOWN) > 25 and len(MENTIONED) > 10
    assert {command.split()[0] for _, command in SHOWN} >= {"medmllm", "lmms-eval"}


@pytest.mark.parametrize(("where", "command"), [pair for pair in SHOWN if pair[1].startswith("medmllm")])
def test_medmllm_commands_parse(where: str, command: str) -> None:
    words = shlex.split(command)[1:]
    if words[0] == "lmms-eval":
        return
    words = ["RUN" if word in ("[RUN_DIR", "…]") else word for word in words]
    words = [word.strip("[]") for word in words if word != "…"]
    if words[:1] == ["attribute"] and words[-1] == "--ids":
        words.append("an_id")
    name, arguments = find_subcommand(words)
    assert name, f"{where}: {command}"
    subcommands()[name].make_context(name, list(arguments))  # raises where it is wrong
    for task in words[1:] if words[0] == "baseline" else ():
        if task.startswith("-"):
            break
        assert exists(task), f"{where}: {task}"


@pytest.mark.parametrize(("where", "command"), MENTIONED)
def test_commands_in_sentences_exist(where: str, command: str) -> None:
    words = command.replace("…", "").split()
    if words[0] == "medmllm" and words[1:2] != ["lmms-eval"]:
        name, rest = find_subcommand(words[1:])
        assert name, f"{where}: {command}"
        known = options_of(name)
    else:
        rest, known = words[1:], host_flags()
    unknown = [word for word in rest if word.startswith("-") and word not in known]
    assert not unknown, f"{where}: {command}"


@pytest.mark.parametrize(("where", "command"), [p for p in SHOWN if re.match(r"lmms-eval|torchrun", p[1])])
def test_evaluations_name_known_flags_models_and_tasks(where: str, command: str) -> None:
    words = shlex.split(command)
    flags = {word.split("=")[0] for word in words if word.startswith("--")} - {"--nproc_per_node"}
    assert flags <= host_flags(), f"{where}: {command}"
    values = dict(pairwise(words))
    models = {*get_manager().models(), *HOST_MODELS, *EXAMPLES}
    assert values.get("--model", "…") in {*models, "…"}, f"{where}: {command}"
    for task in values.get("--tasks", "").split(","):
        assert task in ("", "…", "NAME", "TASK") or exists(task), f"{where}: {task}"
    if (model := get_manager().models().get(values.get("--model", ""))) is not None:
        size = dict(part.partition("=")[::2] for part in values.get("--model_args", "").split(",")).get(
            "pretrained", ""
        )
        assert not size or not model.sizes or size in model.sizes or "/" in size, f"{where}: {size}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:|mailto:|\.\./\.\./security", target):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_variables_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    below = r"(?:medmllm_plugins|tests|examples|benchmarks|tasks|docs|probes)/[\w./-]*\.(?:py|yaml|md|toml)"
    for name in re.findall(rf"`({below})`", text):
        # Paths in design.md may start at a room, and tasks/ at the top is medmllm_plugins/tasks.
        assert any((root / name).exists() for root in (ROOT, ROOT / "medmllm_plugins")), f"{page.name}: {name}"
    folders = (ROOT / "medmllm_plugins", ROOT / "tests")
    sources = "".join(path.read_text(encoding="utf-8") for folder in folders for path in sorted(folder.rglob("*.py")))
    for variable in set(SOURCE.findall(text)):
        assert f'"{variable}"' in sources, f"{page.name}: {variable}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_compile(page: Path) -> None:
    for number, language, text in blocks(page):
        if language == "python":
            compile(text, f"{page.name}:{number}", "exec")


def rows(page: str, header: str) -> list[list[str]]:
    """Cells of the table whose header line begins so."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith(header)) + 2
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return table


def test_the_table_of_models_is_that_of_the_command() -> None:
    table = {row[0].strip("`"): re.findall(r"`([^`]+)`", row[1]) for row in rows("models.md", "| `--model` |")}
    models = get_manager().models()
    assert {name: sizes for name, sizes in table.items() if sizes} == {
        name: list(spec.sizes) for name, spec in models.items() if spec.sizes
    }
    assert set(table) == set(models)


def test_the_tables_of_tasks_are_complete() -> None:
    named = {row[0].strip("`"): row[1].strip("`") for row in rows("tasks.md", "| `X` |") if row[0].startswith("`")}
    specs = {name: spec for name, spec in dataset_specs().items() if not spec.layout.startswith("medmnist")}
    assert set(named) == set(specs)
    assert all(named[name] == spec.folder for name, spec in specs.items() if spec.folder)
    assert len(dataset_specs()) - len(specs) == 18
    arguments = set(re.findall(r"`(\w+)`", " ".join(row[0] for row in rows("tasks.md", "| argument |"))))
    # Those of med_attr and med_patch stand on their own pages.
    for page in ("attribution.md", "patching.md"):
        arguments |= set(re.findall(r"`(\w+)`", " ".join(row[0] for row in rows(page, "| argument |"))))
    assert arguments == set(ARGUMENTS)


def test_the_windows_are_those_there_are() -> None:
    (values,) = (row[1] for row in rows("tasks.md", "| argument |") if row[0] == "`window`")
    assert set(re.findall(r"`(\w+)`", values)) == set(WINDOWS)


def test_the_table_of_rooms_names_every_module_at_the_top() -> None:
    named = set(re.findall(r"`(\w+)(?:\.py|/)`", " ".join(row[0] for row in rows("design.md", "| room |"))))
    package = ROOT / "medmllm_plugins"
    there = {path.stem for path in package.glob("*.py") if not path.stem.startswith("_")}
    assert there | {path.parent.name for path in package.glob("*/__init__.py")} == named
