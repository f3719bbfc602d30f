"""Interchange within one model: states of another document put in, layer by layer.

If the answer follows the donor, it depends on what was exchanged. Image tokens and the last token of the prompt are
exchanged apart: the layers at which image tokens still move the answer, and those at which the last token carries it,
show where the image is read.

Sources: Geiger et al., "Causal abstractions of neural networks", arXiv 2106.02997; Zhang and Nanda, "Towards best
practices of activation patching", arXiv 2309.16042.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from medmllm_plugins.interventions.twin_patching import PatchSite, check_same_tokens, mixed_states, resumed
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.models.cache_layers import own_copies
from medmllm_plugins.models.generation import Prefill, score_labels
from medmllm_plugins.models.recorded_pass import CONNECTOR, RecordedPass
from medmllm_plugins.models.stages import is_block, layers_of
from medmllm_plugins.prompts.patch_options import BLOCKS

Donor: TypeAlias = Literal["other class", "same class", "permuted tokens", "noise"]
"""What is put in: states of a document of another class or of the same one; those of the former with its image tokens
in random order; and noise of their norms, token by token."""
DONORS: Final[tuple[Donor, ...]] = get_args(Donor)
CONTROLS: Final[tuple[Donor, ...]] = ("same class", "noise")
"""Donors that bring nothing of another class. Permuted tokens do: they show whether the order of tokens matters."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """States of one kind of donor, put in at one site."""

    site: PatchSite
    donor: Donor


DonorClass: TypeAlias = Literal["other class", "same class"]
Scores: TypeAlias = Mapping[Exchange | Literal["own"] | DonorClass, list[tuple[float, ...]]]
"""Log-probabilities of the labels, in nats, document by document: after an exchange, of the documents as they are
(``own``), and of their donors."""


def interchange_sites(loaded: LoadedModel, *, every: int = 0) -> tuple[PatchSite, ...]:
    """Return the sites: the connector's output, and every ``every``-th block and the last one, image and last token.

    With 0 about :data:`~medmllm_plugins.prompts.patch_options.BLOCKS` blocks are taken.
    """
    blocks = [layer.name for layer in layers_of(loaded) if layer.part == "llm" and is_block(layer)]
    every = every or max(1, round(len(blocks) / BLOCKS))
    chosen = [name for index, name in enumerate(blocks) if (index + 1) % every == 0 or name == blocks[-1]]
    return (PatchSite(CONNECTOR), *(PatchSite(name, tokens) for name in chosen for tokens in ("image", "last")))


def exchanges_at(sites: Sequence[PatchSite]) -> tuple[Exchange, ...]:
    """Return all exchanges; a single token has no order to permute."""
    return tuple(
        Exchange(site, donor)
        for site in sites
        for donor in DONORS
        if not (donor == "permuted tokens" and site.tokens == "last")
    )


def interchange(
    loaded: LoadedModel,
    question: str,
    images: Sequence[VisualInput],
    donors: Mapping[DonorClass, Sequence[VisualInput]],
    labels: Sequence[str],
    exchanges: Sequence[Exchange],
    *,
    seeds: Sequence[int] = (),
) -> Scores:
    """Score the labels of a batch of documents with states of other documents put in.

    Args:
        loaded: the model.
        question: the question about each of them.
        images: one visual input a document.
        donors: a donor of each class for each document, which gives as many image tokens.
        labels: the labels to score.
        exchanges: what is put in where.
        seeds: of noise and of the order of permuted tokens, one a document; their numbers by default.

    Raises:
        ModelError: a donor gives other tokens than its document.
    """
    questions = [question] * len(images)
    inputs = loaded.prepare(questions, images)
    layers = {CONNECTOR, *(exchange.site.layer for exchange in exchanges)}
    own = RecordedPass(loaded, inputs, layers)
    passes: dict[DonorClass, RecordedPass] = {}
    for kind, shown in donors.items():
        others = loaded.prepare(questions, shown)
        check_same_tokens(inputs, others)
        passes[kind] = RecordedPass(loaded, others, layers)
    label_ids = [loaded.label_ids(question, labels)] * len(images)
    parts = _Parts(loaded, inputs, seeds or range(len(images)))
    scores: dict[Exchange | Literal["own"] | DonorClass, list[tuple[float, ...]]] = {}
    for exchange in exchanges:
        donor = passes["same class" if exchange.donor == "same class" else "other class"]
        states, connectors = donor.states[exchange.site.layer], donor.states[CONNECTOR]
        if exchange.donor in ("noise", "permuted tokens"):
            change = parts.noise if exchange.donor == "noise" else parts.permuted
            states = change(states, at_connector=exchange.site.layer == CONNECTOR)
            connectors = change(connectors, at_connector=True)
        mixed = mixed_states(exchange.site, own, states, parts.image)
        # Qwen3-VL adds features of the image behind early blocks; they go with the image tokens.
        with_image = connectors if exchange.site.tokens != "last" else None
        scores[exchange] = label_scores(loaded, resumed(exchange.site, own, mixed, with_image), label_ids)
    clean: list[tuple[Literal["own"] | DonorClass, RecordedPass]] = [("own", own), *passes.items()]
    for name, recorded in clean:
        # Scoring extends the cache, from which further passes of this one are resumed.
        start = replace(recorded.start, cache=own_copies(recorded.start.cache))
        scores[name] = label_scores(loaded, start, label_ids)
    return scores


@torch.no_grad()
def label_scores(loaded: LoadedModel, start: Prefill, label_ids: list[list[list[int]]]) -> list[tuple[float, ...]]:
    """Score labels after prompts; returns log-probabilities in nats, document by document."""
    rows = score_labels(loaded.model, start, label_ids, prefix_length=loaded.prefix_length).tolist()
    return [tuple(row) for row in rows]


class _Parts:
    """States document by document: what is random does not depend on the batch that a document is in."""

    def __init__(self, loaded: LoadedModel, inputs: Mapping[str, Tensor], seeds: Sequence[int]) -> None:
        self.image = loaded.image_positions(inputs)
        self._seeds = seeds
        # Tiles, or rows where the tokens of all documents come in a row.
        self._counts = loaded.family.rows_per_document(loaded.model, "connector", inputs)

    def noise(self, states: tuple[Tensor, ...], *, at_connector: bool) -> tuple[Tensor, ...]:
        """Return Gaussian noise with the norm of each token."""

        def change(part: Tensor, _: int, generator: torch.Generator) -> Tensor:
            noise = torch.randn(part.shape, generator=generator).to(part)
            scaled: Tensor = noise * (part.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True))
            return scaled

        return tuple(self._changed(state, change, at_connector) for state in states)

    def permuted(self, states: tuple[Tensor, ...], *, at_connector: bool) -> tuple[Tensor, ...]:
        """Return states with the image tokens of each document in random order."""

        def change(part: Tensor, document: int, generator: torch.Generator) -> Tensor:
            rows = part.flatten(0, -2)
            chosen = torch.ones(len(rows), dtype=torch.bool) if at_connector else self.image[document].cpu()
            (indices,) = chosen.nonzero(as_tuple=True)
            order = torch.arange(len(rows))
            order[indices] = indices[torch.randperm(len(indices), generator=generator)]
            return rows[order.to(rows.device)].view(part.shape)

        return tuple(self._changed(state, change, at_connector) for state in states)

    def _changed(
        self, state: Tensor, change: Callable[[Tensor, int, torch.Generator], Tensor], at_connector: bool
    ) -> Tensor:
        counts = self._counts if at_connector else [1] * len(state)
        parts = [
            change(part, document, torch.Generator().manual_seed(self._seeds[document]))
            for document, part in enumerate(torch.split(state, counts))
        ]
        return torch.cat(parts)
