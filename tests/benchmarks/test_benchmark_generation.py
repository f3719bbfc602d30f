"""Both sides of the generation benchmark do the same work, and the large model has the published shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_medm_vl import write_checkpoint

from benchmarks import generation, subjects
from benchmarks.generation import batched, check_answers, one_by_one
from benchmarks.record import Settings, Target
from benchmarks.subjects import Subject, checkpoint, images
from medmllm_plugins.data.layouts import phantoms
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.checkpoint import demo_folder
from medmllm_plugins.models.formats import medm_vl
from medmllm_plugins.models.formats.medm_vl_config import read_config
from medmllm_plugins.prompts.wording import closed_set

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def demo() -> Subject:
    return checkpoint("demo", "cpu")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A tiny random checkpoint; untied, since one with tied embeddings says one token over and over."""
    folder = tmp_path_factory.mktemp("untied")
    write_checkpoint(folder, tied=False)
    return checkpoint(str(folder), "cpu")


def count(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, size: Callable[..., int]) -> list[int]:
    """Note the size of each call of a method."""
    found: list[int] = []
    method = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        found.append(size(*args, **kwargs))
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return found


def test_the_demo_gives_the_same_answers_either_way(demo: Subject) -> None:
    pictures = images(20)
    plain = one_by_one(demo, pictures)
    assert batched(demo, pictures) == plain
    assert {text for text, _ in plain} <= {f" {label}" for label in phantoms.LABELS} | set(phantoms.LABELS)
    assert len({text for text, _ in plain}) > 1


def test_a_random_checkpoint_gives_the_same_answers_either_way(untied: Subject) -> None:
    pictures = images(5)
    plain = one_by_one(untied, pictures)
    assert batched(untied, pictures) == plain
    assert len({text for text, _ in plain}) > 1
    assert all(0 < tokens <= untied.max_new_tokens for _, tokens in plain)


def test_one_side_takes_16_images_at_a_time_and_the_other_one(demo: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = count(monkeypatch, type(demo.loaded), "prepare", lambda self, questions, images: len(questions))
    rows = count(monkeypatch, type(demo.loaded.model), "generate", lambda self, **inputs: len(inputs["input_ids"]))
    labels = count(monkeypatch, type(demo.loaded), "label_ids", lambda *args: 1)
    pictures = images(18)
    batched(demo, pictures)
    assert (prompts, rows) == ([16, 2], [])
    one_by_one(demo, pictures)
    assert (prompts, rows) == ([16, 2], [1] * 18)
    assert labels == []


def test_both_sides_give_the_model_the_same_prompt_and_image(demo: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, torch.Tensor] = {}

    def generate(self: Any, **inputs: Any) -> torch.Tensor:
        seen.update({name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)})
        return inputs["input_ids"]

    monkeypatch.setattr(type(demo.loaded.model), "generate", generate)
    [picture] = images(1)
    assert one_by_one(demo, [picture]) == [("", 0)]
    ours = demo.loaded.prepare([subjects.QUESTION], [picture])
    assert set(seen) == set(ours)
    for name, value in ours.items():
        torch.testing.assert_close(seen[name], value, rtol=0, atol=0)


def test_images_are_the_first_of_the_test_fold() -> None:
    pictures = images(3)
    assert [(picture.size, picture.mode) for picture in pictures] == [((64, 64), "RGB")] * 3
    first = sum(phantoms.FOLD_SIZES[fold] for fold in ("train", "validation"))
    assert np.array_equal(np.asarray(pictures[0])[..., 0], phantoms.phantom(first).image)


def test_the_question_is_the_demo_task_s() -> None:
    spec = dataset_specs()["demo"]
    assert closed_set(spec.modality, spec.labels) == subjects.QUESTION


@pytest.mark.parametrize(
    ("fast", "exact", "fits"),
    [
        ([("a", 1), ("b", 2)], True, True),
        ([("a", 1), ("c", 2)], True, False),
        ([("a", 1), ("c", 2)], False, True),
        ([("a", 1), ("b", 3)], True, False),
        ([("a", 1), ("b", 3)], False, False),
    ],
)
def test_sides_that_answer_otherwise_are_not_compared(fast: Sequence[tuple[str, int]], exact: bool, fits: bool) -> None:
    plain = [("a", 1), ("b", 2)]
    if fits:
        check_answers(plain, fast, exact=exact)
        return
    with pytest.raises(ModelError, match=r"but 1 of 2 differ, such as that to image 1: \('b', 2\) one by one"):
        check_answers(plain, fast, exact=exact)


