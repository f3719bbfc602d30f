"""Attention knock-out: hide the image tokens from the answer, or from the question, in a window of layers.

What the answer loses shows at which layers image information moves to the question, and from there or directly to the
answer's position.

Source: Neo et al., "Towards interpreting visual information processing in vision-language models", arXiv 2410.07149.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from medmllm_plugins.interventions.model_edits import check_masks, track_batch
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.models.stages import is_block, layers_of
from medmllm_plugins.prompts.patch_options import BLOCKS

Queries: TypeAlias = Literal["question", "answer", "text"]
"""The tokens from which the image is hidden: the text of the prompt before its last token, its last token and the
answer, or all of these."""
QUERIES: Final[tuple[Queries, ...]] = get_args(Queries)


@dataclass(frozen=True, slots=True)
class Cut:
    """Attention to the image that is cut.

    Attributes:
        first: the first block of a window.
        last: its last block.
        queries: the tokens that no longer see the image.
    """

    first: str
    last: str
    queries: Queries


def cuts_of(loaded: LoadedModel, *, every: int = 0) -> tuple[Cut, ...]:
    """Return the cuts: windows of ``every`` blocks for question and answer, and all blocks for all three kinds.

    With 0 there are about :data:`~medmllm_plugins.prompts.patch_options.BLOCKS` windows.
    """
    blocks = [layer.name for layer in layers_of(loaded) if layer.part == "llm" and is_block(layer)]
    every = every or max(1, round(len(blocks) / BLOCKS))
    windows = [blocks[start : start + every] for start in range(0, len(blocks), every)]
    single = [Cut(window[0], window[-1], queries) for queries in QUERIES[:2] for window in windows]
    whole = [Cut(blocks[0], blocks[-1], queries) for queries in QUERIES]
    return tuple(dict.fromkeys([*single, *whole]))


def knock_out(
    loaded: LoadedModel, question: str, images: Sequence[VisualInput], labels: Sequence[str], cuts: Sequence[Cut]
) -> Mapping[Cut, list[tuple[float, ...]]]:
    """Score the labels of a batch of documents with attention to the image cut.

    Returns:
        Log-probabilities of the labels by cut, in nats, document by document.

    Raises:
        ModelError: the model's attention takes no masks.
    """
    check_masks(loaded)
    blocks = [layer for layer in layers_of(loaded) if layer.part == "llm" and is_block(layer)]
    names = [layer.name for layer in blocks]
    questions = [question] * len(images)
    scores: dict[Cut, list[tuple[float, ...]]] = {}
    for cut in cuts:
        with ExitStack() as stack:
            batch = stack.enter_context(track_batch(loaded))
            hide = batch.images_from(cut.queries)
            for number in range(names.index(cut.first), names.index(cut.last) + 1):
                stack.enter_context(batch.masked(blocks[number].module, number, hide))
            generations = loaded.generate(questions, images, max_new_tokens=0, labels=labels)
        scores[cut] = [tuple(generation.scores or ()) for generation in generations]
    return scores
