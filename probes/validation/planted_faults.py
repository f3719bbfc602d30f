"""Planted faults: break a stage of a model on purpose, by a known amount, and restore it.

The diagnosis is validated on models whose broken stage is known. A fault must therefore do two things. It removes the
class from its own stage, so that a linear probe fitted after that stage cannot find it; moving the features would not
suffice, since a new probe adapts to that while later stages do not. And it leaves all earlier stages bit-identical.

Trained models encode the class redundantly: a single layer that still sees the image, a few heads or image tokens, or
two random directions of the connector's output are enough for a probe. Some faults therefore remove the image from a
fraction of the documents, and others add strong noise. Both depend only on the seed and the content of the image, not
on the order of documents or their batches.

Stages are found by the names of :mod:`medmllm_plugins.models.stages`, so faults work on any family. When the context
ends, also by an exception, edited weights are restored bit for bit and hooks are removed.

Source: Belrose et al., "LEACE", arXiv 2306.03819 (no linear probe finds classes whose means are all equal).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from medmllm_plugins.errors import ModelError, OptionError, shown
from medmllm_plugins.interventions.model_edits import (
    LogitEdits,
    add_noise,
    change_weights,
    edit_output,
    reset_weights,
    seeded_generator,
    track_batch,
)
from medmllm_plugins.models.base import LoadedModel, Question
from medmllm_plugins.models.families.family import stage_module
from medmllm_plugins.models.stages import layers_of
from medmllm_plugins.results.probe_records import MODES, Mode

Strength = Literal[1, 2, 3]

STRENGTHS: Final[tuple[Strength, ...]] = get_args(Strength)
"""Mild, clear, heavy."""
KINDS: Final[Mapping[Mode, tuple[str, ...]]] = {
    "vision": ("tower_noise", "tower_reset", "tower_blur", "tower_lost"),
    "connector": ("directions_removed", "connector_blur", "connector_lost"),
    "comprehension": ("blind", "text_blur"),
    "mapping": ("labels_permuted", "label_bias"),
}
"""Names of faults by mode:

- ``tower_noise``: Gaussian noise on all matrices of the vision blocks, in multiples of their standard deviations.
- ``tower_reset``: a fraction of all weights of the vision blocks reinitialised.
- ``tower_blur``: after every vision block, one random vector for each document is added to all its patches, in
  multiples of the standard deviation of each feature over them.
- ``tower_lost``: the vision blocks return zeros for a fraction of the documents.
- ``directions_removed``: the given directions are removed from the connector's output for a fraction of the documents.
- ``connector_blur``, ``connector_lost``: as for the tower, after the connector.
- ``blind``: for a fraction of the documents only image tokens attend to image tokens, in every layer of the LLM.
- ``text_blur``: after every layer of the LLM, one random vector for each document is added to all positions of the
  prompt after the last image token, in multiples of each position's root mean square.
- ``labels_permuted``: where the labels' tokens differ, the logits of two, of more than half or of all of them are
  exchanged in a ring.
- ``label_bias``: the logit of the token that distinguishes one label from the others is raised, in nats.
"""
_GRADES: Final[Mapping[str, tuple[float, float, float]]] = {
    "tower_noise": (0.5, 1.0, 2.0),
    "tower_reset": (0.25, 0.5, 1.0),
    "tower_blur": (1.0, 1.5, 3.0),
    "tower_lost": (0.1, 0.3, 0.6),
    "directions_removed": (0.1, 0.4, 1.0),
    "connector_blur": (8.0, 20.0, 40.0),
    "connector_lost": (0.1, 0.3, 0.6),
    "blind": (0.1, 0.4, 1.0),
    "text_blur": (0.9, 1.25, 1.5),
    "labels_permuted": (0.0, 0.5, 1.0),
    "label_bias": (4.0, 8.0, 10.0),
}
"""The size of each strength, tuned on the embedded demo: fractions, multiples or nats, see :data:`KINDS`.

