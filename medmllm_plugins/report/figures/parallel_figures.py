"""Figures drawn on all cores at once: matplotlib takes a quarter of a second for each, and a page has dozens."""

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
from medmllm_plugins.utils.processors import processors


@dataclass(frozen=True, slots=True)
class Failed:
    """A figure that could not be drawn, and why."""

    why: str


Job: TypeAlias = Callable[[], Drawing | None]
Drawn: TypeAlias = Drawing | Failed | None
FEWEST: Final = 6
"""Fewer figures are drawn here and now."""
_jobs: Sequence[Job] = ()


def draw_all(jobs: Sequence[Job], workers: int | None = None) -> list[Drawn]:
    """Draw figures, in order. One that cannot be drawn, of a damaged run folder, takes no other with it.

    Where the system can fork (on Linux), children draw them: they inherit all data and all imports, so that nothing but
    the finished figures travels. Elsewhere, and with one core, they are drawn one after the other, alike to the byte.

    Args:
        jobs: each draws a figure, or finds that there is nothing to draw.
        workers: processes; as many as there are cores, up to four, where ``None``.
    """
    count = min(4, processors()) if workers is None else workers
    if count < 2 or len(jobs) < FEWEST or not sys.platform.startswith("linux"):
        return [_draw(job) for job in jobs]
    global _jobs
    _jobs = jobs
    gc.collect()
    gc.freeze()  # or the children's collections would copy every page of the parent's memory
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


def _draw_at(place: int) -> Drawn:
    gc.disable()  # a child lives for some seconds; collecting matplotlib's cycles would take a tenth of them
    return _draw(_jobs[place])


def _draw(job: Job) -> Drawn:
    try:
        with style():
            return job()
    except Exception as error:  # whatever a damaged file leads to: the page says so, and shows the rest
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Failed(f"{shown(error)}; {Path(where.filename).name}, line {where.lineno}")
