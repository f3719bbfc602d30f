"""Synthetic phantoms: small grey images with drawn findings, whose truth is known because code drew them.

They are no medical images and look like no particular modality; they differ as findings differ: by presence, by margin
(a smooth ellipse or a star of spicules) and by texture (a striped or reticular patch with the mean intensity of what is
around it). Position, size, orientation, sign and strength of contrast, brightness, gain, speckle and anatomy vary
alike in all classes, so that grey levels alone do not tell the class.

Every pixel follows from :data:`SEED` alone. The random numbers are the raw output of PCG64, which numpy promises not to
change, and the drawing uses only operations that IEEE 754 rounds exactly (no sums of floats, no BLAS, no libm), so
images are the same to the last bit on every machine.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import Document, Fold
from medmllm_plugins.data.layouts.layout_registry import Layout, check_classes
from medmllm_plugins.errors import DataError

LABELS = ("round mass", "spiculated mass", "textured patch", "no finding")
SIZE = 64
"""Side of an image in pixels."""
SEED = 20250408
FOLD_SIZES: dict[Fold, int] = {"train": 2400, "validation": 400, "test": 480}
"""Images in each fold."""

_Array = npt.NDArray[np.float64]
_PLAN, _ANATOMY, _VIEW = range(3)
_CENTRE = (SIZE - 1) / 2
_ROWS, _COLUMNS = (axis.astype(np.float64) for axis in np.mgrid[:SIZE, :SIZE])
# Rounded far above the error of any libm, so that sine and cosine are the same everywhere.
_TURNS = 64
_TURN = math.tau / _TURNS
_DIRECTIONS = tuple((round(math.cos(_TURN * k), 6), round(math.sin(_TURN * k), 6)) for k in range(_TURNS))


class Phantom(NamedTuple):
    """Grey values of a synthetic image, (64, 64), uint8; where its finding is, (64, 64), bool; and its class."""

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    label: str


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a phantom without drawing it.

    Attributes:
        patient: number of the patient, whose images share the anatomy and mostly the finding.
        view: number of the image among the patient's.
        fold: the same for all images of a patient.
    """

    label: str
    patient: int
    view: int
    fold: Fold


class _Stream:
    """Uniform numbers that depend on the key alone."""

    def __init__(self, purpose: int, patient: int, view: int = 0) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence((SEED, purpose, patient, view)))

    def array(self, *shape: int) -> _Array:
        """Return numbers in [0, 1) with 53 random bits each."""
        raw = self._bits.random_raw(math.prod(shape))
        return (raw >> np.uint64(11)).astype(np.float64).reshape(shape) * 2.0**-53

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.array(1)[0])

    def below(self, count: int) -> int:
        return int(self.uniform(0, count))

    def sign(self) -> float:
        return 1.0 if self.below(2) else -1.0


@lru_cache(maxsize=1)
def records() -> tuple[Record, ...]:
    """Return all phantoms of the set, undrawn, in the order of their indices: train, then validation, then test.

    A patient has 2 to 5 images. The main findings of four patients in a row are the four classes, in random order; one
    image in eight has a class drawn independently.
    """
    table: list[Record] = []
    patient = 0
    for fold, size in FOLD_SIZES.items():
        left = size
        block: list[int] = []
        while left:
            stream = _Stream(_PLAN, patient)
            if not block:
                block = [int(index) for index in np.argsort(stream.array(len(LABELS)), kind="stable")]
            main = block.pop()
            count = 2 + stream.below(4)
            # A patient of one image must not be left over.
            count = left if left <= 5 else min(count, left - 2)
            for view in range(count):
                label = stream.below(len(LABELS)) if stream.below(8) == 0 else main
                table.append(Record(LABELS[label], patient, view, fold))
            left -= count
            patient += 1
    return tuple(table)


def phantom(index: int) -> Phantom:
    """Draw the phantom at a position in :func:`records`.

    Raises:
        DataError: there is no phantom of that index.
    """
    table = records()
    if not 0 <= index < len(table):
        raise DataError(f"Expected a phantom's index to be from 0 to {len(table) - 1}, got {index}.")
    record = table[index]
    return Phantom(*draw(record.label, record.patient, record.view), record.label)


