"""A model of one's own: a checkpoint of a family that medmllm-plugins knows, under a name of its own."""

from medmllm_plugins.plugins.hookspecs import hookimpl
from medmllm_plugins.plugins.specs import ModelSpec


@hookimpl
def medmllm_models() -> list[ModelSpec]:
    """One model; any function that returns a ``LoadedModel`` may stand as loader, see docs/plugins.md."""
    return [
        ModelSpec(
            name="of_mine",
            summary="Our Qwen2.5-VL, fine-tuned at our hospital.",
            loader="medmllm_plugins.models.medical_models:any_family",
            sizes={"7b": "our-hospital/qwen2.5-vl-7b-radiology"},
        )
    ]
