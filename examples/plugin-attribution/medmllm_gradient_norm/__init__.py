"""The length of the target's gradient at each row."""

from medmllm_plugins import AttributionSpec, hookimpl


@hookimpl
def medmllm_attributions() -> list[AttributionSpec]:
    """Return the attribution method; declaring it imports nothing."""
    return [
        AttributionSpec(
            name="gradient_norm",
            target="medmllm_gradient_norm.method:gradient_norm",
            summary="The length of the target's gradient at each row.",
            description="the Euclidean norm of the target's gradient at each row of a layer",
        )
    ]
