"""CT-RATE's validation volumes: values and spacing from the metadata, or as they stand in the mended files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from support.image_files import cut

from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import load_dataset
from medmllm_plugins.data.loading.volume_view import View
from medmllm_plugins.errors import DataError

SPEC = dataset_specs()["ct_rate"]
COLUMNS = [column for column in SPEC.options["names"]]
NAMES = ("valid_1_a_1", "valid_1_a_2", "valid_1_b_1", "valid_2_a_1", "valid_10_a_1")


def hounsfield(name: str) -> np.ndarray:
    """``[z, y, x]``: air, with tissue in the middle."""
    voxels = np.full((6, 10, 8), -1000, np.int16)
    voxels[1:5, 2:8, 2:6] = 40 + NAMES.index(name)
    return voxels


def write(root: Path, folder: str = "valid", top: str = "dataset") -> Path:
    base = root / "ct_rate" / top
    rows, facts = (
        [",".join(["VolumeName", *COLUMNS])],
        ["VolumeName,Manufacturer,RescaleIntercept,RescaleSlope,XYSpacing,ZSpacing"],
    )
    for index, name in enumerate(NAMES):
        scan = name.rsplit("_", 1)[0]
        path = base / folder / scan.rsplit("_", 1)[0] / scan / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        fixed = folder.endswith("_fixed")
        stored = hounsfield(name) if fixed else ((hounsfield(name) + 1024) // 1).astype(np.int16)
        image = sitk.GetImageFromArray(stored)
        if fixed:
            image.SetSpacing((0.7, 0.7, 1.5))
        sitk.WriteImage(image, str(path))
        rows.append(f"{name}.nii.gz," + ",".join(str(int(column % 5 == index)) for column in range(18)))
        facts.append(f'{name}.nii.gz,SIEMENS,-1024,1,"[0.7, 0.7]",1.5')
    (base / "multi_abnormality_labels").mkdir(exist_ok=True)
    (base / "multi_abnormality_labels" / "valid_predicted_labels.csv").write_text("\n".join(rows))
    (base / "metadata").mkdir(exist_ok=True)
    (base / "metadata" / "validation_metadata.csv").write_text("\n".join(facts))
    return root


@pytest.mark.parametrize("folder", ["valid", "valid_fixed"])
@pytest.mark.parametrize("top", ["dataset", ""])
def test_both_releases_are_in_hounsfield_units(tmp_path: Path, folder: str, top: str) -> None:
    data = load_dataset(SPEC, root=write(tmp_path, folder, top))
    by_name = {document.id.rpartition("/")[2]: document for document in data.documents}
    assert set(by_name) == set(NAMES) and {document.fold for document in data.documents} == {"test"}
    assert {name: document.group for name, document in by_name.items()} == {
        name: name.rsplit("_", 2)[0] for name in NAMES
    }
    assert by_name["valid_1_a_2"].label == tuple(SPEC.labels[column] for column in (1, 6, 11, 16))
    volume = data.volume(by_name["valid_10_a_1"])
    assert volume.unit == "HU" and volume.orientation == "RAS"
    assert volume.spacing == pytest.approx((1.5, 0.7, 0.7))
    assert sorted(np.unique(volume.voxels)) == [-1000, 44]
    (picture,) = View(slices=4, window="soft_tissue").pictures(data, by_name["valid_10_a_1"])
    assert picture.mode == "RGB"


def test_the_mended_files_go_first(tmp_path: Path) -> None:
    write(tmp_path, "valid")
    data = load_dataset(SPEC, root=write(tmp_path, "valid_fixed"))
    assert all("/valid_fixed/" in document.image for document in data.documents)


def test_slope_and_intercept_are_those_of_the_volume(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "ct_rate/dataset/metadata/validation_metadata.csv"
    path.write_text(path.read_text().replace("valid_2_a_1.nii.gz,SIEMENS,-1024,1,", "valid_2_a_1.nii.gz,PNMS,-2048,2,"))
    data = load_dataset(SPEC, root=tmp_path)
    (document,) = (document for document in data.documents if "valid_2" in document.id)
    assert sorted(np.unique(data.volume(document).voxels)) == [-2000, 2 * (43 + 1024) - 2048]


def test_no_metadata_for_the_older_files(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "ct_rate/dataset/metadata/validation_metadata.csv"
    text = path.read_text()
    path.write_text("\n".join(line for line in text.splitlines() if "valid_1_b" not in line))
    with pytest.raises(
        DataError, match=r"1 fault in (.|\n)*valid_1_b_1\.nii\.gz: expected a row in validation_metadata"
    ):
        load_dataset(SPEC, root=tmp_path)
    path.write_text(text.replace("-1024", "none", 1))
    with pytest.raises(DataError, match=r"validation_metadata\.csv, line 2: expected numbers"):
        load_dataset(SPEC, root=tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="expected slope, intercept and spacing of the volumes in valid/"):
        load_dataset(SPEC, root=tmp_path)


def test_damage_is_found_before_an_evaluation(tmp_path: Path) -> None:
    write(tmp_path, "valid_fixed")
    paths = sorted(tmp_path.rglob("*.nii.gz"))
    cut(paths[0], 0.7)
    content = gzip.decompress(paths[1].read_bytes())
    paths[1].write_bytes(gzip.compress(content[:-200]))
    paths[2].write_bytes(b"")
    with pytest.raises(DataError, match="3 faults"):
        load_dataset(SPEC, root=tmp_path)
    assert len(load_dataset(SPEC, root=tmp_path, on_error="skip").documents) == 2


def test_values_that_cannot_be_hounsfield_units(tmp_path: Path) -> None:
    write(tmp_path, "valid_fixed")
    path = next(tmp_path.rglob("valid_2_a_1.nii.gz"))
    image = sitk.ReadImage(str(path))
    sitk.WriteImage(image + 1024, str(path))
    data = load_dataset(SPEC, root=tmp_path)
    (document,) = (document for document in data.documents if "valid_2" in document.id)
    with pytest.raises(DataError, match=r"expected a chest CT in Hounsfield units.* got 24"):
        data.volume(document)


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    before = load_dataset(SPEC, root=write(tmp_path, "valid_fixed")).fingerprint
    path = next(tmp_path.rglob("valid_2_a_1.nii.gz"))
    image = sitk.ReadImage(str(path))
    image[4, 4, 3] = 77
    sitk.WriteImage(image, str(path))
    assert load_dataset(SPEC, root=tmp_path).fingerprint != before