Fractions of documents mean the same for every model. Models differ in how much noise or bias they tolerate, so on other
models than the demo check the probe after the broken stage before relying on more than the order of the strengths.
"""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of one stage, and its strength.

    Attributes:
        name: one of :data:`KINDS`, or ``"none"``.
        mode: the stage it belongs to; ``"none"`` for a healthy model.
        strength: 1 is mild; 2 and 3 clearly damage the stage.
        seed: seed of everything random.

    Raises:
        OptionError: the fault does not exist.
    """

    name: str
    mode: Mode | Literal["none"]
    strength: Strength = 1
    seed: int = 0

    def __post_init__(self) -> None:
        known: dict[str, tuple[str, ...]] = {"none": ("none",)}
        known.update((mode, names) for mode, names in KINDS.items())
        if self.name not in known.get(self.mode, ()):
            raise OptionError(
                f"Expected `name` and `mode` of a fault to be one of {known}, got {shown(self.name)} and "
                f"{shown(self.mode)}."
            )
        if self.strength not in STRENGTHS:
            raise OptionError(f"Expected `strength` of a fault to be 1, 2 or 3, got {shown(self.strength)}.")


HEALTHY: Final = Fault("none", "none")
"""No fault: the model as it is."""


def all_faults(seed: int = 0, modes: Sequence[Mode] = MODES) -> tuple[Fault, ...]:
    """Return every kind at every strength, in the order of the stages."""
    return tuple(Fault(name, mode, strength, seed) for mode in modes for name in KINDS[mode] for strength in STRENGTHS)


@contextmanager
def plant_fault(
    loaded: LoadedModel,
    fault: Fault,
    *,
    directions: Mapping[str, Tensor] | None = None,
    question: Question | None = None,
    labels: Sequence[str] = (),
) -> Iterator[None]:
    """Break a model while the context is open.

    Batches must begin and end inside the context: a cache that was filled outside belongs to another model.

    Args:
        loaded: the model; only its weights and the hooks of its modules are changed.
        fault: what to break.
        directions: for ``directions_removed`` only: by layer, the directions that separate the classes in the mean over
            its tokens, (k, d), from train documents; see :func:`class_directions`. Only ``"connector"`` is used.
        question: for faults of the mapping only: the question, because the tokens of a label may depend on the end of
            the prompt.
        labels: for faults of the mapping only: at least two labels.

    Raises:
        OptionError: an argument that the fault needs is missing.
        ModelError: the model cannot be broken in this way: its weights are quantised, its attention takes no masks, or
            a stage does not return a tensor.
    """
    with ExitStack() as stack:
        for context in _contexts(loaded, fault, directions, question, labels, stack):
            stack.enter_context(context)
        yield


def _contexts(
    loaded: LoadedModel,
    fault: Fault,
    directions: Mapping[str, Tensor] | None,
    question: Question | None,
    labels: Sequence[str],
    stack: ExitStack,
) -> list[AbstractContextManager[None]]:
    """Return one context for each edited module; what they share is entered on the stack at once."""
    name, seed = fault.name, fault.seed
    if fault.mode == "none":
        return []
    grade = _GRADES[name][fault.strength - 1]
    if fault.mode == "vision":
        tower = vision_blocks_read(loaded)
        if name == "tower_noise":
            return [change_weights(block, add_noise(seed, number, grade)) for number, block in enumerate(tower)]
        if name == "tower_reset":
            spread = _initial_spread(loaded)
            return [
                change_weights(block, reset_weights(seed, number, grade, spread)) for number, block in enumerate(tower)
            ]
        batch = stack.enter_context(track_batch(loaded))
        if name == "tower_lost":
            return [edit_output(block, batch.lost(batch.patches, seed, grade)) for block in tower]
        return [edit_output(block, batch.blurred(batch.patches, seed, n, grade)) for n, block in enumerate(tower)]
    if fault.mode == "connector":
        connectors = _connectors(loaded)
        basis = _basis(directions) if name == "directions_removed" else None
        batch = stack.enter_context(track_batch(loaded))
        if basis is not None:
            return [edit_output(module, batch.without(basis, seed, grade)) for module in connectors]
        if name == "connector_lost":
            return [edit_output(module, batch.lost(batch.tokens, seed, grade)) for module in connectors]
        return [edit_output(module, batch.blurred(batch.tokens, seed, n, grade)) for n, module in enumerate(connectors)]
    if fault.mode == "comprehension":
        if name == "blind":
            _check_masks(loaded)
        batch = stack.enter_context(track_batch(loaded))
        layers = _layers(loaded)
        if name == "blind":
            return [batch.blinded(layer, number, seed, grade) for number, layer in enumerate(layers)]
        return [edit_output(layer, batch.text_blurred(seed, number, grade)) for number, layer in enumerate(layers)]
    ids = _label_ids(loaded, question, labels)
    edits = _permuted(ids, fault, grade) if name == "labels_permuted" else _biased(ids, fault, grade)
    batch = stack.enter_context(track_batch(loaded))
    return [edit_output(stage_module(loaded.model, loaded.family.head), batch.answered(edits))]


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


