"""A run that is killed after its answers, while probes are fitted or files written, asks the model nothing again."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from host.test_probe_tasks import LIMIT, TASK, store_of
from host.test_resume import RUNS, SCRIPTS, finish, start

from medmllm_plugins.attribution import attribution_store, explainer
from medmllm_plugins.errors import DataError
from medmllm_plugins.features import store_writer
from medmllm_plugins.host import probe_tasks
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.results import scoring
from medmllm_plugins.results.feature_store import FeatureStore
from medmllm_plugins.results.seal import check_seal
from medmllm_plugins.runtime import evaluation_run
from medmllm_plugins.runtime.journal import Journal


class Killed(BaseException):
    """Nothing here would catch it, as nothing catches SIGKILL."""


def killed(*_: Any, **__: Any) -> Any:
    raise Killed


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the model was asked."""
    sizes: list[int] = []
    generate = LoadedModel.generate

    def counted(self: LoadedModel, questions: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(questions))
        return generate(self, questions, *args, **kwargs)

    monkeypatch.setattr(LoadedModel, "generate", counted)
    return sizes


def broken(evaluate: Callable[..., Any], folder: Path, owner: Any, name: str, **settings: Any) -> None:
    """Start an evaluation that ends in a function."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, killed)
        evaluate(folder, batch_size=16, **settings)


def test_no_answer_is_asked_again_when_probes_or_files_were_broken_off(
    evaluate: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int]
) -> None:
    settings = {"tasks": [TASK], "limit": 48}
    broken(evaluate, tmp_path, probe_tasks.analysis, "analyse", **settings)
    assert sum(asked) >= 48
    (begun,) = (tmp_path / RUNS).glob("2*")
    (store,) = (begun / "features").iterdir()  # moved already
    asked.clear()

    def no_probes(*_: Any, **__: Any) -> Any:  # to fit them would take long, and other tests do
        raise DataError("left out")

    monkeypatch.setattr(probe_tasks.analysis, "analyse", no_probes)
    broken(evaluate, tmp_path, scoring, "write_outcomes", **settings)
    broken(evaluate, tmp_path, evaluation_run, "write_seal", **settings)
    draft = begun / f".manifest.json.{2**22 + 1}.tmp"  # of a process that was killed while it wrote
    draft.write_text("{")
    whole = evaluate(tmp_path, batch_size=16, **settings)
    assert asked == [] and whole.folder == begun.absolute() and not draft.exists()
    stored = FeatureStore(store)
    assert (stored.index["fold"] != "masked").sum() == 48
    assert whole.manifest["answers_of_an_earlier_start"] == len(stored)
    checked = check_seal(whole.folder, lambda _: True)
    assert checked.sealed and not checked.differing


@pytest.mark.slow
def test_nothing_is_explained_again_when_maps_were_being_put_together(
    evaluate: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int]
) -> None:
    settings = {"tasks": ["med_attr_demo:n=1:method=layer_grad_cam:layer=connector"], "limit": 16}
    broken(evaluate, tmp_path, attribution_store, "gather_index", **settings)
    (begun,) = (tmp_path / RUNS).glob("2*")
    assert list(begun.glob("attributions/*/entries/*.json"))  # moved already
    asked.clear()
    monkeypatch.setattr(explainer.Explainer, "explain", killed)
    whole = evaluate(tmp_path, batch_size=16, **settings)
    assert asked == [] and whole.folder == begun.absolute()
    (index,) = whole.folder.glob("attributions/*/index.json")
    assert json.loads(index.read_text("utf-8"))["entries"] and not check_seal(whole.folder).differing


@pytest.mark.slow
def test_probes_go_on_wherever_they_were_broken_off(
    probed: Any,
    evaluate: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[int],
) -> None:
    analyse, analyses = probe_tasks.analysis.analyse, list[Any]()

    def once(*args: Any, **kwargs: Any) -> Any:
        if not analyses:
            analyses.append(analyse(*args, **kwargs))
        return analyses[0]

    points: list[tuple[Any, str]] = [
        (store_writer.Writer, "close"),  # the last features are on their way to the disk
        (evaluation_run.EvaluationRun, "keep_features"),
        (probe_tasks.analysis, "analyse"),
        (probe_tasks, "write_probes"),
        (scoring, "write_outcomes"),
        (evaluation_run.EvaluationRun, "_finish"),
        (evaluation_run, "write_seal"),
        (Journal, "remove"),
    ]
    begun: set[Path] = set()
    for number, (owner, name) in enumerate(points):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(probe_tasks.analysis, "analyse", once)
            patch.setattr(owner, name, killed)
            evaluate(tmp_path, tasks=[TASK], batch_size=16, limit=LIMIT)
        begun |= {path.parent for path in (tmp_path / RUNS).glob("*/manifest.json")}
        assert len(begun) == 1, name
        if number > 1:
            assert asked == [], f"asked again after a start that ended in {points[number - 1][1]}"
        asked.clear()
    whole = evaluate(tmp_path, tasks=[TASK], batch_size=16, limit=LIMIT)
    assert asked == [] and {whole.folder} == {path.absolute() for path in begun}
    assert whole.values(TASK) == probed.values(TASK)
    name = f"{TASK}.outcomes.jsonl"
    assert (whole.folder / name).read_text("utf-8") == (probed.folder / name).read_text("utf-8")
    assert len(store_of(whole.folder)) == LIMIT and whole.manifest["finished"]
    store_of(whole.folder).check()
    assert check_seal(whole.folder, lambda _: True).sealed and not check_seal(whole.folder, lambda _: True).differing
    assert [path.name for path in (tmp_path / RUNS).iterdir()] == [whole.folder.name]
    assert not [path.name for path in whole.folder.rglob(".*")]


PROBE = f"--model medm_vl --model_args pretrained=demo,device=cpu --tasks {TASK} --limit 200 --batch_size 16"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_stopped_while_probes_are_fitted_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    words = [str(SCRIPTS / "lmms-eval"), *PROBE.split(), "--output_path", "out"]
    for _ in range(3):
        process = start(tmp_path, *words)
        deadline = time.time() + 400
        while not list((tmp_path / "out").glob("*/2*/features/*/seal.json")) and time.time() < deadline:
            assert process.poll() is None, finish(process)
            time.sleep(0.02)
        process.send_signal(number)
        text = finish(process)
        if process.returncode:
            break
        # This process was not run for the seconds that the fits take: the command ended before the signal.
        shutil.rmtree(tmp_path / "out")
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number], text
    if number != signal.SIGKILL:
        assert text.count("Start the same command again to continue.") == 1
        assert "Traceback" not in text
    text = finish(start(tmp_path, *words))
    stored = re.search(r"(\d+) of (\d+) answers are there from an earlier start", text)
    assert stored is not None, text
    # 200 documents, and those of the test fold once more with a masked border.
    assert stored[1] == stored[2] and 200 < int(stored[1]) < 300
    (folder,) = (tmp_path / "out" / RUNS).iterdir()
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert manifest["finished"] and (folder / f"{TASK}.probes.json").is_file() and not check_seal(folder).differing
