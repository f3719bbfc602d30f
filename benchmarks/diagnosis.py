"""A whole evaluation with probes: one pass and one analysis, against answers, a second pass, and a loop of fits.

What people do without this package: answer the test fold; run all documents through the model again, one at a time,
with ``output_hidden_states=True``, and pool each stage in Python; for the floors, shrink the images, and run a tower
with weights drawn anew on them; fit scikit-learn's regressions stage by stage and floor by floor, with a grid, shuffled
labels and control labels. This package answers, scores and keeps features in one pass, and its analysis does more on
top: the control task's types, intervals, health, semantic mapping and the four effects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, fromarray
from torch import Tensor, nn

from benchmarks.measure import Noted, compare, stopwatch
from benchmarks.probe_fit import CONTROLS, SHUFFLES, Problem, loop
from benchmarks.record import Record, Settings, Target
from benchmarks.subjects import QUESTION, Subject, checkpoint
from medmllm_plugins.data.core.documents import FOLDS, Fold
from medmllm_plugins.data.layouts import phantoms
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.errors import ModelError
from medmllm_plugins.features import recorder
from medmllm_plugins.features.control_features import PIXELS, RANDOM, pixels
from medmllm_plugins.features.recorder import FeatureRecorder
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.models.base import Generation
from medmllm_plugins.models.options import resolve_device
from medmllm_plugins.probes.analysis import analyse
from medmllm_plugins.prompts.feature_options import LAST, MEAN, FeatureOptions
from medmllm_plugins.prompts.protocols import ask

BATCH = 16
SIZES: Mapping[Fold, int] = {"train": 400, "validation": 160, "test": 240}
"""Documents by fold, the first of each."""
POINTS = 1.0
"""How far the probes' mean test accuracy may lie apart, in percentage points."""

Key = tuple[str, str]
"""A layer and a pooling."""


@dataclass(frozen=True, slots=True)
class Document:
    """One phantom, drawn before anything is timed."""

    id: str
    group: str
    fold: Fold
    label: str
    picture: Image


@dataclass(frozen=True, slots=True)
class Found:
    """What a side found.

    Attributes:
        texts: answers to the test fold.
        accuracy: test accuracy of the probe at each layer and pooling.
        seconds: what its parts took.
    """

    texts: tuple[str, ...]
    accuracy: Mapping[Key, float]
    seconds: Mapping[str, float]


def documents(sizes: Mapping[Fold, int]) -> list[Document]:
    """The phantoms that take part, fold by fold."""
    found = []
    left = dict(sizes)
    for index, record in enumerate(phantoms.records()):
        if left[record.fold] > 0:
            left[record.fold] -= 1
            picture = fromarray(phantoms.phantom(index).image).convert("RGB")
            found.append(Document(f"{index:05d}", f"{record.patient:04d}", record.fold, record.label, picture))
    return found


def one_pass(subject: Subject, everyone: Sequence[Document], folder: Path, *, floor: bool) -> Found:
    """This package: features of all folds and answers of the test fold in one pass, then the analysis.

    As the wrapper does it: of the train fold a prefill alone, of the validation fold the label scores from it too.

    Args:
        subject: the model.
        everyone: the documents.
        folder: of the store.
        floor: whether a re-initialised vision tower looks at the images too.
    """
    began = perf_counter()
    loaded, labels = subject.loaded, phantoms.LABELS
    question = ask("closed_set", "", dataset_specs()["demo"].classes)
    told = recorder.RecordedDocument("diagnosis", "demo", labels, "", "benchmark", "")
    outcomes, texts = [], []
    example = loaded.prepare([QUESTION], [everyone[0].picture])
    capture = FeatureRecorder(loaded, FeatureOptions(random_encoder=floor), told, folder, rank=0, example=example)
    try:
        verbalizers = [ids[loaded.prefix_length :] for ids in loaded.label_ids(QUESTION, labels)]
        for batch in _batches(everyone):
            fold, shown = batch[0].fold, [one.picture for one in batch]
            inputs = loaded.prepare([QUESTION] * len(batch), shown)
            answers = loaded.generate(
                [QUESTION] * len(batch),
                shown,
                max_new_tokens=subject.max_new_tokens if fold == "test" else 0,
                labels=None if fold == "train" else labels,
                inputs=inputs,
                watch=capture.watch,
            )
            records = [_record(one, answer) for one, answer in zip(batch, answers, strict=True)]
            capture.keep(records, inputs, [pixels(picture) for picture in shown], verbalizers)
            if fold == "test":
                texts += [answer.text for answer in answers]
                for one, answer in zip(batch, answers, strict=True):
                    read = question.read(answer.text)
                    outcomes.append(Outcome(one.id, one.group, one.label, read.label, read.status))
    finally:
        capture.close()
    middle = perf_counter()
    found = analyse(folder, outcomes, device=loaded.device)
    seconds = {"pass": middle - began, "analysis": perf_counter() - middle}
    accuracy = {(point.key.layer, point.key.pooling): point.accuracy.value for point in found.points}
    return Found(tuple(texts), accuracy, seconds)