def vision_blocks_read(loaded: LoadedModel) -> list[nn.Module]:
    """Return the vision blocks up to the last one that the connector reads; LLaVA may not use the last ones."""
    blocks = [layer.module for layer in layers_of(loaded) if layer.part == "vision" and _is_block(layer.name)]
    read: Any = getattr(loaded.model.config, "vision_feature_layer", None)
    if read is None:
        return blocks
    # The patch embeddings are hidden state 0.
    numbers = list(read) if isinstance(read, list | tuple) else [read]
    return blocks[: max(int(number) if number >= 0 else len(blocks) + 1 + int(number) for number in numbers)]


def _is_block(name: str) -> bool:
    return name.rpartition(".")[2].isdigit()


def _layers(loaded: LoadedModel) -> list[nn.Module]:
    return [layer.module for layer in layers_of(loaded) if layer.part == "llm" and _is_block(layer.name)]


def _connectors(loaded: LoadedModel) -> list[nn.Module]:
    """Return the connector and modules of its class: Qwen3-VL's tower has further ones for deeper layers of the LLM."""
    (first,) = (layer.module for layer in layers_of(loaded) if layer.name == "connector")
    if type(first).__module__.startswith("torch."):  # many modules are an nn.Linear
        return [first]
    return [first, *(other for other in loaded.model.modules() if type(other) is type(first) and other is not first)]


def _check_masks(loaded: LoadedModel) -> None:
    text: Any = loaded.model.config.get_text_config()
    kind = text._attn_implementation
    if kind not in ("eager", "sdpa"):
        raise ModelError(
            f"Expected a model with attention 'sdpa' or 'eager', which take a mask for each pair of tokens, got "
            f"{kind!r}. Load it with attn_implementation=sdpa."
        )


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


def _initial_spread(loaded: LoadedModel) -> float:
    config: Any = loaded.model.config
    return float(getattr(config.vision_config, "initializer_range", 0.02))


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


def _permuted(ids: Sequence[tuple[int, ...]], fault: Fault, share: float) -> LogitEdits:
    """Exchange two, more than half or all tokens in a ring: at strength 1 where most labels differ, else where any do.

    With two labels all strengths are the same; with three, strength 2 exchanges two.
    """
    edits = {}
    for before, nexts in list(_branches(ids).items())[: 1 if fault.strength == 1 else None]:
        count = min(len(nexts), max(2, int(len(nexts) * share) + 1))
        order = torch.randperm(len(nexts), generator=seeded_generator(fault.seed, "ring", before)).tolist()[:count]
        ring = [nexts[index] for index in order]
        edits[before] = (ring, ring[1:] + ring[:1], 0.0)
    if not edits:
        raise OptionError("Expected labels that differ at some token, got one that is the beginning of the other.")
    return edits


def _biased(ids: Sequence[tuple[int, ...]], fault: Fault, grade: float) -> LogitEdits:
    """Raise the first token that distinguishes one label, chosen at random, from all others."""
    own: list[tuple[tuple[int, ...], int]] = []
    for row in ids:
        alone = (d for d in range(len(row)) if sum(other[: d + 1] == row[: d + 1] for other in ids) == 1)
        depth = next(alone, None)
        if depth is not None:  # otherwise the label is the beginning of another
            own.append((row[:depth], row[depth]))
    before, token = own[int(torch.randint(len(own), (1,), generator=seeded_generator(fault.seed, "bias")))]
    return {before: ([token], [token], grade)}
