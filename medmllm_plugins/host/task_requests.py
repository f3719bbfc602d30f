"""Read the host's requests into :class:`~medmllm_plugins.runtime.requests.TaskRequest`, and check them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmms_eval.api.instance import Instance
from loguru import logger

from medmllm_plugins.errors import OptionError
from medmllm_plugins.host.flags import check_generation
from medmllm_plugins.host.task_dataset import TaskDataset
from medmllm_plugins.runtime.patch_loop import NO_TWIN
from medmllm_plugins.runtime.requests import TaskRequest
from medmllm_plugins.runtime.twin import Twin


def read_request(request: Instance, datasets: Mapping[str, Any]) -> TaskRequest:
    """Unpack a request; nothing else in this package knows the host's tuple.

    The arguments of a chat task's request are a context, a function from a row to messages, generation settings,
    and the row's index, task and split. The host hands the ``datasets`` to the model as ``task_dict``.
    """
    _, to_messages, generation, index, task, split = request.args
    dataset = datasets[str(task)]
    content = dataset.content if isinstance(dataset, TaskDataset) else None
    return TaskRequest(
        task=str(task),
        split=str(split),
        index=int(index),
        repeat=int(request.idx),
        generation=generation,
        rows=dataset[split] if content is None else content.row_list,
        to_messages=to_messages,
        content=content,
    )


def check_settings(requests: Iterable[TaskRequest], model: str) -> None:
    """Check the generation settings of all requests of a run, before a model is loaded.

    Raises:
        OptionError: the model cannot answer under these settings.
    """
    checked = set()
    for request in requests:
        kind = (request.task, repr(request.generation))
        if kind not in checked:
            checked.add(kind)
            check_generation(request.generation, f"{request.task}, {model}", ours=request.content is not None)


def check_twin(requests: Sequence[TaskRequest], twin: Twin | None) -> None:
    """Check that tasks that put states of a twin in have one, before a model is loaded.

    Raises:
        OptionError: one has none.
    """
    if twin is None:
        if task := next((request.task for request in requests if request.needs_twin), None):
            raise OptionError(NO_TWIN.format(task=task))
    elif all(request.patching is None for request in requests):
        logger.warning(f"twin={twin.options.pretrained} is not loaded: only med_patch and med_probe tasks use a twin.")
