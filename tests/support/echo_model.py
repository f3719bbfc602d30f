"""Our model class of the host with a stand-in for the loaded model, and requests to ask it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from medmllm_plugins.host.task_loading import new_session
from medmllm_plugins.models.base import Generation
from medmllm_plugins.models.options import LoadOptions

GREEDY = {"max_new_tokens": 8, "do_sample": False, "temperature": 0.0, "until": []}


class Echo:
    """Stands in for a loaded model: answers with the question and the grey value of the image's first pixel."""

    fingerprint = "0" * 64
    device = torch.device("cpu")
    dtype = torch.float32
    max_length = 100
    shows = "image"
    max_new_tokens = None
    weight_warnings: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.model = SimpleNamespace(
            parameters=lambda: iter([torch.zeros(3), torch.zeros(4)]),
            config=SimpleNamespace(_attn_implementation="eager"),
        )
        self.loaded: list[LoadOptions] = []
        self.batches: list[dict[str, Any]] = []

    def load(self, options: LoadOptions) -> Echo:
        self.loaded.append(options)
        return self

    def render(self, question: str) -> str:
        return f"SYSTEM <image> {question} END"

    def prepare(self, questions: Sequence[str], images: Sequence[Image.Image]) -> dict[str, Any]:
        return {"questions": list(questions), "images": list(images)}

    def generate(
        self,
        questions: Sequence[str],
        images: Sequence[Image.Image],
        *,
        max_new_tokens: int,
        labels: Sequence[str] | None = None,
        inputs: dict[str, Any] | None = None,
    ) -> list[Generation]:
        assert inputs is None or inputs == {"questions": list(questions), "images": list(images)}
        if not max_new_tokens:  # the labels' scores on a blank image
            assert labels is not None and [image.getpixel((0, 0)) for image in images] == [(128, 128, 128)]
            return [Generation("", 0, tuple(-float(len(label)) / 2 for label in labels), (1,) * len(labels))]
        self.batches.append({"questions": list(questions), "max_new_tokens": max_new_tokens, "labels": labels})
        assert all(image.mode == "RGB" for image in images)
        scores = None if labels is None else tuple(-float(len(label)) for label in labels)
        return [
            Generation(f"  {question} {image.getpixel((0, 0))[0]}. STOP and more\n", 3, scores)  # type: ignore[index]
            for question, image in zip(questions, images, strict=True)
        ]


def build(arguments: str = "pretrained=demo,device=cpu", batch_size: Any = None, **settings: Any) -> Any:
    """Make the model as the host's command line does."""
    import lmms_eval.models

    model = lmms_eval.models.get_model("medm_vl")
    made = model.create_from_arg_string(arguments, {"batch_size": batch_size, "max_batch_size": None, **settings})
    made._own_session = new_session()
    return made


def content_of(rows: list[dict[str, Any]]) -> Any:
    """The content of a task of ours, as far as answering needs it: nothing is recorded, every answer is parsed."""
    return SimpleNamespace(
        row_list=rows,
        metadata={},
        settings=SimpleNamespace(features=None, attributions=None, patching=None, anchors=0),
        predict_only=False,
        masked_rows={},
        read_answer=lambda row, text: SimpleNamespace(status="parsed"),
    )


def manifest_of(model: Any) -> dict[str, Any]:
    """The manifest of the run that the model answered in."""
    content: dict[str, Any] = model._own_session.run.manifest.to_dict()
    return content


def grey(value: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (value, value, value))


def user(*parts: Any) -> list[dict[str, Any]]:
    """One user turn; a string is text, anything else an image."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "url": p} for p in parts]
    return [{"role": "user", "content": content}]


def ask(
    model: Any,
    *messages: list[dict[str, Any]],
    task: str = "stranger",
    settings: dict[str, Any] | None = None,
    labels: Sequence[str] = (),
    **metadata: Any,
) -> list[Any]:
    """Requests of a chat task with one row for each of ``messages``; rows of our own tasks hold the answers scored."""
    from lmms_eval.api.instance import Instance

    rows = [
        {"id": str(index), "fold": "test", "messages": message, "answers": list(labels)}
        for index, message in enumerate(messages)
    ]
    model.task_dict[task] = {"test": rows}
    if "medmllm" in metadata:
        from medmllm_plugins.host.task_dataset import TaskDataset

        model.task_dict[task] = TaskDataset(test=rows)
        model.task_dict[task].content, model.task_dict[task].session = content_of(rows), model._own_session
    return [
        Instance(
            request_type="generate_until",
            arguments=("unused", lambda doc: doc["messages"], dict(settings or GREEDY), index, task, "test"),
            idx=0,
            metadata={"task": task, "doc_id": index, "repeats": 1, **metadata},
        )
        for index in range(len(messages))
    ]


def texts(results: Sequence[Any]) -> list[str]:
    return [result.text for result in results]
