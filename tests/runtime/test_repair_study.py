"""Studies of repairs: what is fitted and measured, going on after an interruption, and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medmllm_plugins import Run
from medmllm_plugins.cli.app import main
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.formats.medm_vl import load
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.probes.validation.fault_kinds import Fault
from medmllm_plugins.probes.validation.planted_faults import plant_faults
from medmllm_plugins.prompts.task_names import task_settings
from medmllm_plugins.results.outcome_files import read_outcomes
from medmllm_plugins.results.repair_records import RepairStudy
from medmllm_plugins.runtime import repair_study
from medmllm_plugins.runtime.repair_answers import QuestionSet, answer_rows
from medmllm_plugins.runtime.repair_candidates import CANDIDATES, RepairOptions, fit_score_map
from medmllm_plugins.runtime.repair_study import RepairRunner

torch.set_num_threads(1)
TASK = "med_cls_demo"
SETTINGS = task_settings(TASK)
SMALL = RepairOptions(
    candidates=("class_bias", "wording", "few_shot", "soft_prompt"),
    steps=2,
    batch=2,
    vectors=2,
    train_limit=16,
    validation_limit=12,
    test_limit=12,
    curve=(8,),
)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load(LoadOptions("demo", device="cpu", dtype="float32"))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(SETTINGS.dataset)


@pytest.fixture(scope="module")
def finished(loaded: LoadedModel, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RepairStudy]:
    folder = tmp_path_factory.mktemp("study")
    return folder, RepairRunner(loaded, TASK, SETTINGS, data, SMALL, folder, model="demo").run()


def test_a_study_measures_each_candidate(finished: tuple[Path, RepairStudy]) -> None:
    folder, study = finished
    assert [repair.name for repair in study.repairs] == ["class_bias", "wording", "soft_prompt"]
    assert study.left_out == {"few_shot": "the model takes one image a question, so no solved examples"}
    assert (study.n, study.model) == (12, "demo") and study.accuracy.value > 0.8 and study.ece >= 0
    bias, wording, prompt = study.repairs
    assert (bias.parameters, bias.steps, bias.documents) == (20, 0, 12)
    assert (prompt.parameters, prompt.steps, prompt.documents) == (2 * 128, 2, 16)
    assert wording.setting.startswith("paraphrase=") and wording.folder == "" and wording.curve == ()
    for repair in study.repairs:
        names = [transfer.task for transfer in repair.transfers]
        assert names == ["other wordings", "med_cls_demo_letter", "med_cls_demo_open"]
        assert repair.fixed - repair.broken == round(12 * repair.gain.value)
    assert [point.documents for point in bias.curve] == [8] == [point.documents for point in prompt.curve]
    assert (folder / prompt.folder / "repair.safetensors").is_file()
    outcomes = read_outcomes(folder / "answers" / "soft_prompt" / "test.jsonl")
    assert sum(o.predicted == o.label for o in outcomes) / 12 == prompt.accuracy.value


@pytest.mark.parametrize(("own", "others"), [("", {1, 2, 3}), (":paraphrase=2", {0, 1, 3})])
def test_other_wordings_share_the_documents(data: Dataset, own: str, others: set[int]) -> None:
    settings = task_settings(f"{TASK}{own}")
    asked = QuestionSet(TASK, settings, data, "test", 24)
    elsewhere = QuestionSet(TASK, settings, data, "test", 24, without=int(settings.paraphrase))
    assert sorted(row["document"] for row in elsewhere.rows) == sorted(row["document"] for row in asked.rows)
    wordings = Counter(row["variant"] for row in elsewhere.rows)
    assert wordings == {f"wording {number}": 8 for number in others}
    texts = {elsewhere.content.question(row).text for row in elsewhere.rows}
    assert len(texts) == 3 and asked.content.question(asked.rows[0]).text not in texts
    assert {tuple(elsewhere.content.question(row).labels) for row in elsewhere.rows} == {
        tuple(asked.content.question(asked.rows[0]).labels)
    }


def test_an_interrupted_study_goes_on_to_the_same_results(
    finished: tuple[Path, RepairStudy],
    loaded: LoadedModel,
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def interrupted(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return answer_rows(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(repair_study, "answer_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        RepairRunner(loaded, TASK, SETTINGS, data, SMALL, tmp_path, model="demo").run()
    first = len(calls)
    again = RepairRunner(loaded, TASK, SETTINGS, data, SMALL, tmp_path, model="demo").run()
    total = len(calls) - 1
    assert total - first + 1 < total  # what was answered is not answered again

    def without_seconds(study: RepairStudy) -> RepairStudy:
        return replace(study, repairs=tuple(replace(repair, seconds=0.0) for repair in study.repairs))

    assert without_seconds(again) == without_seconds(finished[1])
    third = RepairRunner(loaded, TASK, SETTINGS, data, SMALL, tmp_path, model="demo").run()
    assert len(calls) - 1 == total and without_seconds(third) == without_seconds(again)


def test_a_folder_of_another_study_is_refused(
    finished: tuple[Path, RepairStudy], loaded: LoadedModel, data: Dataset
) -> None:
    with pytest.raises(DataError, match="expected a folder of this study, got one of another model, task or options"):
        RepairRunner(loaded, TASK, SETTINGS, data, replace(SMALL, seed=1), finished[0])


def test_labels_are_shuffled_among_groups(loaded: LoadedModel, data: Dataset, tmp_path: Path) -> None:
    runner = RepairRunner(loaded, TASK, SETTINGS, data, replace(SMALL, train_limit=200), tmp_path)
    rows, true = runner._rows(runner._train, None, shuffled=False)
    same_rows, shuffled = runner._rows(runner._train, None, shuffled=True)
    assert list(rows) == list(same_rows) and sorted(true) == sorted(shuffled)
    agreement = sum(a == b for a, b in zip(true, shuffled, strict=True)) / len(true)
    assert 0.1 < agreement < 0.4  # 0.25 by chance


@pytest.mark.slow
def test_recalibrations_undo_what_they_are_for(loaded: LoadedModel, data: Dataset, tmp_path: Path) -> None:
    """The labels of the demo are permuted or one is preferred; the class stays in the label scores."""
    question = QuestionSet(TASK, SETTINGS, data, "test").content
    text, labels = question.question(question.row_list[0]).text, question.question(question.row_list[0]).labels
    options = replace(SMALL, validation_limit=120, test_limit=80, controls=True, curve=())
    for fault, name in (("labels_permuted", "relabelling"), ("label_bias", "class_bias")):
        with plant_faults(loaded, Fault(fault, 3, 0), question=text, labels=labels):
            runner = RepairRunner(
                loaded, TASK, SETTINGS, data, replace(options, candidates=(name, "affine")), tmp_path / name
            )
            runner._elsewhere = {}
            study = runner.run()
        assert study.accuracy.value < 0.6
        for repair in (study.of(name), study.of("affine")):
            assert repair.accuracy.value > 0.9 and repair.helps
            assert known(repair.shuffled_gain) == (repair.name != "class_bias")
        assert study.of("affine").over_shuffled.low > 0
        assert study.cheapest == name


def test_blank_scores_are_subtracted() -> None:
    outcomes = read_outcomes_of([[0.0, -1.0], [-3.0, -1.0]])
    import numpy as np

    fitted = fit_score_map("blank_image", outcomes, np.array([0, 1]), ("a", "b"), np.array([-0.5, -2.0]), 0)
    assert fitted.apply((0.0, -1.0)) == (0.5, 1.0)


def read_outcomes_of(scores: list[list[float]]) -> list:  # type: ignore[type-arg]
    from medmllm_plugins.metrics.outcomes import Outcome

    return [Outcome(str(i), str(i), "a", "a", "parsed", tuple(row)) for i, row in enumerate(scores)]


def test_tasks_with_several_questions_are_refused(data: Dataset) -> None:
    with pytest.raises(OptionError, match="expected one question about each document"):
        QuestionSet(TASK, replace(SETTINGS, order="varied"), data, "test")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 0}, "Expected `rank` to be at least 1, got 0"),
        ({"minutes": 0.0}, "Expected `minutes` to be above 0"),
        ({"curve": (1,)}, "Expected learning curves from at least 2 documents"),
        ({"candidates": ("magic",)}, "Expected candidates among relabelling, .*, got magic"),
    ],
)
def test_wrong_options_are_named(wrong: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(OptionError, match=message):
        RepairOptions(**wrong)


def test_the_time_is_divided_among_the_fits(loaded: LoadedModel, data: Dataset, tmp_path: Path) -> None:
    options = replace(SMALL, minutes=1.0, candidates=("soft_prompt", "connector_adapter", "class_bias"))
    runner = RepairRunner(loaded, TASK, SETTINGS, data, options, tmp_path)
    assert runner._seconds_left() == pytest.approx(60 / (2 * 3), abs=0.5)


def test_the_command_writes_a_run_and_prints_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["repair", TASK, "--model", "medm_vl", "--model_args", "pretrained=demo,device=cpu,dtype=float32"]
    words += [
        "--output",
        str(tmp_path),
        "--candidates",
        "class_bias",
        "--limit",
        "8",
        "--validation",
        "8",
        "--curve",
        "0",
    ]
    words += ["--no-controls"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "of 8 questions without a repair" in printed and "class_bias" in printed and "No repair helps" in printed
    run = Run(tmp_path)
    assert set(run.repairs["metric"]) == {
        "accuracy",
        "ece",
        "gain",
        "validation_gain",
        "shuffled_gain",
        "over_shuffled",
        "over_guess",
    }
    assert run.notes == [] or run.notes == ()
    assert len(run.outcomes) == 8 and run.outcomes["answer"].str.len().min() > 0
    assert main([*words, "--json"]) == 0
    study = RepairStudy.from_dict(json.loads(capsys.readouterr().out))
    assert study.task == TASK and study.of("class_bias").title == CANDIDATES["class_bias"].title


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model", "medm", "--model_args", "pretrained=demo"],
            "Expected a model that this package or a plugin loads",
        ),
        (["--model", "medm_vl", "--model_args", "device=cpu"], "expected --model_args with pretrained=CHECKPOINT"),
        (["--model", "medm_vl", "--model_args", "pretrained=demo,speed=9"], "expected model arguments among"),
        (["--model", "medm_vl", "--model_args", "pretrained=demo,repair=x"], "Expected a model without a repair"),
    ],
)
def test_wrong_arguments_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repair", TASK, *words]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_come_to_the_same_result(tmp_path: Path) -> None:
    """The reference is one process. Sums of gradients in another order differ by rounding."""
    words = [TASK, "--model", "medm_vl", "--model_args", "pretrained=demo,device=cpu,dtype=float32", "--steps", "6"]
    words += ["--batch", "5", "--train", "24", "--limit", "13", "--curve", "0", "--candidates", "connector_adapter"]
    words += ["--validation", "20"]
    code = "import sys; from medmllm_plugins.cli.app import main; sys.exit(main(sys.argv[1:]))"
    (tmp_path / "start.py").write_text(code)
    command = [str(tmp_path / "start.py"), "repair", *words, "--output"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517"]
    subprocess.run([*launcher, *command, str(tmp_path / "two")], check=True, capture_output=True, timeout=300)
    assert main(["repair", *words, "--output", str(tmp_path / "one")]) == 0
    (one,), (two,) = (list((tmp_path / name / "repairs").iterdir()) for name in ("one", "two"))
    tensors = [load_file(folder / "connector_adapter" / "repair.safetensors") for folder in (one, two)]
    for name, value in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], value, atol=1e-4, rtol=1e-3)
    for file in ("before.jsonl", "connector_adapter/test.jsonl"):
        answers = [read_outcomes(folder / "answers" / file) for folder in (one, two)]
        assert len(answers[0]) == 13
        assert [(o.id, o.predicted) for o in answers[0]] == [(o.id, o.predicted) for o in answers[1]]
    assert len(list((tmp_path / "two" / "medmllm_runs").iterdir())) == 1
