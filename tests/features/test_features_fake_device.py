"""Models, label scores and features of every family on another device: what is on the CPU, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.asking import QUESTIONS, ask
from support.fake_device import FAKE_DEVICE, FakeDevice, FakeDeviceTensor, WrongDeviceError, on_both_devices
from support.loading import ALL, load
from support.tiny_medm_vl import write_ct_checkpoint

from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.formats import medm_vl
from medmllm_plugins.models.options import LoadOptions

# One of each way to lay out an image, and volumes; the families that share theirs follow in the slow tests.
QUICK = ("medm_vl", "medm_vl_ct", "qwen2_5_vl", "gemma3", "llava_next", "idefics3")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.slow) for kind in (*ALL, "medm_vl_ct")]
)
def test_a_family_computes_where_it_stands(kind: str, tmp_path: Path) -> None:
    if kind == "medm_vl_ct":
        model: LoadedModel = medm_vl.load_ct(LoadOptions(str(write_ct_checkpoint(tmp_path / "model")), device="cpu"))
    else:
        model = load(kind, tmp_path / "model")
    (here, kept), (there, content) = on_both_devices(model, lambda where: ask(model, tmp_path / where))
    assert [item.text for item in there] == [item.text for item in here]
    for result, other in zip(there, here, strict=True):
        assert result.scores == pytest.approx(other.scores, abs=1e-3)
    rows = np.arange(len(QUESTIONS))
    assert content.header.layers == kept.header.layers
    for layer in kept.header.layers:
        for pooling in layer.poolings:
            np.testing.assert_allclose(
                content.features(layer.name, pooling, rows),
                kept.features(layer.name, pooling, rows),
                rtol=1e-2,
                atol=1e-2,
            )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda there: there + torch.ones(3), "add.Tensor: expected all tensors on one device"),
        (lambda there: torch.ones(3) @ there.T, "on one device"),
        (lambda there: torch.ones(3)[there[0].long()], "on one device"),
        (lambda there: there.copy_(torch.ones(3)).masked_fill(torch.zeros(3, dtype=torch.bool), 0.0), "on one device"),
        (lambda there: there.long() @ there.long().T, "a product of integers"),
        (lambda there: torch.rand(3, device=FAKE_DEVICE, generator=torch.Generator()), "a generator of the CPU"),
        (lambda there: there.normal_(generator=torch.Generator()), "a generator of the CPU"),
        (lambda there: there.numpy(), "numpy"),
        (lambda there: np.asarray(there), "numpy"),
    ],
)
def test_what_is_left_behind_is_found(wrong: Callable[[torch.Tensor], Any], said: str) -> None:
    """Else everything else would pass for want of another device."""
    with FakeDevice():
        there = torch.arange(6.0).reshape(2, 3).to(FAKE_DEVICE)
        assert isinstance(there, FakeDeviceTensor) and (there + 1)[:, [2]].cpu().tolist() == [[3.0], [6.0]]
        with pytest.raises((WrongDeviceError, RuntimeError, TypeError), match=said):
            wrong(there)
