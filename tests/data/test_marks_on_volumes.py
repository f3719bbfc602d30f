"""White squares on volumes: on every slice, whether it is shown as a picture or read as voxels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.core.image_controls import draw_marks, mark_boxes
from medmllm_plugins.data.loading.volume_view import View, draw_marks_on_volume
from medmllm_plugins.data.readers.intensity_windows import Unit
from medmllm_plugins.data.readers.slices import slice_images
from medmllm_plugins.data.readers.volumes import Volume

MARKS = ((0.2, 0.15), (0.8, 0.5))


def volume(unit: Unit) -> Volume:
    voxels = np.random.default_rng(0).uniform(-900, 900, (12, 60, 50)).astype(np.float32)
    return Volume(voxels, (2.0, 1.0, 1.0), "RAS", unit)


@dataclass(frozen=True)
class Spec:
    dimensions: int = 3


@dataclass(frozen=True)
class OneVolume:
    shown: Volume
    spec: Spec = Spec()

    def volume(self, document: Document) -> Volume:
        return self.shown


@pytest.mark.parametrize("unit", ["HU", "any"])
def test_squares_on_voxels_are_those_on_an_image_of_the_same_size(unit: Unit) -> None:
    shown = volume(unit)
    before = shown.voxels.copy()
    marked = draw_marks_on_volume(shown, MARKS)
    assert (shown.voxels == before).all() and marked.unit == unit
    low, high = (-1000, 1000) if unit == "HU" else np.percentile(before, [0.5, 99.5])
    changed = np.zeros((60, 50), dtype=bool)
    for outer, inner in mark_boxes((50, 60), MARKS):
        for (left, top, right, bottom), value in ((inner, high), (outer, low)):
            assert marked.voxels[:, top, left] == pytest.approx(value, rel=1e-6)
            changed[top:bottom, left:right] = True
        left, top, right, bottom = inner
        assert (marked.voxels[:, top:bottom, left:right] == marked.voxels[0, top, left]).all()
    assert (marked.voxels[:, ~changed] == before[:, ~changed]).all()


@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_every_slice_that_is_shown_has_the_squares(plane: str) -> None:
    data = OneVolume(volume("HU"))
    document = Document("d", "d", "a", "g", "test")
    view = View(slices=4, montage=False, plane=plane)
    marked = partial(draw_marks, marks=MARKS)
    pictures = view.pictures(data, document, marked)  # type: ignore[arg-type]
    plain = slice_images(data.shown, 4, plane=plane)
    assert [picture.tobytes() for picture in pictures] == [draw_marks(item, MARKS).tobytes() for item in plain]
    assert all(picture.tobytes() != item.tobytes() for picture, item in zip(pictures, plain, strict=True))
    (whole,) = View(slices=4, plane=plane).pictures(data, document, marked)  # type: ignore[arg-type]
    (left, top, _, _) = mark_boxes(plain[0].size, MARKS)[0][1]
    width, height = plain[0].size
    for corner in ((0, 0), (width, 0), (0, height), (width, height)):
        assert whole.getpixel((corner[0] + left, corner[1] + top)) == (255, 255, 255)
