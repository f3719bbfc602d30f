"""``medmllm doctor``: what is missing or broken, and what to do about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli.conftest import Medmllm

from medmllm_plugins.cli import doctor
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.plugins.manager import get_manager, reset
from medmllm_plugins.utils import environment

pytestmark = pytest.mark.usefixtures("plain_surroundings")

GIVING = """
from medmllm_plugins.plugins.hookspecs import hookimpl
from medmllm_plugins.plugins.specs import ModelSpec

@hookimpl
def medmllm_models():
    return [ModelSpec(name="giver_vl", summary="A giver's model.", loader="a.b:c", sizes={"tiny": "owner/tiny"})]
"""


def finding(medmllm: Medmllm, what: str) -> tuple[int, dict[str, str]]:
    """The doctor's exit status and its one finding about something."""
    status, printed = medmllm("doctor", "--json")
    (matching_row,) = [row for row in json.loads(printed) if row["what"] == what]
    return status, matching_row


def test_doctor_of_a_sound_installation(medmllm: Medmllm) -> None:
    status, printed = medmllm("doctor", "--json")
    rows = json.loads(printed)
    assert status == 0
    assert all(set(row) == {"what", "state", "detail", "fix"} for row in rows)
    assert {row["state"] for row in rows} == {"ok", "missing"}
    names = [row["what"] for row in rows]
    assert len(set(names)) == len(names)
    assert {"python", "torch", "lmms-eval", "transformers", "device", "demo checkpoint", "plugin builtin"} <= set(names)
    assert [row["what"] for row in rows if row["state"] == "missing"] == [
        f"data set {name}" for name in dataset_specs() if name != "demo"
    ]
    assert all(row["fix"] for row in rows if row["state"] != "ok")
    text = medmllm("doctor", "--all")[1].splitlines()
    width = max(len(name) for name in names)
    for row in rows:
        assert f"{row['state']:<8} {row['what']:<{width}}  {row['detail']}" in text
        assert not row["fix"] or any(line.endswith(f"-> {row['fix']}") for line in text)


