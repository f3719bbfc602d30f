"""A nearest-centroid probe."""

from medmllm_plugins import ProbeSpec, hookimpl


@hookimpl
def medmllm_probes() -> list[ProbeSpec]:
    """Return the probe; declaring it imports nothing."""
    return [
        ProbeSpec(
            name="centroid",
            target="medmllm_centroid.probe:fit_nearest_centroids",
            summary="A nearest-centroid probe.",
            description="a nearest-centroid classifier with one variance",
        )
    ]
