"""The command ``medmllm``, in process: what it prints, as text and as JSON, and its exit status."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import Medmllm
from support.command_line import find_subcommand, subcommands

import medmllm_plugins
from medmllm_plugins.cli import app
from medmllm_plugins.cli.app import load_command
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.plugins.manager import reset

pytestmark = pytest.mark.usefixtures("plain_surroundings")

COMMANDS = ("doctor", "models", "datasets", "plugins")

GIVING = """
from medmllm_plugins.plugins.hookspecs import hookimpl
from medmllm_plugins.plugins.specs import ModelSpec

@hookimpl
def medmllm_models():
    return [ModelSpec(name="giver_vl", summary="A giver's model.", loader="a.b:c", sizes={"tiny": "owner/tiny"})]
"""


# -- all commands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_json_and_text_is_text(medmllm: Medmllm, command: str) -> None:
    status, printed = medmllm(command, "--json")
    assert status == 0 and json.loads(printed)
    status, text = medmllm(command)
    assert status == 0 and text.strip()
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)
    assert not any(mark in text for mark in ('"', "{'", "None", "[]", "()", "Traceback"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--version"]) == 0
    assert capsys.readouterr().out == f"medmllm-plugins {medmllm_plugins.__version__}\n"


@pytest.mark.parametrize("words", [[], ["docter"], ["--verbose"], ["models", "--yaml"], ["models", "demo"], ["--vers"]])
def test_anything_else_is_exit_status_two(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert app.main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "Usage: medmllm" in printed.err and "--help` shows an example" in printed.err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["docter"], "Did you mean 'doctor'?"),
        (["task", "lst"], "Did you mean 'list'?"),
        (["models", "--jsn"], "Did you mean --json?"),
        (["diagnose", "run", "--layer", "connector"], "Did you mean --layers?"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_likely_one(
    capsys: pytest.CaptureFixture[str], words: list[str], meant: str
) -> None:
    assert app.main(words) == 2
    assert meant in capsys.readouterr().err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for command, summary in app.COMMANDS.items():
        assert re.search(rf"^  {command} +{re.escape(summary)}$", printed, re.MULTILINE)


@pytest.mark.parametrize("name", subcommands())
def test_every_help_begins_with_a_sentence_and_ends_with_an_example(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert app.main([*name.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    example = " ".join(printed.partition("Example: ")[2].split())
    assert find_subcommand(example.split()[1:])[0] == name
    if name in app.COMMANDS:
        assert app.COMMANDS[name] in " ".join(printed.split())


def test_help_and_a_wrong_command_import_neither_torch_nor_rich() -> None:
    code = (
        "import sys; from medmllm_plugins.cli.app import main; assert main(['--help']) == 0 and main(['x']) == 2; "
        "print({'torch', 'rich', 'numpy', 'lmms_eval'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_options_take_several_values_at_once() -> None:
    command = load_command("attribute")
    words = ["run", "--ids", "a", "b", "--layer", "llm.3", "--method", "x", "y", "--ids", "c", "--task", "t"]
    values = command.make_context("attribute", words).params
    assert (values["ids"], values["layer"], values["method"]) == (["a", "b", "c"], ["llm.3"], ["x", "y"])
    assert (str(values["run_dir"]), values["task"]) == ("run", "t")


def test_a_terminal_gets_a_table(medmllm: Medmllm, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = medmllm("task", "list")[1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "300")
    table = medmllm("task", "list")[1]
    assert "task" in table.splitlines()[1] and "med_cls_demo" in table and "───" in table
    assert "───" not in plain and plain.splitlines()[0].startswith("med_attr")


def test_words_are_those_of_the_process_by_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["medmllm", "models", "--json"])
    assert app.main() == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "medm_vl"


# -- models, datasets, plugins ---------------------------------------------------------------------------------------


def test_models(medmllm: Medmllm, install: Callable[[str, str], None]) -> None:
    install("giver", GIVING)
    rows = json.loads(medmllm("models", "--json")[1])
    assert all(set(row) == {"name", "summary", "sizes", "base", "licence", "citation"} for row in rows)
    ours, giver = rows[0], rows[-1]
    assert {"lingshu", "medgemma", "hulu_med", "medmllm_hf"} <= {row["name"] for row in rows}
    assert ours["name"] == "medm_vl" and set(ours["sizes"]) == {"demo", "2d-3b"} and "arXiv" in ours["citation"]
    assert giver["sizes"] == {"tiny": "owner/tiny"}
    text = medmllm("models")[1].splitlines()
    for row in rows:
        assert f"{row['name']}: {row['summary']}" in text
        assert not row["licence"] or f"    licence  {row['licence']}" in text  # as docs/models.md says
        for size, source in row["sizes"].items():
            assert [line for line in text if f"pretrained={size} " in line and source in line]


def test_datasets_without_data(medmllm: Medmllm) -> None:
    rows = {row["name"]: row for row in json.loads(medmllm("datasets", "--json")[1])}
    assert set(rows) == set(dataset_specs()) > {"busi", "covid19_ct", "demo", "pathmnist"}
    for name, row in rows.items():
        fields = {"name", "title", "classes", "task", "licence", "citation", "location", "expected_location", "fix"}
        assert set(row) == fields
        spec = dataset_specs()[name]
        assert row["task"] == f"med_cls_{name}" and row["classes"] == list(spec.labels)
        assert row["licence"] and row["citation"]
        if spec.folder:
            assert row["location"] == "" and "MEDMLLM_DATA" in row["expected_location"]
            assert row["fix"].startswith("export MEDMLLM_DATA=") and spec.download in row["fix"]
            assert f"{spec.folder}/" in row["fix"]
    assert (rows["demo"]["location"], rows["demo"]["fix"]) == ("generated by code", "")
    text = medmllm("datasets", "--all")[1]
    for row in rows.values():
        assert f"{row['name']}: {row['title']}" in text and f"task     {row['task']}" in text
        assert f"classes  {', '.join(row['classes'])}" in text and f"licence  {row['licence']}" in text
    missing = len(rows) - 1  # all but the drawn one
    assert text.count("-> export MEDMLLM_DATA=") == text.count("missing ") == missing and text.count("found ") == 1


def test_data_sets_that_are_there_come_first_and_the_others_take_one_line(
    medmllm: Medmllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "covid19_ct").mkdir()
    monkeypatch.setenv("MEDMLLM_DATA", str(tmp_path))
    names = list(dataset_specs())
    lines = medmllm("datasets")[1].splitlines()
    assert [line.split(":")[0] for line in lines[:-1] if not line.startswith(" ")] == ["covid19_ct", "demo"]
    missing = [name for name in names if name not in ("covid19_ct", "demo")]
    assert lines[-1].startswith(f"{len(missing)} more data sets can be set up: {', '.join(missing[:8])}, …; ")
    assert "`medmllm datasets --all` lists how" in lines[-1] and len(lines[-1]) < 250
    assert len(medmllm("datasets", "--all")[1].splitlines()) > 5 * len(names)
    assert "get the set from" in medmllm("datasets", "busi")[1] and "more data" not in medmllm("datasets", "busi")[1]

    doctor_lines = medmllm("doctor")[1].splitlines()
    assert (
        doctor_lines[-2].startswith("missing ") and f"{len(missing)} more data sets can be set up" in doctor_lines[-2]
    )
    assert str(tmp_path) in doctor_lines[-2] and "medmllm datasets --all lists how" in doctor_lines[-1]
    assert not [line for line in doctor_lines if line.startswith("missing") and "data set busi" in line]
    assert [line for line in medmllm("doctor", "--all")[1].splitlines() if line.startswith("missing  data set busi")]


def test_datasets_with_data(medmllm: Medmllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "busi").mkdir()
    monkeypatch.setenv("MEDMLLM_DATA", str(tmp_path))
    rows = {row["name"]: row for row in json.loads(medmllm("datasets", "--json")[1])}
    assert rows["busi"]["location"] == str((tmp_path / "busi").resolve()) and rows["busi"]["fix"] == ""
    # The folder is named in full, also where the variable is relative, so that one sees where to put the set.
    assert rows["covid19_ct"]["location"] == "" and rows["covid19_ct"]["expected_location"] == str(
        tmp_path / "covid19_ct"
    )
    assert rows["covid19_ct"]["fix"] == f"get the set from {dataset_specs()['covid19_ct'].download}"
    text = medmllm("datasets", "--all")[1]
    assert f"found    {tmp_path / 'busi'}" in text and f"missing  expected at {tmp_path / 'covid19_ct'}" in text
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDMLLM_DATA", ".")
    assert json.loads(medmllm("datasets", "--json")[1]) == list(rows.values())


def test_a_file_in_the_sets_place_is_not_the_set(
    medmllm: Medmllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "busi").write_text("not a folder")
    monkeypatch.setenv("MEDMLLM_DATA", str(tmp_path))
    rows = {row["name"]: row for row in json.loads(medmllm("datasets", "--json")[1])}
    assert rows["busi"]["location"] == ""


def test_plugins(medmllm: Medmllm, install: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    install("giver", GIVING)
    install("faulty", "import a_module_that_is_not_there\n")
    install("unwanted", GIVING.replace("giver_vl", "unwanted_vl"))
    monkeypatch.setenv("MEDMLLM_DISABLE", "unwanted")
    reset()
    listing = json.loads(medmllm("plugins", "--json")[1])
    assert set(listing) == {"plugins", "failures", "notices"}
    plugins = {plugin["name"]: plugin for plugin in listing["plugins"]}
    fields = {"name", "distribution", "version", "hooks", "disabled", "models", "datasets", "tasks"}
    fields |= {"probes", "attributions", "interventions"}
    assert all(set(plugin) == fields for plugin in plugins.values())
    assert plugins["giver"]["models"] == ["giver_vl"] and plugins["giver"]["version"] == "3.1"
    assert plugins["unwanted"]["disabled"] and not plugins["giver"]["disabled"]
    (failure,) = listing["failures"]
    assert set(failure) == {"plugin", "distribution", "version", "stage", "hook", "message"}
    assert (failure["plugin"], failure["stage"]) == ("faulty", "import")
    text = medmllm("plugins")[1].splitlines()
    assert "giver: giver 3.1" in text and "unwanted (disabled): unwanted 3.1" in text
    assert any(
        line.startswith("FAILED faulty (faulty 3.1): import: ") and "a_module_that_is_not_there" in line
        for line in text
    )
    assert "    hooks: medmllm_models" in text and "    hooks: none" in text


def test_plugins_as_text_tell_what_each_brings(medmllm: Medmllm, install: Callable[[str, str], None]) -> None:
    """As the command's own help and the README say."""
    install("giver", GIVING)
    text = medmllm("plugins")[1]
    assert "giver_vl" in text and "medm_vl" in text and "    datasets: " in text and " ct_rate, demo, " in text


