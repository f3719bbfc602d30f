"""One evaluation harness for all tests of this room: loaded once, and the demo's answers are shared."""

from __future__ import annotations

import gc
import json
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from support.folders import everything, own_folder  # noqa: F401 - fixtures
from support.host_command import command, demo_weights  # noqa: F401 - fixtures
from support.image_files import write_picture
from support.quick_checks import quick_checks

REAL_DATA = os.environ.get("MEDMLLM_DATA")


@dataclass(frozen=True)
class Evaluated:
    """What one call of the host's ``simple_evaluate`` returned, and the run folder it left."""

    returned: dict[str, Any]
    folder: Path
    seconds: float

    @cached_property
    def manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        return manifest

    def values(self, task: str) -> dict[str, Any]:
        """The task's metrics, without the host's standard errors."""
        results = self.returned["results"][task]
        return {key: value for key, value in results.items() if "_stderr" not in key and key != "alias"}

    def samples(self, task: str) -> list[dict[str, Any]]:
        samples: list[dict[str, Any]] = self.returned["samples"][task]
        return samples


@pytest.fixture(scope="session")
def task_manager() -> Any:
    """The host's index of all its tasks and ours; takes seconds to build."""
    import lmms_eval.models  # noqa: F401 - reads our entry point, as it does before every evaluation
    from lmms_eval.tasks import TaskManager

    return TaskManager()


@pytest.fixture(scope="session")
def drawn_once() -> Iterator[None]:
    """Draw the phantoms once in a session and not once an evaluation; sets on disk are read every time."""
    from medmllm_plugins.host import tasks

    real, drawn = tasks.load_dataset, {}

    def load_dataset(spec: Any, **settings: Any) -> Any:
        if spec.folder:
            return real(spec, **settings)
        if spec.name not in drawn:
            drawn[spec.name] = real(spec, **settings)
        return drawn[spec.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "load_dataset", load_dataset)
        yield


@pytest.fixture(scope="session")
def evaluate(task_manager: Any, drawn_once: None) -> Callable[..., Evaluated]:
    """Evaluate as the host's command line does, in process: ``evaluate(folder, model=..., tasks=[...], ...)``.

    ``folder`` is where the command line's ``--output_path`` points.
    """
    import torch
    from lmms_eval.evaluator import simple_evaluate

    torch.set_num_threads(1)  # the demo is too small for more; on a busy machine they wait for each other

    def call(folder: Path, **settings: Any) -> Evaluated:
        settings = {
            "model": "medm_vl",
            "model_args": "pretrained=demo,device=cpu",
            "tasks": ["med_cls_demo"],
            "task_manager": task_manager,
            "bootstrap_iters": 0,
            "cli_args": Namespace(
                output_path=str(folder), seed=[7, 8, 9, 10], model="from_command_line", process_with_media=False
            ),
            **settings,
        }
        # The host collects garbage twice an evaluation; what is loaded already need not be looked through for it.
        gc.freeze()
        try:
            began = time.perf_counter()
            returned = simple_evaluate(**settings)
            seconds = time.perf_counter() - began
        finally:
            gc.unfreeze()
        folder_written = settings["task_manager"].medmllm_hook.session.run.folder
        assert folder_written is not None
        return Evaluated(returned, folder_written.absolute(), seconds)

    return call


PROBE_TASK, PROBE_LIMIT = "med_probe_demo", 240
ATTRIBUTION_TASK = (
    "med_attr_demo:n=1:method=integrated_gradients+prompt_ablation+layer_grad_cam:layer=connector:steps=4"
)
ATTRIBUTION_LIMIT = 32


