"""Volumes and data sets in binary containers: NIfTI, NRRD, MetaImage, arrays, DICOM, MedMNIST and PCam."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from fuzz.mutators import Mutator, inside_gzip, inside_zip, mutate_bytes, mutate_lines, one_of
from fuzz.target import Files, Target
from support.dicom_files import CR, ENHANCED_CT, element, frame_tags, write_dicom, write_series
from support.image_files import picture

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.layouts.layout_registry import layout
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.readers.image_reader import picture_size, read_picture
from medmllm_plugins.data.readers.volumes import read_volume, volume_facts

_SPECS: Final = dataset_specs()
VOXELS: Final = (np.arange(240, dtype=np.int16) * 7 % 301 - 40).reshape(5, 6, 8)


def nifti(voxels: np.ndarray = VOXELS, version: int = 1, order: str = "<", slope: float = 1.0) -> bytes:
    """A NIfTI file in one piece, whose sform says RAS."""
    code = {"int16": 4, "uint8": 2, "float32": 16, "float64": 64}[voxels.dtype.name]
    bits, shape = voxels.itemsize * 8, (voxels.ndim, *voxels.shape[::-1], *(1,) * (7 - voxels.ndim))
    spacing, rows = (1.0, 0.7, 0.7, 2.5, 0, 0, 0, 0), np.diag([0.7, 0.7, 2.5, 1.0])[:3].ravel()
    header = bytearray(348 if version == 1 else 540)
    if version == 1:
        struct.pack_into(f"{order}i", header, 0, 348)
        struct.pack_into(f"{order}8h", header, 40, *shape)
        struct.pack_into(f"{order}2h", header, 70, code, bits)
        struct.pack_into(f"{order}8f", header, 76, *spacing)
        struct.pack_into(f"{order}3f", header, 108, 352, slope, 0)
        struct.pack_into(f"{order}2h", header, 252, 0, 1)
        struct.pack_into(f"{order}12f", header, 280, *rows)
        header[344:348] = b"n+1\0"
    else:
        struct.pack_into(f"{order}i", header, 0, 540)
        header[4:12] = b"n+2\0\r\n\x1a\n"
        struct.pack_into(f"{order}2h", header, 12, code, bits)
        struct.pack_into(f"{order}8q", header, 16, *shape)
        struct.pack_into(f"{order}8d", header, 104, *spacing)
        struct.pack_into(f"{order}q2d", header, 168, 544, slope, 0)
        struct.pack_into(f"{order}2i", header, 344, 0, 1)
        struct.pack_into(f"{order}12d", header, 400, *rows)
    return bytes(header) + bytes(4) + voxels.astype(voxels.dtype.newbyteorder(order)).tobytes()


def _nifti_files() -> dict[str, Files]:
    contents = {
        "plain": nifti(),
        "big-endian": nifti(order=">"),
        "second": nifti(version=2),
        "scaled": nifti(VOXELS.astype(np.uint8), slope=0.5),
        "float": nifti(VOXELS.astype(np.float32)),
        "double": nifti(VOXELS.astype(np.float64)),
    }
    return {name: {"a.nii": content} for name, content in contents.items()}


def _packed_nifti_files() -> dict[str, Files]:
    return {
        name: {"a.nii.gz": gzip.compress(files["a.nii"], mtime=0)}
        for name, files in _nifti_files().items()
        if name != "big-endian"
    }


_NRRD: Final = """NRRD0004
# comment
type: short
dimension: 3
space: left-posterior-superior
sizes: 8 6 5
space directions: (0.7,0,0) (0,0.7,0) (0,0,2.5)
kinds: domain domain domain
endian: little
encoding: {}
space origin: (0,0,0)
key:=value
"""


def _nrrd_files() -> dict[str, Files]:
    raw = VOXELS.tobytes()
    text = " ".join(map(str, VOXELS.ravel())).encode()
    return {
        "raw": {"a.nrrd": _NRRD.format("raw").encode() + b"\n" + raw},
        "gzip": {"a.nrrd": _NRRD.format("gzip").encode() + b"\n" + gzip.compress(raw, mtime=0)},
        "text": {"a.nrrd": _NRRD.format("ascii").encode() + b"\n" + text},
    }


def _detached_nrrd_files() -> dict[str, Files]:
    raw = VOXELS.tobytes()
    head = "{}data file: a.raw{}\n"
    return {
        "raw": {"a.nhdr": head.format(_NRRD.format("raw"), "").encode(), "a.raw": raw},
        "gzip": {
            "a.nhdr": head.format(_NRRD.format("gzip"), ".gz").encode(),
            "a.raw.gz": gzip.compress(raw, mtime=0),
        },
    }


_META: Final = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = {}
{}TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 0 0 0
CenterOfRotation = 0 0 0
AnatomicalOrientation = RAI
ElementSpacing = 0.7 0.7 2.5
DimSize = 8 6 5
ElementType = MET_SHORT
ElementDataFile = {}
"""


