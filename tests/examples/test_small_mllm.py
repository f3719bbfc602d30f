"""examples/small_mllm: a third party's architecture with pretrained parts, trained and taken through the harness."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.plugin_site import Site

from medmllm_plugins import Run

EXAMPLE = Path(__file__).parents[2] / "examples" / "small_mllm"
LAYERS = {*(f"vision.{n:02d}" for n in range(5)), "connector", "llm.embed", *(f"llm.{n:02d}" for n in range(30))}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The variables of a process in which the example is installed."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.metadata("small-mllm", "[medmllm_plugins]\nsmall_mllm = small_mllm\n", "0.1.0")
    paths = [str(EXAMPLE), str(site.path), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(environment: Mapping[str, str], *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, env=dict(environment), check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A training of a few steps on phantoms, stopped once by its own number of steps and continued."""
    folder = tmp_path_factory.mktemp("models")
    command = ("small_mllm.train", "--output", str(folder), "--sets", "demo", "--limit", "24", "--marked", "6")
    sizes = ("--validation", "8", "--batch", "4", "--save-every", "5")
    return folder, run(environment, *command, *sizes, "--steps", "20", "40")


def test_both_stages_learn(trained: tuple[Path, str]) -> None:
    folder, said = trained
    for stage, updates in (("stage1", 20), ("stage2", 40)):
        losses = [float(loss) for loss in re.findall(rf"{stage}: \d+ of {updates} updates, loss ([\d.]+)", said)]
        assert len(losses) == updates // 10 and losses[-1] < losses[0] - 0.1, (stage, losses)
        validation = json.loads((folder / stage / "training.json").read_text("utf-8"))["validation"]
        assert set(validation) == {"demo"} and 0 <= validation["demo"] <= 1
        assert not list(folder.glob(f"{stage}-state*"))


def test_weights_are_updated_in_bfloat16_too(environment: Mapping[str, str], tmp_path: Path) -> None:
    """Within autocast the rounded copies of weights are kept, so that an update would not be seen."""
    command = ("small_mllm.train", "--output", str(tmp_path), "--sets", "demo", "--limit", "24", "--marked", "6")
    sizes = ("--validation", "8", "--batch", "4", "--steps", "20", "1", "--dtype", "bfloat16")
    said = run(environment, *command, *sizes)
    losses = [float(loss) for loss in re.findall(r"stage1: \d+ of 20 updates, loss ([\d.]+)", said)]
    assert len(losses) == 2 and losses[1] < losses[0] - 0.1, losses


def test_the_second_stage_changes_the_connector_and_the_llm_alone(trained: tuple[Path, str]) -> None:
    from safetensors.torch import load_file

    first, second = (load_file(trained[0] / stage / "model.safetensors") for stage in ("stage1", "stage2"))
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert all("multi_modal_projector" in name or "self_attn" in name for name in changed)
    assert sum("self_attn" in name for name in changed) == 4 * 30


def test_the_tower_has_weights_that_see(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The converted weights give the features of timm's own network, which needs its batch norms, too."""
    import timm

    monkeypatch.syspath_prepend(str(EXAMPLE))
    from safetensors.torch import load_file
    from small_mllm.architecture import Tower  # type: ignore[import-not-found]
    from small_mllm.pretrained import TOWER_FILE, TOWER_PACKAGE, load_tower_weights, package_folder, write_reference

    tower = Tower("tf_efficientnet_lite0")
    load_tower_weights(tower)
    state = torch.load(package_folder(TOWER_PACKAGE) / TOWER_FILE, weights_only=True)
    assert torch.equal(tower.stem[0].weight, state["_conv_stem.weight"])
    assert torch.equal(tower.stages[-1][-1].conv_pwl.weight, state["_blocks.15._project_conv.weight"])
    write_reference(tmp_path / "tower.safetensors")
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    net.load_state_dict(load_file(tmp_path / "tower.safetensors"))
    assert torch.equal(net.classifier.bias, state["_fc.bias"])
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = net.blocks(net.bn1(net.conv_stem(pixels)))
        torch.testing.assert_close(tower.eval()(pixels), expected)
    assert expected.shape == (1, 320, 8, 8) and 0.1 < float(expected.std()) < 10


def test_it_goes_through_the_harness(environment: Mapping[str, str], trained: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = trained
    models = f"pretrained={folder / 'stage2'},twin={folder / 'stage1'},device=cpu,dtype=float32"
    tasks = "med_probe_demo:anchors=4:masked=0,med_patch_demo:n=1:every=15:interchange=off"
    run(
        environment,
        *("lmms_eval", "--model", "small_mllm", "--model_args", models, "--tasks", tasks),
        *("--batch_size", "8", "--limit", "60", "--output_path", str(tmp_path)),
    )
    (written,) = (tmp_path / "medmllm_runs").iterdir()
    result = Run(written)
    assert not result.notes
    assert set(result.probes["layer"].dropna()) >= LAYERS
    assert result.outcomes["answer"].str.len().gt(0).all() and set(result.patching["kind"]) >= {"site", "share"}
    assert len(result.knockout) > 0
