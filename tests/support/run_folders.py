"""Run folders as an evaluation leaves them, made in a moment, of models that are not."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medmllm_plugins.metrics.multilabel import summarise_findings
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.prompt_variants import summarise_variants
from medmllm_plugins.metrics.summary import summarise
from medmllm_plugins.results.file_names import file_stem
from medmllm_plugins.results.manifest import SettingsEntry
from medmllm_plugins.results.metric_files import write_metrics
from medmllm_plugins.results.outcome_files import write_outcomes
from medmllm_plugins.results.seal import write_seal
from medmllm_plugins.utils.record import field_types

LABELS = ("benign", "malignant", "normal")


def outcomes(
    *, skill: float = 1.5, seed: int = 0, count: int = 120, labels: Sequence[str] = LABELS, variant: str = ""
) -> list[Outcome]:
    """Answers of a model of some skill, two documents a group; those of one seed are about the same documents."""
    truth = np.random.default_rng(7).integers(len(labels), size=count)
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(count, len(labels)))
    logits[np.arange(count), truth] += skill
    rows = []
    for place in range(count):
        odd = place % 17 == 3
        identifier = f"doc-{place:05d}"
        rows.append(
            Outcome(
                id=f"{identifier} {variant}".strip(),
                group=f"patient-{place // 2}",
                label=labels[truth[place]],
                predicted=None if odd else labels[int(logits[place].argmax())],
                status=("refusal", "out_of_list", "ambiguous")[place % 3] if odd else "parsed",
                scores=tuple(map(float, logits[place])),
                document=identifier,
                variant=variant,
            )
        )
    return rows


FINDINGS = ("Atelectasis", "Cardiomegaly", "Effusion", "Hernia")


def findings(*, skill: float = 1.5, seed: int = 0, count: int = 40, names: Sequence[str] = FINDINGS) -> list[Outcome]:
    """Answers about each finding of a multi-label set; the last finding is never there."""
    there = np.random.default_rng(7).random((count, len(names))) < 0.3
    there[:, -1] = False
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=there.shape) + skill * (there - 0.5)
    rows = []
    for place in range(count):
        for column, name in enumerate(names):
            odd = (place * len(names) + column) % 23 == 5
            rows.append(
                Outcome(
                    id=f"doc-{place:05d} {name}",
                    group=f"patient-{place // 2}",
                    label="yes" if there[place, column] else "no",
                    predicted=None if odd else ("yes" if scores[place, column] > 0 else "no"),
                    status="refusal" if odd else "parsed",
                    scores=(float(scores[place, column]), 0.0),
                    finding=name,
                    document=f"doc-{place:05d}",
                )
            )
    return rows


class Folder:
    """A run folder in the making."""

    def __init__(self, folder: Path, name: str = "model-a", *, baseline: str = "", **model: Any) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.manifest: dict[str, Any] = {
            "medmllm_manifest": 1,
            "finished": "2026-01-02T00:00:00+00:00",
            "started": "2026-01-01T00:00:00+00:00",
            "versions": {"medmllm-plugins": "0.1.0", "lmms-eval": "0.7.3", "transformers": "5.24.0"},
            "command": {"baseline": baseline, "tasks": []}
            if baseline
            else {"model": name, "model_args": "", "limit": None},
            "model": {"name": name, "method": baseline}
            if baseline
            else {"name": name, "pretrained": "hub/tiny", "fingerprint": name, "doubts": [], **model},
            "tasks": {},
            "stages": [{"name": "answer", "seconds": 1.5, "process_peak_bytes": 10**8, "device_peak_bytes": None}],
        }
        self.write()

    def write(self) -> Folder:
        """Write the manifest."""
        (self.folder / "manifest.json").write_text(json.dumps(self.manifest), encoding="utf-8")
        return self

    def sealed(self) -> Folder:
        """Seal the folder, as a run does when all else is written."""
        write_seal(self.folder)
        return self

    def tell(self, task: str, **facts: Any) -> None:
        """Note facts of a task in the manifest."""
        entry = self.manifest["tasks"].setdefault(task, {})
        settings = {name: facts.pop(name) for name in field_types(SettingsEntry) if name in facts}
        entry["settings"] = {"dataset": "toy", **entry.get("settings", {}), **settings}
        entry.update({"dataset_fingerprint": "f1", **facts})
        self.write()

    def answers(
        self,
        task: str,
        rows: Sequence[Outcome],
        *,
        said: Sequence[str] = ("I cannot tell.",),
        labels: Sequence[str] = LABELS,
        **facts: Any,
    ) -> Folder:
        """Scored answers of a task; ``said`` is what unparsed answers say, in turn."""
        stem = file_stem(task)
        if facts.get("order") == "varied" or facts.get("paraphrase") == "all":
            names = sorted({row.variant for row in rows})
            summary: Any = summarise_variants(rows, labels, None, orders={name: labels for name in names}, resamples=50)
        else:
            summary = summarise(rows, labels, None, resamples=50)
        write_metrics(self.folder, stem, summary)
        unparsed = [row.id for row in rows if row.predicted is None]
        texts = {row.id: row.predicted or "" for row in rows}
        texts |= {document: said[number % len(said)] for number, document in enumerate(unparsed)}
        write_outcomes(self.folder / f"{stem}.outcomes.jsonl", rows, texts)
        self.tell(task, metrics=summary.to_dict()["metrics"], **facts)
        return self

    def multilabel(
        self, task: str, rows: Sequence[Outcome], *, names: Sequence[str] = FINDINGS, **facts: Any
    ) -> Folder:
        """Scored answers of a task on a multi-label set, ``findings`` unless told otherwise."""
        summary = summarise_findings(rows, names, resamples=50)
        write_metrics(self.folder, file_stem(task), summary)
        texts = {row.id: row.predicted or "I cannot tell." for row in rows}
        write_outcomes(self.folder / f"{file_stem(task)}.outcomes.jsonl", rows, texts)
        self.tell(task, metrics=summary.to_dict()["metrics"], **{"dataset": "findings", **facts})
        return self

    def folds(
        self, documents: Sequence[tuple[str, str, str]], attributes: Mapping[str, Mapping[str, str]] | None = None
    ) -> Folder:
        """Folds of the data set ``toy``: document, group and fold of each; ``attributes`` are further columns."""
        columns = ["id", "image", "label", "group", "fold"]
        rows: list[list[Any]] = [[document, document, "benign", group, fold] for document, group, fold in documents]
        if attributes is not None:
            columns.append("attributes")
            rows = [[*row, dict(attributes.get(row[0], {}))] for row in rows]
        content = {"medmllm_folds": 1, "dataset": "toy", "hash": "h", "columns": columns, "documents": rows}
        (self.folder / "toy.folds.json").write_text(json.dumps(content), encoding="utf-8")
        return self

    def probes(self, task: str, *, layers: int = 6, named: str | None = "connector", seed: int = 0) -> Folder:
        """What probes tell."""
        record = probes(task, layers=layers, named=named, seed=seed)
        (self.folder / f"{file_stem(task)}.probes.json").write_text(json.dumps(record), encoding="utf-8")
        self.tell(task, features={"extra": [], "random_encoder": True})
        return self

    def repairs(self, task: str, *, helps: bool = True, folder: str = "connector_adapter") -> Folder:
        """A study of two repairs, of which the second helps unless told otherwise."""
        gain, none = {"value": 0.12, "low": 0.05, "high": 0.2}, {"value": 0.01, "low": -0.05, "high": 0.07}
        common = {"parameters": 4096, "seconds": 3.0, "steps": 20, "documents": 300, "fixed": 20, "broken": 5,
                  "parsed": 1.0, "ece": 0.1, "accuracy": {"value": 0.8, "low": 0.7, "high": 0.9}}  # fmt: skip
        names = {
            "affine": ("affine map of the label scores", "output", none),
            "connector_adapter": ("low-rank adapter at the connector", "connector", gain if helps else none),
        }
        repairs = [
            {"name": name, "title": title, "stage": stage, "gain": value, "validation_gain": value, **common,
             "helps": value is gain, "folder": folder if name == "connector_adapter" else name}
            for name, (title, stage, value) in names.items()
        ]  # fmt: skip
        best = "connector_adapter" if helps else ""
        study = {"medmllm_repairs": 1, "task": task, "model": "hub/tiny", "n": 120, "groups": 60,
                 "accuracy": {"value": 0.68, "low": 0.6, "high": 0.76}, "parsed": 0.94, "ece": 0.2,
                 "repairs": repairs, "cheapest": best, "best": best, "sentence": "A sentence."}  # fmt: skip
        (self.folder / f"{file_stem(task)}.repair.json").write_text(json.dumps(study), encoding="utf-8")
        return self

    def attributions(
        self,
        task: str,
        *,
        documents: int = 4,
        size: tuple[int, int] = (64, 48),
        slices: int = 1,
        methods: Sequence[str] = ("integrated_gradients", "grad_cam"),
        layers: Sequence[str] = ("pixels", "vision.05"),
        labels: Sequence[str] = LABELS,
        answer: str = "malignant",
        noise: bool = False,
    ) -> Folder:
        """Attributions with pictures, as a med_attr task leaves them."""
        folder = self.folder / "attributions" / file_stem(task)
        (folder / "pictures").mkdir(parents=True)
        entries: list[dict[str, Any]] = []
        for place in range(documents):
            original = f"pictures/{place}.png"
            (folder / original).write_bytes(picture_file(place % 24, size, slices, noise))
            for method in methods:
                for layer in layers:
                    heat = f"pictures/{place}.{method}.{layer}.heat.png"
                    (folder / heat).write_bytes(heat_file(24 + len(entries) % 24, size, slices))
                    entries.append(
                        {
                            "id": f"doc-{place:05d}",
                            "document": f"doc-{place:05d}",
                            "group": f"patient-{place // 2}",
                            "label": labels[place % len(labels)],
                            "predicted": labels[place % 2],
                            "answer": answer,
                            "hit": place % 3 == 0,
                            "target": labels[place % 2],
                            "value": 1.25,
                            "method": method,
                            "layer": layer,
                            "original": original,
                            "heat": heat,
                            "overlay": None,
                            "map": None,
                            "slices": slices,
                            "scale": [-0.5, 0.5],
                            "tokens": None,
                            "checks": {
                                "completeness_gap": 0.012,
                                "deletion": 0.2,
                                "deletion_random": 0.4,
                                "inside": 0.5,
                                "area": 0.2,
                                "pointing": True,
                                "stability": None,
                            },
                        }
                    )
        entries.append(
            {
                "id": "doc-00000",
                "document": "doc-00000",
                "label": labels[0],
                "hit": True,
                "method": "occlusion",
                "layer": "prompt",
                "tokens": [{"text": "<image>", "value": 0.4}, {"text": "mass", "value": -0.1}],
            }
        )
        estimate = {"value": 0.2, "low": 0.1, "high": 0.3}
        summary = [
            {
                "method": method,
                "layer": layer,
                "n": documents,
                "completeness_gap": None,
                "deletion_gain": estimate,
                "insertion_gain": estimate,
                "stability": {"value": 0.9, "low": 0.85, "high": 0.95},
                "inside": estimate,
                "area": 0.15,
                "pointing": None,
                "randomisation": [{"randomised": "head", "similarity": 0.7}, {"randomised": "llm", "similarity": 0.1}],
                "failed": ["Insertion is no better than random order."] if method == "grad_cam" else [],
            }
            for method in methods
            for layer in layers
        ]
        index = {
            "medmllm_attributions": 1,
            "task": task,
            "model": "model-a",
            "labels": list(labels),
            "methods": [{"name": name, "summary": name, "citation": f"Someone. {name}. 2017."} for name in methods],
            "entries": entries,
            "summary": summary,
            "warnings": ["Pictures are of the test fold."],
        }
        (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
        self.tell(task)
        return self


def probes(task: str, *, layers: int = 6, named: str | None = "connector", seed: int = 0) -> dict[str, Any]:
    """An analysis as ``TASK.probes.json`` has it, with curves that look like curves."""
    generator = np.random.default_rng(seed)

    def estimate(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.05, "high": value + 0.05}

    def point(layer: str, part: str, pooling: str, value: float, **more: Any) -> dict[str, Any]:
        return {
            "layer": layer, "part": part, "pooling": pooling, "width": 64, "read": True, "accuracy": estimate(value),
            "balanced": estimate(value - 0.02), "bits": estimate(value),
            "corrected": estimate(value - 0.3), "control": estimate(0.4),
            "selectivity": estimate(value - 0.4),
            "label_permutation": 0.33, "label_permutation_high": 0.41,
            "p": 0.0001, "p_holm": 0.002, "validation": value, "C": 0.1, "gradient_norm": 1e-5, "repeats": [], **more,
        }  # fmt: skip

    def wave(place: int, rise: float) -> float:
        return float(np.clip(0.45 + rise * place / layers + 0.03 * generator.normal(), 0, 1))

    points = [point(f"vision.{place:02d}", "vision", "mean", wave(place, 0.4)) for place in range(layers)]
    points += [point("vision.norm", "vision", "mean", 0.86, read=False), point("connector", "connector", "mean", 0.8)]
    for place in range(layers):
        points.append(point(f"llm.{place:02d}", "llm", "mean", wave(place, 0.3)))
        points.append(point(f"llm.{place:02d}", "llm", "last", wave(place, 0.35)))
    points += [point("llm.norm", "llm", "mean", 0.78), point("llm.norm", "llm", "last", 0.8)]
    points += [point(f"control.random_encoder.vision.{place:02d}", "control", "mean", 0.36) for place in range(layers)]
    points.append(point("control.pixels", "control", "mean", 0.5))
    modes = ("vision", "connector", "comprehension", "mapping")
    effects = [
        {"mode": mode, "loss": estimate(0.12 if mode == named else 0.01),
         "verdict": "supported" if mode == named else "ruled out", "why": "because.", "before": "a", "after": "b",
         "balanced_loss": estimate(0.1), "bits_lost": estimate(0.3), "probability": 0.97 if mode == named else 0.01}
        for mode in modes
    ]  # fmt: skip
    stages = [
        {"stage": stage, "source": source, "own": estimate(0.7), "accuracy": estimate(0.8), "balanced": estimate(0.75),
         "bits": estimate(1.2)}
        for stage, source in (("vision", "vision.05 (mean)"), ("answer", "answer"))
    ]  # fmt: skip
    anchors = [
        {"kind": kind, "n": 40, "groups": 8, "accuracy": estimate(0.9), "chance": 0.5, "parsed": 1.0,
         "recalls": {"yes": 1.0, "no": 0.8}, "verdict": "answered"}
        for kind in ("text", "presence")
    ]  # fmt: skip
    check = {
        "layer": "control.border", "pooling": "mean", "within_train": estimate(0.6), "to_test": estimate(0.5),
        "drop": estimate(0.1), "p_within_train": 0.001, "p_to_test": 0.01, "p_drop": 0.2, "shift": 0.7,
        "p_shift": 0.001, "readable": ["train", "test"], "shifted": True, "dropped": False,
    }  # fmt: skip
    nuisance = {
        "column": "scanner", "counts": {"A": 30, "B": 20}, "majority": 0.6, "chance": 0.5, "p": 0.01,
        "class_from_column": estimate(0.6), "explains_class": True, "within": estimate(0.2),
        "points": [{"layer": "connector", "part": "connector", "pooling": "mean", "balanced": estimate(0.9)}],
    }  # fmt: skip
    masked = [
        {"layer": layer, "pooling": pooling, "n": 100, "groups": 80, "shown": estimate(0.8), "masked": estimate(0.55),
         "drop": estimate(0.25)}
        for layer, pooling in (("connector", "mean"), ("answers", ""))
    ]  # fmt: skip
    together = {"columns": ["scanner", "age"], "class_from_columns": estimate(0.65), "p": 0.02, "explains_class": False}
    reading = {name: estimate(0.1) for name in ("accuracy", "gain", "over_answers", "over_constant", "short_of_probe")}
    return {
        "medmllm_probes": 1,
        "task": task,
        "model": "model-a",
        "headline": "…",
        "options": {"protocol": "linear", "width": 0},
        "labels": list(LABELS),
        "counts": {"train": 300, "validation": 60, "test": 120},
        "groups": 60,
        "chance": 1 / 3,
        "majority": 0.38,
        "answer": estimate(0.7),
        "reference": None,
        "reference_name": "",
        "diagnosis": {
            "named": named,
            "effects": effects,
            "stages": stages,
            "smallest_supported": 0.03,
            "smallest_of_interest": 0.1,
        },
        "anchors": {"results": anchors},
        "shortcuts": {
            "chance": 1 / 3,
            "checks": [check],
            "masked": masked,
            "nuisances": [nuisance],
            "columns_together": together,
            "left_out": {"site": "expected at least two values"},
            "notes": ["A note."],
        },
        "health": [
            {"module": module, "pooling": pooling, "score": estimate(0.8)}
            for module, pooling in (("vision", "mean"), ("connector", "mean"), ("llm", "mean"), ("llm", "last"))
        ],
        "best": point("vision.05", "vision", "mean", 0.86),
        "mapping": {
            "kind": "biased",
            "answer": estimate(0.7),
            "probe": estimate(0.8),
            "mapping_gap": estimate(0.1),
            "readings": dict.fromkeys(("scores", "relabelled", "permuted", "blank", "offsets", "affine"), reading),
            "relabelling": [0, 1, 2],
            "agreement": np.full((3, 3, 4), 3).tolist(),
            "lens": [estimate(0.33 + 0.05 * place) for place in range(layers)],
            "lens_layers": [f"llm.{place:02d}" for place in range(layers)],
        },
        "points": points,
        "warnings": [],
    }


@cache
def picture(seed: int, size: tuple[int, int], slices: int, *, noise: bool = False) -> Image.Image:
    """A soft blob on black for each slice, below each other; ``noise`` makes it hard to compress, as scans are."""
    generator = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    parts = []
    for index in range(slices):
        cx, cy = generator.uniform(0.3, 0.7, size=2) * size
        blob = 200 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (0.02 * width * height)) + 6 * index
        parts.append(blob + (generator.normal(0, 14, blob.shape) if noise else 0))
    return Image.fromarray(np.clip(np.concatenate(parts), 0, 255).astype(np.uint8)).convert("RGB")


@cache
def picture_file(seed: int, size: tuple[int, int], slices: int, noise: bool) -> bytes:
    """A picture as a PNG file; few differ, since encoding takes longer than all else that a folder needs."""
    file = io.BytesIO()
    picture(seed, size, slices, noise=noise).save(file, "PNG")
    return file.getvalue()


@cache
def heat_file(seed: int, size: tuple[int, int], slices: int) -> bytes:
    """A heat map to lay over it: red where it is high, clear elsewhere."""
    mask = picture(seed, size, slices).convert("L")
    red = Image.new("RGBA", mask.size, (230, 60, 20, 0))
    red.putalpha(mask)
    file = io.BytesIO()
    red.save(file, "PNG")
    return file.getvalue()
