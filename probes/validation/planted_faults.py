"""Planted faults: break a stage of a model on purpose, by a known amount, and restore it.

The diagnosis is validated on models whose broken stage is known: all earlier stages stay bit-identical. Faults that
destroy remove the class from their own stage, so that a linear probe fitted after that stage cannot find it. Faults of
form (:mod:`medmllm_plugins.probes.validation.form_faults`) leave it readable for a new probe, but not for the next
stage. Faults of the preprocessing (:mod:`medmllm_plugins.probes.validation.image_faults`) change the image.

Trained models encode the class redundantly: a single layer that still sees the image, a few heads or image tokens, or
two random directions of the connector's output are enough for a probe. Some destroying faults therefore remove the
image from a fraction of the documents, and others add strong noise. Both depend only on the seed and the content of the
image, not on the order of documents or their batches.

Stages are found by the names of :mod:`medmllm_plugins.models.stages`, so faults work on any family. When the context
ends, also by an exception, edited weights are restored bit for bit and hooks are removed.

Source: Belrose et al., "LEACE", arXiv 2306.03819 (no linear probe finds classes whose means are all equal).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

import torch
from torch import Tensor

from medmllm_plugins.errors import OptionError, shown
from medmllm_plugins.interventions.form_edits import round_weights
from medmllm_plugins.interventions.model_edits import (
    LogitEdits,
    add_noise,
    change_weights,
    edit_output,
    reset_weights,
    seeded_generator,
)
from medmllm_plugins.models.base import LoadedModel, Question
from medmllm_plugins.probes.validation.fault_kinds import HEALTHY_KIND, Fault
from medmllm_plugins.probes.validation.fault_sites import FaultSites
from medmllm_plugins.probes.validation.form_faults import FORM_FAULTS, Contexts, Planter, initial_spread
from medmllm_plugins.probes.validation.image_faults import IMAGE_EDITS, edited_images


@contextmanager
def plant_faults(
    loaded: LoadedModel,
    *faults: Fault,
    directions: Mapping[str, Tensor] | None = None,
    question: Question | None = None,
    labels: Sequence[str] = (),
) -> Iterator[None]:
    """Break a model while the context is open.

    Batches must begin and end inside the context: a cache that was filled outside belongs to another model. Faults of
    the preprocessing act on images that are prepared inside it.

    Args:
        loaded: the model; only its weights and the hooks of its modules are changed.
        faults: what to break; of two faults of one module the last acts first.
        directions: for ``directions_removed`` only: by layer, the directions that separate the classes in the mean over
            its tokens, (k, d), from train documents; see :func:`class_directions`. Only ``"connector"`` is used.
        question: for faults of the mapping only: the question, because the tokens of a label may depend on the end of
            the prompt.
        labels: for faults of the mapping only: at least two labels.

    Raises:
        OptionError: an argument that a fault needs is missing.
        ModelError: the model cannot be broken in this way: its weights are quantised, its attention takes no masks, or
            a module has another layout.
    """
    with ExitStack() as stack:
        sites = FaultSites(loaded, stack)
        for fault in faults:
            for context in _contexts(sites, fault, directions, question, labels):
                stack.enter_context(context)
        yield


def _contexts(
    sites: FaultSites,
    fault: Fault,
    directions: Mapping[str, Tensor] | None,
    question: Question | None,
    labels: Sequence[str],
) -> Contexts:
    """Return one context for each edited module."""
    if fault.name == HEALTHY_KIND:
        return []
    if fault.name in IMAGE_EDITS:
        return [edited_images(sites.loaded, fault)]
    if fault.name == "directions_removed":
        basis = _basis(directions)
        return [
            edit_output(layer.module, sites.batch.without(basis, fault.seed, fault.grade)) for layer in sites.connectors
        ]
    if fault.name in WORD_FAULTS:
        ids = _label_ids(sites.loaded, question, labels)
        return [edit_output(sites.head, sites.batch.answered(WORD_FAULTS[fault.name](ids, fault)))]
    planter = FORM_FAULTS.get(fault.name) or _OTHER_FAULTS[fault.name]
    return planter(sites, fault)


def _noise_tower(sites: FaultSites, fault: Fault) -> Contexts:
    return [change_weights(block, add_noise(fault.seed, n, fault.grade)) for n, block in enumerate(sites.tower)]


def _reset_tower(sites: FaultSites, fault: Fault) -> Contexts:
    spread = initial_spread(sites)
    return [
        change_weights(block, reset_weights(fault.seed, n, fault.grade, spread)) for n, block in enumerate(sites.tower)
    ]


def _blur_tower(sites: FaultSites, fault: Fault) -> Contexts:
    batch = sites.batch
    return [
        edit_output(block, batch.blurred("vision", fault.seed, n, fault.grade)) for n, block in enumerate(sites.tower)
    ]


def _lose_in_tower(sites: FaultSites, fault: Fault) -> Contexts:
    edit = sites.batch.lost("vision", fault.seed, fault.grade)
    return [edit_output(block, edit) for block in sites.tower]


def _blur_connector(sites: FaultSites, fault: Fault) -> Contexts:
    batch = sites.batch
    return [
        edit_output(layer.module, batch.blurred("connector", fault.seed, n, fault.grade))
        for n, layer in enumerate(sites.connectors)
    ]


def _lose_in_connector(sites: FaultSites, fault: Fault) -> Contexts:
    edit = sites.batch.lost("connector", fault.seed, fault.grade)
    return [edit_output(layer.module, edit) for layer in sites.connectors]


def _blind(sites: FaultSites, fault: Fault) -> Contexts:
    sites.check_masks()
    hide = sites.batch.text_to_images(fault.seed, fault.grade)
    return [sites.batch.masked(block, n, hide) for n, block in enumerate(sites.llm_blocks)]


def _hide_tokens(sites: FaultSites, fault: Fault) -> Contexts:
    sites.check_masks()
    hide = sites.batch.some_images(fault.seed, fault.grade)
    return [sites.batch.masked(block, n, hide) for n, block in enumerate(sites.llm_blocks)]


def _blur_text(sites: FaultSites, fault: Fault) -> Contexts:
    return [
        edit_output(block, sites.batch.text_blurred(fault.seed, n, fault.grade))
        for n, block in enumerate(sites.llm_blocks)
    ]


def _noise_connector(sites: FaultSites, fault: Fault) -> Contexts:
    return [
        change_weights(layer.module, add_noise(fault.seed, n, fault.grade)) for n, layer in enumerate(sites.connectors)
    ]


def _round(sites: FaultSites, _fault: Fault) -> Contexts:
    return [change_weights(sites.loaded.model, round_weights)]


_OTHER_FAULTS: Final[Mapping[str, Planter]] = {
    "tower_noise": _noise_tower,
    "tower_slight_noise": _noise_tower,
    "tower_reset": _reset_tower,
    "tower_blur": _blur_tower,
    "tower_lost": _lose_in_tower,
    "connector_blur": _blur_connector,
    "connector_lost": _lose_in_connector,
    "connector_slight_noise": _noise_connector,
    "blind": _blind,
    "text_blur": _blur_text,
    "llm_slight_noise": FORM_FAULTS["llm_noise"],
    "tokens_hidden": _hide_tokens,
    "rounded_weights": _round,
}


def class_directions(features: Tensor, labels: Sequence[str]) -> Tensor:
    """Return the directions in which the means of the classes differ, largest first.

    Without these directions all classes have the same mean, and no linear probe fitted to the features is better than
    the class frequencies (LEACE).

    Args:
        features: of N train documents, (N, d).
        labels: their N labels.

    Returns:
        (K - 1, d), float64, orthonormal; K is the number of different labels.

    Raises:
        OptionError: the numbers of labels and features differ, or there are fewer than two different labels.
    """
    names = sorted(set(labels))
    if features.dim() != 2 or len(features) != len(labels) or len(names) < 2:
        raise OptionError(
            "Expected `features` of shape (N, d) with N `labels`, at least two of them different, got "
            f"{tuple(features.shape)} and {len(labels)} labels, {len(names)} different."
        )
    rows, owner = features.double(), torch.tensor([names.index(label) for label in labels], device=features.device)
    means = torch.stack([rows[owner == number].mean(0) for number in range(len(names))])
    directions: Tensor = torch.linalg.svd(means - means.mean(0), full_matrices=False).Vh
    return directions[: len(names) - 1]


def _label_ids(loaded: LoadedModel, question: Question | None, labels: Sequence[str]) -> list[tuple[int, ...]]:
    if question is None or len(labels) < 2:
        raise OptionError(
            "Expected `question` and at least two `labels`, which a fault of the answer mapping needs, got "
            f"{shown(question)} and {shown(labels)}."
        )
    label_ids = [tuple(row) for row in loaded.label_ids(question, labels)]
    if len(set(label_ids)) < len(label_ids):
        raise OptionError(f"Expected labels that differ as tokens, got {shown(labels)}.")
    return label_ids


def _basis(directions: Mapping[str, Tensor] | None) -> Tensor:
    connector = None if directions is None else directions.get("connector")
    if connector is None or connector.dim() != 2 or not 0 < len(connector) <= connector.shape[1]:
        raise OptionError(
            "Expected `directions` to hold 'connector', (k, d) with 1 <= k <= d, which directions_removed needs, but "
            f"got {None if connector is None else tuple(connector.shape)}. class_directions "
            "computes them from train features."
        )
    basis: Tensor = torch.linalg.qr(connector.detach().double().cpu().T)[0].T
    return basis


# Labels.


def _branches(ids: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], list[int]]:
    """Return where labels differ: their common beginnings and the tokens that follow, most tokens first."""
    branches: dict[tuple[int, ...], list[int]] = {}
    for row in ids:
        for depth, token in enumerate(row):
            following = branches.setdefault(row[:depth], [])
            if token not in following:
                following.append(token)
    differing = [item for item in branches.items() if len(item[1]) > 1]
    return dict(sorted(differing, key=lambda item: (-len(item[1]), len(item[0]))))


def _permuted(ids: Sequence[tuple[int, ...]], fault: Fault) -> LogitEdits:
    """Exchange two, more than half or all tokens in a ring: at strength 1 where most labels differ, else where any do.

    With two labels all strengths are the same; with three, strength 2 exchanges two.
    """
    edits = {}
    for before, nexts in list(_branches(ids).items())[: 1 if fault.strength == 1 else None]:
        count = min(len(nexts), max(2, int(len(nexts) * fault.grade) + 1))
        order = torch.randperm(len(nexts), generator=seeded_generator(fault.seed, "ring", before)).tolist()[:count]
        ring = [nexts[index] for index in order]
        edits[before] = (ring, ring[1:] + ring[:1], 0.0)
    if not edits:
        raise OptionError("Expected labels that differ at some token, got one that is the beginning of the other.")
    return edits


def _biased(ids: Sequence[tuple[int, ...]], fault: Fault) -> LogitEdits:
    """Raise the first token that distinguishes one label, chosen at random, from all others."""
    own: list[tuple[tuple[int, ...], int]] = []
    for row in ids:
        alone = (d for d in range(len(row)) if sum(other[: d + 1] == row[: d + 1] for other in ids) == 1)
        depth = next(alone, None)
        if depth is not None:  # otherwise the label is the beginning of another
            own.append((row[:depth], row[depth]))
    before, token = own[int(torch.randint(len(own), (1,), generator=seeded_generator(fault.seed, "bias")))]
    return {before: ([token], [token], fault.grade)}


WORD_FAULTS: Final[Mapping[str, Callable[[Sequence[tuple[int, ...]], Fault], LogitEdits]]] = {
    "labels_permuted": _permuted,
    "label_bias": _biased,
}
"""By name, faults of the words; they change logits alone."""
