"""The bar that a user watches while documents are answered."""

from __future__ import annotations

from collections.abc import Sequence

from lmms_eval.api.instance import Instance
from tqdm import tqdm

from medmllm_plugins.host.journal import Answered


class Bar:
    """One bar for a run: documents, their rate, time left, and how many answers were not parsed; for terminals only."""

    def __init__(self, name: str, total: int, done: int, *, shown: bool) -> None:
        self._unparsed = 0
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=name,
            unit="doc",
            smoothing=0.05,
            disable=None if shown else True,  # None: quiet where there is no terminal
        )

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, batch: Sequence[Instance], results: Sequence[Answered]) -> None:
        """Move on by a batch."""
        for request, result in zip(batch, results, strict=True):
            parsed = getattr(getattr(request.args[1], "__self__", None), "is_parsed", None)
            if parsed is not None and not parsed(int(request.args[3]), result.text):
                self._unparsed += 1
        self._bar.set_postfix(unparsed=self._unparsed, refresh=False)
        self._bar.update(len(batch))
