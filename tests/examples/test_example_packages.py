"""The example packages and those of ``medmllm plugin new``: their wheels pass their own tests and run in the host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import medmllm_plugins
from medmllm_plugins.plugins.new_plugin import OWN_FAMILY, NewPlugin
from medmllm_plugins.testing.tiny_families import write_family

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
OURS = str(Path(medmllm_plugins.__file__).parents[1])
DEMO = "--model medm_vl --model_args pretrained=demo,device=cpu"


class Installed:
    """A package that was built as a wheel and installed into a folder beside this package."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.folder, self.site = folder, folder / "site"
        self.source = Path(shutil.copytree(source, folder / "source"))  # building leaves files behind
        pip = [sys.executable, "-m", "pip"]
        wheels = folder / "wheels"
        self.run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(self.source)])
        (wheel,) = wheels.glob("*.whl")
        self.run([*pip, "install", "-q", "--no-deps", "--target", str(self.site), str(wheel)])

    def run(self, words: list[str], **variables: str) -> str:
        """Run a command that sees the installed package, and return what it prints."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MEDMLLM_")}
        paths = os.pathsep.join([str(self.site), OURS])
        ended = subprocess.run(
            words,
            cwd=self.folder,
            env={**kept, "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths, **variables},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
        return ended.stdout + ended.stderr

    def test(self) -> str:
        """Run the package's own tests."""
        return self.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(self.source)])

    def write_tiny_checkpoint(self, module: str, name: str) -> None:
        """Write a checkpoint of an architecture of the package."""
        (self.folder / name).mkdir()
        code = f"from pathlib import Path; import {module} as own; own.write_tiny_checkpoint(Path({name!r}))"
        self.run([sys.executable, "-c", code])

    def evaluate(self, words: str, **variables: str) -> tuple[Path, dict[str, Any]]:
        """Run ``lmms-eval``, and return its run folder and manifest."""
        command = [str(SCRIPTS / "lmms-eval"), *words.split(), "--batch_size", "8", "--output_path", "out"]
        printed = self.run(command, **variables)
        (folder,) = (self.folder / "out" / "medmllm_runs").iterdir()
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        shutil.move(folder, self.folder / "run")
        assert manifest["finished"], printed
        return self.folder / "run", manifest


def evaluate_model(installed: Installed) -> None:
    write_family("qwen2_5_vl", installed.folder / "qwen")
    code = (
        "from pathlib import Path; from medmllm_of_mine import convnet; convnet.write_tiny_checkpoint(Path('convnet'))"
    )
    (installed.folder / "convnet").mkdir()
    installed.run([sys.executable, "-c", code])
    for model, checkpoint in (("of_mine", "qwen"), ("convnet_of_mine", "convnet")):
        arguments = f"--model {model} --model_args pretrained={checkpoint},device=cpu --tasks med_cls_demo --limit 8"
        folder, manifest = installed.evaluate(arguments)
        assert manifest["model"]["name"] == model and manifest["tasks"]["med_cls_demo"]["evaluated"] == 8
        shutil.rmtree(folder)


def evaluate_own_architecture(installed: Installed) -> None:
    code = (
        "from pathlib import Path; from medmllm_new import architecture as new; new.write_tiny_checkpoint(Path('tiny'))"
    )
    (installed.folder / "tiny").mkdir()
    installed.run([sys.executable, "-c", code])
    arguments = "--model new --model_args pretrained=tiny,device=cpu --tasks med_cls_demo --limit 8"
    assert installed.evaluate(arguments)[1]["tasks"]["med_cls_demo"]["evaluated"] == 8


def evaluate_known_architecture(installed: Installed) -> None:
    write_family("qwen2_5_vl", installed.folder / "tiny")
    arguments = "--model new --model_args pretrained=tiny,device=cpu --tasks med_cls_demo --limit 8"
    assert installed.evaluate(arguments)[1]["model"]["name"] == "new"


def evaluate_data_set(installed: Installed) -> None:
    data = str(installed.folder / "data")
    installed.run([sys.executable, "-m", "medmllm_discs.draw", data])
    _, manifest = installed.evaluate(f"{DEMO} --tasks med_cls_discs", MEDMLLM_DATA=data)
    task = manifest["tasks"]["med_cls_discs"]
    assert task["evaluated"] >= 10 and len(task["labels"]) == 2


def diagnose_with_probe(installed: Installed) -> None:
    folder, _ = installed.evaluate(f"{DEMO} --tasks med_probe_demo --limit 120")
    command = [str(SCRIPTS / "medmllm"), "diagnose", str(folder), "--protocol", "centroid", "--json"]
    printed = installed.run([*command, "--permutations", "2", "--refits", "2"])
    (analysis,) = json.loads(printed[printed.index("[\n") : printed.rindex("]") + 1])
    assert analysis["options"]["protocol"] == "centroid" and analysis["best"]["accuracy"]["value"] > 0.5


def explain_with_method(installed: Installed) -> None:
    folder, _ = installed.evaluate(
        f"{DEMO} --tasks med_attr_demo:n=1:method=gradient_norm:layer=connector:steps=2 --limit 8"
    )
    (table,) = folder.glob("*.attributions.csv")
    assert "gradient_norm" in table.read_text(encoding="utf-8")


def intervene(installed: Installed) -> None:
    folder, _ = installed.evaluate(f"{DEMO} --tasks med_patch_demo:intervention=turned_image --limit 16")
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.csv"))
    assert "turned by 180 degrees" in text and "grey" in text


def evaluate_complete_plugin(installed: Installed) -> None:
    words = "--model example_vl --model_args pretrained=tiny,device=cpu --tasks med_cls_example --limit 8"
    assert installed.evaluate(words)[1]["tasks"]["med_cls_example"]["evaluated"] == 8


EXAMPLES: Mapping[str, Any] = {
    "plugin-model": evaluate_model,
    "plugin-dataset": evaluate_data_set,
    "plugin-probe": diagnose_with_probe,
    "plugin-attribution": explain_with_method,
    "plugin-intervention": intervene,
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_wheel_of_an_example_passes_its_tests_and_runs_in_the_host(name: str, tmp_path: Path) -> None:
    installed = Installed(ROOT / "examples" / name, tmp_path)
    assert " passed" in installed.test()
    EXAMPLES[name](installed)


def test_the_wheel_of_the_complete_plugin_runs_in_the_host(tmp_path: Path) -> None:
    evaluate_complete_plugin(Installed(ROOT / "examples" / "plugin", tmp_path))


@pytest.mark.parametrize(
    ("family", "evaluate"), [("qwen2_5_vl", evaluate_known_architecture), (OWN_FAMILY, evaluate_own_architecture)]
)
def test_a_new_package_with_a_model_passes_its_tests_and_runs_in_the_host(
    family: str, evaluate: Any, tmp_path: Path
) -> None:
    """Packages of the other kinds are the examples."""
    NewPlugin(name="medmllm-new", kind="model", family=family).write(tmp_path / "written")
    installed = Installed(tmp_path / "written", tmp_path)
    assert " passed" in installed.test()
    evaluate(installed)
