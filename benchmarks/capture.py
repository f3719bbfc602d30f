"""What it costs to keep features: answers with the stages tapped, pooled and written to a store, against without.

Both sides answer the same documents in batches of 16 as the wrapper does: input made, one prefill, scores of all
labels, greedy decoding. One of them has a :class:`medmllm_plugins.features.recorder.FeatureRecorder` looking on, from its making
to its closing: trying which layers are read, hooks, pooling, the logit lens, the raw pixels, and the shards on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL.Image import Image

from benchmarks.measure import Noted, compare, stopwatch
from benchmarks.record import Record, Settings, Target
from benchmarks.subjects import QUESTION, Subject, checkpoint, images, random_3b
from medmllm_plugins.data.layouts import phantoms
from medmllm_plugins.errors import ModelError
from medmllm_plugins.features import recorder
from medmllm_plugins.features.control_features import pixels
from medmllm_plugins.features.recorder import FeatureRecorder
from medmllm_plugins.features.store import FeatureStore
from medmllm_plugins.features.unused_layers import unused_layers
from medmllm_plugins.models.base import Generation
from medmllm_plugins.models.options import resolve_device
from medmllm_plugins.prompts.feature_options import FeatureOptions

BATCH = 16
IMAGES: Mapping[str, int] = {"tiny": 480, "3b": 160}
"""All of the test fold, and a third of it."""
TARGETS: Mapping[tuple[str, str], Target] = {
    ("tiny", "cpu"): Target("at most", 1.10),
    ("3b", "cuda"): Target("at most", 1.05),
}
_SUBJECTS: Mapping[str, Callable[[str], Subject]] = {"tiny": partial(checkpoint, "demo"), "3b": random_3b}


@dataclass(frozen=True, slots=True)
class Kept:
    """What is in a store.

    Attributes:
        documents: number of documents.
        layers: number of layers.
        tensors: number of layers and poolings.
        size: in bytes, the index included.
    """

    documents: int
    layers: int
    tensors: int
    size: int

    @classmethod
    def of(cls, folder: Path) -> Kept:
        """Look into a store."""
        store = FeatureStore(folder)
        return cls(
            documents=len(store),
            layers=len(store.header.layers),
            tensors=sum(len(layer.poolings) for layer in store.header.layers),
            size=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        )


def plain(subject: Subject, pictures: Sequence[Image]) -> tuple[str, ...]:
    """Answer, and keep nothing."""
    return tuple(answer.text for batch in _batches(pictures) for answer in _answer(subject, batch, None)[0])


def captured(subject: Subject, pictures: Sequence[Image], folder: Path, *, floor: bool) -> tuple[str, ...]:
    """Answer, and keep the features of every stage.

    Args:
        subject: the model.
        pictures: what it is asked about.
        folder: of the store.
        floor: whether a re-initialised vision tower looks at the images too.
    """
    loaded = subject.loaded
    texts: list[str] = []
    told = recorder.RecordedDocument("capture", "demo", phantoms.LABELS, "", "benchmark", "")
    example = loaded.prepare([QUESTION], [pictures[0]])
    capture = FeatureRecorder(loaded, FeatureOptions(random_encoder=floor), told, folder, rank=0, example=example)
    try:
        verbalizers = [ids[loaded.prefix_length :] for ids in loaded.label_ids(QUESTION, phantoms.LABELS)]
        for batch in _batches(pictures):
            answers, inputs = _answer(subject, batch, capture)
            records = [_record(len(texts) + place, answer) for place, answer in enumerate(answers)]
            capture.keep(records, inputs, [pixels(picture) for picture in batch], verbalizers)
            texts += [answer.text for answer in answers]
    finally:
        capture.close()
    return tuple(texts)


def _batches(pictures: Sequence[Image]) -> list[Sequence[Image]]:
    return [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]


def _answer(
    subject: Subject, batch: Sequence[Image], capture: FeatureRecorder | None
) -> tuple[list[Generation], dict[str, torch.Tensor]]:
    questions = [QUESTION] * len(batch)
    inputs = subject.loaded.prepare(questions, batch)
    answers = subject.loaded.generate(
        questions,
        batch,
        max_new_tokens=subject.max_new_tokens,
        labels=phantoms.LABELS,
        inputs=inputs,
        watch=None if capture is None else capture.watch,
    )
    return answers, inputs


def _record(number: int, answer: Generation) -> dict[str, object]:
    told = {"id": f"{number:05d}", "document": f"{number:05d}", "group": f"{number:05d}", "fold": "test"}
    scores, tokens = list(answer.scores or ()), list(answer.label_tokens or ())
    told |= {"label": phantoms.LABELS[0], "answer": answer.text}
    return {**told, "scores": scores, "blank": scores, "label_tokens": tokens}


def check(without: Sequence[str], texts: Sequence[str], kept: Kept, *, exact: bool) -> None:
    """See to it that both sides did the same work, and that it was kept.

    Args:
        without: answers where nothing was kept.
        texts: answers where features were.
        kept: what is in the store.
        exact: whether the answers must be the same.

    Raises:
        ModelError: another text was answered, or a document is missing in the store.
    """
    differ = sum(one != other for one, other in zip(without, texts, strict=True)) if exact else 0
    if differ or kept.documents != len(texts):
        raise ModelError(
            f"Expected the same answers with features kept as without, and features of all {len(texts)} documents, "
            f"found {differ} other answers and {kept.documents} documents: run `pytest tests/capture`."
        )


def run(settings: Settings) -> Record:
    """Compare the two ways of answering.

    Raises:
        OptionError: the device is not there.
        ModelError: the memory does not suffice, or the sides do not answer alike.
    """
    size = str(settings.size)
    device = resolve_device(settings.device)
    subject, pictures = _SUBJECTS[size](settings.device), images(IMAGES[size])
    with TemporaryDirectory(prefix="medmllm-capture-") as name:
        numbers = count()

        def captures(shown: Sequence[Image], floor: bool) -> Noted[tuple[tuple[str, ...], Path]]:
            def work() -> tuple[tuple[str, ...], Path]:
                folder = Path(name) / str(next(numbers))
                return captured(subject, shown, folder, random_encoder=floor), folder

            return Noted(work)

        few = pictures[: 2 * BATCH]
        captures(few, False)()  # the warm-up
        captures(few, True)()
        without = Noted(lambda: plain(subject, pictures))
        comparisons, kept = [], []
        for floor in (False, True):
            work = captures(pictures, floor)
            comparisons.append(compare(stopwatch(work, device), stopwatch(without, device), repeats=settings.repeats))
            texts, folder = work.last
            kept.append(Kept.of(folder))
            check(without.last, texts, kept[-1], exact=subject.exact)
    first = subject.loaded.prepare([QUESTION], pictures[:1])
    trying = [stopwatch(lambda: unused_layers(subject.loaded, first), device)() for _ in range(settings.repeats)]
    usual = comparisons[0].denominator.median
    return Record(
        settings=settings,
        sides=(
            ("captured", "answers and label scores, features of every stage kept"),
            ("plain", "answers and label scores alone"),
        ),
        comparison=comparisons[0],
        target=TARGETS.get((size, device.type)),
        details={
            "documents": len(pictures),
            "layers": kept[0].layers,
            "layers_and_poolings": kept[0].tensors,
            "bytes_a_document": round(kept[0].size / len(pictures)),
            "ratio_with_floor": round(comparisons[1].ratio, 3),
            "bytes_a_document_with_floor": round(kept[1].size / len(pictures)),
            "reach_share": round(min(trying) / usual, 4),
            "plain_images_per_s": len(pictures) / usual,
            "dtype": str(subject.loaded.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        },
    )
