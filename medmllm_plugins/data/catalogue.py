"""All declared data sets: our own and those of plugins."""

from __future__ import annotations

import logging

from medmllm_plugins.data.spec import DatasetSpec, read_spec
from medmllm_plugins.errors import MedMLLMError
from medmllm_plugins.manager import get_manager

logger = logging.getLogger(__name__)


def dataset_specs() -> dict[str, DatasetSpec]:
    """Data-set declarations by name, from the ``datasets`` folder of every plugin's task folder.

    A declaration that cannot be read is reported and left out; of two with one name the first counts.
    """
    specs: dict[str, DatasetSpec] = {}
    for folder in get_manager().dataset_folders():
        for path in sorted(folder.glob("*.yaml")):
            try:
                spec = read_spec(path)
            except (MedMLLMError, OSError, ValueError) as error:
                logger.warning("data set left out: %s", error)
                continue
            if spec.name in specs:
                logger.warning("data set %r of %s is hidden by another of that name", spec.name, path)
                continue
            specs[spec.name] = spec
    return specs
