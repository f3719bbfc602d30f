"""Simulated models whose stages lose nothing, of any widths: a diagnosis must not charge one of them.

No model is run. A store of synthetic features is written and analysed like any other. In the variant ``"isometry"``
every stage holds the same latent vector of a document, embedded by a random isometry. In the variant ``"noise"`` the
class means of every stage have the same distances, and each stage adds noise of its own with the same variance in all
dimensions. The accuracy of the best classifier is then the same at every stage, but a wide stage needs more documents
to learn it from.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
import torch

from medmllm_plugins.data.core.documents import FOLDS, Fold
from medmllm_plugins.errors import OptionError
from medmllm_plugins.features.store import write_header
from medmllm_plugins.features.store_writer import FeatureBatch, Writer, stacked
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.probes.analysis import analyse
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.probes.reference_run import Reference
from medmllm_plugins.prompts.feature_options import LAST, MEAN
from medmllm_plugins.results.feature_store import FeatureStore, Header, StoredLayer
from medmllm_plugins.results.probe_records import CONTROL, MODULES, PIXELS, ProbeAnalysis

Variant: TypeAlias = Literal["isometry", "noise"]
Answers: TypeAlias = Literal["optimal", "guessed"]

LATENT_WIDTH: Final = 48
"""Dimensions of the latent vector of a document."""
PIXEL_WIDTH: Final = 64
_LAYERS: Final = {"vision": ("vision.00", "vision.01"), "connector": ("connector",), "llm": ("llm.00", "llm.norm")}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedStages:
    """A model that passes the class on without loss.

    Attributes:
        variant: ``"isometry"`` or ``"noise"``, see the module.
        widths: number of features of vision tower, connector and LLM, each at least 48.
        classes: number of classes, at most 48.
        sizes: number of documents in each fold.
        separation: distance between two class means, in standard deviations of the noise; 4 lets the best classifier
            reach about 94% with four classes.
        group: number of documents in a group; all have one class.
        correlation: correlation of the noise of two documents of one group.
        answers: ``"optimal"``, those of the best classifier of what the last stage holds, or ``"guessed"``, drawn
            without regard to the image.
        seed: seed of everything random.

    Raises:
        OptionError: a value is out of range.
    """

    variant: Variant = "isometry"
    widths: tuple[int, int, int] = (96, 1024, 2048)
    classes: int = 4
    sizes: dict[Fold, int] = field(default_factory=lambda: {"train": 400, "validation": 160, "test": 320})
    separation: float = 4.0
    group: int = 3
    correlation: float = 0.3
    answers: Answers = "optimal"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= LATENT_WIDTH or min(self.widths) < LATENT_WIDTH or not 0 <= self.correlation <= 1:
            raise OptionError(
                f"Expected 2 to {LATENT_WIDTH} `classes`, `widths` of at least {LATENT_WIDTH} and a `correlation` of 0 "
                f"to 1, got {self.classes}, {self.widths} and {self.correlation}."
            )


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedRun:
    """What a run on the simulated model leaves behind.

    Attributes:
        store: the features.
        outcomes: the answers to the test fold.
        reference: a classifier as good as the best one.
    """

    store: FeatureStore
    outcomes: tuple[Outcome, ...]
    reference: Reference

    def analyse(self, options: Options | None = None, *, with_reference: bool = True) -> ProbeAnalysis:
        """Analyse the run like one of a real model."""
        reference = self.reference if with_reference else None
        return analyse(self.store, self.outcomes, options, reference=reference)


def simulate_run(stages: SimulatedStages, folder: Path) -> SimulatedRun:
    """Write the features of a simulated model to a new folder, and answer its questions."""
    generator = np.random.default_rng((stages.seed, 17))
    fold, group, truth = _documents(stages, generator)
    means = np.zeros((stages.classes, LATENT_WIDTH))
    means[:, : stages.classes] = np.eye(stages.classes) * stages.separation / np.sqrt(2)
    latent = means[truth] + _noise(stages, group, LATENT_WIDTH, generator)
    features: dict[tuple[str, str], torch.Tensor] = {}
    layers = []
    for part, width in zip(MODULES, stages.widths, strict=True):
        poolings = (MEAN, LAST) if part == "llm" else (MEAN,)
        for name in _LAYERS[part]:
            layers.append(StoredLayer(name, part, poolings, (width,) * len(poolings)))
            for pooling in poolings:
                basis = np.linalg.qr(generator.standard_normal((width, LATENT_WIDTH)))[0].T
                rows = latent @ basis
                if stages.variant == "noise":
                    rows = means[truth] @ basis + _noise(stages, group, width, generator)
                    # The answers read what the last stage, the last one written, holds.
                    latent_read = rows @ basis.T
                features[name, pooling] = torch.from_numpy(rows.astype(np.float32))
    layers.append(StoredLayer(PIXELS, CONTROL, (MEAN,), (PIXEL_WIDTH,)))
    pixels = _noise(stages, group, PIXEL_WIDTH, generator)
    features[PIXELS, MEAN] = torch.from_numpy(pixels.astype(np.float32))

    scores = _log_posterior(latent if stages.variant == "isometry" else latent_read, means)
    if stages.answers == "guessed":
        scores = _log_posterior(_noise(stages, group, LATENT_WIDTH, generator), means)
    reference = _log_posterior(means[truth] + _noise(stages, group, LATENT_WIDTH, generator), means)
    labels = tuple(f"class {number}" for number in range(stages.classes))
    blank = np.zeros(stages.classes)
    records = [
        {
            "id": f"document-{number:05d}",
            "document": f"document-{number:05d}",
            "group": f"{fold[number]}-{group[number]}",
            "fold": fold[number],
            "label": labels[truth[number]],
            "answer": labels[scores[number].argmax()],
            "scores": None if fold[number] == "train" else scores[number].tolist(),
            "blank": None if fold[number] == "train" else blank.tolist(),
            "label_tokens": None,
        }
        for number in range(len(truth))
    ]
    header = Header("simulated", "simulated", labels, "data", "model", "", tuple(layers))
    write_header(folder, header)
    writer = Writer(folder, rank=0)
    writer.add(FeatureBatch(records, *stacked(features)[:2], {}))
    writer.close()
    test = [record for record in records if record["fold"] == "test"]
    outcomes = tuple(
        Outcome(str(record["id"]), str(record["group"]), str(record["label"]), str(record["answer"]), "parsed")
        for record in test
    )
    predicted = {str(record["id"]): labels[number] for record, number in zip(records, reference.argmax(1), strict=True)}
    return SimulatedRun(FeatureStore(folder), outcomes, Reference("the best classifier", folder, predicted))


def diagnose_simulated(
    stages: SimulatedStages, options: Options | None = None, *, with_reference: bool = True
) -> ProbeAnalysis:
    """Simulate and analyse a run in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="medmllm-simulated-") as folder:
        return simulate_run(stages, Path(folder)).analyse(options, with_reference=with_reference)


