"""Every flag of the host's command with our tasks and models: it works, is refused in time, or cannot concern us.

``EFFECTS`` and ``REFUSED`` are run; ``UNCONCERNED`` says why a flag cannot reach our code. A flag that a new version
of the host brings stands in none of them, and fails a test until it was thought about.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.host_command import Command, Ended

from medmllm_plugins.errors import OptionError
from medmllm_plugins.host import flags
from medmllm_plugins.prompts.task_settings import read_settings


@dataclass(frozen=True)
class Effect:
    """What flags, named in one string, do: ``holds`` compares how the command ended with how it ends without them."""

    flags: str
    words: tuple[str, ...]
    holds: Callable[[Ended, Ended], bool]


def same(ended: Ended, plain: Ended) -> bool:
    """Whether the answers and figures are those of the plain command."""
    return ended.values == plain.values and answers(ended) == answers(plain)


def answers(ended: Ended) -> dict[str, str]:
    lines = [
        json.loads(line) for path in ended.folder.glob("out/medmllm_runs/*/*outcomes.jsonl") for line in path.open()
    ]
    return {line["id"]: str(line["predicted"]) for line in lines}


def ids(ended: Ended) -> list[str]:
    return list(answers(ended))


def changes_nothing(ended: Ended, plain: Ended) -> bool:
    """Whether flags about what is printed and logged leave answers and figures as they are, and do their own."""
    printed = '"configs"' in ended.out and plain.prompt.split("\n")[-1][:20] in ended.out
    logged = len(ended.samples) == 3 and ended.manifest["seed"] == [None, 1, 2, 3]
    return same(ended, plain) and printed and logged and ended.prompt == plain.prompt


EFFECTS = (
    Effect("model num_fewshot", ("--model", "dummy", "--model_args", "", "--num_fewshot", "2"), lambda it, plain: it.loaded == 0 and set(it.values) <= set(plain.values) and it.manifest["tasks"]["med_cls_demo"]["shots"] == 2),
    Effect("tasks", ("--tasks", "med_cls_demo_letter,med_cls_demo:paraphrase=1"), lambda it, plain: {"med_cls_demo_letter", "med_cls_demo:paraphrase=1"} == set(it.results["results"]) and it.manifest["tasks"]["med_cls_demo:paraphrase=1"]["prompt"] != plain.prompt),
    Effect("model_args device", ("--model_args", "pretrained=demo,max_new_tokens=1", "--device", "cpu"), lambda it, plain: (it.manifest["model"]["max_new_tokens"], it.manifest["model"]["device"]) == (1, "cpu")),
    Effect("batch_size max_batch_size", ("--batch_size", "auto", "--max_batch_size", "2"), lambda it, plain: same(it, plain) and it.manifest["model"]["batch_size"] == "auto"),
    Effect("output_path", ("--output_path", "elsewhere"), lambda it, plain: any(it.folder.glob("elsewhere/medmllm_runs/*/manifest.json"))),
    Effect("limit", ("--limit", "0.005"), lambda it, plain: ids(it) == ids(plain)),  # of 480, rounded up
    Effect("offset limit", ("--offset", "1", "--limit", "2"), lambda it, plain: len(ids(it)) == 2 and set(ids(it)) < set(ids(plain))),
    Effect("use_cache cache_requests", ("--use_cache", "cache", "--cache_requests", "true"), lambda it, plain: same(it, plain) and any(it.folder.glob("cache/**/*.db")) and "is ignored" in it.out),
    Effect("gen_kwargs log_samples", ("--gen_kwargs", "max_new_tokens=1,top_p=0.5,do_sample=False", "--log_samples"), lambda it, plain: all(row["token_counts"][0]["output_tokens"] == 1 for row in it.samples)),
    Effect("verbosity", ("--verbosity", "ERROR"), lambda it, plain: same(it, plain) and "INFO" not in it.out),
    Effect("predict_only", ("--predict_only",), lambda it, plain: len(it.samples) == 3 and {row["bypass"]["id"] for row in it.samples} == set(ids(plain))),
    Effect(
        "log_samples log_samples_suffix write_out show_config reasoning_tags timezone seed process_with_media "
        "process_docs_parallel trust_remote_code apply_chat_template force_simple",  # our models are chat models only
        ("--log_samples", "--log_samples_suffix", "x", "--write_out", "--show_config", "--reasoning_tags", "none",
         "--timezone", "UTC", "--seed", "None,1,2,3", "--process_with_media", "--process-docs-parallel", "1",
         "--trust_remote_code", "--apply_chat_template", "--force_simple"),
        changes_nothing,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Refused:
    """A flag that ends the command with a message that names it."""

    flag: str
    words: tuple[str, ...]
    says: str
    loaded: int = 0


REFUSED = (
    Refused("model", ("--model", "medm_vll"), "medm_vll"),
    Refused("tasks", ("--tasks", "med_cls_dem"), "med_cls_dem"),
    Refused("model_args", ("--model_args", "pretrained"), "--model_args: expected name=value pairs"),
    Refused("model_args", ("--model_args", "pretrained=demo,nosuch=1"), "nosuch"),
    Refused("num_fewshot", ("--num_fewshot", "-1"), "--num_fewshot: expected a number of examples of at least 0, got -1"),
    # Only a loaded checkpoint knows how many images it takes.
    Refused("num_fewshot", ("--num_fewshot", "2"), "without few-shot examples", loaded=1),
    Refused("batch_size", ("--batch_size", "auto:2"), "batch_size"),
    Refused("batch_size", ("--model_args", "pretrained=demo,device=cpu,batch_size=2"), "--batch_size"),
    Refused("max_batch_size", ("--max_batch_size", "0"), "max_batch_size"),
    Refused("device", ("--device", "cuda"), "expected one value of device"),
    Refused("limit", ("--limit", "0"), "--limit 0"),
    Refused("limit", ("--limit", "nan"), "NaN"),
    Refused("offset", ("--offset", "480"), "--offset below the number of questions"),
    Refused("check_integrity", ("--check_integrity",), "--check_integrity"),
    Refused("system_instruction", ("--system_instruction", "Be brief."), "--model_args system="),
    Refused("system_instruction", ("--system_instruction", "Be brief.", "--tasks", "mme"), "--model_args system="),
    Refused("apply_chat_template", ("--apply_chat_template", "--model", "dummy", "--model_args", ""), "--apply_chat_template"),
    Refused("fewshot_as_multiturn", ("--fewshot_as_multiturn",), "fewshot_as_multiturn"),
    Refused("fewshot_as_multiturn", ("--fewshot_as_multiturn", "--apply_chat_template", "--num_fewshot", "1"), "without few-shot examples", loaded=1),
    Refused("gen_kwargs", ("--gen_kwargs", "do_sample=True"), "expected greedy decoding"),
    Refused("gen_kwargs", ("--gen_kwargs", "temperature=0.7"), "expected greedy decoding"),
    Refused("gen_kwargs", ("--gen_kwargs", "num_beams=4"), "expected greedy decoding"),
    Refused("gen_kwargs", ("--gen_kwargs", "temperature=hot"), "temperature to be a number"),
    Refused("gen_kwargs", ("--gen_kwargs", "max_new_tokens=abc"), "max_new_tokens to be a number"),
    Refused("gen_kwargs", ("--gen_kwargs", "max_new_tokens=0"), "max_new_tokens to be a whole number"),
    Refused("gen_kwargs", ("--gen_kwargs", "max_tokens=5"), "max_tokens"),
    Refused("gen_kwargs", ("--gen_kwargs", "repetition_penalty=1.5"), "repetition_penalty"),
    Refused("gen_kwargs", ("--gen_kwargs", "max_new_tokens"), "--gen_kwargs: expected name=value pairs"),
    Refused("reasoning_tags", ("--reasoning_tags", "["), "--reasoning_tags: expected a JSON list of pairs"),
    Refused("reasoning_tags", ("--reasoning_tags", '[["<b>"]]'), "--reasoning_tags: expected a JSON list of pairs"),
    Refused("timezone", ("--timezone", "No/Where"), "No/Where"),
    Refused("launcher_args", ("--launcher_args", "x"), "--launcher_args: expected name=value pairs"),
    Refused("predict_only", ("--predict_only", "--output_path", ""), "--output_path"),
    Refused("repeats", ("--repeats", "3"), "--repeats: expected 1, got 3"),
    Refused("baseline", ("--baseline", "run.jsonl"), "medmllm compare"),
    Refused("max_tokens", ("--max_tokens", "5"), "--max_tokens"),
    Refused("config", ("--config", "nowhere.yaml"), "Config file does not exist"),
)  # fmt: skip

ELSEWHERE = {
    "config": "test_a_config_file_may_hold_several_evaluations",
    "include_path": "test_entry_point.py, test_a_name_that_is_taken_stays_as_it_was",
    **dict.fromkeys(("power_analysis", "effect_size", "alpha", "power", "correlation", "std_a", "std_b"), "test_power"),
}
"""Flags that another test has."""
UNCONCERNED = {
    "agentic_trace_mode": "read for requests of the type generate_until_agentic only; ours are generate_until",
    "tui": "dispatch.main takes it out before an evaluation is begun; a terminal interface that runs this command",
    **dict.fromkeys(
        ("wandb_args", "wandb_log_samples", "swanlab_args", "swanlab_log_samples"),
        "the loggers get the host's results once they are there; what fails in them is caught and logged by the host",
    ),
    "hf_hub_log_args": "read by the host's EvaluationTracker, which uploads its own files after they are written",
    "launcher_args": "starts a server for a judge after the answers; no task of ours has a judge",
}


def parser() -> argparse.ArgumentParser:
    from lmms_eval.__main__ import parse_eval_args

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lmms-eval"])
        arguments: argparse.ArgumentParser = parse_eval_args()[0]
    return arguments


def test_the_table_has_every_flag_of_the_host() -> None:
    flags = {action.dest for action in parser()._actions} - {"help"}
    listed = (
        {flag for row in EFFECTS for flag in row.flags.split()}
        | {row.flag for row in REFUSED}
        | set(ELSEWHERE)
        | set(UNCONCERNED)
    )
    assert listed == flags


@pytest.fixture
def plain(command: Command, request: pytest.FixtureRequest) -> Ended:
    """The command without further flags; run once, as nothing changes it."""
    if (ended := _plain.get(0)) is None:
        ended = _plain[0] = command()
    return ended


_plain: dict[int, Ended] = {}


@pytest.mark.parametrize("row", EFFECTS, ids=lambda row: " ".join(row.words)[:60])
def test_flags_work(command: Command, plain: Ended, row: Effect) -> None:
    ended = command(*row.words)
    assert (ended.status, ended.err[-2000:] if ended.status else "") == (0, "")
    assert "Traceback" not in ended.out
    assert row.holds(ended, plain)


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: " ".join(row.words)[:60])
def test_a_flag_is_refused_before_the_model_is_loaded(command: Command, row: Refused) -> None:
    try:
        ended = command(*row.words)
    except ValueError as error:  # the host's own, before it begins to evaluate; Python ends with status 1
        assert row.says in str(error)
        return
    assert ended.status == 1
    assert ended.loaded == row.loaded
    assert row.says in ended.err, ended.err[-2000:]
    said = [line for line in ended.err.splitlines() if line.startswith("medmllm: ")]
    assert len(said) == 1 and len(said[0]) < 600
    assert "Traceback" not in ended.err + ended.out
    assert not list(ended.folder.glob("out/medmllm_runs/*/*.metrics.json"))


def test_answers_of_predict_only_are_scored_later_without_being_asked_again(command: Command, plain: Ended) -> None:
    words = ("--model_args", "pretrained=demo,device=cpu,run_dir=kept")
    first = command(*words, "--predict_only", "--log_samples")
    assert first.values == {"bypass,none": "N/A"} and "not scored" in first.out
    second = command(*words, again=True)
    assert "3 of 3 answers are there from an earlier start" in second.out
    metrics = json.loads((second.folder / "kept" / "med_cls_demo.metrics.json").read_text(encoding="utf-8"))
    assert metrics["metrics"]["accuracy"]["value"] == plain.values["accuracy,none"]


@pytest.mark.parametrize("task", ["med_probe_demo", "med_attr_demo"])
def test_predict_only_leaves_out_the_look_into_the_model_too(
    command: Command, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medmllm_plugins.attribution import explainer

    monkeypatch.setattr(explainer, "explain", lambda *_: pytest.fail("explained"))
    ended = command("--tasks", task, "--predict_only", "--limit", "2")
    assert ended.status == 0
    assert ended.values == {"bypass,none": "N/A"}


@pytest.mark.parametrize(
    "text",
    [
        "thoughts</think> normal",
        "<think>a disc</think>normal",
        "[THINK]x[/THINK] normal",
        "[/THINK] normal",
        "ends here",
    ],
)
def test_reasoning_tags_do_not_cost_a_reply_its_scores(text: str) -> None:
    """The host cuts reasoning out of the envelope as if it were plain text."""
    from lmms_eval.api.reasoning import strip_reasoning_tags

    from medmllm_plugins.host.envelope import pack, unpack
    from medmllm_plugins.runtime.journal import Reply

    reply = Reply(text, (-0.1, -2.0), (1, 1), (-1.0, -1.0))
    assert unpack(pack(reply)) == reply
    tags = [["<think>", "</think>"], ["[THINK]", "[/THINK]"]]
    assert unpack(strip_reasoning_tags(pack(reply), tags)) == reply


def test_reasoning_is_cut_out_of_the_reply_by_the_task(task_manager: Any, drawn_once: None) -> None:
    from medmllm_plugins.host.envelope import pack
    from medmllm_plugins.runtime.journal import Reply

    (task,) = task_manager.load_task_or_group(["med_cls_demo"], "chat").values()
    task.args = argparse.Namespace(reasoning_tags='[["[THINK]", "[/THINK]"]]')
    doc = task.dataset["test"][0]
    classes = task.content.rows.classes
    others = [label for label in classes if label != doc["label"]]
    text = f"[THINK]{' or '.join(others)}[/THINK]{doc['label']}"
    scored = task.process_results(doc, [pack(Reply(text, tuple(-1.0 for _ in classes)))])
    assert scored["accuracy"]["outcome"]["predicted"] == doc["label"]
    assert scored["accuracy"]["answer"] == doc["label"]


def test_arguments_that_an_error_suggests_exist() -> None:
    with pytest.raises(OptionError) as caught:
        flags.check_repeats(2)
    suggested = re.findall(r"(\w+)=(\w+)", str(caught.value))
    assert suggested
    read_settings("task", {"medmllm": {"dataset": "demo", **dict(suggested[:1])}})
    read_settings("task", {"medmllm": {"dataset": "demo", **dict(suggested[1:])}})


def test_flags_are_checked_where_the_host_is_called_from_python(evaluate: Any, tmp_path: Path) -> None:
    for settings, says in (
        ({"repeats": 2}, "--repeats"),
        ({"num_fewshot": -2}, "--num_fewshot"),
        ({"offset": 10**6}, "--offset"),
        ({"limit": 0}, "--limit"),
        ({"system_instruction": "Be brief."}, "--system_instruction"),
        ({"gen_kwargs": "repetition_penalty=2.0"}, "repetition_penalty"),
    ):
        with pytest.raises(OptionError, match=says):
            evaluate(tmp_path, **settings)


@pytest.mark.parametrize(
    "settings",
    [{"until": 5}, {"until": [1]}, {"max_new_tokens": True}, {"max_new_tokens": 2.5}, {"temperature": float("nan")}],
)
def test_settings_of_generation_of_a_wrong_type_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        flags.check_generation(settings, "task, model", ours=True)


def test_other_tasks_may_have_settings_that_greedy_decoding_does_not_read() -> None:
    usual = {
        "max_new_tokens": 16,
        "temperature": 0,
        "top_p": None,
        "num_beams": 1,
        "do_sample": False,
        "image_aspect_ratio": "original",
    }
    flags.check_generation(usual, "mme, medm_vl", ours=False)
    with pytest.raises(OptionError, match="image_aspect_ratio"):
        flags.check_generation(usual, "med_cls_demo, medm_vl", ours=True)


def test_a_fraction_is_of_each_task_or_refused() -> None:
    """The host turns it into a number for the first task, and takes that number of all others."""
    flags.check_fraction(0.01, 480, 5, "first")
    flags.check_fraction(0.01, 480, None, "called from Python")
    flags.check_fraction(5, 10, 5, "no fraction")
    with pytest.raises(
        OptionError, match=r"--limit 0\.01: lmms-eval takes the fraction of the first task, 5 questions"
    ):
        flags.check_fraction(0.01, 1000, 5, "second")


def test_power(command: Command) -> None:
    """The host sizes a benchmark: it reads how many documents our tasks have."""
    words = ("--power-analysis", "--effect-size", "0.05", "--alpha", "0.1", "--power", "0.9", "--correlation", "0.4")
    ended = command(*words, "--std-a", "0.4", "--std-b", "0.4", "--tasks", "med_cls_demo")
    assert (ended.status, ended.loaded) == (0, 0)
    assert "med_cls_demo" in ended.out and "480" in ended.out


# -- the other subcommands ---------------------------------------------------------------------------------------------

SUBCOMMANDS = {
    "tasks": {"action", "include_path", "verbosity"},
    "models": {"aliases"},
    "power": {
        "effect_size",
        "alpha",
        "stat_power",
        "correlation",
        "std_a",
        "std_b",
        "tasks",
        "include_path",
        "verbosity",
    },
    "eval": set(),  # the flags above
    "version": set(),
    # Servers and interfaces, which start this command or ask for the lists of tasks and models.
    "ui": {"port"},
    "serve": {"host", "port"},
    "mcp": {"transport"},
    "tui": set(),
}


def test_the_table_has_every_subcommand_of_the_host() -> None:
    from lmms_eval.cli.dispatch import _SUBCOMMANDS, _build_parser

    (subparsers,) = [action for action in _build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    flags = {name: {action.dest for action in sub._actions} - {"help"} for name, sub in subparsers.choices.items()}
    assert flags == SUBCOMMANDS
    assert set(SUBCOMMANDS) == _SUBCOMMANDS


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("tasks", "list"), "med_cls_demo"),
        pytest.param(("tasks", "subtasks", "--verbosity", "ERROR"), "med_probe_demo", marks=pytest.mark.slow),
        pytest.param(("tasks", "groups"), "med_cls", marks=pytest.mark.slow),
        (("models", "--aliases"), "medm_vl"),
        (("power", "--tasks", "med_cls_demo", "--effect-size", "0.05"), "480"),
        (("version",), "lmms-eval 0.7"),
    ],
)
def test_subcommands_know_us(command: Command, words: tuple[str, ...], says: str) -> None:
    from medmllm_plugins.cli.app import main

    ended = command(through=lambda: main(["lmms-eval", *words]), plain=False)
    assert ended.status == 0
    assert says in ended.out
