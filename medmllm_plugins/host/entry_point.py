"""The entry points by which lmms-eval finds our models and tasks.

The host reads entry points for models only. It imports ``lmms_eval.models`` before it builds the task index, so the
entry point for models also installs the hook that adds the tasks of all plugins to that index.
Everything here runs inside ``import lmms_eval.models``: no torch, and no exception ever leaves it, since one would
drop the models of every other package too.
"""

from __future__ import annotations

import sys
from typing import Any

from loguru import logger

from medmllm_plugins.host.task_manager_hook import install_task_hook
from medmllm_plugins.plugins.manager import get_manager


def manifests() -> list[Any]:
    """Return one manifest for each plugin model: the entry point of the group ``lmms_eval.models``.

    Returns:
        The host's ``ModelManifest`` objects; an empty list, and a warning, if anything goes wrong.
    """
    try:
        install_task_hook()
        return _manifests()
    except Exception as error:
        # The host drops the models of all packages if one entry point raises.
        logger.warning(f"medmllm-plugins: no models registered: {type(error).__name__}: {error}")
        return []


def task_folders() -> list[str]:
    """Return our task folders: the entry point of the group ``lmms_eval.tasks``, which the host does not read yet."""
    try:
        return sorted({str(entry.path.parent) for entry in get_manager().tasks().values()})
    except Exception as error:
        logger.warning(f"medmllm-plugins: no tasks registered: {type(error).__name__}: {error}")
        return []


def _manifests() -> list[Any]:
    from lmms_eval.models.registry_v2 import ModelManifest

    host = sys.modules.get("lmms_eval.models")
    simple = getattr(host, "AVAILABLE_SIMPLE_MODELS", {})
    chat = getattr(host, "AVAILABLE_CHAT_TEMPLATE_MODELS", {})
    # The host lets a plugin overwrite the second name of one of its models.
    aliases = {alias for names in getattr(host, "MODEL_ALIASES", {}).values() for alias in names}
    manifests = []
    for name, spec in get_manager().models().items():
        path = spec.wrapper or f"medmllm_plugins.host.registered_models.{name}"
        taken = simple.get(name) or chat.get(name)
        if name in aliases or (taken is not None and taken != path):
            logger.warning(f"medmllm-plugins: model {name!r} is left out: lmms-eval has a model of that name.")
            continue
        chat[name] = path  # `lmms-eval models` lists this table, not the registry
        manifests.append(ModelManifest(model_id=name, chat_class_path=path))
    for notice in get_manager().notices:
        logger.warning(f"medmllm-plugins: {notice}")
    return manifests


def register_models() -> None:
    """Register our models with the host if it has not found them.

    The host reads the entry points of all distributions at once, so that one damaged ``entry_points.txt`` of any
    package hides every plugin; ``medmllm doctor`` names the file.
    """
    import lmms_eval.models as host

    registry = host.MODEL_REGISTRY_V2
    missing = [item for item in manifests() if item.model_id not in registry.list_canonical_model_ids()]
    for manifest in missing:
        registry.register_manifest(manifest, overwrite=True)
        host.AVAILABLE_MODELS[manifest.model_id] = str(manifest.chat_class_path).rpartition(".")[2]
    if missing:
        logger.warning(
            f"medmllm-plugins: lmms-eval did not find {len(missing)} models of this package; they were added. "
            "`medmllm doctor` says why."
        )