def _record(one: Document, answer: Generation) -> dict[str, Any]:
    scores = None if answer.scores is None else list(answer.scores)
    told = {"id": one.id, "document": one.id, "group": one.group, "fold": one.fold, "label": one.label}
    return {**told, "answer": answer.text, "scores": scores, "blank": scores, "label_tokens": None}


def _batches(everyone: Sequence[Document]) -> Iterator[list[Document]]:
    """Batches of one fold each."""
    for fold in FOLDS:
        members = [one for one in everyone if one.fold == fold]
        yield from (members[start : start + BATCH] for start in range(0, len(members), BATCH))


def by_hand(subject: Subject, everyone: Sequence[Document]) -> Found:
    """Answers of the test fold, a second pass over all documents, the floors, and loops of fits."""
    seconds, texts = {}, []
    began = perf_counter()
    for batch in _batches([one for one in everyone if one.fold == "test"]):
        answers = subject.loaded.generate(
            [QUESTION] * len(batch),
            [one.picture for one in batch],
            max_new_tokens=subject.max_new_tokens,
            labels=phantoms.LABELS,
        )
        texts += [answer.text for answer in answers]
    seconds["answers"], began = perf_counter() - began, perf_counter()
    rows = [hidden_states(subject, one.picture) for one in everyone]
    seconds["pass"], began = perf_counter() - began, perf_counter()
    accuracy = _fits(everyone, rows)
    seconds["fits"], began = perf_counter() - began, perf_counter()
    model = redrawn(subject.loaded.model)
    rows = [floors(subject, model, one.picture) for one in everyone]
    seconds["floors_pass"], began = perf_counter() - began, perf_counter()
    accuracy |= _fits(everyone, rows)
    seconds["floors_fits"] = perf_counter() - began
    return Found(tuple(texts), accuracy, seconds)


@torch.inference_mode()
def hidden_states(subject: Subject, picture: Image) -> dict[Key, Tensor]:
    """What the stages hold of one image: transformers' own hidden states, pooled, (d,) each.

    They lack what the LLM's last block returns before the norm.
    """
    loaded = subject.loaded
    model: Any = loaded.model
    inputs = loaded.prepare([QUESTION], [picture])
    out = model(**inputs, output_hidden_states=True)
    image = inputs["input_ids"][0] == model.config.image_token_id
    found = _of_the_tower(out.image_outputs)
    *blocks, last = out.hidden_states
    names = ["llm.embed", *(f"llm.{number:02d}" for number in range(len(blocks) - 1)), "llm.norm"]
    for name, states in zip(names, [*blocks, last], strict=True):
        found[name, MEAN], found[name, LAST] = states[0, image].mean(0), states[0, -1]
    return {key: value.float().cpu() for key, value in found.items()}


@torch.inference_mode()
def floors(subject: Subject, model: Any, picture: Image) -> dict[Key, Tensor]:
    """The floors of one image, (d,) each: its pixels, shrunk, and the stages of a tower that was never trained."""
    shown = subject.loaded.prepare([QUESTION], [picture])["pixel_values"]
    found = _of_the_tower(model.get_image_features(pixel_values=shown, output_hidden_states=True))
    drawn = {(f"{RANDOM}.{name}", pooling): value.float().cpu() for (name, pooling), value in found.items()}
    return {**drawn, (PIXELS, MEAN): torch.from_numpy(pixels(picture).astype(np.float32))}


def _of_the_tower(out: Any) -> dict[Key, Tensor]:
    found = {(f"vision.{number:02d}", MEAN): one[0].mean(0) for number, one in enumerate(out.hidden_states[1:])}
    found["vision.norm", MEAN] = out.last_hidden_state[0].mean(0)
    found["connector", MEAN] = torch.cat(list(out.pooler_output)).mean(0)
    return found


def redrawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy of a model whose matrices are drawn anew, normal with variance 1 over the number of inputs."""
    torch.manual_seed(seed)
    copy = deepcopy(model)
    with torch.no_grad():
        for value in copy.parameters():
            if value.dim() > 1:
                nn.init.normal_(value, std=1 / math.sqrt(value[0].numel()))
    return copy


def _fits(everyone: Sequence[Document], rows: Sequence[Mapping[Key, Tensor]]) -> dict[Key, float]:
    places = [torch.tensor([at for at, one in enumerate(everyone) if one.fold == fold]) for fold in FOLDS]
    sets = _label_sets(everyone)
    labels = tuple(sets[:, place] for place in places)
    found = {}
    for key in rows[0]:
        whole = torch.stack([row[key] for row in rows])[None]
        problem = Problem(tuple(whole[:, place] for place in places), labels)
        found[key] = float(loop(problem, (0,))[0, 0])
    return found


def _label_sets(everyone: Sequence[Document], seed: int = 0) -> Tensor:
    """The real labels, control labels drawn for each patient, and shuffled ones, (sets, n)."""
    generator = np.random.default_rng(seed)
    truth = np.array([phantoms.LABELS.index(one.label) for one in everyone])
    patient = np.unique([one.group for one in everyone], return_inverse=True)[1]
    controls = [generator.integers(len(phantoms.LABELS), size=patient.max() + 1)[patient] for _ in range(CONTROLS)]
    shuffled = [truth[generator.permutation(len(truth))] for _ in range(SHUFFLES)]
    return torch.from_numpy(np.stack([truth, *controls, *shuffled]))


def check(ours: Found, theirs: Found) -> float:
    """See to it that both sides answered and found the same.

    Returns:
        By how many percentage points our probes are better on average, where both sides look at the same features: the
        weights of the untrained tower are drawn by each side for itself.

    Raises:
        ModelError: an answer is another, a probe is missing, or the probes lie too far apart.
    """
    differ = sum(one != other for one, other in zip(ours.texts, theirs.texts, strict=True))
    missing = sorted(set(theirs.accuracy) - set(ours.accuracy))
    if differ or missing:
        raise ModelError(
            f"Expected the same answers and probes at the same places, found {differ} other answers and no probe of "
            f"ours at {missing[:3]}: run `pytest tests/capture`."
        )
    gains = [ours.accuracy[key] - value for key, value in theirs.accuracy.items() if not key[0].startswith(RANDOM)]
    points = 100 * float(np.mean(gains))
    if not abs(points) <= POINTS:
        raise ModelError(
            f"Expected mean test accuracies of probes within {POINTS:g} point, found {points:+.2f}: run "
            "`pytest tests/probes`."
        )
    return points


def run(settings: Settings) -> Record:
    """Compare the two ways.

    Raises:
        OptionError: the device is not there.
        ModelError: they do not find the same.
    """
    device = resolve_device(settings.device)
    subject, everyone = checkpoint("demo", settings.device), documents(SIZES)
    hidden_states(subject, everyone[0].picture)  # the warm-up
    subject.loaded.generate([QUESTION] * 2, [one.picture for one in everyone[:2]], max_new_tokens=2)
    with TemporaryDirectory(prefix="medmllm-diagnosis-") as name:
        numbers = count()
        ours = Noted(lambda: one_pass(subject, everyone, Path(name) / str(next(numbers)), random_encoder=True))
        theirs = Noted(lambda: by_hand(subject, everyone))
        comparison = compare(stopwatch(theirs, device), stopwatch(ours, device), repeats=settings.repeats)
        bare = one_pass(subject, everyone, Path(name) / "bare", random_encoder=False)
    points = check(ours.last, theirs.last)
    # What the same costs by hand where nobody asks for floors.
    no_floors = sum(value for part, value in theirs.last.seconds.items() if not part.startswith("floors"))
    return Record(
        settings=settings,
        sides=(
            ("by_hand", "answers, a second pass one image at a time, the floors likewise, a loop with scikit-learn"),
            ("one_pass", "this package: answers and features in one pass, and the analysis"),
        ),
        comparison=comparison,
        target=Target("at least", 5.0),
        details={
            **{f"{fold}_documents": number for fold, number in SIZES.items()},
            "probes_by_hand": len(theirs.last.accuracy),
            "probes_in_one_pass": len(ours.last.accuracy),
            "points_better": round(points, 3),
            **{f"by_hand_{part}_s": round(value, 3) for part, value in theirs.last.seconds.items()},
            **{f"one_pass_{part}_s": round(value, 3) for part, value in ours.last.seconds.items()},
            "ratio_floors_on_our_side_alone": round(no_floors / sum(ours.last.seconds.values()), 3),
            "ratio_without_floor": round(no_floors / sum(bare.seconds.values()), 3),
            "threads": torch.get_num_threads(),
        },
    )
