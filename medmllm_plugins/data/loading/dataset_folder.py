"""Where a data set is expected on this machine, and whether it is there."""

from __future__ import annotations

import os
from pathlib import Path

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.layouts.layout_registry import layout
from medmllm_plugins.errors import DataError
from medmllm_plugins.utils.user_dirs import DATA_VARIABLE


def expected_folder(spec: DatasetSpec, root: Path | None = None) -> Path | None:
    """Return the absolute folder of a data set, which need not exist.

    ``root`` holds the data set's folder; default: the environment variable ``MEDMLLM_DATA``. Return ``None`` for a
    relative folder without either.
    """
    declared = Path(spec.folder).expanduser()
    if declared.is_absolute():
        return declared
    base = _data_root(root)
    return None if base is None else base / declared


def _data_root(root: Path | None) -> Path | None:
    if root is None:
        value = os.environ.get(DATA_VARIABLE)
        if not value:
            return None
        root = Path(value)
    return root.expanduser().absolute()


def is_present(spec: DatasetSpec) -> bool:
    """Return whether a data set seems to be on this machine; no file is read. Generated sets always are."""
    if not spec.folder:
        return True
    folder = expected_folder(spec)
    try:
        return folder is not None and layout(spec.layout).is_there(spec, folder)
    except (DataError, OSError):  # a plugin's layout that cannot be imported, or a folder that cannot be listed
        return False


def require_folder(spec: DatasetSpec, root: Path | None = None) -> Path:
    """Return the absolute folder of a data set; see :func:`expected_folder` for the arguments.

    Raises:
        DataError: it is not there; the message says how to get the set.
    """
    get = f"Get the set from {spec.download}" if spec.download else "Put the set there"
    folder = expected_folder(spec, root)
    if folder is None:
        raise DataError(
            f"{spec.title}: expected the environment variable {DATA_VARIABLE} to name the folder that holds "
            f"{spec.folder}/, got no value. {get}, then: export {DATA_VARIABLE}=FOLDER."
        )
    if not os.path.isdir(folder):  # Path.is_dir raises where a part of the path is too long
        base = None if Path(spec.folder).expanduser().is_absolute() else _data_root(root)
        got = (
            "a file of that name"
            if folder.exists()
            else "none"
            if base is None or base.is_dir()
            else f"not even {base}"
        )
        fix = "." if base is None else f", and set {DATA_VARIABLE} to the folder that holds {spec.folder}/."
        raise DataError(f"{spec.title}: expected the folder {folder}, got {got}. {get}{fix}")
    return folder


def missing_folder(spec: DatasetSpec) -> str:
    """Return why a data set's folder is not on this machine and how to get it; an empty text where it is there."""
    try:
        if spec.folder:
            require_folder(spec)
    except DataError as error:
        return str(error)
    return ""
