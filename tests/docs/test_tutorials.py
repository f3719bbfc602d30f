"""The tutorials, command by command, as a reader types them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WRITTEN = {"python": "medmllm_nearest.py", "toml": "pyproject.toml"}
"""Files of the first plugin, by the language of the block that shows them."""


def _commands(page: Path) -> list[str]:
    blocks = [text for language, text in _BLOCK.findall(page.read_text("utf-8")) if language == "console"]
    lines = [line.removeprefix("$ ") for text in blocks for line in text.splitlines()]
    return [line for line in lines if "/models/" not in line]  # checkpoints of the reader's own


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first-evaluation", "own-images", "own-dicom", "fine-tune", "first-plugin"])
def test_a_tutorial_runs_from_the_first_command_to_the_last(name: str, tmp_path: Path) -> None:
    page = TUTORIALS / f"{name}.md"
    for script in TUTORIALS.glob("sample_*.py"):
        shutil.copy(script, tmp_path)
    folder = tmp_path / "medmllm-nearest"
    folder.mkdir()
    for language, text in _BLOCK.findall(page.read_text("utf-8")):
        if language in WRITTEN:
            (folder / WRITTEN[language]).write_text(text, encoding="utf-8")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "installed"), os.environ.get("PYTHONPATH", "")]),
        "MEDMLLM_TASKS": str(tmp_path / "tasks"),
        "MEDMLLM_CACHE": str(tmp_path / "cache"),
    }
    commands = _commands(page)
    assert len(commands) >= 3
    for command in commands:
        # A plugin that is installed into the environment would be seen by all other tests.
        options = f"--no-deps --no-build-isolation --target {tmp_path / 'installed'}"
        line = command.replace("pip install", f"pip install {options}")
        done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        if command == "medmllm plugins":
            assert "nearest" in done.stdout
    if name == "fine-tune":
        assert "attention_lora" in (tmp_path / "fine-tuned.html").read_text("utf-8")
