"""Stores with known contents, for everything that reads one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medmllm_plugins.features.store import write_header
from medmllm_plugins.features.store_writer import FeatureBatch, Writer, stacked
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.formats.medm_vl import load as load_medm_vl
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.results.feature_store import FeatureStore, Header, StoredLayer
from medmllm_plugins.testing.tiny_families import write_family

LABELS = ("benign", "malignant", "normal")
FOLDS = ("train", "validation", "test")
LAYERS = (
    ("vision.00", "vision", ("mean",), 12, 0.6, True),
    ("vision.01", "vision", ("mean",), 12, 2.5, True),
    ("vision.norm", "vision", ("mean",), 12, 0.0, False),
    ("connector", "connector", ("mean",), 16, 2.5, True),
    ("llm.embed", "llm", ("mean", "last"), 16, 2.5, True),
    ("llm.00", "llm", ("mean", "last"), 16, 2.5, True),
    ("llm.norm", "llm", ("mean", "last"), 16, 2.5, True),
    ("control.random_encoder.vision.01", "control", ("mean",), 12, 0.2, True),
    ("control.pixels", "control", ("mean",), 20, 0.2, True),
    ("control.border", "control", ("mean",), 10, 0.0, True),
    ("control.corners", "control", ("mean",), 12, 0.0, True),
    ("control.centre", "control", ("mean",), 14, 0.2, True),
)
"""Name, part, poolings, width, how clearly the class stands there, and whether it is read."""


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., tuple[FeatureStore, list[Outcome]]]:
    """Write a store of synthetic features; ``clear`` overrides how clearly a layer separates the classes."""

    def make(
        sizes: tuple[int, int, int] = (150, 60, 90),
        *,
        clear: dict[str, float] | None = None,
        answers: Callable[[int, np.random.Generator], int | None] = lambda truth, _: truth,
        group: int = 2,
        seed: int = 0,
        name: str = "store",
        change: Callable[[list[dict[str, Any]]], None] = lambda records: None,
    ) -> tuple[FeatureStore, list[Outcome]]:
        generator = np.random.default_rng(seed)
        count = sum(sizes)
        truth = generator.integers(0, 3, count)
        truth[: count // group * group] = np.repeat(truth[: count // group], group)[: count // group * group]
        folds = np.repeat(FOLDS, sizes)
        records: list[dict[str, Any]] = []
        outcomes = []
        for number in range(count):
            label = LABELS[truth[number]]
            answered = answers(int(truth[number]), generator)
            scores = generator.normal(0, 0.3, 3)
            if answered is not None:
                scores[answered] += 3
            records.append(
                {
                    "id": f"doc-{number:04d}",
                    "document": f"doc-{number:04d}",
                    "group": f"{folds[number]}-{number // group}",
                    "fold": folds[number],
                    "label": label,
                    "answer": "" if answered is None else LABELS[answered],
                    "scores": None if folds[number] == "train" else list(map(float, scores)),
                    "blank": None if folds[number] == "train" else [-1.0, -1.0, -1.0],
                    "label_tokens": None,
                }
            )
            if folds[number] == "test":
                status = "out_of_list" if answered is None else "parsed"
                predicted = None if answered is None else LABELS[answered]
                outcomes.append(Outcome(f"doc-{number:04d}", records[-1]["group"], label, predicted, status))
        change(records)
        by_site: dict[tuple[str, str], torch.Tensor] = {}
        layers = []
        for layer, part, poolings, width, clarity, read in LAYERS:
            layers.append(StoredLayer(layer, part, poolings, (width,) * len(poolings), read))
            for pooling in poolings:
                amount = (clear or {}).get(f"{layer}/{pooling}", (clear or {}).get(layer, clarity))
                if (layer, pooling) == ("llm.embed", "last"):
                    amount = 0.0  # the last token of a prompt knows nothing of the image before the first block
                directions = generator.normal(0, 1, (3, width)) / width**0.5
                noise = generator.normal(0, 1, (count, width))
                by_site[layer, pooling] = torch.from_numpy((amount * 4 * directions[truth] + noise).astype(np.float32))
        lens = np.zeros((count, 2, 3), dtype=np.float32)
        lens[np.arange(count), 1, truth] = 1.0
        folder = tmp_path / name
        header = Header(
            task="med_probe_x",
            dataset="x",
            labels=LABELS,
            dataset_fingerprint="data",
            model="m",
            model_fingerprint="model",
            layers=tuple(layers),
            lens=("llm.00", "llm.norm"),
        )
        write_header(folder, header)
        writer = Writer(folder, 0)
        writer.add(FeatureBatch(records, *stacked(by_site)[:2], {"lens": lens}))
        writer.close()
        return FeatureStore(folder), outcomes

    return make


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LoadedModel]:
    """Return a function that loads the demo or a tiny model of another family, once each."""
    made: dict[tuple[str, str], LoadedModel] = {}
    folders: dict[str, Path] = {}

    def loaded(kind: str, attention: str = "sdpa") -> LoadedModel:
        if (kind, attention) not in made:
            if kind == "demo":
                made[kind, attention] = load_medm_vl(LoadOptions("demo", device="cpu", attn_implementation=attention))
            else:
                if kind not in folders:
                    folders[kind] = write_family(kind, tmp_path_factory.mktemp(kind))
                options = LoadOptions(str(folders[kind]), device="cpu", attn_implementation=attention)
                made[kind, attention] = ChatModel(open_native(options))
        return made[kind, attention]

    return loaded
