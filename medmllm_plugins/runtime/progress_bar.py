"""What a user watches while documents are answered."""

from __future__ import annotations

from collections.abc import Sequence

from lmms_eval.api.instance import Instance

from medmllm_plugins.runtime.journal import Answered
from medmllm_plugins.utils.progress import Progress


class Bar:
    """A bar, or a line a minute, for a run: documents, their rate, time left, and how many answers were not parsed."""

    def __init__(self, name: str, total: int, done: int, *, shown: bool) -> None:
        self._unparsed = 0
        self._progress = Progress(name, total, done=done, shown=shown)

    def __enter__(self) -> Bar:
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.__exit__(*error)

    def update(self, batch: Sequence[Instance], results: Sequence[Answered]) -> None:
        """Move on by a batch."""
        for request, result in zip(batch, results, strict=True):
            parsed = getattr(getattr(request.args[1], "__self__", None), "is_parsed", None)
            if parsed is not None and not parsed(int(request.args[3]), result.text):
                self._unparsed += 1
        self._progress.note = f"unparsed={self._unparsed}"
        self._progress.update(len(batch))
