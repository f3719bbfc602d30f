"""Near-duplicates: the search by hashes and bounds against two matrix products over all pairs."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Benchmark, Run, Sides, expect, wall_and_cpu
from medmllm_plugins.data.core.duplicates import MAX_HAMMING, MIN_CORRELATION, near_duplicates
from medmllm_plugins.data.readers.file_facts import THUMBNAIL

COPIES = 20
"""Versions of each scan: brighter, shifted in grey value, with grain."""
_BLOCK = 1024

Thumbnails = npt.NDArray[np.float32]
Pairs = npt.NDArray[np.intp]


def scans(count: int) -> Thumbnails:
    """Make up thumbnails like scans of one kind: a shared anatomy, smooth differences of patients, and copies."""
    generator = np.random.default_rng(0)
    grid = np.linspace(0, 5, THUMBNAIL)
    enlarge = np.maximum(0, 1 - np.abs(grid[:, None] - np.arange(6)[None, :]))
    anatomy = enlarge @ generator.uniform(40, 215, (6, 6)) @ enlarge.T
    pictures = np.empty((count, THUMBNAIL, THUMBNAIL), dtype=np.float32)
    for start in range(0, count, 5000):
        part = pictures[start : start + 5000]
        patients = np.arange(start, start + len(part)) // COPIES
        own = np.stack([np.random.default_rng((0, int(patient))).normal(0, 45, (6, 6)) for patient in patients])
        brightness, grain = (len(part), 1, 1), part.shape
        part[:] = anatomy + enlarge @ own @ enlarge.T + generator.uniform(-9, 9, brightness)
        part += generator.normal(0, 1, grain) * generator.uniform(1, 18, brightness)
    return pictures.clip(0, 255, out=pictures)


def all_pairs(thumbnails: Thumbnails) -> Pairs:
    """Compare every two pictures by two matrix products, in blocks of 1,024 rows."""
    frequency, position = np.arange(8)[:, None], np.arange(THUMBNAIL)[None, :]
    basis = np.cos(np.pi * (2 * position + 1) * frequency / (2 * THUMBNAIL))
    basis[0] /= np.sqrt(2)
    coefficients = np.einsum("uh,nhw,vw->nuv", basis, thumbnails, basis).reshape(len(thumbnails), -1)
    median = np.median(coefficients[:, 1:], axis=1, keepdims=True)
    signs = np.where(coefficients > median, 1, -1).astype(np.float32)
    centred = (thumbnails - thumbnails.mean(axis=(1, 2), keepdims=True)).reshape(len(thumbnails), -1)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    pairs = []
    for start in range(0, len(thumbnails), _BLOCK):
        block = slice(start, start + _BLOCK)
        close = 64 - signs[block] @ signs.T <= 2 * MAX_HAMMING
        close &= centred[block] @ centred.T >= MIN_CORRELATION
        rows, columns = np.nonzero(close)
        upper = np.stack([rows + start, columns], axis=1)
        pairs.append(upper[upper[:, 0] < upper[:, 1]])
    joined: Pairs = np.concatenate(pairs)
    return joined


def check(ours: Pairs, baseline: Pairs) -> None:
    """Check that both sides find the same pairs, but for those that rounding puts on either side of the limit."""
    different = {tuple(pair) for pair in baseline.tolist()} ^ {tuple(pair) for pair in ours.tolist()}
    got = f"{len(different)} found by one side only, of {len(baseline)}"
    expect(len(different) <= len(baseline) * 1e-4 + 1, "the same pairs", got, "tests/data/test_duplicates.py")


def setup(run: Run, images: int, large_images: int) -> Sides:
    """Make up the scans; a larger search is among the details."""
    pictures, large_pictures = scans(images), scans(large_images)
    large = partial(near_duplicates, large_pictures)
    return Sides(
        ours=partial(near_duplicates, pictures),
        baseline=partial(all_pairs, pictures),
        check=check,
        warm_up=lambda: near_duplicates(pictures[:COPIES]),
        details=lambda comparison: {"pairs": len(comparison.ours_result), **wall_and_cpu("large", large)},
    )


BENCHMARK = Benchmark(
    name="duplicates",
    ours="hashes as integers, bounds, then correlations of what passes",
    baseline="two matrix products over all pairs of thumbnails",
    setup=setup,
    sizes={
        "full": {"images": 20_000, "large_images": 100_000},
        "quick": {"images": 200, "large_images": 400},
    },
    targets={("full", "cpu"): 2.0},
    limits={"large_s": 120.0},
    repeats=1,
)