def test_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(generation.IMAGES, "tiny", 3)  # type: ignore[arg-type]
    record = generation.run(Settings("generation", "cpu", "tiny", 1))
    assert [name for name, _ in record.sides] == ["plain", "fast"]
    assert record.target == Target("at least", 2.0)
    assert record.details["images"] == 3
    assert record.details["parameters"] == 2_005_984
    assert record.details["dtype"] == "float32"
    assert record.details["answers_agree_in"] == "text and length"
    plain, fast = record.comparison.numerator.median, record.comparison.denominator.median
    assert record.details["plain_images_per_s"] == pytest.approx(3 / plain)
    assert record.details["fast_images_per_s"] == pytest.approx(3 / fast)


def test_a_side_that_answers_otherwise_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(generation.IMAGES, "tiny", 2)  # type: ignore[arg-type]
    monkeypatch.setattr(generation, "batched", lambda subject, pictures: [("other", 1)] * len(pictures))
    with pytest.raises(ModelError, match="2 of 2 differ"):
        generation.run(Settings("generation", "cpu", "tiny", 1))


def test_the_large_model_has_the_published_shapes() -> None:
    """Counted by hand from the shapes; d is the width, f that of the MLP."""
    config = subjects.config_3b()
    with torch.device("meta"):
        model = subjects.unfilled(medm_vl.llava_config(config, 7))
    assert all(parameter.is_meta for parameter in model.parameters())

    d, f, kv = 2048, 11008, 2 * 128
    attention = 2 * d * d + 2 * d * kv + d + 2 * kv
    llm = 151_936 * d + 36 * (attention + 3 * d * f + 2 * d) + d
    v, g = 768, 3072
    tower = v * (3 * 16 * 16 + 1) + 256 * v + 12 * (4 * v * v + 2 * v * g + 5 * v + g + 4 * v) + 2 * v
    connector = v * d + d + d * d + d
    assert (llm, tower, connector) == (3_085_938_688, 85_843_200, 5_771_264)
    assert model.model.language_model.num_parameters() == llm
    assert model.model.vision_tower.num_parameters() == tower
    assert model.num_parameters() == llm + tower + connector == 3_177_553_152
    assert (config.image_tokens, config.vision.image_size, config.max_length) == (256, 256, 2048)
    assert (config.select, config.select_layer) == ("full", -1)


@pytest.mark.parametrize("name", ["demo", "untied"])
def test_shapes_are_set_as_the_loader_sets_them(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    loaded = request.getfixturevalue(name).loaded
    if name == "demo":
        config = read_config(demo_folder())
    else:
        write_checkpoint(tmp_path, tied=False)
        config = read_config(tmp_path)
    made = subjects.unfilled(medm_vl.llava_config(config, int(loaded.model.config.image_token_id)))

    def plain(model: Any) -> dict[str, Any]:
        found: dict[str, Any] = model.config.to_dict()
        for part in (found, found["text_config"], found["vision_config"]):
            part.pop("dtype", None)
        return found

    assert plain(made) == plain(loaded.model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_weights_answer_at_full_length_on_both_sides(demo: Subject, dtype: torch.dtype) -> None:
    subject = subjects.random(read_config(demo_folder()), dtype, CPU)
    model: Any = subject.loaded.model
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not any(value.is_meta or value.requires_grad for value in (*model.parameters(), *model.buffers()))
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert not model.training
    assert model.config._attn_implementation == demo.loaded.model.config._attn_implementation
    expected = demo.loaded.model.model.language_model.rotary_emb.inv_freq
    torch.testing.assert_close(model.model.language_model.rotary_emb.inv_freq, expected, rtol=0, atol=0)
    embeddings = model.lm_head.weight.float()
    assert embeddings.mean().abs() < 1e-3
    assert embeddings.std() == pytest.approx(0.02, rel=0.02)

    pictures = images(3)
    plain, fast = one_by_one(subject, pictures), batched(subject, pictures)
    assert [tokens for _, tokens in plain] == [tokens for _, tokens in fast] == [16, 16, 16]
    assert not subject.exact
    if dtype == torch.float32:
        assert fast == plain


def test_a_model_too_large_for_the_machine_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.subjects.os.sysconf", lambda name: 1)
    monkeypatch.setattr(subjects, "fill", lambda *args: pytest.fail("built all the same"))
    with pytest.raises(ModelError, match=r"Expected 15\.3 GB of memory on cpu .* found 0\.0 GB: use `--size tiny`"):
        subjects.random_3b("cpu")
