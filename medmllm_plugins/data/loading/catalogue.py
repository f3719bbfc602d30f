"""All declared data sets: our own, those of plugins and the user's."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from pathlib import Path

from medmllm_plugins.data.core.dataset_spec import DatasetSpec, read_spec
from medmllm_plugins.errors import MedMLLMError, PluginError, one_line
from medmllm_plugins.plugins.manager import get_manager

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Declaration:
    """A data set and the file that declares it."""

    spec: DatasetSpec
    path: Path


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Data sets by name, and for each file that was left out one line that begins with its path."""

    declarations: dict[str, Declaration]
    faults: tuple[str, ...]


def read_catalogue() -> Catalogue:
    """Read the data-set declarations in the ``datasets`` folder of every task folder.

    A file that cannot be read or declares nothing is left out alone, whatever is wrong with it; of two declarations
    with one name the first counts. Each fault is logged once in a process.

    Raises:
        PluginError: there is a fault, and ``MEDMLLM_STRICT=1``.
    """
    manager = get_manager()
    specs: dict[str, Declaration] = {}
    faults: list[str] = []
    for folder in manager.dataset_folders():
        for path in sorted(folder.glob("*.yaml")):
            try:
                stat = path.stat()
                spec = _read(path, (stat.st_ino, stat.st_size, stat.st_mtime_ns))
            except MedMLLMError as error:
                faults.append(str(error))
            except Exception as error:  # one file's fault must not take every data set with it
                faults.append(f"{path}: expected a declaration of a data set, got {one_line(error)}")
            else:
                if spec.name in specs:
                    faults.append(
                        f"{path}: expected a name of its own, got {spec.name!r}, which {specs[spec.name].path} "
                        "declares already. Give one of them another name."
                    )
                else:
                    specs[spec.name] = Declaration(spec, path)
    for fault in faults:
        if manager.strict:
            raise PluginError(fault)
        if fault not in _logged:
            _logged.add(fault)
            logger.warning("data set left out: %s", fault)
    return Catalogue(specs, tuple(faults))


_logged: set[str] = set()
"""Faults that this process has logged; every command reads the declarations several times."""


@functools.lru_cache(maxsize=1024)
def _read(path: Path, state: tuple[int, ...]) -> DatasetSpec:
    """Read a declaration once for as long as its file is in this state; commands ask for all of them many times."""
    return read_spec(path)


def declarations() -> dict[str, Declaration]:
    """Return data-set declarations by name; see :func:`read_catalogue`."""
    return read_catalogue().declarations


def dataset_specs() -> dict[str, DatasetSpec]:
    """Return declared data sets by name; see :func:`declarations`."""
    return {name: declaration.spec for name, declaration in declarations().items()}