@pytest.fixture(scope="session")
def probed(evaluate: Callable[..., Evaluated], tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """The demo, probed."""
    return evaluate(tmp_path_factory.mktemp("probed"), tasks=[PROBE_TASK], batch_size=16, limit=PROBE_LIMIT)


@pytest.fixture(scope="session")
def explained(evaluate: Callable[..., Evaluated], tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """The demo, some of its answers explained."""
    folder = tmp_path_factory.mktemp("explained")
    with quick_checks():
        return evaluate(folder, tasks=[ATTRIBUTION_TASK], batch_size=16, limit=ATTRIBUTION_LIMIT)


@pytest.fixture
def few_checks() -> Iterator[None]:
    """Make the checks of maps on fewer samples in one test."""
    with quick_checks():
        yield


# Leaves a batch that is not full at 16 and at 5, and holds the first document that the demo answers wrongly, 132.
DEMO_LIMIT = 137


@pytest.fixture(scope="session")
def demo_by_batch(evaluate: Callable[..., Evaluated], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Evaluated]:
    """The demo's evaluation by batch size."""
    folder = tmp_path_factory.mktemp("demo")
    return {
        size: evaluate(
            folder / "not_here",
            model_args=f"pretrained=demo,device=cpu,run_dir={folder / str(size)}",
            batch_size=size,
            limit=DEMO_LIMIT,
        )
        for size in (16, 5, 1)
    }


@pytest.fixture(scope="session")
def demo(demo_by_batch: dict[int, Evaluated]) -> Evaluated:
    """The demo's evaluation at batch size 16."""
    return demo_by_batch[16]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images that ``MEDMLLM_DATA`` named when the session began."""
    if REAL_DATA is None:
        pytest.skip("MEDMLLM_DATA is not set: no real images")
    return Path(REAL_DATA).absolute()


@pytest.fixture
def data_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small sound trees of the three sets of ``med_cls``, named by ``MEDMLLM_DATA``."""
    root = tmp_path / "data"
    for label in ("benign", "malignant", "normal"):
        for number in range(1, 7):
            write_picture(root / "busi" / "Dataset_BUSI_with_GT" / label / f"{label} ({number}).png")
    for split, count in (("train", 4), ("test", 3)):
        for number in range(count):
            write_picture(root / "chest_xray" / split / "NORMAL" / f"NORMAL-{number}-0001.jpeg", f"{split}n{number}")
            write_picture(root / "chest_xray" / split / "PNEUMONIA" / f"VIRUS-{number}-0001.jpeg", f"{split}v{number}")
    for name in ("CT_COVID", "CT_NonCOVID"):
        for number in range(6):
            write_picture(root / "covid19_ct" / name / f"{name}{number}-p{number}.png")
    monkeypatch.setenv("MEDMLLM_DATA", str(root))
    return root


@pytest.fixture
def fresh_manager() -> Iterator[None]:
    """A plugin manager of the test's own."""
    from medmllm_plugins.plugins.manager import reset

    reset()
    yield
    reset()


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """Warnings that the host's logger was given."""
    import lmms_eval.models  # noqa: F401 - sets the logger up anew at its import
    from loguru import logger

    messages: list[str] = []
    sink = logger.add(lambda message: messages.append(str(message)), level="WARNING", format="{message}")
    yield messages
    logger.remove(sink)


@pytest.fixture
def own_tables(fresh_manager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's listings as copies, since what is registered shows in them."""
    import lmms_eval.models

    for table in ("AVAILABLE_SIMPLE_MODELS", "AVAILABLE_CHAT_TEMPLATE_MODELS"):
        monkeypatch.setattr(lmms_eval.models, table, dict(getattr(lmms_eval.models, table)))


@pytest.fixture
def register() -> Callable[..., None]:
    """Register a plugin in this process."""
    from medmllm_plugins.plugins.manager import get_manager

    def call(plugin: object, name: str = "throwaway") -> None:
        get_manager().pluggy.register(plugin, name=name)

    return call


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Path]:
    """Write ``NAME.yaml`` files into a folder."""

    def call(folder: str, **contents: str) -> Path:
        (tmp_path / folder).mkdir()
        for name, content in contents.items():
            (tmp_path / folder / f"{name}.yaml").write_text(content)
        return tmp_path / folder

    return call


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a stand-in in the place of loaded models."""
    from support.echo_model import Echo

    made = Echo()
    monkeypatch.setattr("medmllm_plugins.host.model.load_model", lambda spec, options: made.load(options))
    return made
