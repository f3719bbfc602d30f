"""Recording the features of one task while its documents are answered."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from medmllm_plugins.features.control_features import RandomEncoder
from medmllm_plugins.features.hooks import ActivationHooks, Site
from medmllm_plugins.features.store import write_header
from medmllm_plugins.features.store_writer import FeatureBatch, Writer, stacked
from medmllm_plugins.features.unused_layers import unused_layers
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.prompts.feature_options import MEAN, FeatureOptions
from medmllm_plugins.results.feature_store import LENS, Header, StoredLayer
from medmllm_plugins.results.probe_records import CONTROL, RANDOM_ENCODER

logger = logging.getLogger(__name__)


class FeatureRecorder:
    """Features of one task, from the hooks on the model to the store on disk."""

    def __init__(
        self,
        loaded: LoadedModel,
        features: FeatureOptions,
        header: Header,
        folder: Path,
        rank: int,
        example: Mapping[str, Tensor],
    ) -> None:
        """Put hooks on the model.

        ``header`` has no layers yet; ``example`` is one document's input, to try on it which layers the LLM reads.
        """
        self._unread = unused_layers(loaded, example)
        self._loaded, self._header, self._folder, self._rank = loaded, header, folder, rank
        self.watch = ActivationHooks(loaded, features.poolings)
        self._random: RandomEncoder | None = None
        if features.random_encoder and RandomEncoder.possible(loaded):
            self._random = RandomEncoder(loaded, features.poolings)
        elif features.random_encoder:
            logger.warning(
                "%s: the vision tower is quantised, so there are no control features of a random encoder.", header.task
            )
        self._writer: Writer | None = None

    def keep(
        self,
        records: Sequence[Mapping[str, Any]],
        inputs: Mapping[str, Tensor],
        controls: Sequence[Mapping[str, npt.NDArray[np.float16]]],
        verbalizers: Sequence[Sequence[int]],
    ) -> None:
        """Keep what :attr:`watch` recorded of a batch; it is written in the background.

        ``controls`` are each document's :func:`medmllm_plugins.features.control_features.control_features`,
        ``verbalizers`` the token ids of each label as the answer to the question.

        Raises:
            OSError: the features of an earlier batch could not be written.
        """
        lens, logits = self.watch.lens(verbalizers)
        activations = dict(self.watch.activations)
        if self._random is not None:
            activations |= self._random.features(inputs)
        extra = {layer: np.stack([features[layer] for features in controls]) for layer in controls[0]}
        if self._writer is None:
            self._open(activations, {layer: values.shape[1] for layer, values in extra.items()}, lens)
        assert self._writer is not None
        names, stacks, copied = stacked(activations)
        arrays = {f"{layer}/{MEAN}": values.astype(np.float32) for layer, values in extra.items()}
        arrays[LENS] = logits.transpose(0, 1).cpu().numpy()
        self._writer.add(FeatureBatch(records, names, stacks, arrays, copied))

    def _open(self, activations: Mapping[Site, Tensor], controls: Mapping[str, int], lens: tuple[str, ...]) -> None:
        """Begin the store, now that the widths are known."""
        part_of = {layer.name: layer.part for layer in self.watch.layers}
        poolings: dict[str, dict[str, int]] = {}
        for (name, pooling), value in activations.items():
            poolings.setdefault(name, {})[pooling] = value.shape[-1]
        order = [name for name in part_of if name in poolings]
        order += [name for name in poolings if name not in part_of]
        layers = [
            StoredLayer(
                name,
                part_of.get(name, CONTROL),
                tuple(poolings[name]),
                tuple(poolings[name].values()),
                read=name.removeprefix(RANDOM_ENCODER) not in self._unread,
            )
            for name in order
        ]
        layers += [StoredLayer(name, CONTROL, (MEAN,), (width,)) for name, width in controls.items()]
        write_header(self._folder, replace(self._header, layers=tuple(layers), lens=lens))
        self._writer = Writer(self._folder, self._rank)

    def durable(self) -> list[str]:
        """Return the ids of the documents whose features have reached the disk since the last call."""
        return [] if self._writer is None else self._writer.durable()

    def close(self) -> None:
        """Remove the hooks and wait until everything is written.

        Raises:
            OSError: something could not be written.
        """
        self.watch.close()
        if self._random is not None:
            self._random.close()
        if self._writer is not None:
            self._writer.close()
