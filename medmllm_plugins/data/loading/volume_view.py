"""Show a document to a model that takes images: an image as it is, a volume as slices or as one montage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PIL import Image

from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.core.image_controls import Mark, mark_boxes, mask_border_of_array
from medmllm_plugins.data.loading.dataset import Dataset
from medmllm_plugins.errors import OptionError

if TYPE_CHECKING:
    from medmllm_plugins.data.readers.volumes import Volume

PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Settings for showing volumes; images are shown as they are.

    Attributes:
        slices: number of slices, evenly spaced.
        montage: whether to put them into one picture, for models that take one image, or each into its own.
        plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        window: intensity window by name or as ``"centre/width"``; ``None`` for the default of the volume's unit.

    Raises:
        OptionError: a value is none of these.
    """

    slices: int = 9
    montage: bool = True
    plane: str = "axial"
    window: str | None = None

    def __post_init__(self) -> None:
        if self.slices < 1:
            raise OptionError(f"Expected argument `slices` to be at least 1, got {self.slices!r}.")
        if self.plane not in PLANES:
            raise OptionError(f"Expected argument `plane` to be one of {list(PLANES)}, got {self.plane!r}.")

    def pictures(
        self, data: Dataset, document: Document, change: Callable[[Image.Image], Image.Image] | None = None
    ) -> list[Image.Image]:
        """Return the pictures of a document, mode ``RGB``: one, or one for each slice.

        ``change`` is applied to the image, or to each slice before they are put together.

        Raises:
            DataError: the image or volume can no longer be read, or its unit does not go with the window.
        """
        if data.spec.dimensions == 2:
            image = data.image(document)
            return [image if change is None else change(image)]
        from medmllm_plugins.data.readers.picture_options import montage
        from medmllm_plugins.data.readers.slices import slice_images

        slices = slice_images(data.volume(document), self.slices, window=self.window, plane=self.plane)
        pictures = list(slices) if change is None else [change(picture) for picture in slices]
        return [montage(pictures)] if self.montage else pictures


def draw_marks_on_volume(volume: Volume, marks: Sequence[Mark]) -> Volume:
    """Return a copy of a volume with white squares on each slice along its first axis, as the array holds them."""
    from medmllm_plugins.data.readers.intensity_windows import window_bounds

    black, white = window_bounds(volume.voxels, None, volume.unit)
    voxels = volume.voxels.copy()
    for outer, inner in mark_boxes((voxels.shape[2], voxels.shape[1]), marks):
        for (left, top, right, bottom), value in ((outer, black), (inner, white)):
            voxels[:, top:bottom, left:right] = value
    return replace(volume, voxels=voxels)


def mask_border_of_volume(volume: Volume) -> Volume:
    """Return a copy of a volume with the border of each slice along its first axis masked."""
    return replace(volume, voxels=mask_border_of_array(volume.voxels, axes=(1, 2)))
