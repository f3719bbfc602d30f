"""Documents shown once more with the border masked: what the model sees, resuming, and shortcuts that this reveals."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from support.phantom_images import phantom_dataset

from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.core.image_controls import mask_border
from medmllm_plugins.data.layouts.layout_registry import Layout
from medmllm_plugins.data.layouts.phantoms import phantom, records
from medmllm_plugins.data.loading.dataset import Dataset
from medmllm_plugins.features import store_writer
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.formats.medm_vl import load
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.probes.analysis import analyse
from medmllm_plugins.probes.masked_border import masked_answers
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.probes.validation.tagged_images import tagged
from medmllm_plugins.prompts.task_content import TaskContent
from medmllm_plugins.prompts.task_names import task_settings
from medmllm_plugins.results.feature_store import FeatureStore
from medmllm_plugins.results.file_names import FEATURES
from medmllm_plugins.results.shortcut_records import ShortcutReport
from medmllm_plugins.runtime.answer_loop import BLANK_IMAGE, AnswerLoop, AnswerOptions
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.journal import Reply
from medmllm_plugins.runtime.requests import RequestKey
from medmllm_plugins.testing.random_task import requests_of


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load(LoadOptions("demo", device="cpu"))


def task(masked: int, count: int, data: Dataset | None = None) -> TaskContent:
    """Return a probing task on the first documents of the phantoms."""
    name = f"med_probe_demo:masked={masked}"
    content = TaskContent(name, task_settings(name), data or phantom_dataset())
    content.evaluated = range(count)
    return content


def answer(
    model: LoadedModel, content: TaskContent, folder: Path, batch_size: int = 16
) -> tuple[dict[RequestKey, Reply], FeatureStore]:
    run = EvaluationRun(folder)
    try:
        options = AnswerOptions("demo", batch_size=batch_size)
        replies = AnswerLoop(model, run, options).answer(requests_of(content, max_new_tokens=9), run.open("demo", {}))
        return replies, FeatureStore(run.folder_of(FEATURES, content.name))
    finally:
        run.close()


def digest(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def folds_of(store: FeatureStore) -> npt.NDArray[np.str_]:
    return store.index["fold"].astype(str).to_numpy()


def test_the_model_is_shown_masked_images_after_the_others(
    demo: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    prepare = type(demo).prepare

    def recording(self: LoadedModel, questions: Sequence[Any], visuals: Sequence[Any]) -> Any:
        shown.extend(digest(visual) for visual in visuals if visual is not BLANK_IMAGE)
        return prepare(self, questions, visuals)

    monkeypatch.setattr(type(demo), "prepare", recording)
    content = task(6, 40)
    _, store = answer(demo, content, tmp_path / "with")
    masked = store.index[folds_of(store) == "masked"]
    assert len(masked) == 6 and set(masked["id"]) == {f"{name} | masked" for name in masked["document"]}
    test = store.index[folds_of(store) == "test"]
    assert set(masked["document"]) <= set(test["document"]) and masked["group"].nunique() == 6
    assert masked["label"].nunique() == 4 and (masked["answer"].str.len() > 0).all()
    documents = {document.id: document for document in content.data.documents}
    expected = {digest(mask_border(content.data.image(documents[name]))) for name in masked["document"]}
    assert set(shown[-6:]) == expected and not expected & set(shown[:-6])
    # All other documents have the same features and answers as without masked images.
    replies, without = answer(demo, task(0, 40), tmp_path / "without")
    ordinary = store.only(np.flatnonzero(folds_of(store) != "masked"))
    assert list(ordinary.index["id"]) == list(without.index["id"]) and len(replies) == 40
    assert list(ordinary.index["answer"]) == list(without.index["answer"])
    for layer, pooling in (("vision.05", "mean"), ("llm.norm", "last")):
        assert np.array_equal(ordinary.features(layer, pooling), without.features(layer, pooling))


def test_a_run_that_broke_at_masked_images_goes_on(
    demo: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_writer, "SHARD_ROWS", 8)
    whole_replies, whole = answer(demo, task(10, 40), tmp_path / "whole", 4)
    generate, batches, asked = LoadedModel.generate, [0], [0]

    def counting(self: LoadedModel, questions: Any, *args: Any, **kwargs: Any) -> Any:
        if "watch" in kwargs:
            batches[0] += 1
            asked[0] += len(questions)
            if batches[0] == last:
                raise KeyboardInterrupt
        return generate(self, questions, *args, **kwargs)

    monkeypatch.setattr(LoadedModel, "generate", counting)
    last = -1
    answer(demo, task(10, 40), tmp_path / "count", 4)
    last, batches[0] = batches[0] - 1, 0  # the last batch but one: masked images
    with pytest.raises(KeyboardInterrupt):
        answer(demo, task(10, 40), tmp_path / "broken", 4)
    last, asked[0] = -1, 0
    replies, resumed = answer(demo, task(10, 40), tmp_path / "broken", 4)
    assert 0 < asked[0] <= 16 and {key: replies[key].text for key in replies} == {
        key: whole_replies[key].text for key in whole_replies
    }
    assert list(resumed.index["id"]) == list(whole.index["id"]) and (folds_of(resumed) == "masked").sum() == 10
    np.testing.assert_allclose(resumed.features("connector", "mean"), whole.features("connector", "mean"), atol=2e-3)
    asked[0] = 0
    answer(demo, task(10, 40), tmp_path / "broken", 4)
    assert asked[0] == 0


def test_control_images_are_not_masked() -> None:
    for setting in ("masked=0", "image=blank"):
        name = f"med_probe_demo:{setting}"
        assert TaskContent(name, task_settings(name), phantom_dataset()).masked_rows == {}


@dataclass(frozen=True)
class SameFinding(Layout):
    """Phantoms of which each shows an image without a finding, whatever its class is."""

    base: Layout

    def documents(self, spec: Any, folder: Path, faults: Any) -> list[Document]:
        return self.base.documents(spec, folder, faults)

    def image(self, spec: Any, folder: Path, document: Document) -> Image.Image:
        normal = [index for index, record in enumerate(records()) if record.label == "no finding"]
        return Image.fromarray(phantom(normal[int(document.image) % len(normal)]).image).convert("RGB")


def masked_report(model: LoadedModel, data: Dataset, folder: Path) -> ShortcutReport:
    content = task(100, 480, data)
    replies, store = answer(model, content, folder, 40)
    outcomes = []
    for request in requests_of(content, max_new_tokens=9):
        if request.row["fold"] == "test":
            read = content.read_answer(request.row, replies[request.key].text)
            facts = (request.row[name] for name in ("id", "group", "label"))
            outcomes.append(Outcome(*facts, read.label, read.status))
    row_of = {row["document"]: row for row in content.row_list}
    masked = masked_answers(store, outcomes, lambda name, text: content.read_answer(row_of[name], text).label)
    options = Options(layers=("connector",), permutations=0, controls=0, refits=0)
    report = analyse(store, outcomes, options, masked=masked).shortcuts
    assert report is not None
    for check in report.masked:
        print(check.layer, check.shown.percent(), check.masked.percent())
    return report


@pytest.mark.slow
def test_probes_that_need_a_tag_lose_it_with_the_border(demo: LoadedModel, tmp_path: Path) -> None:
    """The class is in the tag alone: probes, and in part the demo's answers, read it, and lose it with the border."""
    plain = phantom_dataset()
    empty = replace(plain, reader=SameFinding(plain.reader))
    report = masked_report(demo, tagged(empty), tmp_path / "tagged")
    checks = {check.layer: check for check in report.masked}
    assert set(checks) == {"vision.05", "connector", "llm.norm", "answers"}
    assert checks["vision.05"].falls and checks["vision.05"].shown.value > 0.6
    assert all(check.masked.value < 0.45 for check in report.masked)
    (warning,) = [text for text in report.warnings if "border masked" in text]
    assert "vision.05" in warning and report.notes == ()


@pytest.mark.slow
def test_images_without_a_shortcut_lose_nothing(demo: LoadedModel, tmp_path: Path) -> None:
    report = masked_report(demo, phantom_dataset(), tmp_path)
    assert len(report.masked) == 4 and not any(check.falls for check in report.masked)
    assert report.notes == () and not any("border" in text for text in report.warnings)