def _meta_files() -> dict[str, Files]:
    raw = VOXELS.tobytes()
    packed = zlib.compress(raw)
    size = f"CompressedDataSize = {len(packed)}\n"
    return {
        "raw": {"a.mha": _META.format("False", "", "LOCAL").encode() + raw},
        "packed": {"a.mha": _META.format("True", size, "LOCAL").encode() + packed},
    }


def _detached_meta_files() -> dict[str, Files]:
    raw = VOXELS.tobytes()
    packed = zlib.compress(raw)
    size = f"CompressedDataSize = {len(packed)}\n"
    return {
        "raw": {"a.mhd": _META.format("False", "", "a.raw").encode(), "a.raw": raw},
        "packed": {"a.mhd": _META.format("True", size, "a.zraw").encode(), "a.zraw": packed},
    }


def _array_files() -> dict[str, Files]:
    cases = {}
    for name, array in {
        "int16": VOXELS,
        "float": VOXELS.astype(np.float64),
        "fortran": np.asfortranarray(VOXELS),
    }.items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        cases[name] = {"a.npy": buffer.getvalue()}
    return cases


def read_as_volume(folder: Path) -> object:
    """Read the first file of a folder as a volume, and its header."""
    path = next(
        path for path in sorted(folder.iterdir()) if path.suffix not in (".raw", ".zraw") and ".raw." not in path.name
    )
    volume = read_volume(path)
    digest = hashlib.sha256(volume.voxels.tobytes()).hexdigest()
    return digest, volume.voxels.shape, volume.spacing, volume.orientation, volume_facts(path)


