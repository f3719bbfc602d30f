"""The decorator, the pytest plugin and the command: what a plugin's author sees."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support.plugin_site import HEAD, Site
from support.wrong_data import declare

from medmllm_plugins import ModelSpec, ProbeSpec, TaskFolder
from medmllm_plugins.cli import app
from medmllm_plugins.errors import OptionError
from medmllm_plugins.testing import parametrize_with_checks, run_checks
from medmllm_plugins.testing.check_registry import CHECKS, KINDS, names_of
from medmllm_plugins.testing.conformance_page import conformance_page
from medmllm_plugins.testing.resources import CHOSEN, Resources, read_checkpoints

ROOT = Path(__file__).parents[2]
LINEAR = ProbeSpec(name="mine", target="medmllm_plugins.probes.probe_methods:fit_linear", summary="A probe.")
TESTS = """
import sys

from medmllm_plugins import ModelSpec, ProbeSpec
from medmllm_plugins.testing import parametrize_with_checks

RIGHT = ProbeSpec(name="right", target="medmllm_plugins.probes.probe_methods:fit_linear", summary="A probe.")
WRONG = ProbeSpec(name="wrong", target="support.wrong_methods:constant", summary="A probe.")
CLOSED = ModelSpec(name="closed", summary="A model.", wrapper="support.model.Model")
LEARNS = ("check_separates_what_is_separable", "check_every_label_set_is_fitted")


def test_collection_imports_no_torch():
    assert "torch" not in sys.modules and "transformers" not in sys.modules


def known(spec):
    return dict.fromkeys(LEARNS, "it learns nothing") if spec is WRONG else {}


@parametrize_with_checks([RIGHT, WRONG, CLOSED], expected_failed_checks=known)
def test_my_plugin(spec, check):
    check(spec)


@parametrize_with_checks([RIGHT], expected_failed_checks={LEARNS[0]: "not true"})
def test_a_reason_that_is_out_of_date(spec, check):
    if check.__name__ == LEARNS[0]:
        check(spec)


def test_fixtures(medmllm_manager, medmllm_register, medmllm_demo_model):
    class Plugin:
        pass

    assert medmllm_manager.strict
    assert medmllm_register(Plugin(), "mine") is medmllm_manager
    assert "mine" in [info.name for info in medmllm_manager.plugins]
    assert medmllm_demo_model.shows == "image"
