"""``medmllm plugin new``: sound files of every kind, that are discovered at once; nothing is overwritten."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.command_line import find_subcommand
from support.plugin_site import Site

from medmllm_plugins.cli.app import main
from medmllm_plugins.data.core.dataset_spec import read_spec
from medmllm_plugins.errors import OptionError
from medmllm_plugins.plugins.manager import discover
from medmllm_plugins.plugins.new_plugin import KINDS, OWN_FAMILY, Kind, NewPlugin

ROOT = Path(__file__).parents[2]
PACKAGES = [*((kind, "qwen2_5_vl") for kind in KINDS), ("model", OWN_FAMILY)]
EXAMPLES: dict[str, tuple[str, Kind]] = {
    "plugin-dataset": ("medmllm-discs", "dataset"),
    "plugin-probe": ("medmllm-centroid", "probe"),
    "plugin-attribution": ("medmllm-gradient-norm", "attribution"),
    "plugin-intervention": ("medmllm-turned-image", "intervention"),
}


@pytest.mark.parametrize(("kind", "family"), PACKAGES)
def test_a_package_is_sound(kind: Kind, family: str, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = NewPlugin(name="Medmllm-Of.New", kind=kind, family=family)
    target = site.path / "written"
    written = plugin.write(target)
    assert sorted(path for path in target.rglob("*") if path.is_file()) == sorted(written)
    ruff = [sys.executable, "-m", "ruff"]
    for words in (["check", "."], ["format", "--check", "."]):
        done = subprocess.run([*ruff, *words, "--no-cache"], cwd=target, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    project = tomllib.loads((target / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["name"] == "Medmllm-Of.New" and "license" not in project["project"]
    assert project["project"]["dependencies"] == ["medmllm-plugins>=0.1,<0.2"]
    workflow = yaml.safe_load((target / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["tests"]["steps"][-1] == {"run": "pytest"}
    assert workflow["jobs"]["tests"]["steps"][1]["with"]["python-version"] == "${{ matrix.python }}"
    publish = workflow["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["needs"] == "tests"
    readme = (target / "README.md").read_text(encoding="utf-8")
    assert all(f"    {command}\n" in readme for command in plugin.commands)

    entry_points = project["project"]["entry-points"]["medmllm_plugins"]
    lines = "".join(f"{name} = {value}\n" for name, value in entry_points.items())
    site.metadata("medmllm-of-new", f"[medmllm_plugins]\n{lines}")
    monkeypatch.syspath_prepend(str(target))
    site.modules.append("medmllm_of_new")
    monkeypatch.setenv("MEDMLLM_STRICT", "1")
    manager = discover()
    assert manager.failures == []
    if kind == "dataset":
        (folder,) = (path for path in manager.dataset_folders() if path.is_relative_to(target))
        spec = read_spec(folder / "of_new.yaml")
        assert (spec.name, spec.layout) == ("of_new", "medmllm_of_new.layout:ClassFolders")
        packed = project["tool"]["setuptools"]["package-data"]["medmllm_of_new"]
        assert [path for pattern in packed for path in (target / "medmllm_of_new").glob(pattern)] == [
            folder / "of_new.yaml"
        ]
    else:
        assert "of_new" in getattr(manager, f"{kind}s")()
    imported = {name for name in sys.modules if name.startswith("medmllm_of_new")}
    assert imported == {"medmllm_of_new"}  # declaring imports nothing else


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_what_the_command_writes(name: str) -> None:
    distribution, kind = EXAMPLES[name]
    folder = ROOT / "examples" / name
    texts = NewPlugin(name=distribution, kind=kind, license="Apache-2.0").render()
    tracked = {path for path in texts if (folder / path).is_file()}
    assert tracked == set(texts)
    for path, text in texts.items():
        assert (folder / path).read_text(encoding="utf-8") == text, (
            f"medmllm plugin new {distribution} --kind {kind} --license Apache-2.0 --output examples/{name}: {path}"
        )


def test_the_architecture_is_that_of_the_example() -> None:
    template = files("medmllm_plugins.plugins").joinpath("templates", "model_architecture.py.jinja").read_text("utf-8")
    convnet = ROOT / "examples" / "plugin-model" / "medmllm_of_mine" / "convnet.py"
    shown = template.replace("{{ title }}", "ConvNet of mine").replace("{{ item }}", "convnet_of_mine")
    assert shown == convnet.read_text(encoding="utf-8")


def test_the_command_says_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plugin", "new", "medmllm-mine", "--kind", "probe"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-6:-3] == [
        "written    medmllm-mine/tests/test_medmllm_mine.py",
        "next       cd medmllm-mine",
        '           pip install -e ".[test]"',
    ]
    assert printed[-2] == "then use   medmllm diagnose RUN_DIR --protocol mine"
    assert find_subcommand(printed[-2].split()[3:])[0] == "diagnose"
    assert "choose a licence" in printed[-1]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["plugin", "new", "medmllm-mine", "--kind", "attribution"]) == 1
    assert "medmllm-mine exists, and nothing is overwritten" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = ["plugin", "new", "medmllm-mine", "--kind", "model", "--license", "MIT", "--output", "other"]
    assert main(words) == 0 and "licence" not in capsys.readouterr().out
    assert 'license = "MIT"' in (tmp_path / "other" / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "my plugin"}, "Expected the name of a package"),
        ({"name": "-x"}, "Expected the name of a package"),
        ({"name": "x" * 51}, "at most 50 letters"),
        ({"name": "3d"}, "'3d' is no name of a Python package"),
        ({"name": "class"}, "'class' is no name of a Python package"),
        ({"name": "json"}, "a package 'json' is installed"),
        ({"name": "numpy"}, "a package 'numpy' is installed"),
        ({"name": "medmllm-plugins"}, "a package 'medmllm_plugins' is installed"),
        ({"name": "medmllm-linear", "kind": "probe"}, "probe 'linear' exists"),
        ({"name": "medmllm-occlusion", "kind": "attribution"}, "attribution 'occlusion' exists"),
        ({"license": "Apache\n2.0"}, "Expected an SPDX expression"),
        ({"license": 'MIT" x="'}, "Expected an SPDX expression"),
    ],
)
def test_names_that_cannot_be_used_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        NewPlugin(**{"name": "medmllm-new", "kind": "model", **change})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kind", "probe", "--family", "llava"], "Expected `--family` with --kind model alone"),
        (["--kind", "model", "--family", "lava"], "Expected `--family` to be own or one of qwen2_vl"),
    ],
)
def test_wrong_options_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugin", "new", "medmllm-new", *words]) == 1
    assert message in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    plugin = NewPlugin(name="medmllm-new", kind="probe")
    with pytest.raises(OptionError, match="file exists, and nothing is overwritten"):
        plugin.write(tmp_path / "file")
    with pytest.raises(OptionError, match="expected a folder that can be written"):
        plugin.write(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"
