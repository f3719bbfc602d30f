"""Two models: a checkpoint of a family that medmllm-plugins knows, and an architecture that it does not know."""

from medmllm_plugins import ModelSpec, hookimpl


@hookimpl
def medmllm_models() -> list[ModelSpec]:
    """Return two models; declaring them imports nothing."""
    return [
        ModelSpec(
            name="of_mine",
            summary="Our Qwen2.5-VL, fine-tuned at our hospital.",
            sizes={"7b": "our-hospital/qwen2.5-vl-7b-radiology"},
            family="qwen2_5_vl",
        ),
        ModelSpec(
            name="convnet_of_mine",
            summary="Our ConvNet with an MLP connector and a Llama.",
            family="medmllm_of_mine.convnet:ConvFamily",
        ),
    ]
