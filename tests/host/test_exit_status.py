"""A failed evaluation ends with status 1 and one clean message, however the host's command is started."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.host_command import PLAIN, Command

from medmllm_plugins.errors import DataError
from medmllm_plugins.host import command_line, model
from medmllm_plugins.runtime import explaining

SCRIPTS = Path(sysconfig.get_path("scripts"))


@pytest.fixture(autouse=True)
def polite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line._status, "every", False)


def failing(error: BaseException) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


def said(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("medmllm: ")]


def test_an_error_of_ours_is_its_message_alone(command: Command) -> None:
    ended = command("--tasks", "med_cls_busi")
    assert ended.status == 1
    assert len(said(ended.err)) == 1 and "MEDMLLM_DATA" in ended.err
    assert "Traceback" not in ended.err and "DataError" not in ended.err
    assert "|Tasks" not in ended.out


def test_any_other_error_is_named_with_the_way_to_its_traceback(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.MedicalMLLM, "generate_until", failing(RuntimeError("boom " * 200)))
    ended = command()
    assert ended.status == 1
    (line,) = said(ended.err)
    assert "RuntimeError: boom" in line and "--verbosity DEBUG" in line and len(line) < 450
    assert "Traceback" not in ended.err


def test_debug_shows_the_traceback(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.MedicalMLLM, "generate_until", failing(RuntimeError("boom")))
    with pytest.raises(RuntimeError, match="boom"):  # with which Python prints a traceback, and ends with 1
        command("--verbosity", "DEBUG")


def test_evaluations_that_are_not_ours_are_left_as_they_are(command: Command) -> None:
    ended = command("--model", "dummy", "--model_args", "", "--tasks", "no_such_task")
    assert ended.status == 0 and "Traceback" in ended.err and not said(ended.err)


def test_medmllm_lmms_eval_judges_every_evaluation(command: Command) -> None:
    from medmllm_plugins.cli.app import main

    words = ["--model", "dummy", "--tasks", "no_such_task"]
    ended = command(through=lambda: sys.exit(main(["lmms-eval", *words])), plain=False)
    assert ended.status == 1
    assert len(said(ended.err)) == 1 and "no_such_task" in ended.err and "Traceback" not in ended.err


def test_a_success_is_a_success(command: Command) -> None:
    from medmllm_plugins.cli.app import main

    words = [word for flag, value in PLAIN.items() for word in (flag, value)]
    ended = command(through=lambda: sys.exit(main(["lmms-eval", *words])), plain=False)
    assert (ended.status, said(ended.err)) == (0, [])


def test_the_result_is_one_line_after_the_hosts_table(command: Command) -> None:
    ended = command("--output_path", "a folder")
    assert ended.err.splitlines()[-1].startswith("med_cls_demo: accuracy 100.0% (")
    assert ended.err.splitlines()[-1].endswith(
        "; always guessing the most common class: 66.7%). Only 3 of 480 questions were asked. "
        "Report: medmllm report 'a folder'"
    )
    assert "medmllm report" not in ended.out and ended.out.rstrip().endswith("|")  # the table


def test_the_results_of_several_tasks_have_one_report(command: Command) -> None:
    ended = command("--tasks", "med_cls_demo,med_cls_demo_letter")
    *_, first, second, report = ended.err.splitlines()
    assert {line.partition(":")[0] for line in (first, second)} == {"med_cls_demo", "med_cls_demo_letter"}
    assert report == "Report: medmllm report out"


def test_only_the_first_process_prints_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate(_: Namespace | None) -> None:
        command_line.note_result("t: accuracy 50.0%.", "out")

    for rank, expected in (("0", "t: accuracy 50.0%. Report: medmllm report out\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        command_line._command(evaluate)(None)
        assert capsys.readouterr().err == expected


def test_a_config_file_may_hold_several_evaluations(command: Command, tmp_path: Path) -> None:
    """One that fails does not keep the next from running, and is not forgotten."""
    path = tmp_path / "several.yaml"
    path.write_text("- {tasks: med_cls_busi}\n- {tasks: med_cls_demo}\n", encoding="utf-8")
    flags = ("--model", "medm_vl", "--model_args", "pretrained=demo,device=cpu", "--limit", "2")
    ended = command(*flags, "--config", str(path), plain=False)
    assert ended.status == 1
    assert len(said(ended.err)) == 1 and "MEDMLLM_DATA" in ended.err
    assert "|med_cls_demo|" in ended.out
    path.write_text("- {tasks: med_cls_demo, limit: 2}\n", encoding="utf-8")
    assert command(*flags, "--config", str(path), plain=False).status == 0  # nothing is left of the first


def test_no_tasks_is_a_usage_error(command: Command) -> None:
    ended = command("--model", "medm_vl", plain=False)
    assert ended.status == 2
    assert said(ended.err) == [
        "medmllm: --tasks: expected the names of tasks, got none. `lmms-eval --tasks list` lists them."
    ]
    assert command("--tasks", "list", plain=False).status == 0


def test_probes_that_failed_are_told_of_once_the_answers_are_scored(command: Command) -> None:
    ended = command("--model", "dummy", "--model_args", "", "--tasks", "med_probe_demo", "--limit", "60")
    assert ended.status == 1
    assert len(said(ended.err)) == 1 and "med_probe_demo: no probes" in ended.err
    assert "|med_probe_demo|" in ended.out
    assert next(ended.folder.glob("out/medmllm_runs/*/med_probe_demo.metrics.json")).is_file()


def test_attributions_that_failed_are_told_of(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining.AttributionLoop, "_explain_task", failing(RuntimeError("no gradients")))
    ended = command("--tasks", "med_attr_demo", "--limit", "2")
    assert ended.status == 1
    (line,) = said(ended.err)
    assert "med_attr_demo: no attributions" in line and "RuntimeError: no gradients" in line
    assert "|med_attr_demo|" in ended.out


@pytest.mark.parametrize(("rank", "status"), [("0", 1), ("1", 0)])
def test_of_several_processes_the_first_tells_of_what_failed_beside_the_answers(
    monkeypatch: pytest.MonkeyPatch, rank: str, status: int
) -> None:
    """A launcher ends all processes once one has failed: the first may be printing results still."""
    monkeypatch.setenv("RANK", rank)
    run = command_line._command(lambda args: command_line.note_failure("med_probe_x: no probes"))
    if status:
        with pytest.raises(SystemExit):
            run(None)
    else:
        run(None)


def test_a_task_without_a_metric_is_a_failure() -> None:
    results = {
        "configs": {"full": {}, "empty": {}, "absent": {}},
        "results": {"full": {"alias": "full", "accuracy,none": "N/A"}, "empty": {"alias": "empty", "a_stderr,none": 0}},
    }
    assert command_line._without_metrics(results) == ["empty", "absent"]


ARGS = Namespace(model="medm_vl", tasks="med_cls_demo", verbosity="INFO")


def test_one_process_of_several_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others wait for it: their launcher ends them when it has failed."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as stop:
        command_line._one_evaluation(failing(DataError("a.png: damaged.")))(ARGS)
    assert stop.value.code == 1
    assert capsys.readouterr().err == "medmllm: process 1: a.png: damaged.\n"
    assert command_line.arguments() is None


@pytest.mark.parametrize("wrap", ["cause", "context", "retry", "cycle"])
def test_an_error_of_ours_is_found_in_what_the_host_made_of_it(wrap: str) -> None:
    ours, outer = DataError("a.png: damaged."), ValueError("outer")
    if wrap == "cause":
        outer.__cause__ = ours
    elif wrap == "context":
        outer.__context__ = ours
    elif wrap == "retry":
        outer.last_attempt = Namespace(exception=lambda: ours)  # type: ignore[attr-defined]
    else:
        other = KeyError("other")
        outer.__cause__, other.__cause__ = other, outer
        assert "ValueError: outer" in command_line._message(outer)
        assert command_line._message(ValueError("outer.")) == command_line._message(ValueError("outer"))
        return
    assert command_line._message(outer) == "a.png: damaged."


def test_ctrl_c_is_left_alone() -> None:
    with pytest.raises(KeyboardInterrupt):
        command_line._one_evaluation(failing(KeyboardInterrupt()))(ARGS)


def test_a_module_on_its_way_is_wrapped_once_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """`lmms-eval` imports us in the middle of the import of its `__main__`."""
    module = ModuleType(command_line.MAIN_MODULE)
    monkeypatch.setitem(sys.modules, command_line.MAIN_MODULE, module)
    command_line.install()
    with pytest.raises(AttributeError):
        _ = module.cli_evaluate
    assert not hasattr(module, "cli_evaluate")
    calls: list[Any] = []
    source = "def cli_evaluate(args=None):\n    calls.append(cli_evaluate_single(args))\n"
    exec(source + "def cli_evaluate_single(args):\n    raise ValueError('lost')\n", vars(module))
    vars(module)["calls"] = calls
    command_line.install()
    with pytest.raises(SystemExit) as stop:
        module.cli_evaluate(ARGS)
    assert stop.value.code == 1 and calls == [(None, None)]
    assert type(module) is ModuleType
    command_line.install()  # once more changes nothing
    with pytest.raises(SystemExit):
        module.cli_evaluate(ARGS)
    assert len(calls) == 2


FAILS = "--model medm_vl --model_args pretrained=demo,device=cpu --tasks med_cls_busi"
CODE = "import sys; from medmllm_plugins.cli.app import main; sys.exit(main())"
STARTS = {
    "console script": (str(SCRIPTS / "lmms-eval"),),
    "eval subcommand": (str(SCRIPTS / "lmms-eval"), "eval"),
    "module": (sys.executable, "-m", "lmms_eval"),
    "pass-through": (sys.executable, "-c", CODE, "lmms-eval"),
    "torchrun": (str(SCRIPTS / "torchrun"), "--nproc_per_node", "2", "--master_port", "29533", "-m", "lmms_eval"),
    "accelerate": (str(SCRIPTS / "accelerate"), "launch", "--cpu", "--num_processes", "1", "-m", "lmms_eval"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_every_way_to_start_the_host(start: tuple[str, ...], tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MEDMLLM_")}
    done = subprocess.run(
        [*start, *FAILS.split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("medmllm: ")]
    assert any("MEDMLLM_DATA" in line for line in lines)  # another process may have lost its connection


def test_an_evaluation_of_others_behind_one_of_ours_stays_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line._status, "every", False)

    def evaluate(args: Namespace) -> tuple[None, None]:
        if args.tasks == "ours_by_its_file":
            command_line.concern_us()
        theirs.append(not command_line.concerns_us(args))
        return None, None

    theirs: list[bool] = []
    wrapped = command_line._one_evaluation(evaluate)
    for tasks in ("ours_by_its_file", "mme"):  # as `--config` lists them
        wrapped(Namespace(tasks=tasks, model="dummy", verbosity="INFO"))
    assert theirs == [False, True]
