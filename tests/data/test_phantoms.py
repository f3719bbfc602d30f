"""The synthetic phantoms: the same everywhere, balanced, divided by patient, and not told apart by grey level."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.dataset_spec import parse_spec
from medmllm_plugins.data.core.documents import FOLDS, Document
from medmllm_plugins.data.layouts.layout_registry import layout
from medmllm_plugins.data.layouts.phantoms import FOLD_SIZES, LABELS, SIZE, Phantom, Phantoms, draw, phantom, records
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import load_dataset
from medmllm_plugins.errors import DataError

SPEC = dataset_specs()["demo"]
TOTAL = sum(FOLD_SIZES.values())
indices = st.integers(0, TOTAL - 1)


@lru_cache(maxsize=1)
def documents() -> list[Document]:
    return Phantoms().documents(SPEC, Path(), Faults("", ""))


@lru_cache(maxsize=8)
def drawn(fold: str, count: int) -> list[Phantom]:
    """The first phantoms of a fold."""
    return [phantom(index) for index, record in enumerate(records()) if record.fold == fold][:count]


# Recorded on x86-64 with AVX-512. A change here makes every demo checkpoint and every recorded result invalid.
@pytest.mark.parametrize(
    ("index", "label", "image", "mask"),
    [
        (9, "round mass", "f68697ff8581ab2f", "23a5aef11ae9eac4"),
        (17, "spiculated mass", "57992724edcb733e", "48c54296ae792b26"),
        (26, "textured patch", "e58ab3ce65a29e12", "ae2de83a5ade7cf7"),
        (2423, "no finding", "dd614744f3a0f9d4", "ad7facb2586fc6e9"),
        (2415, "textured patch", "81f09404442d007a", "449f27b274f733a7"),
        (3273, "spiculated mass", "ca76faae84547e71", "97148ff5bed7abc2"),
        (3279, "round mass", "e8f05000f82cf648", "5da761c475c85d09"),
        (3271, "no finding", "1541314681f20cb1", "ad7facb2586fc6e9"),
    ],
)
def test_pixels_never_change(index: int, label: str, image: str, mask: str) -> None:
    result = phantom(index)
    assert result.label == label
    assert hashlib.sha256(result.image.tobytes()).hexdigest()[:16] == image
    assert hashlib.sha256(result.mask.tobytes()).hexdigest()[:16] == mask


def test_plan_never_changes() -> None:
    rows = "\n".join(f"{r.label},{r.patient},{r.view},{r.fold}" for r in records())
    assert hashlib.sha256(rows.encode()).hexdigest()[:16] == "a8eb33432c01c4a9"


@settings(max_examples=60)
@given(indices)
def test_image_and_mask_fit_the_record(index: int) -> None:
    result, record = phantom(index), records()[index]
    assert result.label == record.label
    assert result.image.shape == result.mask.shape == (SIZE, SIZE) == (64, 64)
    assert (result.image.dtype, result.mask.dtype) == (np.uint8, np.bool_)
    assert result.mask.any() == (result.label != "no finding")
    # A finding is seen (more than 60 pixels) and never most of the image.
    assert not result.mask.any() or 60 < result.mask.sum() < SIZE * SIZE / 4
    assert result.image.std() > 5


@settings(max_examples=40)
@given(indices)
def test_drawing_again_gives_the_same(index: int) -> None:
    first, second = phantom(index), phantom(index)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)


@settings(max_examples=40)
@given(st.integers(0, 10**9), st.integers(0, 9), st.sampled_from(LABELS[:3]))
def test_finding_changes_the_image_under_its_mask(patient: int, view: int, label: str) -> None:
    image, mask = draw(label, patient, view)
    bare, empty = draw("no finding", patient, view)
    assert not empty.any()
    # The same patient and view, so the anatomy lies alike in both.
    inside = np.abs(image[mask].astype(float) - bare[mask].astype(float)).mean()
    assert inside > 5


def test_patients_share_anatomy_not_pixels() -> None:
    """Correlation between two images of a patient is higher than between those of two patients."""
    bare = {(patient, view): draw("no finding", patient, view)[0].ravel() for patient in range(30) for view in (0, 1)}
    same = np.mean([np.corrcoef(bare[p, 0], bare[p, 1])[0, 1] for p in range(30)])
    other = np.mean([np.corrcoef(bare[p, 0], bare[p + 1, 1])[0, 1] for p in range(29)])
    assert 0.9 > same > other + 0.2


def test_folds_and_labels_are_near_balance() -> None:
    assert dict(Counter(d.fold for d in documents())) == FOLD_SIZES
    for fold in FOLDS:
        counts = Counter(d.label for d in documents() if d.fold == fold)
        assert set(counts) == set(LABELS)
        assert max(counts.values()) / FOLD_SIZES[fold] < 0.30
    assert FOLD_SIZES["test"] >= 400


def test_patients_keep_to_one_fold_and_mostly_one_finding() -> None:
    of_patient: dict[str, list[Document]] = defaultdict(list)
    for document in documents():
        of_patient[document.group].append(document)
    assert all(2 <= len(some) <= 5 for some in of_patient.values())
    assert all(len({document.fold for document in some}) == 1 for some in of_patient.values())
    pure = np.mean([len({document.label for document in some}) == 1 for some in of_patient.values()])
    assert 0.5 < pure < 0.9


def test_documents_are_numbered_in_order() -> None:
    assert documents()[17].id == "phantom-00017"
    assert [document.id for document in documents()] == sorted({f"phantom-{i:05d}" for i in range(TOTAL)})
    assert all(document.image == str(index) for index, document in enumerate(documents()))
    assert documents()[0].group == "patient-0000"


def grey_levels(some: Sequence[Phantom]) -> np.ndarray:
    return np.array([[p.image.mean(), p.image.std()] for p in some])


def test_grey_levels_do_not_tell_the_class() -> None:
    train, test = drawn("train", 1200), drawn("test", 480)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(grey_levels(train), [p.label for p in train])
    assert model.score(grey_levels(test), [p.label for p in test]) < 0.5


def test_texture_has_the_grey_level_of_its_surroundings() -> None:
    """Over many patches, the mean under the mask is that of the bare image; a mass's is not."""
    shifts: dict[str, list[float]] = defaultdict(list)
    for patient in range(80):
        bare = draw("no finding", patient, 0)[0].astype(float)
        for label in ("textured patch", "round mass"):
            image, mask = draw(label, patient, 0)
            # The grey scale is drawn after the finding, so the images are compared by their surroundings first.
            outside = ~mask
            scaled = (image - image[outside].mean()) / image[outside].std()
            reference = (bare - bare[outside].mean()) / bare[outside].std()
            shifts[label].append(abs(float((scaled - reference)[mask].mean())))
    assert np.median(shifts["textured patch"]) < 0.2
    assert np.median(shifts["round mass"]) > 1