def draw(label: str, patient: int, view: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Draw one image of a patient, who need not be of the set, and the mask of its finding.

    Both are (64, 64), uint8 and bool. ``patient`` decides the anatomy, ``view`` all else.

    Raises:
        DataError: the label is none of the classes.
    """
    if label not in LABELS:
        raise DataError(f"Expected a phantom's label to be one of {list(LABELS)}, got {label!r}.")
    stream = _Stream(_VIEW, patient, view)
    picture = _anatomy(patient, stream)
    cover = np.zeros((SIZE, SIZE))
    if label == "round mass":
        cover = _ellipse(stream, 7.0, 12.0)
    elif label == "spiculated mass":
        cover = _star(stream)
    if label == "textured patch":
        cover = _ellipse(stream, 9.0, 14.0)
        picture = picture + stream.uniform(0.18, 0.28) * cover * _stripes(stream, cover)
    else:
        picture = picture + stream.sign() * stream.uniform(0.2, 0.32) * cover
    picture = picture * (1.0 + stream.uniform(0.05, 0.12) * _speckle(stream))
    picture = (picture - 0.45) * stream.uniform(0.8, 1.2) + 0.45 + stream.uniform(-0.1, 0.1)
    return np.rint(picture.clip(0.0, 1.0) * 255.0).astype(np.uint8), cover >= 0.5


def _anatomy(patient: int, view: _Stream) -> _Array:
    """Draw tissue of slowly varying grey with a curved bright band and a thin dark one, seen slightly shifted."""
    stream = _Stream(_ANATOMY, patient)
    scale = view.uniform(0.9, 1.1)
    axis = (np.arange(SIZE, dtype=np.float64) - _CENTRE) * scale + _CENTRE
    x, y = axis + view.uniform(-5, 5), axis + view.uniform(-5, 5)

    # Nodes 16 px apart, from 16 px outside the image; between them, smoothstep.
    nodes = stream.array(8, 8)
    (left, right_share), (top, low_share) = (_between(axis / 16.0 + 1.5) for axis in (x, y))
    upper, lower = nodes[top], nodes[top + 1]
    across = (1.0 - right_share) * upper[:, left] + right_share * upper[:, left + 1]
    below = (1.0 - right_share) * lower[:, left] + right_share * lower[:, left + 1]
    tissue = (1.0 - low_share)[:, None] * across + low_share[:, None] * below

    along, over = (x[None, :], y[:, None]) if stream.below(2) else (y[:, None], x[None, :])
    bend = stream.sign() * stream.uniform(0.003, 0.012)
    centre = along - stream.uniform(16, 48)
    line = stream.uniform(8, 56) + bend * centre * centre
    slope = 2.0 * bend * centre
    distance = (over - line) / np.sqrt(1.0 + slope * slope)
    width = stream.uniform(3.0, 6.0)
    bright = stream.uniform(0.1, 0.22) * (1.0 - (distance / width) * (distance / width)).clip(0.0, 1.0)
    gap = distance - width - 3.0
    dark = stream.uniform(0.06, 0.14) * (1.0 - gap * gap / 4.0).clip(0.0, 1.0)
    return stream.uniform(0.28, 0.42) + 0.2 * tissue + bright - dark


def _between(position: _Array) -> tuple[npt.NDArray[np.intp], _Array]:
    """Return the node before each position, and the smoothstep share of the next one."""
    node = np.floor(position)
    share = position - node
    return node.astype(np.intp), share * share * (3.0 - 2.0 * share)


def _local(stream: _Stream) -> tuple[_Array, _Array]:
    """Return coordinates in pixels about a random centre, along random axes."""
    cos, sin = _DIRECTIONS[stream.below(_TURNS)]
    x, y = _COLUMNS - stream.uniform(19, 44), _ROWS - stream.uniform(19, 44)
    return x * cos + y * sin, y * cos - x * sin


def _ellipse(stream: _Stream, smallest: float, largest: float) -> _Array:
    """Cover of a smooth ellipse, 1 inside and 0 outside, one half on its margin."""
    major = stream.uniform(smallest, largest)
    minor = major * stream.uniform(0.65, 1.0)
    soft = stream.uniform(1.5, 3.0)
    p, q = _local(stream)
    radius = np.sqrt((p / major) * (p / major) + (q / minor) * (q / minor))
    cover: _Array = ((1.0 - radius) * minor / soft + 0.5).clip(0.0, 1.0)
    return cover


def _star(stream: _Stream) -> _Array:
    """Cover of a core with tapering spicules all around."""
    core = stream.uniform(5.0, 7.5)
    flat = stream.uniform(0.8, 1.0)
    p, q = _local(stream)
    q = q / flat
    cover = ((core - np.sqrt(p * p + q * q)) / 1.5 + 0.5).clip(0.0, 1.0)
    count = 8 + stream.below(5)
    for spicule in range(count):
        cos, sin = _DIRECTIONS[(spicule * _TURNS // count + stream.below(4)) % _TURNS]
        length = core * stream.uniform(1.8, 2.6)
        width = stream.uniform(1.5, 2.3)
        along, off = p * cos + q * sin, np.abs(q * cos - p * sin)
        ray = (width * (1.0 - along / length) - off + 0.5).clip(0.0, 1.0)
        cover = np.maximum(cover, np.where(along > 0.0, ray, 0.0))
    return cover


def _stripes(stream: _Stream, cover: _Array) -> _Array:
    """Draw stripes in one direction, or a net of two, between -1 and 1, with mean 0 under the cover."""
    p, q = _local(stream)
    pattern = _wave(p / stream.uniform(4.0, 6.5))
    if stream.below(2):
        pattern = np.maximum(pattern, _wave(q / stream.uniform(4.0, 6.5)))
    # Whole numbers, so that the sums are exact.
    weight = np.rint(cover * 1024.0).astype(np.int64)
    total = (weight * np.rint(pattern * 1024.0).astype(np.int64)).sum()
    return pattern - float(total) / (1024.0 * float(weight.sum()))


def _wave(phase: _Array) -> _Array:
    """Return a triangle wave of period 1 between -1 and 1."""
    wave: _Array = 4.0 * np.abs(phase - np.floor(phase + 0.5)) - 1.0
    return wave


def _speckle(stream: _Stream) -> _Array:
    """Return noise of mean 0 and about unit variance, correlated over neighbouring pixels."""
    pairs = stream.array(2, SIZE + 1, SIZE + 1)
    white = pairs[0] + pairs[1] - 1.0
    # The sum of two uniforms has variance 1/6; that of four of them, weighted, 1/6 * (1 + 2 * 0.25 + 0.0625).
    smooth: _Array = white[:-1, :-1] + 0.5 * white[1:, :-1] + 0.5 * white[:-1, 1:] + 0.25 * white[1:, 1:]
    return smooth * 1.96


@cache
def _pixel_digest(index: int) -> str:
    rgb = np.repeat(phantom(index).image[..., None], 3, axis=2)
    return hashlib.sha256(repr((SIZE, SIZE)).encode() + rgb.tobytes()).hexdigest()


class Phantoms(Layout):
    """The synthetic phantoms as a data set: no files, and nothing is drawn before an image is asked for."""

    def documents(self, spec: DatasetSpec, folder: Path, faults: Faults) -> list[Document]:
        """List the set; ``folder`` is not used. See :class:`medmllm_plugins.data.layouts.layout_registry.Layout`.

        Raises:
            DataError: the declaration's classes are not :data:`LABELS`.
        """
        check_classes(spec, LABELS)
        return [
            Document(
                id=f"phantom-{index:05d}",
                image=str(index),
                label=record.label,
                group=f"patient-{record.patient:04d}",
                fold=record.fold,
            )
            for index, record in enumerate(records())
        ]

    def image(self, spec: DatasetSpec, folder: Path, document: Document) -> Image.Image:
        """Draw the document's image, 64 x 64 pixels, the same grey value in all three channels.

        Raises:
            DataError: ``document.image`` is no phantom's index.
        """
        if not (document.image.isascii() and document.image.isdigit()):
            raise DataError(f"{document.id}: expected a phantom's index, got {document.image!r}.")
        return Image.fromarray(phantom(int(document.image)).image).convert("RGB")

    def digest(self, spec: DatasetSpec, folder: Path, document: Document) -> str:
        """Return a checksum of the pixels, which is kept: a process that opens the set again does not draw it again."""
        return _pixel_digest(int(document.image))

    def mask(self, spec: DatasetSpec, folder: Path, document: Document) -> npt.NDArray[np.bool_] | None:
        """Return where the finding was drawn, (64, 64), bool; empty where there is none."""
        return phantom(int(document.image)).mask
