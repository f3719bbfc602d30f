"""The reference network on another device."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from support.fake_device import FAKE_DEVICE, FakeDevice
from support.phantom_images import phantom_dataset

from medmllm_plugins.data.core.documents import Fold
from medmllm_plugins.data.loading.volume_view import View
from medmllm_plugins.reference.labelled_images import LabelledImages
from medmllm_plugins.reference.network import TimmClassifier


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")  # it is no no-op elsewhere
def test_a_network_is_trained_on_the_device_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    data = phantom_dataset()
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # for GPUs and the CPU only

    def trained(device: torch.device) -> Any:
        def part(fold: Fold, count: int) -> LabelledImages:
            return LabelledImages(data, View(), data.select((fold,))[:count])

        network = TimmClassifier("test_resnet", epochs=2, device=device.type)
        network.fit(part("train", 12), part("validation", 8))
        return np.asarray(network.log_probabilities(part("test", 8)))

    here = trained(torch.device("cpu"))
    with FakeDevice():
        there = trained(FAKE_DEVICE)
    np.testing.assert_allclose(there, here, atol=1e-3)
