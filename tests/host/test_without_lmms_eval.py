"""Commands that need no model run without lmms-eval: on a machine that lacks it, or where it does not import."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import medmllm_plugins

SCRIPT = """
import sys

sys.modules["lmms_eval"] = None  # as if it were not installed

import numpy as np
from pathlib import Path
from PIL import Image
from medmllm_plugins.cli.app import main

here = Path.cwd()
(here / "images").mkdir()
rows = ["image,label,patient,fold"]
for index in range(40):
    pixels = np.full((30, 30), 40 + 150 * (index % 2) + index // 2, np.uint8)
    Image.fromarray(pixels).save(here / "images" / f"{index}.png")
    fold = ("train", "train", "train", "validation", "test")[index // 2 % 5]
    rows.append(f"{index},{('dark', 'bright')[index % 2]},p{index // 2},{fold}")
(here / "t.csv").write_text("\\n".join(rows))

def run(*words):
    print("$", *words, flush=True)
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code or 0

assert run("task", "new", "bright", "--images", here / "images", "--labels", here / "t.csv") == 0
from medmllm_plugins.plugins.manager import reset
reset()
assert run("task", "list") == 0
assert run("datasets") == 0
assert run("baseline", "bright", "--method", "majority", "--output", here / "out") == 0
(folder,) = (here / "out" / "medmllm_runs").iterdir()
assert run("report", folder, "--output", here / "report.html") == 0
assert (here / "report.html").stat().st_size > 1000
assert run("diagnose", folder) != 0  # there are no features in it
assert run("doctor") in (0, 1)  # it says that lmms-eval is missing
assert sys.modules["lmms_eval"] is None
print("done")
"""


def test_commands_run_where_lmms_eval_is_missing(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(medmllm_plugins.__file__).parents[1]),
            "MEDMLLM_TASKS": str(tmp_path / "tasks"),
            "MEDMLLM_CACHE": "",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0 and ended.stdout.endswith("done\n"), ended.stdout[-2000:] + ended.stderr[-3000:]
    assert "Traceback" not in ended.stderr


PACKAGE = Path(medmllm_plugins.__file__).parent
MODULES = sorted({*PACKAGE.rglob("*.py"), *(PACKAGE / "probes").rglob("*.py")})


def test_no_module_imports_what_windows_lacks() -> None:
    """At its top level; a function may, and copes with its absence."""
    assert len(MODULES) > 200
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        imported |= {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert not imported & {"fcntl", "resource", "termios", "pwd", "grp"}, path
