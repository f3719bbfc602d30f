"""The text a model is asked, one function for each protocol."""

from __future__ import annotations

from collections.abc import Sequence


def closed_set(modality: str, labels: Sequence[str]) -> str:
    """Closed-set question with the label texts as the options (the default protocol).

    Args:
        modality: what the image is, such as ``"breast ultrasound image"``.
        labels: class names, in the order they are to be listed.
    """
    return (
        f"Classify this {modality} into one of the following categories: {', '.join(labels)}. "
        "Answer with the category name only."
    )
