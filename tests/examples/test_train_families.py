"""examples/train_families.py: its checkpoints see the image, and every stage holds what they answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.phantom_images import phantom_dataset, phantom_images
from support.trained_families import KINDS, train_families, trained_family

from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.models.base import Generation
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.families.family import stage_module
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.probes.anchors import run_anchors
from medmllm_plugins.prompts.protocols import ask as ask_question
from medmllm_plugins.prompts.wording import closed_set

pytestmark = pytest.mark.slow
torch.set_num_threads(1)
SPEC = dataset_specs()["demo"]
QUESTION = closed_set(SPEC.modality, SPEC.labels)


@pytest.fixture(scope="session")
def phantoms() -> tuple[list[Image.Image], list[str]]:
    return phantom_images("test")


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def chat(kind: str, tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    folder = trained_family(kind, tmp_path_factory.getbasetemp())
    return ChatModel(open_native(LoadOptions(str(folder), device="cpu")))


def ask(chat: ChatModel, images: Sequence[Image.Image]) -> list[Generation]:
    answers = []
    for start in range(0, len(images), 40):
        some = images[start : start + 40]
        answers += chat.generate([QUESTION] * len(some), some, max_new_tokens=8, labels=SPEC.labels)
    return answers


def share_right(answers: Sequence[str], labels: Sequence[str]) -> float:
    return float(np.mean([answer == label for answer, label in zip(answers, labels, strict=True)]))


def test_answers_and_scores_are_right_about_phantoms_never_seen(
    chat: ChatModel, kind: str, phantoms: tuple[list[Image.Image], list[str]]
) -> None:
    images, labels = phantoms
    assert chat.model.config.model_type == kind
    assert chat.weight_warnings == ()
    answers = ask(chat, images)
    scored = [SPEC.labels[int(np.argmax(answer.scores or ()))] for answer in answers]
    assert share_right([answer.text for answer in answers], labels) >= 0.9
    assert share_right(scored, labels) >= 0.9


def test_answers_about_a_blank_image_are_no_better_than_chance(
    chat: ChatModel, phantoms: tuple[list[Image.Image], list[str]]
) -> None:
    images, labels = phantoms
    # As bright as the phantom it stands for, so that nothing but the finding is gone.
    grey = [int(np.asarray(image).mean()) for image in images]
    answers = [answer.text for answer in ask(chat, [Image.new("RGB", (64, 64), (level,) * 3) for level in grey])]
    assert set(answers) <= set(SPEC.labels)
    most = max(Counter(labels).values()) / len(labels)
    assert share_right(answers, labels) <= most + 3 * (most * (1 - most) / len(labels)) ** 0.5


def test_both_kinds_of_anchor_are_answered(chat: ChatModel) -> None:
    data = phantom_dataset()
    anchors = run_anchors(chat, data, ask_question("closed_set", SPEC.modality, SPEC.classes), data.select(["test"]))
    print({result.kind: (round(result.accuracy.value, 3), result.verdict) for result in anchors.results})
    assert (anchors.text, anchors.positive) == ("answered", "answered")
    assert min(result.accuracy.value for result in anchors.results) >= 0.75


@contextmanager
def watched(chat: ChatModel, outputs: dict[str, list[torch.Tensor]]) -> Iterator[None]:
    """What the stages' last modules return while the context is open."""
    family = chat.family
    names = {
        "vision": family.vision_norm
        or f"{family.vision_blocks}.{len(stage_module(chat.model, family.vision_blocks)) - 1}",
        "connector": family.connector,
        "llm": family.llm_norm,
    }

    def keep(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: object, _inputs: object, out: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            outputs.setdefault(name, []).append(out if isinstance(out, torch.Tensor) else out[0])

        return stage_module(chat.model, names[name]).register_forward_hook(hook)

    handles = [keep(name) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def features(chat: ChatModel, images: Sequence[Image.Image]) -> dict[str, np.ndarray]:
    """Mean of each image's patches and tokens, and the last prompt token behind the LLM's norm."""
    rows: dict[str, list[np.ndarray]] = {"vision": [], "connector": [], "llm": []}
    for start in range(0, len(images), 40):
        some, outputs = images[start : start + 40], {}
        with watched(chat, outputs):
            chat.generate([QUESTION] * len(some), some, max_new_tokens=1)
        for name, values in rows.items():
            out = outputs[name][0]
            # All images are of one size, so that each has as many rows of a flat list.
            out = out.reshape(len(some), -1, out.shape[-1])
            values.append((out[:, -1] if name == "llm" else out.mean(1)).numpy())
    return {name: np.concatenate(values) for name, values in rows.items()}


def test_the_class_can_be_read_from_every_stage(chat: ChatModel, phantoms: tuple[list[Image.Image], list[str]]) -> None:
    images, labels = phantoms
    train_images, train_labels = phantom_images("train", 500)
    known, unseen = features(chat, train_images), features(chat, images)
    accuracies = {}
    for name in known:
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=0.1))
        probe.fit(known[name], train_labels)
        accuracies[name] = float(probe.score(unseen[name], labels))
    print({name: round(value, 3) for name, value in accuracies.items()})
    assert min(accuracies.values()) >= 0.9, accuracies


@pytest.mark.parametrize("family", KINDS)
def test_a_seed_decides_the_weights_and_nothing_else_is_changed(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = train_families()
    monkeypatch.setattr(script, "RECIPES", {family: replace(script.RECIPES[family], steps=(2, 2))})
    monkeypatch.setattr(script, "_PATIENTS", 8)
    monkeypatch.setattr(script, "evaluate", lambda *_: 0.0)
    before = torch.random.get_rng_state()
    folders = {(name, seed): tmp_path / name for name, seed in (("first", 0), ("again", 0), ("other", 1))}
    for (_, seed), folder in folders.items():
        script.train(family, folder, seed=seed, say=lambda _: None)
    first, again, other = (load_file(folder / "model.safetensors") for folder in folders.values())
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_unknown_family_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="qwen2_5_vl, gemma3, got 'phi4'"):
        train_families().train("phi4", tmp_path)
