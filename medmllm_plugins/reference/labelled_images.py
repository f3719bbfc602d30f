"""Documents as a classifier needs them: images, and the correct answers as numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.loading.dataset import Dataset
from medmllm_plugins.data.loading.volume_view import View
from medmllm_plugins.data.readers.reader_threads import reader_threads
from medmllm_plugins.prompts.protocols import YES_NO
from medmllm_plugins.utils.progress import Progress

T = TypeVar("T")
LogProbabilities = npt.NDArray[np.float64]
"""``[N, Q, A]``: log probability, in nats, of each of A answers to each of Q questions about N documents."""


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Documents of a data set with their images and targets.

    A multi-class data set has one question with the classes as answers, a multi-label data set one question per finding
    with yes and no as answers.
    """

    data: Dataset
    view: View
    documents: tuple[Document, ...]

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def findings(self) -> tuple[str, ...]:
        """The Q questions: the findings of a multi-label data set, else one empty text."""
        return self.data.spec.labels if self.data.spec.kind == "multilabel" else ("",)

    @property
    def answers(self) -> tuple[str, ...]:
        """The A answers to each question: yes and no in a multi-label data set, else the classes."""
        return YES_NO if self.data.spec.kind == "multilabel" else self.data.spec.labels

    def targets(self) -> npt.NDArray[np.intp]:
        """Return the index of the correct answer, ``[N, Q]``."""
        spec = self.data.spec
        if spec.kind == "multilabel":
            rows = [[0 if finding in document.labels else 1 for finding in spec.labels] for document in self.documents]
        else:
            rows = [[spec.labels.index(document.labels[0])] for document in self.documents]
        return np.array(rows, dtype=np.intp).reshape(len(self.documents), len(self.findings))

    def pictures(self, index: int, view: View | None = None) -> list[Image.Image]:
        """Return the images of a document, mode ``RGB``, as a model sees them or in another view."""
        return (view or self.view).pictures(self.data, self.documents[index])

    def each(self, make: Callable[[int], T], indices: Sequence[int] | None = None, *, title: str = "") -> list[T]:
        """Call ``make`` for each index in threads, and return the results in order; a ``title`` shows the progress."""
        results: list[T] = []
        chosen = range(len(self)) if indices is None else indices
        with (
            ThreadPoolExecutor(max_workers=reader_threads()) as pool,
            Progress(f"{self.data.spec.title}: {title}", len(chosen), shown=None if title else False) as progress,
        ):
            for result in pool.map(make, chosen):
                results.append(result)
                progress.update()
        return results