"""


PLUGIN = "medmllm_plugins.testing.pytest_plugin"
QUIET = ("-p", "no:cacheprovider", "-rA", "-q")


def run_pytest(folder: Path, *options: str) -> tuple[dict[str, str], str]:
    """Run pytest in a process of its own; return outcomes by test, and what it printed."""
    report = folder / "report.xml"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    # Installed, the package registers the plugin by its entry point; in a bare checkout nothing does.
    installed = any(each.value == PLUGIN for each in metadata.entry_points(group="pytest11"))
    by_name = () if installed else ("-p", PLUGIN)
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *by_name,
            "-p",
            "no:cacheprovider",
            "-rA",
            "-q",
            f"--junit-xml={report}",
            *options,
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert report.exists(), process.stdout + process.stderr
    outcomes: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcomes[case.attrib["name"]] = kinds[0] if kinds else "passed"
    return outcomes, process.stdout


def test_a_plugins_tests(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(TESTS)
    outcomes, printed = run_pytest(tmp_path)
    for name in names_of("probe"):
        if name != "check_import_costs_no_torch":
            assert outcomes[f"test_my_plugin[right-{name}]"] == "passed"
    assert outcomes["test_collection_imports_no_torch"] == "passed", printed
    assert "test_my_plugin[wrong-check_every_label_set_is_fitted] - it learns nothing" in printed
    assert outcomes["test_my_plugin[wrong-check_results_have_their_shapes]"] == "passed"
    assert outcomes["test_my_plugin[closed-check_stages_are_found]"] == "skipped"
    assert "does not apply to closed: support.model.Model is a model class of lmms-eval" in printed
    stale = "test_a_reason_that_is_out_of_date[right-check_separates_what_is_separable]"
    assert outcomes[stale] == "failure" and "[XPASS(strict)] not true" in printed
    assert outcomes["test_fixtures"] == "passed"
    assert sum(outcome == "failure" for outcome in outcomes.values()) == 1


def test_the_plugin_costs_nothing_where_it_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import sys\n\ndef test_other():\n    names = [name for name in sys.modules if name.startswith('medmllm')]\n"
        "    assert sorted(names) == ['medmllm_plugins', 'medmllm_plugins.testing', "
        "'medmllm_plugins.testing.pytest_plugin']\n    assert 'torch' not in sys.modules\n"
    )
    outcomes, printed = run_pytest(tmp_path)
    assert outcomes == {"test_other": "passed"}, printed


def test_a_checkpoint_by_an_option_of_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "from medmllm_plugins import ModelSpec\nfrom medmllm_plugins.testing import parametrize_with_checks\n\n"
        "MINE = ModelSpec(name='mine', summary='A model.', family='llava')\n\n"
        "@parametrize_with_checks([MINE])\ndef test_mine(spec, check):\n    check(spec)\n"
    )
    test = "test_mine.py::test_mine[mine-check_loads]"
    _, printed = run_pytest(tmp_path, "--medmllm-checkpoint", "mine=not/there/at-all", test)
    assert "mine: expected the model to load, got" in printed and "not/there/at-all" in printed


def test_what_is_wrong_is_said_before_any_test_runs() -> None:
    with pytest.raises(OptionError, match=r"each one of InstalledPlugin, ModelSpec, .* got str"):
        parametrize_with_checks(["mine"])  # type: ignore[list-item]
    with pytest.raises(OptionError, match=r"to name checks, got 'check_load'\. Did you mean check_loads"):
        parametrize_with_checks([LINEAR], expected_failed_checks={"check_load": "not yet"})
    with pytest.raises(OptionError, match=r"Expected --pretrained \[MODEL=\]PATH, got 'a=y'\. Name each model once"):
        read_checkpoints(["a=x", "a=y"], "--pretrained")
    assert read_checkpoints(["a=x", "/some/b=c", "demo"][:2], "") == {"a": "x", "": "/some/b=c"}


def test_which_checkpoint_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Resources(checkpoint="here").checkpoint_of("mine") == "here"
    assert Resources(checkpoint={"mine": "here"}).checkpoint_of("other") is None
    monkeypatch.setitem(CHOSEN, "mine", "by option")
    assert Resources().checkpoint_of("mine") == "by option" and Resources().checkpoint_of("other") is None
    assert Resources(checkpoint={"": "for all"}).checkpoint_of("other") == "for all"


def test_a_model_without_a_checkpoint_fails_and_says_what_to_do() -> None:
    spec = ModelSpec(name="mine", summary="A model.", loader="mine.model:load")
    results = {result.check: result for result in run_checks(spec)}
    assert results["check_loads"].status == "failed"
    assert "--pretrained mine=FOLDER" in results["check_loads"].reason
    others = [result for name, result in results.items() if name not in ("check_loads", "check_import_costs_no_torch")]
    assert {result.status for result in others} == {"not applicable"}
    assert {result.reason for result in others} == {"the model does not load, see check_loads"}


def test_expected_failures_without_pytest() -> None:
    spec = ProbeSpec(name="wrong", target="support.wrong_methods:constant", summary="A probe.")
    reasons = {"check_separates_what_is_separable": "it learns nothing", "check_results_have_their_shapes": "x"}
    results = {result.check: result for result in run_checks(spec, expected_failed_checks=reasons)}
    assert results["check_separates_what_is_separable"].status == "expected failure"
    assert "remove it from expected_failed_checks" in results["check_results_have_their_shapes"].reason
    assert results["check_every_label_set_is_fitted"].status == "failed"


def test_the_registry_names_every_check_and_each_says_what_it_asserts_and_why() -> None:
    registered: dict[str, set[str]] = {}
    for kind in KINDS:
        for module, names in CHECKS[kind].items():
            registered.setdefault(module, set()).update(names)
    assert len(registered) > 8
    for module, names in registered.items():
        loaded = import_module(f"medmllm_plugins.testing.{module}")
        own = [function for _, function in inspect.getmembers(loaded, inspect.isfunction)]
        checks = {function.__name__: function for function in own if function.__module__ == loaded.__name__}
        assert {name for name in checks if name.startswith("check_")} == names, module
        for name in names:
            summary, _, reason = (inspect.getdoc(checks[name]) or "").partition("\n\n")
            assert summary.startswith("Assert that ") and reason, name


def test_the_page_of_checks_is_current() -> None:
    page = ROOT / "docs" / "conformance.md"
    assert page.read_text(encoding="utf-8") == conformance_page(), (
        f"{page} is out of date: python -m medmllm_plugins.testing.conformance_page docs/conformance.md"
    )


# -- the command -------------------------------------------------------------------------------------------------------


def install(site: Site) -> None:
    targets = {"right": "medmllm_plugins.probes.probe_methods:fit_linear", "wrong": "support.wrong_methods:constant"}
    probes = ", ".join(
        f'ProbeSpec(name="{name}_probe", target="{target}", summary="A probe.")' for name, target in targets.items()
    )
    folder = site.tasks("tasks", mine="task: mine\nmetadata: {medmllm: {dataset: own}}\n")
    (Path(folder) / "datasets").mkdir()
    (Path(folder) / "datasets" / "own.yaml").write_text(json.dumps(declare().model_dump(mode="json")))
    site.add(
        "mine",
        f"{HEAD}\n@hookimpl\ndef medmllm_probes():\n    return [{probes}]\n\n@hookimpl\ndef medmllm_tasks():\n"
        f"    return [TaskFolder(path={folder!r})]\n",
    )


def test_the_command_prints_a_line_for_each_check(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    install(site)
    assert app.main(["check-plugin", "mine"]) == 1
    printed = capsys.readouterr().out
    assert "passed         check_separates_what_is_separable right_probe\n" in printed
    assert "failed         check_separates_what_is_separable wrong_probe: wrong_probe: expected an accuracy" in printed
    assert "passed         check_images_decode own\n" in printed
    assert "passed         check_hooks_declare_without_failures mine\n" in printed
    assert "2 failed" in printed.splitlines()[-1]
    assert app.main(["check-plugin", "mine", "--only", "right_probe", "own"]) == 0


def test_the_command_prints_json(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    install(site)
    assert app.main(["check-plugin", "mine", "--only", "wrong_probe", "--json"]) == 1
    results: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert {result["subject"] for result in results} == {"wrong_probe"}
    assert set(results[0]) == {"kind", "subject", "check", "status", "reason"}


@pytest.mark.parametrize("name", ["builtin", "medmllm-plugins", "MedMLLM_plugins"])
def test_a_plugin_is_named_by_its_package_too(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["check-plugin", name, "--only", "linear"]) == 0
    assert "check_separates_what_is_separable linear" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["min"], "one of builtin, mine, got 'min'. Did you mean mine?"),
        (["nothing"], "one of builtin, mine, got 'nothing'. `medmllm plugins` lists them."),
        (["mine", "--only", "right_prob"], "got 'right_prob'. Did you mean right_probe?"),
        (["mine", "--pretrained", "a="], "Expected --pretrained [MODEL=]PATH"),
    ],
)
def test_a_wrong_command(site: Site, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    install(site)
    assert app.main(["check-plugin", *words]) == 1
    assert message in capsys.readouterr().err


def test_a_task_folder_stands_for_its_data_sets() -> None:
    parameters = parametrize_with_checks([TaskFolder(path="medmllm_plugins:tasks")]).mark.args[1]  # type: ignore[attr-defined]
    names = {parameter.id.partition("-")[0] for parameter in parameters}
    assert {"medmllm_plugins:tasks", "demo", "busi"} <= names
