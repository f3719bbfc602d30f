"""How a document is shown to a model that takes pictures: an image as it is, a volume as slices or as one montage."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.loading.dataset import Dataset
from medmllm_plugins.errors import OptionError

PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How volumes are shown; images are shown as they are.

    Attributes:
        slices: number of slices, evenly spaced.
        montage: whether they stand in one picture, as models that take one picture need it, or each in its own.
        plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        window: intensity window by name or as ``"centre/width"``, see :mod:`medmllm_plugins.data.readers.intensity_windows`; ``None``
            for the default of the volume's unit.

    Raises:
        OptionError: a value is none of these.
    """

    slices: int = 9
    montage: bool = True
    plane: str = "axial"
    window: str | None = None

    def __post_init__(self) -> None:
        if self.slices < 1:
            raise OptionError(f"Expected argument `slices` to be at least 1, but got {self.slices!r}.")
        if self.plane not in PLANES:
            raise OptionError(f"Expected argument `plane` to be one of {list(PLANES)}, but got {self.plane!r}.")

    def pictures(self, data: Dataset, document: Document) -> list[Image.Image]:
        """The pictures of a document, mode ``RGB``: one, or one for each slice.

        Raises:
            DataError: the image or volume cannot be read any more, or its unit does not go with the window.
        """
        if data.spec.dimensions == 2:
            return [data.image(document)]
        from medmllm_plugins.data.readers.slices import montage, slice_images

        pictures = slice_images(data.volume(document), self.slices, window=self.window, plane=self.plane)
        return [montage(pictures)] if self.montage else pictures
