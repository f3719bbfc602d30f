"""Reference classifiers: against scikit-learn called plainly, and on sets whose answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from support.own_data import table_spec

from medmllm_plugins.data.core.documents import Fold
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.data.loading.volume_view import View
from medmllm_plugins.errors import OptionError
from medmllm_plugins.reference.classifier import Majority, ReferenceClassifier
from medmllm_plugins.reference.labelled_images import LabelledImages
from medmllm_plugins.reference.pixels import STRENGTHS, PixelClassifier, pixels
from medmllm_plugins.reference.reference_methods import make_classifier

FOLDS = ("train",) * 6 + ("validation",) * 2 + ("test",) * 2


def own(folder: Path, *, multilabel: bool = False, count: int = 60, noise: float = 0.2) -> Dataset:
    """Images whose class is how bright their left half is; of several findings, the right half is the second."""
    generator = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    rows = ["image,left,right,fold" if multilabel else "image,label,fold"]
    for index in range(count):
        left, right = index % 2, generator.integers(2)
        values = generator.uniform(0, 255 * noise, (40, 40, 3))
        values[:, :20] += 120 * left
        values[:, 20:] += 120 * right
        Image.fromarray(values.astype(np.uint8)).save(folder / f"{index}.png")
        cell = f"{left},{right}" if multilabel else ("dark", "bright")[left]
        rows.append(f"{index},{cell},{FOLDS[index // 2 % 10]}")
    (folder / "t.csv").write_text("\n".join(rows))
    options = {"labels": "t.csv", "image_column": "image", "fold_column": "fold"}
    if multilabel:
        return load_dataset(table_spec(folder, options, ("left", "right"), kind="multilabel"))
    return load_dataset(table_spec(folder, {**options, "label_column": "label"}, ("dark", "bright")))


def fold(data: Dataset, name: Fold) -> LabelledImages:
    return LabelledImages(data, View(), data.select((name,)))


def fitted(model: ReferenceClassifier, data: Dataset) -> np.ndarray:
    model.fit(fold(data, "train"), fold(data, "validation"))
    return model.log_probabilities(fold(data, "test"))


def test_majority_predicts_the_frequencies_of_the_train_fold(tmp_path: Path) -> None:
    data = own(tmp_path)
    predicted = fitted(Majority(), data)
    assert predicted.shape == (12, 1, 2) and np.allclose(np.exp(predicted), 0.5)
    several = own(tmp_path / "m", multilabel=True)
    targets = fold(several, "train").targets()
    predicted = fitted(Majority(), several)
    shares = ((targets == 0).sum(0) + 0.5) / (len(targets) + 1)
    assert predicted.shape == (12, 2, 2) and np.allclose(np.exp(predicted[0, :, 0]), shares)


def test_pixels_is_the_best_of_plain_logistic_regressions(tmp_path: Path) -> None:
    data = own(tmp_path, noise=0.9)
    model = PixelClassifier()
    predicted = fitted(model, data)
    features = {name: pixels(fold(data, name)) for name in ("train", "validation", "test")}
    targets = {name: fold(data, name).targets()[:, 0] for name in ("train", "validation", "test")}
    scaler = StandardScaler().fit(features["train"])
    losses, plain = [], []
    for strength in STRENGTHS:
        regression = LogisticRegression(C=strength, max_iter=1000).fit(
            scaler.transform(features["train"]), targets["train"]
        )
        losses.append(
            log_loss(targets["validation"], regression.predict_proba(scaler.transform(features["validation"])))
        )
        plain.append(regression.predict_log_proba(scaler.transform(features["test"])))
    best = int(np.argmin(losses))
    assert model.facts()["C"] == [STRENGTHS[best]] and model.facts()["converged"]
    assert np.allclose(predicted[:, 0], plain[best], atol=1e-6)
    assert (predicted[:, 0].argmax(1) == targets["test"]).mean() >= 0.9


def test_pixels_of_several_findings(tmp_path: Path) -> None:
    data = own(tmp_path, multilabel=True)
    predicted = fitted(PixelClassifier(), data)
    assert predicted.shape == (12, 2, 2) and np.allclose(np.exp(predicted).sum(-1), 1)
    assert (predicted.argmax(-1) == fold(data, "test").targets()).mean() == 1.0


def test_a_finding_that_the_train_fold_lacks_gets_its_share(tmp_path: Path) -> None:
    own(tmp_path, multilabel=True)
    table = tmp_path / "t.csv"
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([head, *(",".join([*row.split(",")[:2], "0", row.split(",")[3]]) for row in rows)]))
    data = load_dataset(
        table_spec(
            tmp_path,
            {"labels": "t.csv", "image_column": "image", "fold_column": "fold"},
            ("left", "right"),
            kind="multilabel",
        )
    )
    predicted = fitted(PixelClassifier(), data)
    assert np.allclose(np.exp(predicted[:, 1, 0]), 0.5 / 37)


def test_a_large_train_fold_is_subsampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medmllm_plugins.reference.pixels.MAX_TRAIN_DOCUMENTS", 20)
    model = PixelClassifier(seed=3)
    fitted(model, own(tmp_path))
    assert model.facts()["trained_on"] == 20


def test_volumes_are_seen_as_slices(tmp_path: Path) -> None:
    rows = ["image,label,fold"]
    for index in range(20):
        voxels = np.random.default_rng(index).uniform(0, 100, (12, 24, 20)).astype(np.float32)
        voxels[:, :12] += 300 * (index % 2)
        np.save(tmp_path / f"{index}.npy", voxels)
        rows.append(f"{index},{'ab'[index % 2]},{FOLDS[index // 2 % 10]}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    columns = {"labels": "t.csv", "image_column": "image", "label_column": "label", "fold_column": "fold"}
    data = load_dataset(table_spec(tmp_path, columns, ("a", "b"), modality="CT", dimensions=3))
    assert pixels(fold(data, "train")).shape == (12, 4096)
    assert (fitted(PixelClassifier(), data)[:, 0].argmax(1) == fold(data, "test").targets()[:, 0]).all()


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("svm", {}, "Expected a method among majority, pixels, timm:NAME, got 'svm'"),
        ("timm:", {}, "Expected a method among"),
        ("timm", {}, "Expected a method among"),
        ("pixels:32", {}, "Expected a method among"),
        ("pixels", {"epochs": 3}, "with timm:NAME only"),
        ("timm:resnet18x", {}, "Expected the name of a timm network, got 'resnet18x'"),
        (
            "timm:resnet18",
            {"weights": Path("/nowhere.safetensors")},
            "expected a file of weights, but it does not exist",
        ),
        ("timm:resnet18", {"epochs": 0}, "`epochs` to be at least 1, got 0"),
    ],
)
def test_methods_that_are_none(method: str, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(OptionError, match=expected):
        make_classifier(method, **options)


NETWORK = "timm:test_resnet.r160_in1k"


def test_a_network_learns_and_repeats_itself(tmp_path: Path) -> None:
    data = own(tmp_path)
    first = make_classifier(NETWORK, epochs=10, device="cpu")
    predicted = fitted(first, data)
    assert predicted.shape == (12, 1, 2) and np.allclose(np.exp(predicted).sum(-1), 1, atol=1e-5)
    assert (predicted[:, 0].argmax(1) == fold(data, "test").targets()[:, 0]).mean() >= 0.9
    summary = first.facts()
    assert summary["pretrained"] is False and summary["trained_on"] == 36
    assert summary["validation_losses"][summary["kept_epoch"] - 1] == min(summary["validation_losses"])
    outputs = [fitted(make_classifier(NETWORK, epochs=1, device="cpu"), data) for _ in range(2)]
    assert np.array_equal(*outputs)


def test_a_network_starts_from_the_weights_in_a_file(tmp_path: Path) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(5)
    weights = timm.create_model("test_resnet.r160_in1k").state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    data = own(tmp_path / "set", multilabel=True, count=20)
    model = make_classifier(NETWORK, weights=tmp_path / "weights.safetensors", epochs=1, device="cpu")
    assert fitted(model, data).shape == (4, 2, 2)
    assert model.facts()["pretrained"] is True and model.facts()["weights"] == "weights.safetensors"
    trained = model._network.state_dict()
    statistics = [name for name in weights if name.endswith(("running_mean", "running_var"))]
    assert statistics and all(torch.equal(trained[name].cpu(), weights[name]) for name in statistics)
    assert not torch.equal(trained["conv1.0.weight"].cpu(), weights["conv1.0.weight"])
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    broken = make_classifier(NETWORK, weights=tmp_path / "other.safetensors", epochs=1, device="cpu")
    with pytest.raises(OptionError, match=r"other\.safetensors: expected weights of test_resnet"):
        fitted(broken, data)
