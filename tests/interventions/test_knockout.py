"""Attention knock-out against a mask that is given to the model, and its effects against counts by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medmllm_plugins.errors import ModelError
from medmllm_plugins.interventions.knockout import Cut, cuts_of, knock_out
from medmllm_plugins.interventions.knockout_effects import headline, knockout_effects
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.results.knockout_records import Knockout
from medmllm_plugins.testing.tiny_families import write_family

torch.set_num_threads(1)
QUESTION, LABELS = "Is it benign or malignant?", ("benign", "malignant tumour", "x")


def opened(kind: str, folder: Path, **options: Any) -> LoadedModel:
    return ChatModel(open_native(LoadOptions(str(write_family(kind, folder / kind, 0)), device="cpu", **options)))


def shown(loaded: LoadedModel, *seeds: int) -> list[Any]:
    images = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)) for seed in seeds
    ]
    return [[image] if loaded.shows == "images" else image for image in images]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "gemma3", "gemma4", "gemma4_e", "llava"])
def test_what_the_answer_cannot_see_does_not_move_it(kind: str, tmp_path: Path) -> None:
    loaded = opened(kind, tmp_path)
    images, others = shown(loaded, 0, 1, 2), shown(loaded, 3, 4, 5)
    cuts = cuts_of(loaded, every=1)
    scores, other_scores = (knock_out(loaded, QUESTION, some, LABELS, cuts) for some in (images, others))
    own = [item.scores for item in loaded.generate([QUESTION] * 3, images, max_new_tokens=0, labels=LABELS)]
    whole = next(cut for cut in cuts if cut.queries == "text")
    # No text sees an image, so all documents have the same scores, whichever image they have.
    np.testing.assert_allclose(scores[whole], other_scores[whole], atol=3e-4)
    np.testing.assert_allclose(scores[whole], np.tile(scores[whole][0], (3, 1)), atol=3e-4)
    # Two blocks of the small Gemma 4 read keys of earlier ones.
    last = int(whole.last[-2:]) - getattr(loaded.model.config.get_text_config(), "num_kv_shared_layers", 0)
    for cut in cuts:
        # In the last block that makes keys nothing reads what the question's tokens see there, and behind it neither.
        unread = cut.queries == "question" and int(cut.first[-2:]) >= last
        assert np.allclose(scores[cut], own, atol=1e-4) == unread, cut
    ends = [scores[Cut(name, name, "answer")] for name in (whole.first, whole.last)]
    assert not np.allclose(*ends, atol=1e-4)


def test_the_model_is_as_before(tmp_path: Path) -> None:
    loaded = opened("gemma3", tmp_path)
    images = shown(loaded, 0, 1)
    before = loaded.generate([QUESTION] * 2, images, max_new_tokens=4, labels=LABELS)
    knock_out(loaded, QUESTION, images, LABELS, cuts_of(loaded))
    assert loaded.generate([QUESTION] * 2, images, max_new_tokens=4, labels=LABELS) == before


def test_attention_without_masks_is_refused(tmp_path: Path) -> None:
    loaded = opened("gemma3", tmp_path)
    loaded.model.config.get_text_config()._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="attn_implementation=sdpa"):
        knock_out(loaded, QUESTION, shown(loaded, 0), LABELS, cuts_of(loaded))


def test_windows_cover_all_blocks_once(tmp_path: Path) -> None:
    loaded = opened("qwen2_5_vl", tmp_path)
    cuts = cuts_of(loaded, every=1)
    blocks = [cut.first for cut in cuts if cut.queries == "question" and cut.first == cut.last]
    assert blocks == sorted(set(blocks)) and cuts[-1] == Cut(blocks[0], blocks[-1], "text")


def made_up(hits: dict[Any, int], odds: float = 1.0) -> dict[Any, list[tuple[float, ...]]]:
    """Return scores of two labels for 40 documents of the first class, of which some have the higher score."""
    return {key: [(odds, 0.0) if index < count else (0.0, odds) for index in range(40)] for key, count in hits.items()}


def test_losses_are_paired_differences() -> None:
    early, late, whole = (
        Cut("llm.00", "llm.00", "answer"),
        Cut("llm.01", "llm.01", "answer"),
        Cut("llm.00", "llm.01", "text"),
    )
    scores = made_up({"own": 36, early: 36, late: 20, whole: 10})
    result = knockout_effects(scores, np.zeros(40, dtype=np.intp), np.arange(40))
    assert result.accuracy.value == 0.9 and (result.n, result.groups) == (40, 40)
    by_cut = {(point.first, point.queries): point for point in result.points}
    assert by_cut["llm.00", "answer"].lost.value == 0 and by_cut["llm.01", "answer"].lost.value == 0.4
    assert by_cut["llm.01", "answer"].lost.low > 0.2 and by_cut["llm.00", "text"].accuracy.value == 0.25
    # Of 16 documents the log-odds fall from 1 to -1.
    assert by_cut["llm.01", "answer"].log_odds_lost.value == pytest.approx(2 * 16 / 40)
    text = headline(result)
    assert "25.0% of 40 documents are classified correctly, 90.0% otherwise" in text
    assert "Hidden from the answer alone, most is lost in llm.01 (40.0 points" in text
    assert "Hidden from the question alone, no single window" in text
    assert Knockout.from_dict(result.to_dict()) == result
