"""A small medical MLLM of pretrained parts, declared for medmllm-plugins."""

from medmllm_plugins import ModelSpec, hookimpl


@hookimpl
def medmllm_models() -> list[ModelSpec]:
    """Return the model; declaring it imports nothing."""
    return [
        ModelSpec(
            name="small_mllm",
            summary="EfficientNet-Lite0, an MLP connector and SmolLM2-135M, trained by small_mllm.train.",
            family="small_mllm.architecture:SmallFamily",
        )
    ]
