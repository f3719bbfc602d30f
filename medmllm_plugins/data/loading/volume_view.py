"""Show a document to a model that takes images: an image as it is, a volume as slices or as one montage."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.loading.dataset import Dataset
from medmllm_plugins.errors import OptionError

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

    def pictures(self, data: Dataset, document: Document) -> list[Image.Image]:
        """Return the pictures of a document, mode ``RGB``: one, or one for each slice.

        Raises:
            DataError: the image or volume can no longer be read, or its unit does not go with the window.
        """
        if data.spec.dimensions == 2:
            return [data.image(document)]
        from medmllm_plugins.data.readers.picture_options import montage
        from medmllm_plugins.data.readers.slices import slice_images

        pictures = slice_images(data.volume(document), self.slices, window=self.window, plane=self.plane)
        return [montage(pictures)] if self.montage else pictures
