"""The effects of interchange, with clustered intervals, and the layers that they point to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medmllm_plugins.interventions.interchange import CONTROLS, Exchange, Scores
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import (
    RESAMPLES,
    SHARE,
    bootstrap,
    effective_groups,
    estimate,
)
from medmllm_plugins.models.recorded_pass import CONNECTOR
from medmllm_plugins.results.interchange_records import Interchange, InterchangePoint


def interchange_effects(
    scores: Scores, truth: Ints, donor_truth: Ints, group: Ints, *, left_out: int = 0, seed: int = 0
) -> Interchange:
    """Measure how far each exchange moves the answers toward the class of the donor.

    Args:
        scores: label scores of all documents.
        truth: (n,) classes of the documents.
        donor_truth: (n,) classes of their donors of another class.
        group: (n,) groups of the documents.
        left_out: documents without donors.
        seed: of the bootstrap resamples.
    """
    _, group = np.unique(group, return_inverse=True)
    exchanges = [key for key in scores if isinstance(key, Exchange)]
    documents = np.arange(len(truth))

    def margin(rows: Sequence[tuple[float, ...]]) -> Floats:
        """Log-odds of the donor's label against the document's, (n,) in nats."""
        values = np.array(rows, dtype=np.float64)
        result: Floats = values[documents, donor_truth] - values[documents, truth]
        return result

    own, donor = margin(scores["own"]), margin(scores["other class"])
    patched = {exchange: margin(scores[exchange]) for exchange in exchanges}
    # A document that the model takes for the donor's class already cannot flip.
    flips = {exchange: ((values > 0) & (own <= 0)).astype(np.float64) for exchange, values in patched.items()}
    rows = np.stack([donor - own, *(patched[key] - own for key in exchanges), *(flips[key] for key in exchanges)])
    values, resampled = bootstrap(
        lambda weights: {"": (rows @ weights / weights.sum(0)).T},
        group.astype(np.intp),
        resamples=RESAMPLES,
        seed=seed,
        cells=len(rows),
    )
    means, drawn = values[""], resampled[""]
    count, groups = len(exchanges), effective_groups(group.astype(np.intp))
    points = []
    for index, exchange in enumerate(exchanges):
        whole, drawn_whole = float(means[0]), drawn[:, 0]
        ratio = float(means[1 + index]) / whole + 0.0 if whole > 0 else math.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(drawn_whole > 0, drawn[:, 1 + index] / drawn_whole, np.nan)
        points.append(
            InterchangePoint(
                layer=exchange.site.layer,
                tokens=exchange.site.tokens,
                donor=exchange.donor,
                flips=estimate(
                    float(means[1 + count + index]), drawn[:, 1 + count + index], groups=groups, bounds=SHARE
                ),
                effect=estimate(ratio, ratios, groups=groups),
            )
        )
    image, last = ([layer for layer in _beyond_controls(points, tokens)] for tokens in ("image", "last"))
    return Interchange(
        n=len(truth),
        groups=len(np.unique(group)),
        left_out=left_out,
        points=tuple(points),
        image_until=image[-1] if image else "",
        last_from=last[0] if last else "",
    )


def _beyond_controls(points: Sequence[InterchangePoint], tokens: str) -> list[str]:
    """Return the layers at which donors of another class move the answers more than any control, beyond doubt.

    At the connector all tokens are those of the image.
    """
    layers = []
    for layer in dict.fromkeys(point.layer for point in points):
        effects = {
            point.donor: point.effect
            for point in points
            if point.layer == layer and (point.tokens == tokens or (tokens == "image" and layer == CONNECTOR))
        }
        if "other class" not in effects:
            continue
        band = max((effects[donor].high for donor in CONTROLS if donor in effects), default=0.0)
        if effects["other class"].low > max(band, 0.0):
            layers.append(layer)
    return layers


def headline(result: Interchange) -> str:
    """Return the result in one or two sentences."""
    if not result.n:
        return "No document has donors of another and of the same class with as many image tokens."
    if all(math.isnan(point.effect.value) for point in result.points):
        return "The label scores do not separate documents of two classes, so an effect has no scale."
    if not result.image_until and not result.last_from:
        return (
            f"States of {result.n} documents of another class move the answers no more than controls do, at any layer."
        )
    image = (
        f"the answers depend on image tokens up to {result.image_until}"
        if result.image_until
        else "image tokens move the answers at no layer"
    )
    last = (
        f"the last token carries the class from {result.last_from} on"
        if result.last_from
        else "the last token carries it nowhere"
    )
    return f"With states of another class in {result.n} documents, {image}, and {last}."