def test_plugins_say_in_which_hook_one_failed(medmllm: Medmllm, install: Callable[[str, str], None]) -> None:
    raising = "from medmllm_plugins import hookimpl\n\n@hookimpl\ndef medmllm_models():\n    raise KeyError(1)\n"
    install("raising", raising)
    text = medmllm("plugins")[1]
    assert "FAILED raising (raising 3.1): hook of medmllm_models: " in text


def test_a_failure_that_no_plugin_caused_reads_well(medmllm: Medmllm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMLLM_DISABLE", "bultin")
    reset()
    (line,) = [line for line in medmllm("plugins")[1].splitlines() if line.startswith("FAILED")]
    assert "bultin" in line and "MEDMLLM_DISABLE" in line
    assert "(" not in line.split(":")[0]  # there is no distribution to name in brackets


# -- the host's commands ---------------------------------------------------------------------------------------------


def test_the_hosts_commands_get_their_words_and_our_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch = pytest.importorskip("lmms_eval.cli.dispatch")
    from medmllm_plugins.host import command_line, entry_point, task_manager_hook

    seen: list[Any] = []
    monkeypatch.setattr(command_line._status, "every", False)
    monkeypatch.setattr(task_manager_hook, "install_task_hook", lambda: seen.append("hook"))
    monkeypatch.setattr(entry_point, "register_models", lambda: seen.append("models"))
    monkeypatch.setattr(dispatch, "main", lambda: seen.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", ["medmllm"])
    # The host's own --help and --version behind it, not ours.
    assert app.main(["lmms-eval", "tasks", "list", "--help", "--version"]) == 0
    assert seen == ["hook", "models", ["lmms-eval", "tasks", "list", "--help", "--version"]]
    assert command_line._status.every
