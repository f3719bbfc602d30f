"""Near-duplicates: the search by hashes and bounds against two matrix products over all pairs, as it was before."""

from __future__ import annotations

import resource
import sys
import time

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.measure import Noted, compare, stopwatch
from benchmarks.record import Record, Settings, Target
from medmllm_plugins.data.core.duplicates import MAX_HAMMING, MIN_CORRELATION, THUMBNAIL, near_duplicates
from medmllm_plugins.errors import ModelError

IMAGES = 20_000
LARGE = 100_000
COPIES = 20
"""So many versions of each scan: brighter, moved, with grain."""
_BLOCK = 1024

Thumbnails = npt.NDArray[np.float32]


def scans(images: int, seed: int = 0) -> Thumbnails:
    """Made-up thumbnails as alike as scans of one kind: a shared anatomy, patients that differ smoothly, and copies."""
    generator = np.random.default_rng(seed)
    at = np.linspace(0, 5, THUMBNAIL)
    enlarge = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(6)[None, :]))
    anatomy = enlarge @ generator.uniform(40, 215, (6, 6)) @ enlarge.T
    pictures = np.empty((images, THUMBNAIL, THUMBNAIL), dtype=np.float32)
    for start in range(0, images, 5000):
        part = pictures[start : start + 5000]
        patients = np.arange(start, start + len(part)) // COPIES
        own = np.stack([np.random.default_rng((seed, int(patient))).normal(0, 45, (6, 6)) for patient in patients])
        part[:] = anatomy + enlarge @ own @ enlarge.T
        part += generator.uniform(-9, 9, (len(part), 1, 1)) + generator.normal(0, 1, part.shape) * generator.uniform(
            1, 18, (len(part), 1, 1)
        )
    return pictures.clip(0, 255, out=pictures)


def all_pairs(thumbnails: Thumbnails) -> npt.NDArray[np.intp]:
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
    found: npt.NDArray[np.intp] = np.concatenate(pairs)
    return found


def check(expected: npt.NDArray[np.intp], pairs: npt.NDArray[np.intp]) -> None:
    """See to it that both sides find the same pairs, but for those that rounding puts on either side of the limit.

    Raises:
        ModelError: they do not.
    """
    unlike = {tuple(pair) for pair in expected.tolist()} ^ {tuple(pair) for pair in pairs.tolist()}
    if len(unlike) > len(expected) * 1e-4 + 1:
        raise ModelError(
            f"Expected both sides to find the same pairs, got {len(unlike)} in one alone of {len(expected)}: run "
            "`pytest tests/data/test_duplicates.py`, and fix what it shows."
        )


def run(settings: Settings) -> Record:
    """Compare the two searches, and time the faster on 100,000 images.

    Raises:
        ModelError: they do not find the same pairs.
    """
    pictures = scans(IMAGES)
    fast, slow = Noted(lambda: near_duplicates(pictures)), Noted(lambda: all_pairs(pictures))
    device = torch.device("cpu")
    comparison = compare(stopwatch(slow, device), stopwatch(fast, device), repeats=settings.repeats)
    check(slow.last, fast.last)
    large = scans(LARGE)
    wall, cpu = time.perf_counter(), time.process_time()
    pairs = near_duplicates(large)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Record(
        settings=settings,
        sides=(
            ("all_pairs", f"two matrix products over all pairs of {IMAGES} thumbnails"),
            ("search", "this package: hashes as integers, bounds, then correlations of what passes"),
        ),
        comparison=comparison,
        target=Target("at least", 2.0),
        details={
            "images": IMAGES,
            "pairs": len(fast.last),
            "large_images": LARGE,
            "large_pairs": len(pairs),
            "large_s": round(wall, 2),
            "large_cpu_s": round(cpu, 2),
            "large_under_2_min": wall < 120,
            "peak_mb": round(peak),
        },
    )
