"""Answers of two models that are not loaded at once, put together at a site: each token goes through both.

The lower model runs the tokens that an answer may begin with, and leaves their states in files. The upper model follows
its likeliest tokens as long as they are among these, and the first one that is not comes to the lower model in the next
turn. Labels and the lower model's own answer are tried first, so that most answers take one turn.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import torch

from medmllm_plugins.interventions.hybrid_model import LabelRecorder
from medmllm_plugins.interventions.stored_states import StateStore
from medmllm_plugins.interventions.twin_patching import DonorStates, PatchSite, replayed
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.models.cache_layers import own_copies
from medmllm_plugins.models.generation import greedy, logits_after
from medmllm_plugins.models.recorded_pass import CONNECTOR, RecordedPass

Tokens: TypeAlias = tuple[int, ...]
_ANSWERS: Final = "answers of "
"""Begins the names of states of answers' tokens, before the side that they are of."""


@dataclass
class GrowingAnswer:
    """An answer that is not finished.

    Attributes:
        tokens: its tokens so far.
        finished: whether it ended.
    """

    tokens: list[int] = field(default_factory=list)
    finished: bool = False


@torch.no_grad()
def store_beginnings(
    store: StateStore,
    side: str,
    document: str,
    lower: LoadedModel,
    question: str,
    image: VisualInput,
    beginnings: Iterable[Sequence[int]],
    sites: Collection[PatchSite],
    *,
    max_new_tokens: int = 0,
) -> list[Tokens]:
    """Store the states of tokens that an answer about one document may begin with.

    Args:
        store: the folder.
        side: which model's states they are.
        document: its id.
        lower: the model.
        question: the question.
        image: the document.
        beginnings: token ids.
        sites: sites that hold the states of all tokens.
        max_new_tokens: tokens of the model's own answer, which is tried as well; 0 for none.

    Returns:
        Each beginning of them, the empty one among them.

    Raises:
        DataError: the disk has no room.
    """
    own = RecordedPass(lower, lower.prepare([question], [image]), {CONNECTOR})
    tried = {tuple(ids) for ids in beginnings}
    if max_new_tokens:
        start = replace(own.start, cache=own_copies(own.start.cache))
        (tokens,) = greedy(lower.model, start, max_new_tokens=max_new_tokens, eos_token_ids=lower.eos_token_ids)
        tried.add(tuple(tokens))
    whole = sorted({ids[:length] for ids in tried for length in range(len(ids) + 1)} | {()})
    recorder = LabelRecorder(own, [site.layer for site in sites])
    logits_after(recorder, own.start, whole)
    store.write(f"{_ANSWERS}{side}", document, own.inputs["input_ids"], recorder.states)
    return whole


@torch.no_grad()
def extend_answers(
    store: StateStore,
    side: str,
    document: str,
    upper: LoadedModel,
    question: str,
    image: VisualInput,
    beginnings: Sequence[Tokens],
    answers: dict[PatchSite, GrowingAnswer],
    *,
    max_new_tokens: int,
) -> None:
    """Extend the unfinished answers about one document as far as the stored states reach.

    Args:
        store: the folder.
        side: of the lower model, whose states are stored.
        document: its id.
        upper: the model above the sites.
        question: the question.
        image: the document.
        beginnings: what :func:`store_beginnings` returned.
        answers: by site, extended in place.
        max_new_tokens: the most tokens of an answer.
    """
    own = RecordedPass(upper, upper.prepare([question], [image]), {CONNECTOR})
    states = store.batch(side, [document], own).states
    donor = DonorStates(states, label_states=store.read(f"{_ANSWERS}{side}", document))
    for site, answer in answers.items():
        if answer.finished:
            continue
        model, start = replayed(site, own, donor)
        following = logits_after(model, start, beginnings).argmax(-1).tolist()
        next_token = dict(zip(beginnings, following, strict=True))
        while not answer.finished and tuple(answer.tokens) in next_token:
            token = next_token[tuple(answer.tokens)]
            ended = token in upper.eos_token_ids
            if not ended:
                answer.tokens.append(token)
            answer.finished = ended or len(answer.tokens) == max_new_tokens
