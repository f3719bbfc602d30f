"""Numbers that tell whether a map deserves trust."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.ndimage import uniform_filter  # type: ignore[import-untyped]
from scipy.stats import rankdata  # type: ignore[import-untyped]
from torch import Tensor

from medmllm_plugins.attribution.attribution_input import PIXELS, AttributionInput
from medmllm_plugins.attribution.cells import FloatArray, sample
from medmllm_plugins.attribution.maps import AttributionMap, layer_cells
from medmllm_plugins.attribution.methods.input_methods import masked_prompt_scores, mixed_pixels, word_indices
from medmllm_plugins.attribution.patches import to_patches

STEPS: Final = 10
"""So many equal parts are taken away, or put back, one after the other."""
RANDOM_ORDERS: Final = 8
"""So many are drawn for each document, anew for each."""
ALIKE: Final = 1e-6
"""Values that differ by less than this share of the largest are the same: the rest is rounding."""
NOISE: Final = 0.05
"""Standard deviation of the noise on pixels, as a share of their range."""
NOISE_DRAWS: Final = 2
_WINDOW = 7


@dataclass(frozen=True, slots=True)
class Checks:
    """What was found of one map; ``None`` for what does not apply to it.

    Attributes:
        completeness_gap: by how much the sum of a path method misses the difference it explains, as a share of it.
        deletion: area under the target's probability while what the map holds most important is taken away first
            (Petsiuk et al., arXiv:1806.07421); low is good.
        deletion_random: the same, mean over random orders.
        insertion: area while it is put back first; high is good.
        insertion_random: the same, mean over random orders, and the same number as ``deletion_random``: what is left
            while an order is taken away is what its reverse puts back.
        flat: whether the map says the same of everything, so that nothing follows from it.
        stability: rank correlation with maps of the image under noise, mean over draws.
        inside: share of the positive values that lie in the lesion.
        area: share that the lesion takes of what is seen of the picture: what ``inside`` is by chance.
        pointing: whether the largest value lies in the lesion (Zhang et al., arXiv:1608.00507).
    """

    completeness_gap: float | None = None
    deletion: float | None = None
    deletion_random: float | None = None
    insertion: float | None = None
    insertion_random: float | None = None
    flat: bool | None = None
    stability: float | None = None
    inside: float | None = None
    area: float | None = None
    pointing: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {name: getattr(self, name) for name in self.__slots__}


class Removal:
    """Parts of a document's input that can be taken away: patches of the image, or words of the prompt."""

    def __init__(self, case: AttributionInput, probability: Callable[[Tensor], Tensor], count: int, seed: int) -> None:
        """Prepare.

        Args:
            case: the case.
            probability: takes (R, n), 1 for parts that are kept, and returns the target's probability, (R,).
            count: number of parts, n.
            seed: of the random orders; each document is to have its own (:func:`document_seed`), or the chance that one draw
                is easy or hard would be shared by all of them, and no number of documents would average it away.
        """
        self._batch, self._probability, self._count = case.batch, probability, count
        self._device = case.loaded.device
        generator = np.random.default_rng(seed)
        # Both areas of an order belong to chance: that of its insertion is that of its reverse's deletion.
        self.random = float(np.mean([self.areas(generator.permutation(count)) for _ in range(RANDOM_ORDERS)]))
        """Area under either curve by chance: the mean over random orders and their reverses."""

    @classmethod
    def of_image(cls, case: AttributionInput, seed: int) -> Removal:
        """Patches of the image, which the baseline takes the place of."""
        patches, blank = to_patches(case.loaded, case.pixels), to_patches(case.loaded, case.blank_pixels)

        def probability(keep: Tensor) -> Tensor:
            shown = mixed_pixels(case, patches, blank, keep)
            return case.target.probability(case.scores(len(keep), (), shown))

        return cls(case, probability, len(patches), seed)

    @classmethod
    def of_prompt(cls, case: AttributionInput, seed: int) -> Removal:
        """Words of the prompt, which padding takes the place of."""
        scores = masked_prompt_scores(case)
        return cls(case, lambda keep: case.target.probability(scores(keep)), int(word_indices(case).max()) + 1, seed)

    def areas(self, order: Any) -> tuple[float, float]:
        """Areas under the curves of deletion and of insertion.

        At each step of the one as many parts are there as at the step of the other that mirrors it, so that the
        reverse of an order has the two areas exchanged.

        Args:
            order: (n,), the parts, the most important first.
        """
        taken = np.linspace(0, self._count, STEPS + 1).round().astype(int)[:, None]
        place = np.empty(self._count, dtype=int)
        place[np.asarray(order)] = np.arange(self._count)
        kept = np.concatenate([place >= taken, place < (self._count - taken)[::-1]])
        keep = torch.from_numpy(kept).to(self._device).float()
        with torch.no_grad():
            found = (
                torch.cat([self._probability(part) for part in torch.split(keep, self._batch)]).double().cpu().numpy()
            )
        return tuple(float(np.trapezoid(part, dx=1 / STEPS)) for part in (found[: STEPS + 1], found[STEPS + 1 :]))  # type: ignore[return-value]


