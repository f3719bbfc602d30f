"""States of a model's clean passes on disk, for twins that do not fit into memory together.

Each model runs alone and leaves the states of every document in a folder; the other one reads them there. Documents are
recorded one at a time, so that batches of any size can be put together from them.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medmllm_plugins.errors import DataError, ModelError
from medmllm_plugins.interventions.hybrid_model import LabelRecorder
from medmllm_plugins.interventions.twin_patching import (
    CONNECTOR_ALONE,
    MODEL,
    TWIN,
    DonorStates,
    PatchSite,
    check_same_tokens,
    holds_all_tokens,
    recorded_layers,
)
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.models.generation import score_labels
from medmllm_plugins.models.recorded_pass import TOWER_END, RecordedPass
from medmllm_plugins.models.stages import connector_modules, replaced_forward

_TOKENS: Final = "input_ids"
_LABELS: Final = "labels:"
"""Begins the names of states of labels' tokens."""


class StateStore:
    """A folder of states, as a context manager that removes it at the end."""

    def __init__(self, folder: Path, documents: int) -> None:
        """``documents`` is the number of documents that will be stored, of two models each."""
        self._folder = folder
        self._left = {MODEL: documents, TWIN: documents}

    def __enter__(self) -> Self:
        shutil.rmtree(self._folder, ignore_errors=True)  # of a run that was killed
        self._folder.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, side: str, document: str, tokens: Tensor, states: Mapping[str, tuple[Tensor, ...]]) -> None:
        """Store the states of one document.

        Args:
            side: what the states are of, such as one of two models.
            document: its id.
            tokens: token ids of its prompt, (1, L).
            states: states by layer, see :class:`~medmllm_plugins.models.recorded_pass.RecordedPass`.

        Raises:
            DataError: the disk has no room for this document and those to come.
        """
        flat = {f"{layer}/{index}": part for layer, parts in states.items() for index, part in enumerate(parts)}
        # Tensors that share memory cannot be written.
        contents = {name: part.detach().to("cpu", copy=True).contiguous() for name, part in flat.items()}
        size = sum(part.nbytes for part in contents.values())
        free = shutil.disk_usage(self._folder).free
        path = self._path(side, document)
        left = sum(self._left.values()) if side in self._left and not path.exists() else 1
        if left * size > free:
            raise DataError(
                f"{self._folder}: expected {left * size / 1e9:.1f} GB of free disk for the states of twins, got "
                f"{free / 1e9:.1f} GB. Patch fewer documents (:n=), fewer blocks (:every=), or choose another folder "
                "(run_dir=)."
            )
        if side in self._left and not path.exists():
            self._left[side] -= 1
        save_file({**contents, _TOKENS: tokens.cpu().contiguous()}, path)

    def tokens(self, side: str, document: str) -> Tensor:
        """Return the token ids of a document's prompt, (1, L)."""
        return load_file(self._path(side, document))[_TOKENS]

    def read(self, side: str, document: str) -> dict[str, tuple[Tensor, ...]]:
        """Return the states of one document by layer."""
        contents = load_file(self._path(side, document))
        states: dict[str, tuple[Tensor, ...]] = {}
        for name in sorted(contents.keys() - {_TOKENS}, key=lambda name: (name.partition("/")[0], _index(name))):
            layer = name.partition("/")[0]
            states[layer] = (*states.get(layer, ()), contents[name])
        return states

    def batch(self, side: str, documents: Sequence[str], own: RecordedPass) -> DonorStates:
        """Return the states of a batch of documents, as a pass over their prompts has them.

        Args:
            side: which model's.
            documents: their ids, in the order of the batch.
            own: a pass of the other model over the same prompts.

        Raises:
            ModelError: the states have other shapes than those of the pass.
        """
        length = own.inputs["input_ids"].shape[1]
        rows = [self.read(side, document) for document in documents]
        states = {}
        for layer in rows[0]:
            parts = [row[layer] for row in rows]
            if layer.startswith("llm"):
                parts = [tuple(_padded(part, length) for part in row) for row in parts]
            states[layer] = tuple(torch.cat(part) for part in zip(*parts, strict=True))
            expected, got = (
                [tuple(part.shape) for part in some] for some in (own.states.get(layer, states[layer]), states[layer])
            )
            if expected != got:
                raise ModelError(
                    f"{layer}: expected states of the shapes {expected}, got {got} from disk. Twins of this "
                    "architecture must be loaded together: leave twin_states=disk out."
                )
        of_labels = {name.removeprefix(_LABELS): states.pop(name) for name in list(states) if name.startswith(_LABELS)}
        return DonorStates(states, label_states=of_labels)

    def _path(self, side: str, document: str) -> Path:
        return self._folder / f"{hashlib.sha256(document.encode()).hexdigest()[:32]}-{side}.safetensors"


def store_model(
    store: StateStore,
    document: str,
    model: LoadedModel,
    question: str,
    image: VisualInput,
    labels: Sequence[str],
    sites: Sequence[PatchSite],
) -> None:
    """Store the model's states on one document, before the twin is loaded.

    Raises:
        DataError: the disk has no room.
    """
    own = RecordedPass(model, model.prepare([question], [image]), recorded_layers(sites))
    store.write(
        MODEL, document, own.inputs["input_ids"], {**own.states, **_of_labels(model, own, question, labels, sites)}
    )


def store_twin(
    store: StateStore,
    document: str,
    twin: LoadedModel,
    model: LoadedModel,
    question: str,
    image: VisualInput,
    labels: Sequence[str],
    sites: Sequence[PatchSite],
) -> None:
    """Store the twin's states on one document, and what each connector makes of the other model's tower.

    Of the model, nothing but the connectors is run.

    Raises:
        DataError: the disk has no room.
        ModelError: the two models do not see the same tokens.
    """
    own = RecordedPass(twin, twin.prepare([question], [image]), recorded_layers(sites))
    check_same_tokens({"input_ids": store.tokens(MODEL, document)}, own.inputs)
    of_model = store.read(MODEL, document)
    alone = own.connected(own.moved(of_model[TOWER_END]))
    of_labels = _of_labels(twin, own, question, labels, sites)
    store.write(TWIN, document, own.inputs["input_ids"], {**own.states, **of_labels, CONNECTOR_ALONE: alone})
    with ExitStack() as stack:
        for theirs, mine in zip(connector_modules(twin), connector_modules(model), strict=True):
            stack.enter_context(replaced_forward(theirs, mine.forward))
        of_model[CONNECTOR_ALONE] = own.connected(own.states[TOWER_END])
    store.write(MODEL, document, own.inputs["input_ids"], of_model)


def _of_labels(
    loaded: LoadedModel, own: RecordedPass, question: str, labels: Sequence[str], sites: Sequence[PatchSite]
) -> dict[str, tuple[Tensor, ...]]:
    """Return the states of the labels' tokens at sites where the states of all tokens are put in."""
    layers = [site.layer for site in sites if holds_all_tokens(site)]
    recorder = LabelRecorder(own, layers)
    score_labels(recorder, own.start, [loaded.label_ids(question, labels)], prefix_length=loaded.prefix_length)
    return {f"{_LABELS}{layer}": parts for layer, parts in recorder.states.items()}


def _index(name: str) -> int:
    return int(name.rpartition("/")[2])


def _padded(states: Tensor, length: int) -> Tensor:
    """Return the states of one prompt, (1, L, d), padded on the left to a length, as prompts in a batch are."""
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[1], 0))
