"""Layouts: how a data set's files become documents, by the name that declarations use."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from PIL import Image

from medmllm_plugins.data.documents import Document
from medmllm_plugins.data.spec import DatasetSpec
from medmllm_plugins.errors import DataError


class Layout(Protocol):
    """A reader of one way to lay out a data set."""

    def documents(self, spec: DatasetSpec, root: Path | None) -> list[Document]:
        """List all documents, having checked every file; nothing is written below ``root``.

        Args:
            spec: the declaration.
            root: the folder that holds the data set's folder ``spec.folder``; ``None`` for generated sets.

        Raises:
            DataError: something is wrong with the data; one error with all faults.
        """
        ...

    def image(self, document: Document) -> Image.Image:
        """The document's image in mode ``RGB``.

        Raises:
            DataError: the image cannot be read any more.
        """
        ...


_LAYOUTS = {
    "busi": "medmllm_plugins.data.busi:Busi",
    "covid19_ct": "medmllm_plugins.data.covid19_ct:Covid19CT",
    "phantoms": "medmllm_plugins.data.phantoms:Phantoms",
}


def layout(name: str) -> Layout:
    """Make the layout of that name; its module is imported now and not before.

    Args:
        name: one of this package's layouts, or ``"package.module:Class"``, a plugin's own.

    Raises:
        DataError: no layout has that name.
    """
    module, _, attribute = _LAYOUTS.get(name, name).partition(":")
    if not attribute:
        raise DataError(
            f'Expected `layout` to be one of {sorted(_LAYOUTS)} or "package.module:Class", found {name!r}.'
        )
    try:
        made = getattr(import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError) as error:
        raise DataError(f"Expected the layout {name!r} to be a class that can be made, found {error}.") from error
    return cast(Layout, made)