def test_layout_gives_rgb_images() -> None:
    reader = layout("phantoms")
    image = reader.image(SPEC, Path(), documents()[5])
    assert (image.mode, image.size) == ("RGB", (64, 64))
    channels = np.asarray(image)
    for channel in range(3):
        np.testing.assert_array_equal(channels[..., channel], phantom(5).image)


def test_dataset_loads_without_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDMLLM_DATA", raising=False)
    dataset = load_dataset(SPEC)
    assert len(dataset.documents) == TOTAL
    assert len(dataset.select(["test"])) == FOLD_SIZES["test"]


def test_other_classes_are_refused() -> None:
    raw = {"name": "x", "title": "X", "layout": "phantoms", "modality": "image", "classes": {"round mass": [], "b": []}}
    with pytest.raises(DataError, match=r"expected the classes .*'textured patch'.* got \['b', 'round mass'\]"):
        Phantoms().documents(parse_spec(raw, "x.yaml"), Path(), Faults("", ""))


@pytest.mark.parametrize("image", ["-1", str(TOTAL), "1.5", "", "x.png", "²"])
def test_image_of_an_unknown_index_is_refused(image: str) -> None:
    document = Document(id="phantom-x", image=image, label="no finding", group="patient-0", fold="test")
    with pytest.raises(DataError, match="index"):
        Phantoms().image(SPEC, Path(), document)


def test_unknown_label_is_refused() -> None:
    with pytest.raises(DataError, match=r"Expected a phantom's label .* got 'mass'"):
        draw("mass", 0, 0)
