"""The host's command, run in this process: what it printed, wrote, loaded, and with which status it ended."""

from __future__ import annotations

import gc
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PLAIN = {
    "--model": "medm_vl",
    "--model_args": "pretrained=demo,device=cpu",
    "--tasks": "med_cls_demo",
    "--limit": "3",
    "--batch_size": "4",
}
"""An evaluation that takes a second."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str
    folder: Path
    loaded: int

    @property
    def results(self) -> dict[str, Any]:
        """The host's own file of results."""
        (path,) = self.folder.glob("out/**/*_results.json")
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    @property
    def values(self) -> dict[str, Any]:
        """Metrics of the one task, without standard errors."""
        (values,) = self.results["results"].values()
        return {key: value for key, value in values.items() if "," in key and "_stderr" not in key}

    @property
    def samples(self) -> list[dict[str, Any]]:
        (path,) = self.folder.glob("out/**/*_samples_*.jsonl")
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    @property
    def manifest(self) -> dict[str, Any]:
        (path,) = self.folder.glob("out/medmllm_runs/*/manifest.json")
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    @property
    def prompt(self) -> str:
        (task,) = self.manifest["tasks"].values()
        return str(task["prompt"])


Command = Callable[..., Ended]


@pytest.fixture
def command(
    task_manager: Any, drawn_once: None, demo_weights: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    """Run ``lmms-eval`` on the demo: ``command("--limit", "2", tasks=...)``; flags given replace those of ``PLAIN``."""
    import lmms_eval.cli.power_utils
    import lmms_eval.tasks
    from lmms_eval import __main__ as host
    from loguru import logger

    def manager(*args: Any, **settings: Any) -> Any:
        return task_manager if settings.get("include_path") is None else lmms_eval_tasks(*args, **settings)

    lmms_eval_tasks = lmms_eval.tasks.TaskManager
    manager.medmllm_hook = lmms_eval_tasks.medmllm_hook  # type: ignore[attr-defined] # extended already
    for module in (host, lmms_eval.tasks, lmms_eval.cli.power_utils):
        monkeypatch.setattr(module, "TaskManager", manager)
    monkeypatch.setenv("VERBOSITY", "INFO")  # the host sets it
    runs = iter(range(1000))

    def call(
        *words: str, through: Callable[[], Any] = host.cli_evaluate, plain: bool = True, again: bool = False
    ) -> Ended:
        number = next(runs)
        folder = tmp_path / f"run{number - again}"
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        defaults = {**PLAIN, "--output_path": "out"} if plain else {}
        usual = [word for flag, value in defaults.items() if flag not in words for word in (flag, value)]
        monkeypatch.setattr(sys, "argv", ["lmms-eval", *usual, *words])
        out, err, status, before = io.StringIO(), io.StringIO(), 0, len(demo_weights)
        gc.freeze()  # the host collects garbage twice an evaluation
        try:
            with redirect_stdout(out), redirect_stderr(err):
                through()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        finally:
            gc.unfreeze()
        return Ended(status, out.getvalue(), err.getvalue(), folder, len(demo_weights) - before)

    yield call
    logger.remove()  # the host's sink writes to what was standard output then
    logger.add(sys.__stderr__ or sys.stderr)


_weights: list[Any] = []


@pytest.fixture
def demo_weights(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Load the demo's weights once a session; the list grows with every load that is asked for."""
    from medmllm_plugins.models.formats import medm_vl

    real, asked = medm_vl.load, list[int]()

    def load(options: Any) -> Any:
        asked.append(1)
        if options.pretrained != "demo":
            return real(options)
        if not _weights:
            _weights.append(real(options))
        return _weights[0]

    monkeypatch.setattr(medm_vl, "load", load)
    return asked
