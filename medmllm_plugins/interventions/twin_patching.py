"""Twin patching: put the states of one model into a run of another on the same documents, site by site.

Two checkpoints of one architecture answer the same questions. Where the states of the better one restore the answers
of the other, all that comes before is no longer needed to explain the difference; where they do not, the difference
lies behind. Putting the worse one's states into the better one shows where the answers break.

Sources: Zhang and Nanda, "Towards best practices of activation patching", arXiv 2309.16042; Geiger et al., "Causal
abstractions of neural networks", arXiv 2106.02997.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from medmllm_plugins.errors import ModelError
from medmllm_plugins.interventions.hybrid_model import HybridModel, LabelReplay
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.models.cache_layers import joined_rows, own_copies
from medmllm_plugins.models.generation import Prefill, greedy, score_labels
from medmllm_plugins.models.recorded_pass import CONNECTOR, TOWER_END, RecordedPass
from medmllm_plugins.models.stages import EMBED, is_block, layers_of
from medmllm_plugins.prompts.patch_options import BLOCKS, TOKENS, Tokens

MODEL: Final = "model"
TWIN: Final = "twin"
CONNECTOR_ALONE: Final = "connector alone"
"""Name of the site that exchanges the connector and nothing before it: it reads the recipient's own tower."""
_TOGETHER: Final = 4
"""Sites from which answers are generated at a time; each needs the keys and values of its prompts."""
IMAGE_SITES: Final = (TOWER_END, CONNECTOR_ALONE, CONNECTOR)
"""Sites that hold image tokens only."""


@dataclass(frozen=True, slots=True)
class PatchSite:
    """A layer, and the tokens whose states are put in there; tower and connector have image tokens only."""

    layer: str
    tokens: Tokens = "all"

    @property
    def name(self) -> str:
        """Text such as ``llm.03 (image)``."""
        return self.layer if self.layer in IMAGE_SITES else f"{self.layer} ({self.tokens})"


@dataclass(frozen=True, slots=True)
class PatchedAnswer:
    """A model's answer to one document.

    Attributes:
        text: the generated text.
        scores: log p(label | prompt, image) of each label, in nats.
    """

    text: str
    scores: tuple[float, ...]


Answers: TypeAlias = Mapping[PatchSite | None, list[PatchedAnswer]]
"""Answers by site; ``None`` stands for the model as it is."""


def patch_sites(loaded: LoadedModel, *, every: int = 0, tokens: Sequence[Tokens] = TOKENS) -> tuple[PatchSite, ...]:
    """Return the sites in the order in which an image passes them.

    They are the end of the tower, the connector alone, both together, the input of the LLM, every ``every``-th block
    and the last one, each with all of ``tokens``, and all tokens after the final norm. With 0 about
    :data:`~medmllm_plugins.prompts.patch_options.BLOCKS` blocks are taken.
    """
    blocks = [layer.name for layer in layers_of(loaded) if layer.part == "llm" and is_block(layer)]
    every = every or max(1, round(len(blocks) / BLOCKS))
    chosen = [name for index, name in enumerate(blocks) if (index + 1) % every == 0 or name == blocks[-1]]
    inner = [PatchSite(layer, some) for layer in [EMBED, *chosen] for some in tokens]
    return (*map(PatchSite, IMAGE_SITES), *inner, PatchSite("llm.norm"))


@dataclass(frozen=True, slots=True)
class DonorStates:
    """The states of another model on the documents that a model answers about.

    Attributes:
        states: states by layer, as a :class:`~medmllm_plugins.models.recorded_pass.RecordedPass` has them;
            :data:`CONNECTOR_ALONE` among them, what the other model's connector makes of the model's own tower.
        donor_pass: the other model's pass; ``None`` where its states alone are at hand.
        label_states: where it is not loaded, its states of the tokens of labels by layer, or of other continuations.
    """

    states: Mapping[str, tuple[Tensor, ...]]
    donor_pass: RecordedPass | None = None
    label_states: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)


def recorded_layers(sites: Sequence[PatchSite]) -> set[str]:
    """Return the layers that a pass must record, so that its states can be put in at the sites."""
    return {TOWER_END, CONNECTOR, *(site.layer for site in sites)} - {CONNECTOR_ALONE}


