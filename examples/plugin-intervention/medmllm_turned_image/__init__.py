"""The image turned by 180 degrees, and a grey image."""

from medmllm_plugins import InterventionSpec, hookimpl


@hookimpl
def medmllm_interventions() -> list[InterventionSpec]:
    """Return the intervention; declaring it imports nothing."""
    return [
        InterventionSpec(
            name="turned_image",
            target="medmllm_turned_image.intervention:other_images",
            summary="The image turned by 180 degrees, and a grey image.",
            description="the image turned by 180 degrees, and a grey image in its place",
        )
    ]
