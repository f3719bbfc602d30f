"""Figures that show whether a map can be trusted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.ndimage import uniform_filter
from scipy.stats import rankdata
from torch import Tensor

from medmllm_plugins.attribution.attribution_input import PIXELS, AttributionInput
from medmllm_plugins.attribution.cells import FloatArray, sample
from medmllm_plugins.attribution.maps import AttributionMap, layer_cells
from medmllm_plugins.attribution.methods.input_methods import masked_prompt_scores, mixed_pixels, word_indices
from medmllm_plugins.attribution.patches import to_patches

STEPS: Final = 10
"""Number of equal parts that are removed, or inserted, one after the other."""
RANDOM_ORDERS: Final = 8
"""Random orders for each document, different for each."""
ALIKE: Final = 1e-6
"""Values that differ by less than this share of the largest are equal up to rounding."""
NOISE: Final = 0.05
"""Standard deviation of the noise on pixels, as a share of their range."""
NOISE_DRAWS: Final = 2
_WINDOW = 7


class Removal:
    """Parts of a document's input that can be removed: patches of the image, or words of the prompt."""

    def __init__(self, case: AttributionInput, probability: Callable[[Tensor], Tensor], count: int, seed: int) -> None:
        """Compute the areas by chance.

        ``probability`` maps parts to keep, (R, count), to the target's probability, (R,). Each document has its own
        seed (:func:`document_seed`): with shared orders, an easy or hard draw would affect all documents alike and not
        average out.
        """
        self._batch, self._probability, self._count = case.batch, probability, count
        self._device = case.loaded.device
        generator = np.random.default_rng(seed)
        # Both areas of an order belong to chance: that of its insertion is that of its reverse's deletion.
        self.random = float(np.mean([self.areas(generator.permutation(count)) for _ in range(RANDOM_ORDERS)]))
        """Area under either curve by chance: the mean over random orders and their reverses."""

    @classmethod
    def of_image(cls, case: AttributionInput, seed: int) -> Removal:
        """Return patches of the image, which the baseline replaces."""
        patches, blank = to_patches(case.loaded, case.pixels), to_patches(case.loaded, case.blank_pixels)

        def probability(keep: Tensor) -> Tensor:
            pixels = mixed_pixels(case, patches, blank, keep)
            return case.target.probability(case.scores(len(keep), (), pixels))

        return cls(case, probability, len(patches), seed)

    @classmethod
    def of_prompt(cls, case: AttributionInput, seed: int) -> Removal:
        """Return words of the prompt, which padding replaces."""
        scores = masked_prompt_scores(case)
        return cls(case, lambda keep: case.target.probability(scores(keep)), int(word_indices(case).max()) + 1, seed)

    def areas(self, order: Any) -> tuple[float, float]:
        """Return the areas under the curves of deletion and of insertion; ``order`` has the most important part first.

        Each step of one curve has as many parts as the mirrored step of the other, so reversing an order exchanges the
        two areas.
        """
        removed = np.linspace(0, self._count, STEPS + 1).round().astype(int)[:, None]
        position = np.empty(self._count, dtype=int)
        position[np.asarray(order)] = np.arange(self._count)
        present = np.concatenate([position >= removed, position < (self._count - removed)[::-1]])
        keep = torch.from_numpy(present).to(self._device).float()
        with torch.no_grad():
            parts = [self._probability(part) for part in torch.split(keep, self._batch)]
        deletion, insertion = torch.cat(parts).double().cpu().numpy().reshape(2, STEPS + 1)
        return float(np.trapezoid(deletion, dx=1 / STEPS)), float(np.trapezoid(insertion, dx=1 / STEPS))


def document_seed(identifier: str) -> int:
    """Return the document's own seed, the same in every run."""
    return int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:8], "big")


def patch_values(case: AttributionInput, map_: AttributionMap) -> FloatArray:
    """Return a map's value of each patch of the tower; -inf where the map has none."""
    assert map_.painted is not None
    values = sample(map_.painted, layer_cells(case, PIXELS))
    return np.where(np.isfinite(values), values, -np.inf)


def word_values(case: AttributionInput, map_: AttributionMap) -> FloatArray:
    """Return a map's value of each word of the prompt, summed over its tokens."""
    words = word_indices(case).cpu().numpy()
    assert map_.tokens is not None
    values: FloatArray = np.bincount(words[words >= 0], weights=map_.tokens[words >= 0]).astype(np.float64)
    return values


