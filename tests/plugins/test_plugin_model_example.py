"""examples/plugin-model as a third party's package: its wheel, beside ours, evaluated by the real command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from medmllm_plugins.testing.tiny_families import write_family

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))


def run(words: list[str], folder: Path, **variables: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MEDMLLM_", "PYTHONPATH"))}
    done = subprocess.run(
        words,
        cwd=folder,
        env={**environment, "HF_HUB_OFFLINE": "1", **variables},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_third_partys_model_runs_through_the_host(tmp_path: Path) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    pip = [sys.executable, "-m", "pip"]
    source = shutil.copytree(ROOT / "examples" / "plugin-model", tmp_path / "source")  # building leaves files behind
    said = run([*pip, "wheel", "--no-deps", "-w", str(wheels), str(source)], tmp_path)
    (wheel,) = wheels.glob("medmllm_of_mine-*.whl")
    said += run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], tmp_path)
    assert (site / "medmllm_of_mine" / "__init__.py").is_file(), said
    # Installed beside ours: its folder is on the path, and its dist-info with it.
    own = run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            str(source / "test_of_mine.py"),
        ],
        tmp_path,
        PYTHONPATH=str(site),
    )
    assert "1 passed" in own, own
    checkpoint = write_family("qwen2_5_vl", tmp_path / "checkpoint")
    command = f"--model of_mine --model_args pretrained={checkpoint},device=cpu --tasks med_cls_demo --limit 8"
    said = run(
        [str(SCRIPTS / "lmms-eval"), *command.split(), "--batch_size", "auto", "--output_path", "out"],
        tmp_path,
        PYTHONPATH=str(site),
    )
    manifests = list((tmp_path / "out" / "medmllm_runs").glob("*/manifest.json"))
    assert len(manifests) == 1, said
    manifest = json.loads(manifests[0].read_text())
    assert manifest["model"]["name"] == "of_mine" and manifest["tasks"]["med_cls_demo"]["evaluated"] == 8
    assert manifest["finished"]