def document_seed(identifier: str) -> int:
    """A seed of a document's own, the same in every run."""
    return int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:8], "big")


def patch_values(case: AttributionInput, one: AttributionMap) -> FloatArray:
    """What a map says of each of the tower's patches; those that no row of the map looks at have the least of all."""
    assert one.painted is not None
    values = sample(one.painted, layer_cells(case, PIXELS))
    return np.where(np.isfinite(values), values, -np.inf)


def word_values(case: AttributionInput, one: AttributionMap) -> FloatArray:
    """What a map says of each word of the prompt, summed over its tokens."""
    words = word_indices(case).cpu().numpy()
    assert one.tokens is not None
    found: FloatArray = np.bincount(words[words >= 0], weights=one.tokens[words >= 0]).astype(np.float64)
    return found


def importance_order(values: FloatArray, seed: int) -> npt.NDArray[np.int64]:
    """The most important first, and at random among those that are alike.

    Any other rule for these, such as from top to bottom, would be an order of its own, which may well beat chance.

    Args:
        values: (n,); ``-inf`` for what comes last.
        seed: of the document, see :func:`document_seed`.
    """
    # Draws of its own: those of the random orders would put these back into one of them.
    chance = np.random.default_rng([seed, 1]).random(len(values))
    found: npt.NDArray[np.int64] = np.lexsort((chance, -_levelled(values)))
    return found


def is_constant(values: FloatArray) -> bool:
    """Whether all values that are finite are alike."""
    known = values[np.isfinite(values)]
    return not known.size or bool(np.ptp(known) <= ALIKE * np.abs(known).max())


def _levelled(values: FloatArray) -> FloatArray:
    """Values without the rounding that would tell apart what is alike."""
    step = ALIKE * np.abs(values[np.isfinite(values)]).max(initial=0)
    return np.round(values / step) if step > 0 else values


def rank_correlation(one: FloatArray, other: FloatArray) -> float:
    """Spearman's rank correlation of two sets of values; 0 where one of them is constant, NaN left out."""
    both = np.isfinite(one) & np.isfinite(other)
    first, second = rankdata(one[both]), rankdata(other[both])
    if not both.any() or first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def map_similarity(pairs: Sequence[tuple[AttributionMap, AttributionMap]]) -> dict[str, Any]:
    """How alike maps of the same documents by two models are, means over the documents.

    Adebayo et al. (arXiv:1810.03292) compare both values as they are and their sizes: a map whose signs fall by chance
    at the same edges is as blind to the weights as one that stays the same.

    Args:
        pairs: two maps of each document.
    """
    values = [(one.values, other.values) for one, other in pairs]
    shapes = [
        structural_similarity(one.painted, other.painted)
        for one, other in pairs
        if one.painted is not None and other.painted is not None
    ]
    return {
        "similarity": float(np.mean([rank_correlation(one, other) for one, other in values])),
        "absolute_similarity": float(np.mean([rank_correlation(np.abs(one), np.abs(other)) for one, other in values])),
        "structural_similarity": float(np.mean(shapes)) if shapes else None,
        "documents": len(pairs),
    }


def structural_similarity(one: FloatArray, other: FloatArray) -> float:
    """Structural similarity (Wang et al. 2004) of two maps, (pictures, height, width), each scaled to 0 to 1."""
    first, second = (_scaled(item) for item in (one, other))
    window = (1, min(_WINDOW, first.shape[1]), min(_WINDOW, first.shape[2]))

    def mean(values: FloatArray) -> FloatArray:
        found: FloatArray = uniform_filter(values, window)
        return found

    m1, m2 = mean(first), mean(second)
    v1, v2, both = mean(first**2) - m1**2, mean(second**2) - m2**2, mean(first * second) - m1 * m2
    c1, c2 = 0.01**2, 0.03**2
    return float(((2 * m1 * m2 + c1) * (2 * both + c2) / ((m1**2 + m2**2 + c1) * (v1 + v2 + c2))).mean())


def lesion_overlap(painted: FloatArray, mask: Any) -> tuple[float | None, float | None, bool | None]:
    """How much of a map lies in a lesion.

    What the processor cropped away can hold no value: only where the map has values are shares taken.

    Args:
        painted: (1, height, width); NaN where no patch looks.
        mask: (h, w) bool, the lesion, on the whole picture, of any size.

    Returns:
        Share of the positive values inside (``None`` where there are none), the lesion's share of what is seen of the
        picture, and whether the largest value is inside; ``None`` for all where nothing is seen of the lesion.
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
    found: FloatArray = (values - values.min()) / span if span > 0 else np.zeros_like(values)
    return found
