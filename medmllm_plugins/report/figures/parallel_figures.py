"""Drawing of figures in several processes: each is drawn for the page and for papers, and a page has dozens."""

from __future__ import annotations

import gc
import multiprocessing
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from pathlib import Path
from typing import Final, TypeAlias

from medmllm_plugins.errors import shown
from medmllm_plugins.report.figures.figure_style import Drawing, style
from medmllm_plugins.report.figures.paper_layout import PAPER_WIDTHS
from medmllm_plugins.utils.environment import processors
from medmllm_plugins.utils.progress import Progress


@dataclass(frozen=True, slots=True)
class FailedFigure:
    """A figure that could not be drawn.

    Attributes:
        drawing: the figure of the page, if it is only the files for papers that failed.
    """

    error: str
    drawing: Drawing | None = None


Job: TypeAlias = Callable[[], Drawing | None]
Drawn: TypeAlias = Drawing | FailedFigure | None
_SIZES: Final = (None, *PAPER_WIDTHS)
"""Sizes at which each figure is drawn: that of the page, and widths in mm."""
_MIN_JOBS: Final = 6
"""Fewer figures are drawn in this process."""
_tasks: Sequence[tuple[Job, int | None]] = ()


def draw_all(jobs: Sequence[Job], workers: int | None = None) -> list[Drawn]:
    """Draw figures for the page and for papers, in order; one that fails, as on damaged data, does not affect others.

    On Linux, forked processes draw them: they inherit all data and imports, so that only the finished figures are
    transferred. On other systems, and with one core, they are drawn one after the other, with identical bytes.

    Args:
        jobs: each draws a figure, or returns ``None`` if there is nothing to draw. It is called once for each size,
            under the :func:`~medmllm_plugins.report.figures.figure_style.style` of that size.
        workers: number of processes; by default the number of cores, at most four.
    """
    drawn = _draw_tasks([(job, paper_mm) for job in jobs for paper_mm in _SIZES], workers)
    return [_merge(drawn[start], drawn[start + 1 : start + len(_SIZES)]) for start in range(0, len(drawn), len(_SIZES))]


def _merge(page: Drawn, papers: Sequence[Drawn]) -> Drawn:
    """Return the figure of the page with its files for papers."""
    if not isinstance(page, Drawing):
        return page
    drawings = [page, *(paper for paper in papers if isinstance(paper, Drawing))]
    letters = "".join(sorted({letter for drawing in drawings for letter in drawing.missing_letters}))
    files = {name: content for drawing in drawings for name, content in drawing.files.items()}
    merged = replace(page, files=files, missing_letters=letters)
    failure = next((paper for paper in papers if isinstance(paper, FailedFigure)), None)
    return merged if failure is None else FailedFigure(failure.error, merged)


def _draw_tasks(tasks: Sequence[tuple[Job, int | None]], workers: int | None) -> list[Drawn]:
    count = min(4, processors()) if workers is None else workers
    if count < 2 or len(tasks) < _MIN_JOBS * len(_SIZES) or not sys.platform.startswith("linux"):
        return _counted(starmap(_draw, tasks), len(tasks))
    global _tasks
    _tasks = tasks
    gc.collect()
    gc.freeze()  # otherwise the garbage collection of the children copies the parent's memory
    try:
        pool = multiprocessing.get_context("fork").Pool(count)
    except OSError:  # a container without semaphores, or without room for another process
        return _counted(starmap(_draw, tasks), len(tasks))
    else:
        with pool:
            return _counted(pool.imap(_draw_at, range(len(tasks)), chunksize=1), len(tasks))
    finally:
        gc.unfreeze()
        _tasks = ()


def _counted(drawn: Iterable[Drawn], total: int) -> list[Drawn]:
    """Return what is drawn, and show how far the work is: the thread for this starts after the processes are forked."""
    results = []
    with Progress("report", total, "drawings") as progress:
        for each in drawn:
            results.append(each)
            progress.update()
    return results


def _draw_at(index: int) -> Drawn:
    gc.disable()  # a child runs for seconds; collecting matplotlib's cycles would take a tenth of that
    return _draw(*_tasks[index])


def _draw(job: Job, paper_mm: int | None) -> Drawn:
    try:
        with style(paper_mm):
            return job()
    except Exception as error:  # a damaged file may cause any error: the page reports it and shows the rest
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return FailedFigure(f"{shown(error)}; {Path(frame.filename).name}, line {frame.lineno}")