def _documents(stages: SimulatedStages, generator: np.random.Generator) -> tuple[list[str], Ints, Ints]:
    """Return fold, group and class of each document; the groups of a fold have the classes in turn."""
    folds: list[str] = []
    groups, classes, first = [], [], 0
    for fold in FOLDS:
        size = stages.sizes[fold]
        number = np.arange(size) // stages.group
        order = generator.permutation(int(number[-1]) + 1) % stages.classes
        folds += [fold] * size
        groups.append(first + number)
        classes.append(order[number])
        first += int(number[-1]) + 1
    return folds, np.concatenate(groups).astype(np.intp), np.concatenate(classes).astype(np.intp)


def _noise(stages: SimulatedStages, group: Ints, width: int, generator: np.random.Generator) -> Floats:
    """Return noise of variance 1 in each dimension, (n, width), correlated within groups."""
    shared = generator.standard_normal((int(group.max()) + 1, width))[group]
    own = generator.standard_normal((len(group), width))
    noise: Floats = np.sqrt(stages.correlation) * shared + np.sqrt(1 - stages.correlation) * own
    return noise


def _log_posterior(latent: Floats, means: Floats) -> Floats:
    """Return the log probabilities (n, K) of equally frequent classes with these means and noise of variance 1."""
    logits = latent @ means.T - (means**2).sum(1) / 2
    log_p: Floats = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return log_p
