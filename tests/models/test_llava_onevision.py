"""LLaVA-OneVision: the rows that each token comes from where the tiles of a large image are scaled down."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.testing.tiny_families import write_family

torch.set_num_threads(1)


@pytest.mark.parametrize("size", [(64, 64), (100, 80), (40, 90)])
def test_tokens_of_a_scaled_image_come_from_the_rows_around_them(tmp_path: Path, size: tuple[int, int]) -> None:
    """The reference changes one row of the connector at a time and notes which tokens of the LLM's input change."""
    folder = write_family("llava_onevision", tmp_path)
    for name in ("config.json", "processor_config.json"):
        text = (folder / name).read_text("utf-8")
        assert "anyres_max_9" in text
        (folder / name).write_text(text.replace("anyres_max_9", "anyres_max_1"), "utf-8")
    assert json.loads((folder / "config.json").read_text("utf-8"))["vision_aspect_ratio"] == "anyres_max_1"
    model = ChatModel(open_native(LoadOptions(str(folder), device="cpu", dtype="float32")))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    inputs = model.prepare(["What?"], [[picture]])
    inner = model.model.model

    def embeddings(changed: int | None = None) -> tuple[torch.Tensor, int]:
        rows = 0

        def change(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
            nonlocal rows
            rows = output.shape[0] * output.shape[1]
            other = output.clone()
            if changed is not None:
                other.view(rows, -1)[changed] += 1
            return other

        seen: list[torch.Tensor] = []
        first = inner.language_model.layers[0]  # type: ignore[union-attr, index]
        handles = [
            inner.multi_modal_projector.register_forward_hook(change),  # type: ignore[union-attr, operator]
            first.register_forward_pre_hook(  # type: ignore[union-attr, operator]
                lambda _, args, options: seen.append(args[0] if args else options["hidden_states"]), with_kwargs=True
            ),
        ]
        model.prefill(inputs)
        for handle in handles:
            handle.remove()
        return seen[0][0], rows

    clean, count = embeddings()
    order = model.family.prompt_order(model.model, inputs, np.arange(count)[:, None])
    positions = np.flatnonzero(model.image_positions(inputs)[0].numpy())
    assert len(order) == len(positions) < count and order.shape[1] == 4
    for row in np.random.default_rng(1).choice(count, 16, replace=False):
        moved = np.flatnonzero((embeddings(int(row))[0] - clean).abs().amax(-1).numpy() > 1e-6)
        assert set(moved) == set(positions[(order == row).any(1)]), row
