"""The commands a new user types, run whole, outside the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPTS = Path(sysconfig.get_path("scripts"))


def run(*words: str, folder: Path, **variables: str) -> str:
    """Run a command in ``folder`` and return what it printed; the exit code says nothing in this host."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MEDMLLM_", "PYTHONPATH"))}
    done = subprocess.run(
        [str(SCRIPTS / words[0]), *words[1:]],
        cwd=folder,
        env={**environment, "HF_HUB_OFFLINE": "1", **variables},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.stdout + done.stderr


def test_main_job(tmp_path: Path) -> None:
    command = "--model medm_vl --model_args pretrained=demo --tasks med_cls_demo --batch_size 16 --output_path out"
    printed = run("lmms-eval", *command.split(), "--log_samples", folder=tmp_path)
    assert "|med_cls_demo|none  |     0|accuracy|" in printed
    (results,) = (tmp_path / "out").glob("demo/*_results.json")
    values = json.loads(results.read_text())["results"]["med_cls_demo"]
    assert values["accuracy,none"] >= 0.90
    (metrics,) = (tmp_path / "out").glob("medmllm_runs/*/med_cls_demo.metrics.json")
    assert json.loads(metrics.read_text())["baselines"]["majority_class"]["accuracy"] < 0.40
    (samples,) = (tmp_path / "out").glob("demo/*_samples_med_cls_demo.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len({row["accuracy"]["outcome"]["id"] for row in rows}) == len(rows) >= 300
    assert len({row["target"] for row in rows}) >= 3


def test_listings_know_us(tmp_path: Path) -> None:
    names = ("med_cls_demo", "med_cls_busi", "med_cls_covid19_ct")
    listed = run("lmms-eval", "--tasks", "list", folder=tmp_path)
    assert all(f" - {name}\n" in listed for name in (*names, "med_cls"))
    through_us = run("medmllm", "lmms-eval", "tasks", "list", folder=tmp_path)
    assert all(name in through_us for name in names)
    assert "medm_vl" in run("lmms-eval", "models", folder=tmp_path)


def test_error_names_what_is_missing(tmp_path: Path) -> None:
    command = "--model medm_vl --model_args pretrained=demo --tasks med_cls --output_path out"
    printed = run("lmms-eval", *command.split(), folder=tmp_path)
    assert "MEDMLLM_DATA" in printed
    assert not (tmp_path / "out" / "medmllm_runs").exists()


def test_import_stays_light(tmp_path: Path) -> None:
    """Registering our models loads no torch; the host's own import does not either."""
    code = "import sys, lmms_eval.models as m; print('torch' in sys.modules, 'medm_vl' in m.list_available_models())"
    assert "False True" in run("python", "-c", code, folder=tmp_path)
