"""Options for loading a model: what is wrong is said with what was expected and found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medmllm_plugins.errors import OptionError
from medmllm_plugins.models.formats.medm_vl import load
from medmllm_plugins.models.options import LoadOptions, resolve_device, resolve_dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "gpu"}, '"cuda:N" or "mps", got \'gpu\''),
        ({"device": "cuda:"}, "got 'cuda:'"),
        ({"device": "cuda:-1"}, "got 'cuda:-1'"),
        ({"device": "cpu:0"}, "got 'cpu:0'"),
        ({"device": 0}, "`device` to be a non-empty string, got 0"),
        ({"dtype": "int8"}, "float32, fp32, .*got 'int8'"),
        ({"dtype": None}, "`dtype` to be a non-empty string"),
        ({"attn_implementation": "flash"}, "eager, sdpa, flash_attention_2, got 'flash'"),
        ({"pretrained": " "}, "`pretrained` to be a non-empty string"),
    ],
)
def test_wrong_values(change: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        LoadOptions(**{"pretrained": "demo", **change})


def pretend(monkeypatch: pytest.MonkeyPatch, *, cuda: int, bf16: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_devices_of_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=0)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(OptionError, match=f"`device={name}`, but torch .* finds no CUDA device"):
            resolve_device(name)
    with pytest.raises(OptionError, match="no Metal device"):
        resolve_device("mps")


def test_devices_of_a_machine_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=2)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:0")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(OptionError, match=r"has 2 CUDA device\(s\)"):
        resolve_device("cuda:2")


def test_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda:0")
    pretend(monkeypatch, cuda=1)
    assert resolve_dtype("auto", cpu) == torch.float32
    assert resolve_dtype("auto", cuda) == torch.bfloat16
    pretend(monkeypatch, cuda=1, bf16=False)
    assert resolve_dtype("auto", cuda) == torch.float32
    assert resolve_dtype("fp16", cuda) == resolve_dtype("float16", cpu) == torch.float16
    assert resolve_dtype("bf16", cpu) == resolve_dtype("bfloat16", cpu) == torch.bfloat16
    assert resolve_dtype("fp32", cuda) == resolve_dtype("float32", cuda) == torch.float32
    with pytest.raises(OptionError, match="got 'double'"):
        resolve_dtype("double", cpu)


def test_flash_attention_is_refused_on_a_cpu(tiny_folder: Path) -> None:
    with pytest.raises(OptionError, match=r"needs a CUDA device.*sdpa"):
        load(LoadOptions(str(tiny_folder), device="cpu", attn_implementation="flash_attention_2"))


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_attention_reaches_every_part(tiny_folder: Path, name: str) -> None:
    model = load(LoadOptions(str(tiny_folder), device="cpu", attn_implementation=name)).model
    parts = (model.config, model.model.vision_tower.config, model.model.language_model.config)
    assert {part._attn_implementation for part in parts} == {name}


def test_check_needs_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=0)
    LoadOptions("nowhere", attn_implementation="sdpa").check()
    with pytest.raises(OptionError, match="finds no CUDA device"):
        LoadOptions("nowhere", device="cuda").check()
    pretend(monkeypatch, cuda=1)
    result = LoadOptions("nowhere", attn_implementation="flash_attention_2")
    result.check()
    assert (result.torch_device, result.torch_dtype) == (torch.device("cuda:0"), torch.bfloat16)
    with pytest.raises(OptionError, match=r"bfloat16 or float16, got cuda:0 and torch\.float32"):
        LoadOptions("nowhere", dtype="fp32", attn_implementation="flash_attention_2").check()