def patch_twins(
    recipient: LoadedModel,
    donor: LoadedModel,
    question: str,
    images: Sequence[VisualInput],
    labels: Sequence[str],
    sites: Sequence[PatchSite],
    *,
    max_new_tokens: int = 16,
) -> tuple[Answers, Answers]:
    """Answer one question about a batch of documents, with the states of each model put into the other.

    Where the states of all tokens are put in, those of the answer's tokens are too: everything up to the site is
    computed by the other model. Image tokens and the last token are those of the prompt.

    Args:
        recipient: the model to be restored.
        donor: the model that restores it.
        question: the question.
        images: one visual input a document.
        labels: the labels to score; empty for none.
        sites: where states are put in.
        max_new_tokens: the most tokens of an answer.

    Returns:
        The answers of the recipient with the donor's states, and those of the donor with the recipient's.

    Raises:
        ModelError: the two models do not see the same tokens.
    """
    twins, questions = (recipient, donor), [question] * len(images)
    inputs = [twin.prepare(questions, images) for twin in twins]
    check_same_tokens(inputs[0], inputs[1])
    layers = recorded_layers(sites)
    passes = [RecordedPass(twin, own, layers) for twin, own in zip(twins, inputs, strict=True)]
    first, second = (
        answers_with_states(
            twin, own, _states_of(other, own, sites), question, labels, sites, max_new_tokens=max_new_tokens
        )
        for twin, own, other in zip(twins, passes, reversed(passes), strict=True)
    )
    return first, second


def _states_of(donor: RecordedPass, own: RecordedPass, sites: Sequence[PatchSite]) -> DonorStates:
    states = dict(donor.states)
    if any(site.layer == CONNECTOR_ALONE for site in sites):
        states[CONNECTOR_ALONE] = donor.connected(donor.moved(own.states[TOWER_END]))
    return DonorStates(states, donor)


def answers_with_states(
    loaded: LoadedModel,
    own: RecordedPass,
    donor: DonorStates,
    question: str,
    labels: Sequence[str],
    sites: Sequence[PatchSite],
    *,
    max_new_tokens: int,
) -> Answers:
    """Answer one question about the documents of a pass, with the states of another model put in site by site.

    Where the other model is not loaded, sites with the states of all tokens get no text, because its tokens would have
    to go through that model; see :mod:`medmllm_plugins.interventions.stored_answers`.

    Args:
        loaded: the model.
        own: its pass over the prompts.
        donor: the other model's states on the same prompts.
        question: the question.
        labels: the labels to score; empty for none.
        sites: where states are put in.
        max_new_tokens: the most tokens of an answer.
    """
    count = len(own.inputs["input_ids"])
    label_ids = [loaded.label_ids(question, labels)] * count
    image = loaded.image_positions(own.inputs)
    unread = unread_blocks(loaded)
    answers: dict[PatchSite | None, list[PatchedAnswer]] = {}
    waiting: list[tuple[PatchSite | None, Prefill]] = []

    def answer_waiting() -> None:
        if waiting:
            start = _merged([start for _, start in waiting])
            rows = _answers(loaded, loaded.model, start, label_ids * len(waiting), max_new_tokens)
            answers.update({site: rows[index * count :][:count] for index, (site, _) in enumerate(waiting)})
            waiting.clear()

    # Answering extends the cache, which the other direction starts from.
    waiting.append((None, replace(own.start, cache=own_copies(own.start.cache))))
    for site in sites:
        if holds_all_tokens(site) and donor.donor_pass is not None:
            hybrid = HybridModel(own, donor.donor_pass, site.layer)
            answers[site] = _answers(loaded, hybrid, hybrid.prefill(), label_ids, max_new_tokens)
        elif holds_all_tokens(site):
            answers[site] = _answers(loaded, *replayed(site, own, donor), label_ids, 0)
        elif not (site.tokens == "image" and site.layer in unread):
            waiting.append((site, _start(site, own, donor, image)))
        if len(waiting) >= _TOGETHER:
            answer_waiting()
    answer_waiting()
    # Nothing reads the states of image tokens there.
    return {site: answers.get(site, answers[None]) for site in (*sites, None)}


def unread_blocks(loaded: LoadedModel) -> list[str]:
    """Return the blocks after which no token reads the states of others, since no later block makes keys of them."""
    blocks = [layer.name for layer in layers_of(loaded) if layer.part == "llm" and is_block(layer)]
    return blocks[loaded.family.blocks_with_keys(loaded.model, len(blocks)) - 1 :]


