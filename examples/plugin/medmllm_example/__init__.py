"""A minimal plugin: one model, one task with its data set, and one probe.

The hooks return plain declarations that name code by dotted path, so that listing models and tasks stays fast.
"""

from __future__ import annotations

from medmllm_plugins import ModelSpec, ProbeSpec, TaskFolder, hookimpl


@hookimpl
def medmllm_models() -> list[ModelSpec]:
    """Return one model: MedM-VL under another name, with its own size names."""
    return [
        ModelSpec(
            name="example_vl",
            summary="MedM-VL 2D, as an example of a third party's model.",
            sizes={"tiny": "demo", "3b": "shiym2000/MedM-VL-2D-3B-en"},
            loader="medmllm_plugins.models.formats.medm_vl:load",
        )
    ]


@hookimpl
def medmllm_tasks() -> list[TaskFolder]:
    """Return the folder of task files; declarations of data sets are in ``tasks/datasets/``."""
    return [TaskFolder(path="medmllm_example:tasks")]


@hookimpl
def medmllm_probes() -> list[ProbeSpec]:
    """Return a scikit-learn classifier as a probe: ``medmllm diagnose RUN_DIR --protocol nearest``."""
    return [ProbeSpec(name="nearest", target="medmllm_example.probes:nearest", summary="Nearest neighbours.")]
