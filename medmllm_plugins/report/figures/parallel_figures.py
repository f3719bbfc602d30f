"""Drawing of figures in several processes: matplotlib takes a quarter of a second for each, and a page has dozens."""

from __future__ import annotations

import gc
import multiprocessing
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from medmllm_plugins.errors import shown
from medmllm_plugins.report.figures.figure_style import Drawing, style
from medmllm_plugins.utils.environment import processors


@dataclass(frozen=True, slots=True)
class FailedFigure:
    """A figure that could not be drawn."""

    error: str


Job: TypeAlias = Callable[[], Drawing | None]
Drawn: TypeAlias = Drawing | FailedFigure | None
_MIN_JOBS: Final = 6
"""Fewer figures are drawn in this process."""
_jobs: Sequence[Job] = ()


def draw_all(jobs: Sequence[Job], workers: int | None = None) -> list[Drawn]:
    """Draw figures, in order; one that fails, as on a damaged run folder, does not affect the others.

    On Linux, forked processes draw them: they inherit all data and imports, so that only the finished figures are
    transferred. On other systems, and with one core, they are drawn one after the other, with identical bytes.

    Args:
        jobs: each draws a figure, or returns ``None`` if there is nothing to draw.
        workers: number of processes; by default the number of cores, at most four.
    """
    count = min(4, processors()) if workers is None else workers
    if count < 2 or len(jobs) < _MIN_JOBS or not sys.platform.startswith("linux"):
        return [_draw(job) for job in jobs]
    global _jobs
    _jobs = jobs
    gc.collect()
    gc.freeze()  # otherwise the garbage collection of the children copies the parent's memory
    try:
        pool = multiprocessing.get_context("fork").Pool(count)
    except OSError:  # a container without semaphores, or without room for another process
        return [_draw(job) for job in jobs]
    else:
        with pool:
            return pool.map(_draw_at, range(len(jobs)), chunksize=1)
    finally:
        gc.unfreeze()
        _jobs = ()


def _draw_at(index: int) -> Drawn:
    gc.disable()  # a child runs for seconds; collecting matplotlib's cycles would take a tenth of that
    return _draw(_jobs[index])


def _draw(job: Job) -> Drawn:
    try:
        with style():
            return job()
    except Exception as error:  # a damaged file may cause any error: the page reports it and shows the rest
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return FailedFigure(f"{shown(error)}; {Path(frame.filename).name}, line {frame.lineno}")
