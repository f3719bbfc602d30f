"""A minimal plugin: one model, one task with its data set, and one probe.

The hooks return plain declarations. Anything heavy is imported inside the function that needs it, so that listing
models and tasks stays fast.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from medmllm_plugins.plugins.hookspecs import hookimpl
from medmllm_plugins.plugins.specs import ModelSpec, ProbeSpec, TaskFolder

if TYPE_CHECKING:
    from medmllm_plugins.models.base import LoadedModel
    from medmllm_plugins.models.options import LoadOptions

SIZES = {"tiny": "demo", "3b": "shiym2000/MedM-VL-2D-3B-en"}


@hookimpl
def medmllm_models() -> list[ModelSpec]:
    """One model: MedM-VL under another name."""
    return [
        ModelSpec(
            name="example_vl",
            summary="MedM-VL 2D, as an example of a third party's model.",
            loader="medmllm_example:load",
            sizes=SIZES,
        )
    ]


@hookimpl
def medmllm_tasks() -> list[TaskFolder]:
    """The YAML files in ``tasks/``; declarations of data sets are in ``tasks/datasets/``."""
    return [TaskFolder(path="medmllm_example:tasks")]


@hookimpl
def medmllm_probes() -> list[ProbeSpec]:
    """A scikit-learn classifier as a probe: ``medmllm diagnose RUN_DIR --protocol nearest``."""
    return [ProbeSpec(name="nearest", target="medmllm_example.probes:nearest", summary="Nearest neighbours.")]


def load(options: LoadOptions) -> LoadedModel:
    """Load a checkpoint with the MedM-VL reader of medmllm-plugins, under this plugin's own size names."""
    from medmllm_plugins.models.formats import medm_vl

    return medm_vl.load(replace(options, pretrained=SIZES.get(options.pretrained, options.pretrained)))