def importance_order(values: FloatArray, seed: int) -> npt.NDArray[np.int64]:
    """Return indices by decreasing value, -inf last, in random order among equal values.

    Any other rule for ties, such as from top to bottom, could be better or worse than chance.
    """
    # Another stream than that of the random orders, one of which it would otherwise repeat.
    tie_breaker = np.random.default_rng([seed, 1]).random(len(values))
    step = ALIKE * np.abs(values[np.isfinite(values)]).max(initial=0)  # so that values equal up to rounding are equal
    order: npt.NDArray[np.int64] = np.lexsort((tie_breaker, -np.round(values / step) if step > 0 else -values))
    return order


def is_constant(values: FloatArray) -> bool:
    """Return whether all finite values are equal."""
    known = values[np.isfinite(values)]
    return not known.size or bool(np.ptp(known) <= ALIKE * np.abs(known).max())


def rank_correlation(first: FloatArray, second: FloatArray) -> float:
    """Return Spearman's rank correlation, ignoring NaN; 0 where one side is constant."""
    both = np.isfinite(first) & np.isfinite(second)
    ranks = rankdata(first[both]), rankdata(second[both])
    if not both.any() or ranks[0].std() == 0 or ranks[1].std() == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def map_similarity(pairs: Sequence[tuple[AttributionMap, AttributionMap]]) -> dict[str, Any]:
    """Return how similar maps of the same documents by two models are, averaged over the documents.

    Adebayo et al. (arXiv:1810.03292) compare both values and absolute values: a map whose signs change at random at the
    same edges depends on the weights as little as one that does not change.
    """
    values = [(old.comparable(old.values), old.comparable(new.values)) for old, new in pairs]
    shapes = [
        structural_similarity(old.painted, new.painted)
        for old, new in pairs
        if old.painted is not None and new.painted is not None
    ]
    return {
        "similarity": float(np.mean([rank_correlation(old, new) for old, new in values])),
        "absolute_similarity": float(np.mean([rank_correlation(np.abs(old), np.abs(new)) for old, new in values])),
        "structural_similarity": float(np.mean(shapes)) if shapes else None,
        "documents": len(pairs),
    }


def structural_similarity(first: FloatArray, second: FloatArray) -> float:
    """Return the structural similarity (Wang et al. 2004) of two maps, (pictures, height, width), scaled to [0, 1]."""
    first, second = _scaled(first), _scaled(second)
    window = (1, min(_WINDOW, first.shape[1]), min(_WINDOW, first.shape[2]))

    def mean(values: FloatArray) -> FloatArray:
        means: FloatArray = uniform_filter(values, window)
        return means

    m1, m2 = mean(first), mean(second)
    v1, v2, both = mean(first**2) - m1**2, mean(second**2) - m2**2, mean(first * second) - m1 * m2
    c1, c2 = 0.01**2, 0.03**2
    return float(((2 * m1 * m2 + c1) * (2 * both + c2) / ((m1**2 + m2**2 + c1) * (v1 + v2 + c2))).mean())


def lesion_overlap(painted: FloatArray, mask: Any) -> tuple[float | None, float | None, bool | None]:
    """Return how much of a map is in a lesion, considering only the part of the picture where the map has values.

    Args:
        painted: (1, height, width); NaN where there is no patch, as where the processor cropped.
        mask: (h, w) bool, the lesion in the whole picture, of any size.

    Returns:
        Share of the positive values inside (None where there are none), the lesion's share of the visible picture, and
        whether the largest value is inside; None for all where nothing of the lesion is visible.
    """
    height, width = painted.shape[1:]
    lesion = Image.fromarray(np.asarray(mask, np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
    seen = np.isfinite(painted[0])
    inside, values = (np.asarray(lesion) / 255)[seen], painted[0][seen]
    if not inside.any():
        return None, None, None
    positive = values.clip(min=0)
    total = positive.sum()
    share = float((positive * inside).sum() / total) if total > 0 else None
    return share, float(inside.mean()), bool(inside[int(values.argmax())] >= 0.5)


def _scaled(values: FloatArray) -> FloatArray:
    values = np.nan_to_num(values)
    span = values.max() - values.min()
    scaled: FloatArray = (values - values.min()) / span if span > 0 else np.zeros_like(values)
    return scaled
