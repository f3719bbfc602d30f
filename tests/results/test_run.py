"""The public reader of run folders, compared with the files that it reads."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from support.run_folders import Folder, outcomes

from medmllm_plugins import Run
from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.features.store import index_rows, seal, write_header
from medmllm_plugins.results.feature_store import INDEX, Header, StoredLayer
from medmllm_plugins.results.run import FRAME_COLUMNS

matplotlib.use("Agg")
IDS = ("doc-0", "doc-1", "doc-2")
VALUES = np.arange(12, dtype=np.float16).reshape(3, 4)


def write_features(folder: Path) -> None:
    """Write a feature store of three documents and one site."""
    header = Header(
        task="med_probe_toy",
        dataset="toy",
        labels=("a", "b"),
        dataset_fingerprint="f1",
        model="m",
        model_fingerprint="f",
        layers=(StoredLayer("llm.12", "llm", ("last",), (4,)),),
    )
    write_header(folder, header)
    name = "rank0-00000.safetensors"
    save_file({"llm.12/last": VALUES}, folder / name)
    records = [
        {
            "id": item,
            "document": item,
            "group": "g",
            "fold": "test",
            "label": "a",
            "answer": "b",
            "scores": [-1.0, -2.0],
        }
        | {"blank": None, "label_tokens": None}
        for item in IDS
    ]
    checksum = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    index_rows(records, rank=0, shard=name, checksum=checksum).to_parquet(folder / INDEX / "rank0-00000.parquet")
    seal(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed run with answers, probes, features, attributions and folds."""
    made = Folder(tmp_path_factory.mktemp("run") / "run").answers("med_probe_toy", outcomes())
    made.probes("med_probe_toy", layers=3).folds([("a", "g", "train"), ("b", "h", "test")])
    made.attributions("med_attr_toy", documents=2)
    write_features(made.folder / "features" / "med_probe_toy")
    index = made.folder / "attributions" / "med_attr_toy" / "index.json"
    content = json.loads(index.read_text("utf-8"))
    (index.parent / "maps").mkdir()
    np.savez_compressed(index.parent / "maps" / "0.npz", map=np.full((1, 2, 3), 0.5, np.float32))
    content["entries"][0]["map"] = "maps/0.npz"
    index.write_text(json.dumps(content), "utf-8")
    return made.sealed().folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return Run(folder)


def test_frames_equal_the_files(run: Run, folder: Path) -> None:
    assert run.notes == () and run.tasks == ["med_probe_toy", "med_attr_toy"]
    metrics = pd.read_csv(folder / "med_probe_toy.metrics.csv").set_index("metric")
    by_source = run.metrics.pivot(index="metric", columns="source", values="value")
    pd.testing.assert_series_equal(by_source["model"].sort_index(), metrics["value"].sort_index(), check_names=False)
    assert by_source["majority_class"].dropna().to_dict() == metrics["majority_class"].dropna().to_dict()
    rows = [json.loads(line) for line in (folder / "med_probe_toy.outcomes.jsonl").read_text("utf-8").splitlines()]
    for column in ("id", "label", "status", "answer"):
        assert run.outcomes[column].tolist() == [row[column] for row in rows]
    assert run.outcomes["correct"].mean() == pytest.approx(metrics.loc["accuracy", "value"])
    content = json.loads((folder / "med_probe_toy.probes.json").read_text("utf-8"))
    accuracy = run.probes.query("metric == 'accuracy' and fold == 'test'")
    assert accuracy["layer"].tolist() == [point["layer"] for point in content["points"]]
    assert accuracy["value"].tolist() == [point["accuracy"]["value"] for point in content["points"]]
    assert run.diagnosis["loss"].tolist() == [effect["loss"]["value"] for effect in content["diagnosis"]["effects"]]
    assert run.diagnosis.query("named")["mode"].tolist() == [content["diagnosis"]["named"]]
    folds = json.loads((folder / "toy.folds.json").read_text("utf-8"))
    assert run.folds[["id", "fold"]].to_numpy().tolist() == [[row[0], row[4]] for row in folds["documents"]]
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert run.manifest.started == manifest["started"] and run.manifest.stages[0].seconds == 1.5


def test_features_come_with_their_documents(run: Run) -> None:
    features, index = run.features("llm.12", "last")
    np.testing.assert_array_equal(features, VALUES.astype(np.float32))
    assert index["id"].tolist() == list(IDS) and features.dtype == np.float32
    with pytest.raises(DataError, match=r"llm\.99"):
        run.features("llm.99", "last")
    with pytest.raises(OptionError, match=r"\['med_probe_toy'\], got 'other'"):
        run.features("llm.12", "last", task="other")


def test_attributions_have_maps(run: Run) -> None:
    entry = run.attributions.iloc[0]
    values = run.attribution_map(entry["document"], entry["method"], entry["layer"])
    assert values.shape == (1, 2, 3) and (values == 0.5).all()
    with pytest.raises(OptionError, match="got 0"):
        run.attribution_map("nobody", "occlusion")
    with pytest.raises(DataError, match="got no file of it"):
        other = run.attributions.iloc[1]
        run.attribution_map(other["document"], other["method"], other["layer"])


def test_layers_are_plotted_as_they_were_probed(run: Run) -> None:
    upper, lower = run.plot_layers()
    for axes, metric in ((upper, "accuracy"), (lower, "balanced")):
        points = run.probes.query(f"metric == '{metric}' and fold == 'test' and pooling == 'last' and part == 'llm'")
        line = next(line for line in axes.get_lines() if str(line.get_label()).startswith(f"last token, {metric}"))
        assert list(line.get_ydata()) == pytest.approx((100 * points["value"]).tolist())
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("accuracy (%)", "balanced accuracy (%)")


def test_damage_is_a_warning(folder: Path, tmp_path: Path) -> None:
    made = Folder(tmp_path / "run").answers("med_cls_toy", outcomes(count=20)).sealed()
    path = made.folder / "med_cls_toy.outcomes.jsonl"
    path.write_text(path.read_text("utf-8").replace("benign", "malignant", 1), "utf-8")
    with pytest.warns(UserWarning, match="not the file that was sealed"):
        run = Run(made.folder)
    assert run.outcomes.empty and list(run.outcomes) == list(FRAME_COLUMNS["outcomes"])
    assert run.probes.empty and run.attributions.empty and run.folds.empty and run.notes
    with pytest.raises(DataError, match="expected a run folder"):
        Run(tmp_path / "nowhere")


def test_frames_have_the_documented_columns(run: Run) -> None:
    text = (Path(__file__).parents[2] / "docs" / "results.md").read_text("utf-8")
    for name, columns in FRAME_COLUMNS.items():
        assert list(getattr(run, name)) == list(columns)
        assert not [column for column in columns if f"`{column}`" not in text]


def test_public_names_need_no_torch() -> None:
    code = (
        "import sys, medmllm_plugins as m; assert set(m.__all__) <= set(dir(m));"
        "assert not {'torch', 'pandas', 'lmms_eval', 'pluggy'} & set(sys.modules);"
        "from medmllm_plugins import Run, hookimpl, ModelSpec, PromptStyle, ProbeSpec, AttributionSpec, TaskFolder;"
        "assert not {'torch', 'transformers', 'lmms_eval', 'matplotlib'} & set(sys.modules);"
        "assert not hasattr(m, 'nothing');"
        "from medmllm_plugins import Family, SklearnProbe;"
        "assert Family.__module__ == 'medmllm_plugins.models.families.family';"
        "assert SklearnProbe.__module__ == 'medmllm_plugins.probes.sklearn_probe'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
