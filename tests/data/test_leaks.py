"""Leaks: what stands on both sides of a split or bears two labels is found, whatever the groups say."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.image_files import picture
from support.own_data import table_spec

from medmllm_plugins.cli.leak_report import LeakReport, report_lines
from medmllm_plugins.data.core.documents import Document, Fold
from medmllm_plugins.data.core.leaks import expected_exposed, find_leaks, similar
from medmllm_plugins.data.layouts.layout_registry import layout
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.data.loading.leak_scan import scan_for_leaks


def own(folder: Path, pictures: dict[str, Image.Image], rows: list[str]) -> Dataset:
    folder.mkdir(exist_ok=True)
    for name, image in pictures.items():
        image.save(folder / f"{name}.png")
    (folder / "t.csv").write_text("\n".join(["image,label,patient,fold", *rows]))
    columns = {"image_column": "image", "label_column": "label", "group_column": "patient", "fold_column": "fold"}
    return load_dataset(table_spec(folder, {"labels": "t.csv", **columns}, ("a", "b")))


def brighter(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.clip(np.asarray(image, dtype=int) * 0.9 + 9, 0, 255).astype(np.uint8))


def test_planted_leaks_are_found_and_nothing_else(tmp_path: Path) -> None:
    first, second = picture("1", (60, 50)), picture("2", (60, 50))
    pictures = {
        "one": first,
        "copy": first,
        "two": second,
        "like": brighter(second),
        **{name: picture(name, (60, 50)) for name in ("p", "q", "r", "s")},
    }
    rows = [
        "one,a,1,train",
        "copy,b,2,test",  # the same picture in two folds, with two labels
        "two,a,3,train",
        "like,a,4,train",  # near-duplicates on one side: no leak
        "p,a,5,train",
        "q,b,5,validation",  # one patient on both sides
        "r,b,6,test",
        "s,a,7,validation",
    ]
    data = own(tmp_path, pictures, rows)
    leaks = scan_for_leaks(data)
    pairs = {(pair.first.id, pair.second.id): pair for pair in leaks.pairs}
    assert set(pairs) == {("copy", "one"), ("like", "two")}
    assert pairs["copy", "one"].identical and not pairs["like", "two"].identical
    assert leaks.crossing == leaks.disagreeing == (pairs["copy", "one"],)
    # Groups that share a picture are joined, and so stand on both sides too.
    assert leaks.divided == {"1": ("train", "test"), "5": ("train", "validation")}
    assert leaks.leaking and leaks.exposed == 1 and leaks.test == 2
    result = leaks.to_dict()
    assert (
        result["pairs"] == 2
        and result["identical_pairs"] == 1
        and result["divided_groups"]["5"]
        == [
            "train",
            "validation",
        ]
    )


def test_test_documents_whose_group_is_elsewhere_leak_though_none_looks_alike() -> None:
    """A fold column that divides patients: each image has its own content, each patient stands on both sides."""
    documents = [
        Document(str(i), str(i), "no finding", f"patient {i % 40}", "test" if i < 40 else "train") for i in range(80)
    ]
    report = LeakReport("own", own_data(documents), find_leaks(documents, [str(i) for i in range(80)], None))
    leaks = report.leaks
    assert leaks is not None and (leaks.exposed, leaks.test_divided, leaks.test_leaking) == (0, 40, 40)
    assert leaks.to_dict()["test_documents_leaking"] == leaks.to_dict()["test_documents_of_divided_groups"] == 40
    (line,) = [line for line in report_lines(report) if "LEAK" in line]
    assert "LEAK       40 of 40 test images" in line and "0 show the same, 40 are of one group" in line


def test_a_leak_that_spares_the_test_fold_is_named_as_such() -> None:
    folds: tuple[Fold, ...] = ("train", "validation", "test")
    documents = [Document(str(i), str(i), "no finding", "p" if i < 2 else "q", folds[i]) for i in range(3)]
    report = LeakReport("own", own_data(documents), find_leaks(documents, ["x", "y", "z"], None))
    (line,) = [line for line in report_lines(report) if "LEAK" in line]
    assert "between the train and the validation fold" in line and "0 of" not in line


def own_data(documents: list[Document]) -> Dataset:
    return Dataset(dataset_specs()["demo"], tuple(documents), "", Path(), layout("phantoms"))


def test_a_sound_set_has_none(tmp_path: Path) -> None:
    names = ["p", "q", "r", "s", "t", "u"]
    folds = ["train", "train", "validation", "validation", "test", "test"]
    rows = [f"{name},{'ab'[index % 2]},{index // 2},{folds[index]}" for index, name in enumerate(names)]
    leaks = scan_for_leaks(own(tmp_path, {name: picture(name) for name in names}, rows))
    assert not leaks.leaking and not leaks.pairs and not leaks.divided


def test_blank_pictures_are_paired_with_the_first_only() -> None:
    blank = np.zeros((50, 32, 32), np.float32)
    result = similar(["same"] * 50, blank)
    assert list(result) == [(0, index) for index in range(1, 50)] and all(result.values())


def test_the_expectation_of_a_random_split_is_that_of_many_draws() -> None:
    generator = np.random.default_rng(0)
    groups = generator.integers(0, 300, 600)
    counterparts = np.bincount(groups)[groups] - 1
    drawn = []
    for _ in range(400):
        test = generator.permutation(600) < 120
        drawn.append(sum(test[i] and not test[groups == groups[i]].all() for i in range(600)))
    assert expected_exposed(counterparts) == pytest.approx(np.mean(drawn), rel=0.01)


def test_volumes_are_compared_by_content() -> None:
    documents = [
        Document(str(index), str(index), "a", str(index), fold) for index, fold in enumerate(("train", "test", "test"))
    ]
    leaks = find_leaks(documents, ["x", "x", "y"], None, why="volumes")
    assert [(pair.first.id, pair.second.id) for pair in leaks.crossing] == [("0", "1")]
    assert leaks.exposed == 1 and leaks.compared == "identical"


@pytest.mark.skipif("MEDMLLM_DATA" not in os.environ, reason="MEDMLLM_DATA is not set: no real BUSI images")
def test_the_real_busi_has_many() -> None:
    leaks = scan_for_leaks(load_dataset(dataset_specs()["busi"], root=Path(os.environ["MEDMLLM_DATA"])))
    assert len(leaks.pairs) > 100 and len(leaks.disagreeing) >= 5
    assert not leaks.leaking and leaks.random_exposed > 20
