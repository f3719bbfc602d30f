"""Figures drawn on all cores at once: matplotlib takes a quarter of a second for each, and a page has dozens."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from medmllm_plugins.report.drawing import Drawing, style

Job: TypeAlias = Callable[[], Drawing | None]
FEWEST: Final = 6
"""Fewer figures are drawn here and now."""
_jobs: Sequence[Job] = ()


def draw_all(jobs: Sequence[Job], workers: int | None = None) -> list[Drawing | None]:
    """Draw figures, in order.

    Where the system can fork (on Linux), children draw them: they inherit all data and all imports, so that nothing but
    the finished figures travels. Elsewhere, and with one core, they are drawn one after the other, alike to the byte.

    Args:
        jobs: each draws a figure, or finds that there is nothing to draw.
        workers: processes; as many as there are cores, up to four, where ``None``.
    """
    count = min(4, os.cpu_count() or 1) if workers is None else workers
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


def _draw_at(place: int) -> Drawing | None:
    gc.disable()  # a child lives for some seconds; collecting matplotlib's cycles would take a tenth of them
    return _draw(_jobs[place])


def _draw(job: Job) -> Drawing | None:
    with style():
        return job()
