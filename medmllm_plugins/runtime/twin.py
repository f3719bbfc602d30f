"""The second checkpoint of tasks that patch: loaded beside the model, or in turn with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.devices import discard, parked
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.stages import connector_modules
from medmllm_plugins.runtime.evaluation_run import EvaluationRun


class Twin:
    """The second checkpoint.

    Attributes:
        options: how it is loaded.
        in_turn: whether the model leaves the device while the twin is on it. Then states go from one to the other
            through files.
        fingerprint: hash of its weights; empty before it was loaded.
    """

    def __init__(
        self, load: Callable[[EvaluationRun], LoadedModel], options: LoadOptions, *, in_turn: bool = False
    ) -> None:
        """``load`` loads it at each call."""
        self._load = load
        self._loaded: LoadedModel | None = None
        self.options, self.in_turn, self.fingerprint = options, in_turn, ""

    @contextmanager
    def loaded(self, run: EvaluationRun, model: LoadedModel) -> Iterator[LoadedModel]:
        """Yield the twin, loaded.

        In turn, ``model`` cannot run while the context is open, except for its connectors, and the twin is discarded
        at its end.
        """
        if not self.in_turn:
            if self._loaded is None:
                self._loaded = self._load(run)
            self.fingerprint = self._loaded.fingerprint
            yield self._loaded
            return
        with parked(model.model, keep=connector_modules(model)):
            twin = self._load(run)
            self.fingerprint = twin.fingerprint
            try:
                yield twin
            finally:
                discard(twin.model)

    def forget(self) -> None:
        """Free the weights."""
        self._loaded = None