def test_what_is_there_comes_first_and_what_is_broken_last(medmllm: Medmllm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", (*environment.PACKAGES, "a-package-not-installed"))
    status, printed = medmllm("doctor")
    states = [line.split()[0] for line in printed.splitlines() if not line.startswith(" ")]
    assert status == 1 and states == ["ok"] * (len(states) - 2) + ["missing", "broken"]


def test_a_missing_package_breaks_it(medmllm: Medmllm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", (*environment.PACKAGES, "a-package-not-installed"))
    status, row = finding(medmllm, "a-package-not-installed")
    assert status == 1
    assert (row["state"], row["detail"]) == ("broken", "not installed")
    assert row["fix"] == "pip install a-package-not-installed"
    status, text = medmllm("doctor")
    assert status == 1 and "-> pip install a-package-not-installed" in text


@pytest.mark.parametrize("error", ["missing", "broken"])
def test_torch_that_cannot_be_imported_is_a_finding(
    medmllm: Medmllm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: str
) -> None:
    """A doctor that needs what it looks for is no help."""
    if error == "missing":
        monkeypatch.setitem(sys.modules, "torch", None)
        monkeypatch.setattr(doctor, "package_versions", lambda: {"python": "3.11.0", "torch": None})
    else:  # a wheel for another system: its libraries do not load
        (tmp_path / "torch.py").write_text("raise OSError('libtorch.so: cannot open shared object file')\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    status, row = finding(medmllm, "device")
    assert status == 1 and row["state"] != "ok" and "torch" in row["detail"] and "pip install" in row["fix"]


@pytest.mark.parametrize(("bf16", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_is_named_with_its_dtype(
    medmllm: Medmllm, monkeypatch: pytest.MonkeyPatch, bf16: bool, dtype: str
) -> None:
    import torch

    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        get_device_name=lambda index: f"GPU {index}",
        is_bf16_supported=lambda *arguments, **settings: bf16,
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    status, row = finding(medmllm, "device")
    assert (status, row["state"], row["fix"]) == (0, "ok", "")
    assert "GPU 0, GPU 1" in row["detail"] and dtype in row["detail"]


def test_without_a_gpu_the_cpu_will_do(medmllm: Medmllm, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, row = finding(medmllm, "device")
    assert (status, row["state"]) == (0, "ok") and "CPU" in row["detail"]


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_demo_with_a_lost_file_breaks_it(
    medmllm: Medmllm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lost: str
) -> None:
    assert finding(medmllm, "demo checkpoint")[1]["state"] == "ok"
    demo = tmp_path / "models" / "demo"
    demo.mkdir(parents=True)
    for name in {"config.json", "model.safetensors", "tokenizer.json"} - {lost}:
        (demo / name).touch()
    monkeypatch.setattr(doctor, "resources", SimpleNamespace(files=lambda package: tmp_path))
    status, row = finding(medmllm, "demo checkpoint")
    assert (status, row["state"], row["detail"]) == (1, "broken", f"{lost} not found")
    assert row["fix"].startswith("pip install --force-reinstall")


def test_missing_data_are_no_fault_but_are_mended(
    medmllm: Medmllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = dataset_specs()["busi"]
    status, row = finding(medmllm, "data set busi")
    assert (status, row["state"]) == (0, "missing")
    assert row["fix"].startswith("export MEDMLLM_DATA=") and spec.download in row["fix"]
    monkeypatch.setenv("MEDMLLM_DATA", str(tmp_path))
    status, row = finding(medmllm, "data set busi")
    assert (status, row["state"]) == (0, "missing") and str(tmp_path / "busi") in row["detail"]
    assert row["fix"] == f"get the set from {spec.download}"
    (tmp_path / "busi").mkdir()
    status, row = finding(medmllm, "data set busi")
    assert (status, row["state"], row["fix"]) == (0, "ok", "")


def test_a_broken_plugin_is_named_with_what_to_do(medmllm: Medmllm, install: Callable[[str, str], None]) -> None:
    install("faulty", "import a_module_that_is_not_there\n")
    install("giver", GIVING)
    status, row = finding(medmllm, "plugin faulty")
    assert (status, row["state"]) == (0, "missing")  # everything else goes on working
    assert "faulty 3.1" in row["detail"] and "a_module_that_is_not_there" in row["detail"]
    assert row["fix"] == "pip install --upgrade faulty, or MEDMLLM_DISABLE=faulty"
    assert finding(medmllm, "plugin giver")[1]["state"] == "ok"


def test_a_broken_task_file_of_a_plugin_is_found(
    medmllm: Medmllm, install: Callable[[str, str], None], tmp_path: Path
) -> None:
    """No task file is read before somebody asks for the tasks, so the doctor has to."""
    (tmp_path / "bad.yaml").write_text("task: [\n")
    source = (
        "from medmllm_plugins import TaskFolder, hookimpl\n\n"
        f"@hookimpl\ndef medmllm_tasks():\n    return [TaskFolder(path={str(tmp_path)!r})]\n"
    )
    install("yaml", source)
    printed = json.loads(medmllm("doctor", "--json")[1])
    states = {row["state"]: row["detail"] for row in printed if row["what"] == "plugin yaml"}
    assert states["ok"] == "yaml 3.1" and "bad.yaml, line 2" in states["missing"]


def test_a_name_that_no_plugin_has_is_mended_by_naming_another(
    medmllm: Medmllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDMLLM_DISABLE", "bultin")
    reset()
    status, row = finding(medmllm, "plugin bultin")
    assert (status, row["state"]) == (0, "missing")
    assert "MEDMLLM_DISABLE" in row["fix"] and "medmllm plugins" in row["fix"] and "pip" not in row["fix"]


def test_a_plugin_registered_in_process_cannot_be_upgraded(medmllm: Medmllm) -> None:
    from medmllm_plugins.plugins.hookspecs import hookimpl

    class Plugin:
        @hookimpl
        def medmllm_models(self) -> None:
            return None

    get_manager().pluggy.register(Plugin(), name="of_a_notebook")
    rows = json.loads(medmllm("doctor", "--json")[1])
    (plugin_row,) = [row for row in rows if row["what"] == "plugin of_a_notebook" and row["state"] != "ok"]
    assert "pip install" not in plugin_row["fix"] and plugin_row["fix"]


def test_disabled_plugins_are_not_listed_as_working(
    medmllm: Medmllm, install: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("unwanted", "raise RuntimeError('imported')\n")
    monkeypatch.setenv("MEDMLLM_DISABLE", "unwanted")
    reset()
    assert "unwanted" not in medmllm("doctor")[1]


def test_faulty_files_of_the_user_are_named_with_what_to_do(
    medmllm: Medmllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "odd.yaml").write_text("name: odd\npositive: [sick]\n")
    (tmp_path / "bad.yaml").write_text("task: [\n")
    monkeypatch.setenv("MEDMLLM_TASKS", str(tmp_path))
    reset()
    text = medmllm("plugins")[1]
    assert f"FAILED (user): task file of medmllm_tasks: {tmp_path / 'bad.yaml'}, line 2" in text
    assert any(f"{tmp_path / 'datasets' / 'odd.yaml'}: " in message for message in caplog.messages)
    _, row = finding(medmllm, "plugin (user)")
    assert "bad.yaml" in row["detail"] and row["fix"] == "correct or remove it; all others work"
