"""The search for near-duplicates is exact, however alike the pictures are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from medmllm_plugins.data.core import duplicates
from medmllm_plugins.data.core.duplicates import MAX_HAMMING, MIN_CORRELATION, near_duplicates
from medmllm_plugins.errors import DataError

Thumbnails = npt.NDArray[np.float32]


def smooth(generator: np.random.Generator, n: int, coarse: int = 6) -> Thumbnails:
    """Pictures of low frequencies, as scans are: bilinear enlargements of coarse noise, with some grain."""
    at = np.linspace(0, coarse - 1, 32)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(coarse)[None, :]))
    pictures = weights @ generator.uniform(0, 255, (n, coarse, coarse)) @ weights.T
    grainy: Thumbnails = (pictures + generator.normal(0, 2, pictures.shape)).clip(0, 255).astype(np.float32)
    return grainy


def perturbed(generator: np.random.Generator, pictures: Thumbnails, noise: float) -> Thumbnails:
    brightness = generator.uniform(-9, 9, (len(pictures), 1, 1))
    grain = generator.normal(0, noise, pictures.shape)
    copies: Thumbnails = (pictures * 0.9 + brightness + grain).clip(0, 255).astype(np.float32)
    return copies


def bits(pictures: Thumbnails) -> npt.NDArray[np.bool_]:
    """The hash by its definition, a picture at a time."""
    frequency, position = np.arange(8)[:, None], np.arange(32)[None, :]
    basis = np.cos(np.pi * (2 * position + 1) * frequency / 64)
    basis[0] /= np.sqrt(2)
    coefficients = [(basis @ picture.astype(np.float64) @ basis.T).ravel() for picture in pictures]
    return np.array([values > np.median(values[1:]) for values in coefficients])


def brute_force(pictures: Thumbnails) -> list[list[int]]:
    """Every pair held against the definition."""
    with np.errstate(invalid="ignore"):  # a flat picture correlates with nothing
        correlation = np.corrcoef(pictures.reshape(len(pictures), -1).astype(np.float64))
    distance = (bits(pictures)[:, None] != bits(pictures)[None, :]).sum(-1)
    structured = pictures.std(axis=(1, 2)) >= 1
    close = (distance <= MAX_HAMMING) & (correlation >= MIN_CORRELATION) & structured[:, None] & structured
    return np.argwhere(np.triu(close, 1)).tolist()


def pictures_of(kind: str) -> Thumbnails:
    generator = np.random.default_rng(7)
    if kind == "copies of scans":
        scans = smooth(generator, 120)
        return np.concatenate([scans, *(perturbed(generator, scans, noise) for noise in (1, 6, 15, 40))])
    if kind == "one scan with grain":  # every hash like every other, correlations on both sides of the limit
        return perturbed(generator, np.repeat(smooth(generator, 1), 300, axis=0), 9.7)
    if kind == "noise":
        return generator.uniform(0, 255, (300, 32, 32)).astype(np.float32)
    flat = np.full((40, 32, 32), 99, np.float32)
    return np.concatenate([flat, smooth(generator, 30), flat, smooth(generator, 1).repeat(9, axis=0)])


@pytest.mark.parametrize("tile", [(256, 512), (7, 11)])
@pytest.mark.parametrize("kind", ["copies of scans", "one scan with grain", "noise", "flat and copied"])
def test_the_search_is_exact(kind: str, tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", tile[0])
    monkeypatch.setattr(duplicates, "_COLUMNS", tile[1])
    pictures = pictures_of(kind)
    expected = brute_force(pictures)
    assert near_duplicates(pictures).tolist() == expected
    assert bool(expected) == (kind != "noise")


def test_no_picture_and_no_structure_give_no_pair() -> None:
    assert near_duplicates(np.empty((0, 32, 32), np.float32)).shape == (0, 2)
    assert near_duplicates(np.zeros((5, 32, 32), np.float32)).shape == (0, 2)


def test_the_product_of_sketches_is_a_bound_of_the_correlation() -> None:
    generator = np.random.default_rng(3)
    pictures = np.concatenate([pictures_of("copies of scans"), pictures_of("noise"), 200 + smooth(generator, 9) / 90])
    _, sketches, _ = duplicates._describe(pictures)
    correlation = np.corrcoef(pictures.reshape(len(pictures), -1).astype(np.float64))
    assert (sketches @ sketches.T >= correlation - duplicates._SLACK / 10).all()


def test_a_set_of_copies_is_refused_before_its_pairs_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = smooth(np.random.default_rng(0), 1).repeat(100, axis=0)
    assert len(near_duplicates(copies)) == 100 * 99 // 2
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 4000)
    with pytest.raises(DataError, match="100 images: expected at most 4000 pairs"):
        near_duplicates(copies)
