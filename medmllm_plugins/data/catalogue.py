"""All declared data sets: our own, those of plugins and the user's."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from medmllm_plugins.data.spec import DatasetSpec, read_spec
from medmllm_plugins.errors import MedMLLMError
from medmllm_plugins.manager import get_manager

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Declaration:
    """A data set and the file that declares it."""

    spec: DatasetSpec
    path: Path


def declarations() -> dict[str, Declaration]:
    """Data-set declarations by name, from the ``datasets`` folder of every task folder.

    A declaration that cannot be read is reported and left out; of two with one name the first counts.
    """
    found: dict[str, Declaration] = {}
    for folder in get_manager().dataset_folders():
        for path in sorted(folder.glob("*.yaml")):
            try:
                spec = read_spec(path)
            except (MedMLLMError, OSError, ValueError) as error:
                logger.warning("data set left out: %s", error)
                continue
            if spec.name in found:
                logger.warning("data set %r of %s is hidden by another of that name", spec.name, path)
                continue
            found[spec.name] = Declaration(spec, path)
    return found


def dataset_specs() -> dict[str, DatasetSpec]:
    """Declared data sets by name; see :func:`declarations`."""
    return {name: declaration.spec for name, declaration in declarations().items()}