def _start(site: PatchSite, own: RecordedPass, donor: DonorStates, image: Tensor) -> Prefill:
    """Return the state after the prompts with the donor's states at a site that holds some of their tokens."""
    theirs = own.moved(donor.states[site.layer])
    if site.layer == CONNECTOR_ALONE:
        return own.resume(CONNECTOR, theirs)
    return resumed(site, own, mixed_states(site, own, theirs, image))


def _merged(starts: Sequence[Prefill]) -> Prefill:
    """Return states after prompts of equal length as those of one batch."""
    return Prefill(
        torch.cat([start.logits for start in starts]),
        joined_rows([start.cache for start in starts]),
        torch.cat([start.attention_mask for start in starts]),
        torch.cat([start.next_position for start in starts]),
    )


def holds_all_tokens(site: PatchSite) -> bool:
    """Return whether a site holds the states of all tokens, those of answers among them."""
    return site.tokens == "all" and site.layer not in IMAGE_SITES


def replayed(site: PatchSite, own: RecordedPass, donor: DonorStates) -> tuple[LabelReplay, Prefill]:
    """Return a model whose lower part is recorded, and its state after the prompts.

    Args:
        site: a site with the states of all tokens.
        own: a pass of the model that is the upper part.
        donor: the states of the lower part, of the prompts and of the tokens that follow.
    """
    states, connectors = (own.moved(donor.states[layer]) for layer in (site.layer, CONNECTOR))
    start = own.resume(site.layer, states, connectors, own.beside(donor.states))
    return LabelReplay(own, site.layer, donor.label_states), start


def mixed_states(site: PatchSite, own: RecordedPass, theirs: tuple[Tensor, ...], image: Tensor) -> tuple[Tensor, ...]:
    """Return the states of a site in which the chosen tokens have other states than in a pass.

    Args:
        site: the site.
        own: the pass.
        theirs: the other states, of the same shapes.
        image: (B, L) bool, which tokens of the prompts are those of the image.
    """
    if site.layer in IMAGE_SITES:
        return theirs
    chosen = image
    if site.tokens == "last":
        chosen = torch.zeros_like(image)
        chosen[:, -1] = True
    pairs = zip(own.states[site.layer], theirs, strict=True)
    return tuple(torch.where(chosen[:, :, None].to(mine.device), their, mine) for mine, their in pairs)


def resumed(
    site: PatchSite, own: RecordedPass, states: tuple[Tensor, ...], connectors: tuple[Tensor, ...] | None = None
) -> Prefill:
    """Return the state after the prompts of a pass with other states of the chosen tokens, see :func:`mixed_states`.

    ``connectors`` are outputs of the connectors that go with image tokens, see
    :meth:`~medmllm_plugins.models.recorded_pass.RecordedPass.resume`.
    """
    if site.tokens == "last" and site.layer not in IMAGE_SITES:
        return own.resume_last(site.layer, states)
    return own.resume(site.layer, states, connectors)


@torch.no_grad()
def _answers(
    loaded: LoadedModel, model: Any, start: Prefill, label_ids: list[list[list[int]]], max_new_tokens: int
) -> list[PatchedAnswer]:
    scores: list[list[float]] = [[] for _ in label_ids]
    if label_ids[0]:
        scores = score_labels(model, start, label_ids, prefix_length=loaded.prefix_length).tolist()
    rows = greedy(model, start, max_new_tokens=max_new_tokens, eos_token_ids=loaded.eos_token_ids)
    decode = loaded.tokenizer.decode
    texts = [str(decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)) for row in rows]
    return [PatchedAnswer(text, tuple(row)) for text, row in zip(texts, scores, strict=True)]


def check_same_tokens(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """Check that both models see the same prompt and as many image tokens, by what their ``prepare`` returned.

    Raises:
        ModelError: they do not.
    """
    shapes = [tuple(inputs["input_ids"].shape) for inputs in (first, second)]
    if shapes[0] != shapes[1] or not torch.equal(first["input_ids"].cpu(), second["input_ids"].cpu()):
        raise ModelError(
            f"Expected both models to see the same tokens, got prompts of the shapes {shapes[0]} and {shapes[1]}"
            f"{'' if shapes[0] != shapes[1] else ' with different tokens'}. Twins need one architecture, tokenizer and "
            "prompt template, and images of one size; check min_pixels, max_pixels and system prompts."
        )
