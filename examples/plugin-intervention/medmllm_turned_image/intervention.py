"""An intervention on the model's input: what the answer loses shows whether it depends on the image."""

from collections.abc import Callable, Mapping, Sequence

from medmllm_plugins import LoadedModel
from PIL import Image

Shown = Image.Image | Sequence[Image.Image]
"""What a question is about: an image, or for models that take several, a list of them."""
GREY = (128, 128, 128)


def other_images(
    model: LoadedModel, question: str, images: Sequence[Shown], labels: Sequence[str], every: int
) -> Mapping[str, list[tuple[float, ...]]]:
    """Score the labels with other images.

    To change something inside the model instead, put hooks on ``layers_of(model)``, and remove them, also after an
    error.

    Args:
        model: the model.
        question: the question, the same for all documents.
        images: one visual input for each document of a batch.
        labels: K labels to score.
        every: intervene at every k-th block; 0 for a default of your own. This intervention changes the input only.

    Returns:
        Name of a condition to log-probabilities of the labels in nats, K for each document.
    """

    def scores(shown: Sequence[Shown]) -> list[tuple[float, ...]]:
        answers = model.generate([question] * len(shown), shown, max_new_tokens=0, labels=labels)
        return [tuple(answer.scores or ()) for answer in answers]

    return {
        "turned by 180 degrees": scores([_each(shown, lambda image: image.rotate(180)) for shown in images]),
        "grey": scores([_each(shown, lambda image: Image.new("RGB", image.size, GREY)) for shown in images]),
    }


def _each(shown: Shown, change: Callable[[Image.Image], Image.Image]) -> Shown:
    """Change an image, or each of several."""
    return change(shown) if isinstance(shown, Image.Image) else [change(image) for image in shown]