def _made(write: Callable[[Path], object]) -> Files:
    """The files that a function writes into a folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }


_SYNTAXES: Final = {
    "implicit": "1.2.840.10008.1.2",
    "big-endian": "1.2.840.10008.1.2.2",
    "deflated": "1.2.840.10008.1.2.1.99",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg": "1.2.840.10008.1.2.4.50",
    "jpeg2000": "1.2.840.10008.1.2.4.90",
}


def _dicom(name: str, folder: Path) -> None:
    """One grey picture of 8 bits in a transfer syntax."""
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    path = folder / "a.dcm"
    pixels = np.asarray(picture("dicom", (24, 20)).convert("L"))
    write_dicom(path, pixels, position=(0, 0, 0), modality="CR", sop=CR)
    if name == "explicit":
        return
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = UID(_SYNTAXES[name])
    if name == "rle":
        from pydicom.pixels.encoders import RLELosslessEncoder

        frame = RLELosslessEncoder.encode(
            pixels.tobytes(),
            rows=20,
            columns=24,
            samples_per_pixel=1,
            bits_allocated=8,
            bits_stored=8,
            number_of_frames=1,
            photometric_interpretation="MONOCHROME2",
            pixel_representation=0,
        )
        data.PixelData = encapsulate([frame])
    elif name in ("jpeg", "jpeg2000"):
        buffer = io.BytesIO()
        kind, options = ("JPEG", {}) if name == "jpeg" else ("JPEG2000", {"no_jp2": True})
        picture("dicom", (24, 20)).convert("L").save(buffer, kind, **options)
        data.PixelData = encapsulate([buffer.getvalue()])
    if name in ("rle", "jpeg", "jpeg2000"):
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True
    fresh = pydicom.Dataset()  # what was read keeps its byte order
    for item in data:
        fresh.add(item)
    fresh.file_meta = data.file_meta
    fresh.save_as(path, enforce_file_format=True, implicit_vr=name == "implicit", little_endian=name != "big-endian")


def _dicom_pictures() -> dict[str, Files]:
    cases = {name: _made(partial(_dicom, name)) for name in ("explicit", *_SYNTAXES)}
    colours = np.asarray(picture("dicom", (12, 10)).convert("RGB"))
    cases["colour"] = _made(lambda folder: write_dicom(folder / "a.dcm", colours, photometric="RGB", modality="US"))
    cases["window"] = _made(
        lambda folder: write_dicom(
            folder / "a.dcm",
            VOXELS[0],
            rescale=(-1024, 1),
            extra={0x00281050: ("DS", 40), 0x00281051: ("DS", 400)},
            photometric="MONOCHROME1",
        )
    )
    return cases


def read_dicom_picture(folder: Path) -> object:
    """Read a DICOM file as a picture."""
    image = read_picture(folder / "a.dcm")
    return hashlib.sha256(image.tobytes()).hexdigest(), image.size, picture_size(folder / "a.dcm")


def _dicom_series() -> dict[str, Files]:
    def series(folder: Path, **tags: Any) -> None:
        write_series(folder, VOXELS[:3], rescale=(-1024, 1), **tags)

    def frames(folder: Path) -> None:
        positions = [(0.0, 0.0, 2.5 * index) for index in range(3)]
        write_dicom(
            folder / "a.dcm",
            VOXELS[:3],
            sop=ENHANCED_CT,
            orientation=None,
            spacing=None,
            extra=frame_tags(positions, [(-1024, 1)] * 3),
        )

    return {
        "plain": _made(series),
        "private": _made(partial(series, extra={0x00091010: ("SQ", [element(0x00091011, "LO", "x")])})),
        "frames": _made(frames),
    }


def read_dicom_series(folder: Path) -> object:
    """Read a folder as a series."""
    volume = read_volume(folder)
    digest = hashlib.sha256(volume.voxels.tobytes()).hexdigest()
    return digest, volume.voxels.shape, volume.spacing, volume.orientation, volume.unit, volume_facts(folder)


def _archive(arrays: dict[str, np.ndarray], compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), compress_type=compression)
    return buffer.getvalue()


def _medmnist() -> dict[str, Files]:
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in {"train": 3, "val": 2, "test": 2}.items():
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
    return {
        "stored": {"breastmnist.npz": _archive(arrays, zipfile.ZIP_STORED)},
        "packed": {"breastmnist.npz": _archive(arrays, zipfile.ZIP_DEFLATED)},
    }


def _pcam() -> dict[str, Files]:
    import h5py

    pixels = np.zeros((2, 96, 96, 3), np.uint8)
    pixels[:, ::9] = 200

    def write(packed: bool, folder: Path) -> None:
        for split in ("train", "valid", "test"):
            stem = f"camelyonpatch_level_2_split_{split}"
            with h5py.File(folder / f"{stem}_x.h5", "w", track_order=False) as file:
                file.create_dataset("x", data=pixels, chunks=(1, 96, 96, 3), compression="gzip" if packed else None)
            with h5py.File(folder / f"{stem}_y.h5", "w") as file:
                file.create_dataset("y", data=np.array([0, 1], np.uint8).reshape(-1, 1, 1, 1))
            (folder / f"{stem}_meta.csv").write_text(",tumor_patch,wsi\n0,False,a\n1,True,b\n")

    return {"packed": _made(partial(write, True))}


def _read_set(name: str, folder: Path) -> object:
    """Load a data set of a layout from its own folder, and one document of each fold."""
    spec = _SPECS[name]
    faults = Faults(spec.title, str(folder))
    reader = layout(spec.layout)
    documents = reader.documents(spec, folder, faults)
    faults.stop()
    results: list[object] = [documents]
    for document in {document.fold: document for document in documents}.values():
        image: Any = reader.image(spec, folder, document)
        results.append((hashlib.sha256(image.tobytes()).hexdigest(), reader.digest(spec, folder, document)))
    return results


_TEXT_AND_BYTES: Final = one_of(mutate_bytes, mutate_lines, mutate_lines)


def _volume(name: str, seeds: Callable[[], dict[str, Files]], mutators: dict[str, Mutator] | None = None) -> Target:
    return Target(name=name, seeds=seeds, read=read_as_volume, mutators=mutators or {"*": mutate_bytes})


TARGETS: Final = {
    target.name: target
    for target in (
        _volume("nifti", _nifti_files),
        _volume("nifti_gz", _packed_nifti_files, {"*": one_of(mutate_bytes, inside_gzip(mutate_bytes))}),
        _volume("nrrd", _nrrd_files, {"*": _TEXT_AND_BYTES}),
        _volume("nhdr", _detached_nrrd_files, {"*.nhdr": _TEXT_AND_BYTES, "*": mutate_bytes}),
        _volume("mha", _meta_files, {"*": _TEXT_AND_BYTES}),
        _volume("mhd", _detached_meta_files, {"*.mhd": _TEXT_AND_BYTES, "*": mutate_bytes}),
        _volume("npy_volume", _array_files, {"*": _TEXT_AND_BYTES}),
        Target(name="dicom", seeds=_dicom_pictures, read=read_dicom_picture, mutators={"*": mutate_bytes}),
        Target(name="dicom_series", seeds=_dicom_series, read=read_dicom_series, mutators={"*": mutate_bytes}),
        Target(
            name="medmnist",
            seeds=_medmnist,
            read=partial(_read_set, "breastmnist"),
            mutators={"*": one_of(mutate_bytes, inside_zip(mutate_bytes), inside_zip(mutate_lines))},
            longest=3000,
        ),
        Target(
            name="pcam",
            seeds=_pcam,
            read=partial(_read_set, "pcam"),
            mutators={"*.csv": mutate_lines, "*_test_*.h5": mutate_bytes, "*.h5": mutate_bytes},
            longest=3000,
        ),
    )
}
