"""DICOM against pydicom: the files that pydicom is tested with, made by others."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom._uid_dict import UID_dictionary
from pydicom.pixels import apply_rescale
from pydicom.pixels.processing import apply_color_lut, apply_windowing
from pydicom.pixels.utils import pixel_array

from medmllm_plugins.data.readers.dicom import read_dicom_image
from medmllm_plugins.data.readers.dicom_kinds import kind_of_class, kind_without_pictures
from medmllm_plugins.errors import DataError

FOLDER = Path(pydicom.__file__).parent / "data"
WITHOUT_PICTURES = {
    "DICOMDIR": "media directory",
    "ExplVR_BigEndNoMeta.dcm": "RT plan",
    "ExplVR_LitEndNoMeta.dcm": "RT plan",
    "fall.dcm": "colour palette",
    "reportsi.dcm": "structured report",
    "rtplan.dcm": "RT plan",
    "rtstruct.dcm": "RT structure set",
    "test-SR.dcm": "structured report",
    "waveform_ecg.dcm": "waveform",
}
REFUSED = {
    "JPEG2000-embedded-sequence-delimiter.dcm",  # no codestream in its fragment
    "MR_small_padded.dcm",  # 128 bytes of pixels too many
    "MR_truncated.dcm",
    "badVR.dcm",  # "1A" frames
    "meta_missing_tsyntax.dcm",  # no rows
    "nested_priv_SQ.dcm",  # no rows
    "no_meta.dcm",  # begins with a stray byte
}
"""Files with pixels that are refused, and why."""


def strangers() -> list[Path]:
    paths = sorted(path for path in FOLDER.rglob("*") if path.is_file() and "TINY_ALPHA" not in path.parts)
    return [path for path in paths if path.suffix == ".dcm" or path.name.isdigit()]


def reference(path: Path) -> np.ndarray | None:
    """What pydicom makes of the middle frame, grey or colour; ``None`` where it has no decoder for it."""
    header = pydicom.dcmread(path, force=True)
    frames = int(header.get("NumberOfFrames") or 1)
    try:
        pixels = pixel_array(header, index=frames // 2)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):
        return None
    photometric = header.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        return apply_color_lut(pixels, header) // 256
    if pixels.ndim == 3:
        return np.rint(pixels / (2.0**header.BitsStored - 1) * 255)
    values = apply_rescale(pixels, header).astype(np.float64) * float(header.get("DoseGridScaling") or 1)
    low, high = values.min(), values.max()
    if "WindowWidth" in header and "WindowCenter" in header:
        stored = header.BitsStored
        lowest = -(2 ** (stored - 1)) if header.PixelRepresentation else 0
        slope, shift = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
        low, high = lowest * slope + shift, (lowest + 2**stored - 1) * slope + shift
        # pydicom stretches what the window lets through over the range of the stored values.
        values = apply_windowing(pixels if slope == 1 and shift == 0 else values, header).astype(np.float64)
    shown = np.zeros(values.shape) if high <= low else (values - low) / (high - low) * 255
    return np.rint(255 - shown if photometric == "MONOCHROME1" else shown)


def test_real_files_look_as_pydicom_shows_them(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    compared, refused, unknown = 0, set(), []
    monkeypatch.setattr(logging.getLogger("pydicom"), "disabled", True)
    # lmms-eval sets this for the whole process; then Pillow guesses what a damaged stream would have held.
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in strangers():
            try:
                shown = np.asarray(read_dicom_image(path)).astype(int)
            except DataError as error:
                assert len(str(error)) < 300 + len(str(path))
                if kind_without_pictures(path) is None and b"\xe0\x7f\x10\x00" in path.read_bytes():
                    refused.add(path.name)
                continue
            wanted = reference(path)
            if wanted is None:
                unknown.append(path.name)
                continue
            wanted = wanted if wanted.ndim == 3 else np.repeat(wanted[..., None], 3, axis=2)
            assert np.abs(shown - wanted).max() <= 2, path.name
            compared += 1
    assert refused == REFUSED
    assert capfd.readouterr() == ("", "")  # decoders' own messages name no file, and may quote headers
    assert compared >= 80 and len(unknown) <= 12, (compared, unknown)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Encapsulated PDF Storage", "encapsulated document"),
        ("Grayscale Softcopy Presentation State Storage", "presentation state"),
        ("Key Object Selection Document Storage", "key object selection"),
        ("12-lead ECG Waveform Storage", "waveform"),
        ("Spatial Registration Storage", "registration"),
        ("Segmentation Storage", None),
        ("RT Dose Storage", None),
        ("RT Image Storage", None),
    ],
)
def test_kinds_go_by_the_standards_classes(name: str, kind: str | None) -> None:
    (sop_class,) = (uid for uid, entry in UID_dictionary.items() if entry[0] == name)
    assert kind_of_class(sop_class) == kind


def test_no_class_of_images_counts_as_one_without_pictures() -> None:
    classes = {uid: entry[0] for uid, entry in UID_dictionary.items() if entry[0].endswith("Image Storage")}
    assert len(classes) > 40
    assert not [name for uid, name in classes.items() if kind_of_class(uid) is not None]


@pytest.mark.parametrize(("name", "kind"), WITHOUT_PICTURES.items())
def test_objects_without_pictures_are_known_by_kind(name: str, kind: str) -> None:
    (path,) = (path for path in FOLDER.rglob(name) if "TINY_ALPHA" not in path.parts)
    assert kind_without_pictures(path) == kind
