"""Semantic mapping: whether a model's words say what its last features know, and if not, how the two part.

All comes from one run: the answers, the scores of the labels, and the predictions of a probe on the last token's
features at the end of the LLM. Fixed re-readings of the answers or scores are fitted on the validation fold and judged
on the test fold. What a re-reading recovers was in the words and was misread; what none recovers is in the features
only. A probe shows that a class is available there, not that the model uses it.

Source: nostalgebraist, "interpreting GPT: the logit lens", 2020 (words read off inner layers). Those of re-readings
stand in :mod:`medmllm_plugins.probes.output_recalibration`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import RESAMPLES, Estimate, bootstrap, estimate, number
from medmllm_plugins.probes.output_recalibration import (
    UNPARSED,
    Recalibrations,
    ScoredFold,
    ValidationFold,
    highest_scoring,
)

Kind: TypeAlias = Literal["intact", "permuted", "biased", "missing", "other re-reading", "decoding", "cannot tell"]
"""What :func:`kind_of` can find; its docstring has the rules."""

MARGIN = 0.03
"""A difference of accuracies counts from here on, given that its interval excludes zero."""
RECOVERED = 0.5
"""A re-reading recovers the features' knowledge if it comes this far on the way up to the probe's accuracy."""
TOLERANCE = 0.10
"""A mapping is called intact only where the whole interval of its gap lies below this; a wider one cannot tell."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How good one reading of the answers or scores is, on the test fold, in accuracy.

    Attributes:
        accuracy: of the reading.
        gain: over what it re-reads, the answers or the label that scores highest.
        over_answers: over the answers.
        over_constant: over always answering the validation fold's commonest class.
        short_of_probe: the probe's accuracy less that of the reading.
    """

    accuracy: Estimate
    gain: Estimate
    over_answers: Estimate
    over_constant: Estimate
    short_of_probe: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, ``None`` in place of NaN."""
        return {name: getattr(self, name).to_dict() for name in self.__slots__}


@dataclass(frozen=True, slots=True, eq=False)
class SemanticMapping:
    """Where the features and the words part, on the test fold.

    All estimates are accuracies, or differences of them, with intervals from one set of draws of groups. The intervals
    take the fitted re-readings as given: they do not hold the chance of the validation fold.

    Attributes:
        kind: which reading the evidence supports, by :func:`kind_of`.
        n: documents.
        n_groups: groups they fall into.
        answer: accuracy of the answers, those not parsed being wrong.
        probe: accuracy of the probe.
        constant: accuracy of always answering the validation fold's commonest class.
        mapping_gap: probe less answers; above 0, the features know what the words do not say.
        probe_only: share of documents that the probe gets right and the answer wrong.
        answer_only: the reverse.
        answer_over_constant: answers less the constant answer.
        probe_over_constant: probe less the constant answer.
        readings: by name, those that the data allow: ``"scores"`` (the label that scores highest), ``"relabelled"``
            (answers renamed), ``"permuted"`` (that label renamed), ``"blank"`` (scores less those of a blank image),
            ``"offsets"`` (scores plus an offset a class), ``"affine"`` (an affine map of the scores).
        relabelling: for each answered class the class that it is renamed to in ``"relabelled"``; ``None`` without it.
        relabelled_on: what the renaming was fitted on: the answers of the validation fold, or the labels that score
            highest where no answers were generated there; ``None`` without a renaming.
        permutation: the same for ``"permuted"``.
        offsets: (K,) nats of each class in ``"offsets"``, with mean 0; ``None`` without it.
        agreement: (K, K, K + 1) documents by true class, the probe's class and the answered class, the last being
            those not parsed.
        lens: accuracy of the words read off each layer, in order; ``None`` without lens logits.
    """

    kind: Kind
    n: int
    n_groups: int
    answer: Estimate
    probe: Estimate
    constant: Estimate
    mapping_gap: Estimate
    probe_only: Estimate
    answer_only: Estimate
    answer_over_constant: Estimate
    probe_over_constant: Estimate
    readings: Mapping[str, Reading]
    relabelling: tuple[int, ...] | None
    relabelled_on: Literal["answers", "scores"] | None
    permutation: tuple[int, ...] | None
    offsets: tuple[float, ...] | None
    agreement: Ints
    lens: tuple[Estimate, ...] | None

    @property
    def scores(self) -> Estimate | None:
        """Accuracy of the label that scores highest."""
        return self.readings["scores"].accuracy if "scores" in self.readings else None

    @property
    def score_gap(self) -> Estimate | None:
        """That less the answers: above 0, decoding or parsing loses it."""
        return self._gain("scores")

    @property
    def relabelling_gain(self) -> Estimate | None:
        """Renamed answers less the answers: large where labels are swapped."""
        return self._gain("relabelled")

    @property
    def permutation_gain(self) -> Estimate | None:
        """The same for the label that scores highest."""
        return self._gain("permuted")

    @property
    def prior_gain_blank(self) -> Estimate | None:
        """What taking off the scores of a blank image gains: large where a word is preferred whatever the image."""
        return self._gain("blank")

    @property
    def prior_gain_fitted(self) -> Estimate | None:
        """The same with offsets fitted on the validation fold."""
        return self._gain("offsets")

    @property
    def affine_gain(self) -> Estimate | None:
        """What an affine re-reading of the scores gains."""
        return self._gain("affine")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, ``None`` in place of NaN and of what the data do not allow."""
        gains = ("scores", "score_gap", "relabelling_gain", "permutation_gain", "prior_gain_blank", "prior_gain_fitted")
        told: dict[str, Any] = {}
        for name in (*self.__slots__, *gains, "affine_gain"):
            value = getattr(self, name)
            told[name] = value.to_dict() if isinstance(value, Estimate) else value
        return told | {
            "readings": {name: reading.to_dict() for name, reading in self.readings.items()},
            "relabelling": None if self.relabelling is None else list(self.relabelling),
            "permutation": None if self.permutation is None else list(self.permutation),
            "offsets": None if self.offsets is None else [number(offset) for offset in self.offsets],
            "agreement": self.agreement.tolist(),
            "lens": None if self.lens is None else [layer.to_dict() for layer in self.lens],
        }

    def _gain(self, reading: str) -> Estimate | None:
        return self.readings[reading].gain if reading in self.readings else None


def semantic_mapping(
    validation: ValidationFold,
    test: ScoredFold,
    classes: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    margin: float = MARGIN,
) -> SemanticMapping:
    """Compare what the features know with what the words say.

    Args:
        validation: the validation fold, on which re-readings are fitted.
        test: the test fold, on which all figures are computed.
        classes: K, at least 2.
        resamples: bootstrap resamples of the test fold's groups.
        seed: of resamples, sign flips and the parts of the validation fold.
        margin: accuracy from which a difference counts for ``kind``.

    Raises:
        DataError: an array has another shape, type or range than :class:`ValidationFold` and :class:`ScoredFold` say.
    """
    _check(validation, test, classes)
    fitted = Recalibrations(validation, classes, seed)
    groups, group = np.unique(test.group, return_inverse=True)

    def right(answers: Ints) -> Floats:
        found: Floats = (answers == test.truth).astype(np.float64)
        return found

    answer, probe = right(test.answers), right(test.probe)
    constant = right(np.full(len(test.truth), fitted.commonest))
    rows: dict[str, Floats] = {
        "answer": answer,
        "probe": probe,
        "constant": constant,
        "mapping_gap": probe - answer,
        "probe_only": probe * (1 - answer),
        "answer_only": answer * (1 - probe),
        "answer_over_constant": answer - constant,
        "probe_over_constant": probe - constant,
    }
    read = {name: right(answers) for name, answers in fitted.readings(test).items()}
    for name, row in read.items():
        source = answer if name in ("scores", "relabelled") else read["scores"]
        rows |= {
            f"{name}:accuracy": row,
            f"{name}:gain": row - source,
            f"{name}:over_answers": row - answer,
            f"{name}:over_constant": row - constant,
            f"{name}:short_of_probe": probe - row,
        }
    lens = None if test.lens is None else [f"lens:{layer}" for layer in range(len(test.lens))]
    if test.lens is not None:
        rows |= {f"lens:{layer}": right(highest_scoring(logits)) for layer, logits in enumerate(test.lens)}

    stacked = np.stack(list(rows.values()))
    values, drawn = bootstrap(
        lambda weights: {"": (stacked @ weights / weights.sum(0)).T},
        group.astype(np.intp),
        resamples=resamples,
        seed=seed,
        cells=len(stacked),
    )
    found = {
        name: estimate(float(values[""][row]), drawn[""][:, row], groups=len(groups)) for row, name in enumerate(rows)
    }
    readings = {name: Reading(**{part: found[f"{name}:{part}"] for part in Reading.__slots__}) for name in read}
    whole = {name: found[name] for name in rows if ":" not in name}
    kind = kind_of(
        answer=found["answer"],
        probe=found["probe"],
        constant=found["constant"],
        mapping_gap=found["mapping_gap"],
        answer_over_constant=found["answer_over_constant"],
        probe_over_constant=found["probe_over_constant"],
        readings=readings,
        margin=margin,
    )
    return SemanticMapping(
        **whole,
        kind=kind,
        n=len(test.truth),
        n_groups=len(groups),
        readings=readings,
        relabelling=_told(fitted.relabelling),
        relabelled_on=fitted.relabelled_on,
        permutation=_told(fitted.permutation) if "permuted" in read else None,
        offsets=None if fitted.offsets is None or "offsets" not in read else tuple(map(float, fitted.offsets)),
        agreement=_agreement(test, classes),
        lens=None if lens is None else tuple(found[name] for name in lens),
    )


def kind_of(
    *,
    answer: Estimate,
    probe: Estimate,
    constant: Estimate,
    mapping_gap: Estimate,
    answer_over_constant: Estimate,
    probe_over_constant: Estimate,
    readings: Mapping[str, Reading],
    margin: float = MARGIN,
) -> Kind:
    """Name the reading that the evidence supports.

    A difference *counts* when it is at least ``margin`` and its interval lies above zero. A re-reading *recovers* when
    its gain over what it re-reads, its lead over the answers and its lead over the constant answer all count, and it
    comes at least :data:`RECOVERED` of the way from the better of the last two up to the probe. Measured from the
    constant answer too, because going over to the commonest class is a gain that needs no knowledge of the image. In
    this order:

    1. One of the simple re-readings recovers: the best of them names the kind, and of those less than ``margin``
       behind it the simplest. ``"decoding"``: the label that scores highest is right where the answer is wrong.
       ``"permuted"``: classes renamed, in the answers or in the scores. ``"biased"``: words' preferences taken off,
       those on a blank image or those fitted.
    2. The mapping gap does not count. ``"intact"`` if its interval lies below :data:`TOLERANCE` and the answers' lead
       over the constant answer counts; ``"cannot tell"`` otherwise.
    3. The gap counts, but the probe's lead over the constant answer does not: ``"cannot tell"``, for nothing shows
       that the features know.
    4. The gap counts and the affine map recovers: ``"other re-reading"``.
    5. The gap counts and the probe's lead over the affine map counts: ``"missing"``.
    6. ``"cannot tell"``: there are no scores to judge by, or too few documents.

    With fewer than two groups there are no intervals, nothing counts, and the kind is ``"cannot tell"``.

    Args:
        answer: accuracy of the answers.
        probe: accuracy of the probe.
        constant: accuracy of the constant answer.
        mapping_gap: probe less answers.
        answer_over_constant: answers less the constant answer.
        probe_over_constant: probe less the constant answer.
        readings: as :class:`SemanticMapping` has them.
        margin: accuracy from which a difference counts.
    """

    def counts(difference: Estimate) -> bool:
        return difference.value >= margin and difference.low > 0

    base = max(answer.value, constant.value)
    wanted = base + RECOVERED * (probe.value - base)
    recovering = {
        name: reading.accuracy.value
        for name, reading in readings.items()
        if all(map(counts, (reading.gain, reading.over_answers, reading.over_constant)))
        and reading.accuracy.value >= wanted
    }
    simple: tuple[tuple[Kind, tuple[str, ...]], ...] = (
        ("decoding", ("scores",)),
        ("permuted", ("relabelled", "permuted")),
        ("biased", ("blank", "offsets")),
    )
    reached = [
        (kind, max(recovering[name] for name in names if name in recovering))
        for kind, names in simple
        if any(name in recovering for name in names)
    ]
    if reached:
        best = max(accuracy for _, accuracy in reached)
        return next(kind for kind, accuracy in reached if accuracy > best - margin)
    if not counts(mapping_gap):
        narrow = mapping_gap.high < TOLERANCE
        return "intact" if narrow and counts(answer_over_constant) else "cannot tell"
    if not counts(probe_over_constant):
        return "cannot tell"
    if "affine" in recovering:
        return "other re-reading"
    if "affine" in readings and counts(readings["affine"].short_of_probe):
        return "missing"
    return "cannot tell"


def _told(renaming: Ints | None) -> tuple[int, ...] | None:
    return None if renaming is None else tuple(map(int, renaming))


def _agreement(test: ScoredFold, classes: int) -> Ints:
    answered = np.where(test.answers == UNPARSED, classes, test.answers)
    cell = (test.truth * classes + test.probe) * (classes + 1) + answered
    counts: Ints = np.bincount(cell, minlength=classes**2 * (classes + 1)).reshape(classes, classes, classes + 1)
    return counts


def _check(validation: ValidationFold, test: ScoredFold, classes: int) -> None:
    if classes < 2:
        raise DataError(f"Expected `classes` to be at least 2, found {classes}. One class leaves nothing to map.")
    for name, fold in (("validation", validation), ("test", test)):
        n = len(fold.truth)
        if n == 0:
            raise DataError(f"Expected documents in the {name} fold, found none. Check the split and --limit.")
        _check_indices(f"{name}.truth", fold.truth, n, 0, classes)
        _check_indices(f"{name}.group", fold.group, n, None, None)
        if fold.answers is not None:
            _check_indices(f"{name}.answers", fold.answers, n, UNPARSED, classes)
        _check_numbers(f"{name}.scores", fold.scores, (n, classes))
    if len(np.unique(validation.truth)) < 2:
        raise DataError(
            f"Expected at least two classes in `validation.truth`, found class {validation.truth[0]} only. Re-readings "
            "are fitted there: split by group so that each fold holds every class."
        )
    n = len(test.truth)
    _check_indices("test.probe", test.probe, n, 0, classes)
    if test.blank is not None and test.scores is None:
        raise DataError("Expected `test.scores` beside `test.blank`, found none. Give both or neither.")
    _check_numbers("test.blank", test.blank, (n, classes))
    if test.lens is not None:
        if test.lens.ndim != 3 or not len(test.lens):
            raise DataError(
                f"Expected `test.lens` of shape (L, {n}, {classes}) with at least one layer, found shape "
                f"{test.lens.shape}. Give one matrix of label logits a layer, or None."
            )
        _check_numbers("test.lens", test.lens, (len(test.lens), n, classes))


def _check_indices(name: str, values: Ints, n: int, low: int | None, classes: int | None) -> None:
    # A narrower type would overflow in the counts of triples of classes.
    if values.shape != (n,) or values.dtype != np.intp:
        raise DataError(
            f"Expected `{name}` to be {n} integers of type {np.dtype(np.intp)}, found shape {values.shape} of "
            f"{values.dtype}. Give one index a document, in the order of `truth`."
        )
    if low is not None and classes is not None and (values.min() < low or values.max() >= classes):
        raise DataError(
            f"Expected `{name}` between {low} and {classes - 1}, found {values.min()} to {values.max()}. Give indices "
            f"into the {classes} classes{', and -1 for answers not parsed' if low == UNPARSED else ''}."
        )


def _check_numbers(name: str, values: Floats | None, shape: tuple[int, ...]) -> None:
    if values is None:
        return
    if values.shape != shape or values.dtype.kind != "f":
        raise DataError(
            f"Expected `{name}` to be floats of shape {shape}, found shape {values.shape} of {values.dtype}. Give one "
            "number for each document and class, in the order of `truth` and of the classes."
        )
    if not np.isfinite(values).all():
        raise DataError(
            f"Expected finite `{name}`, found {int((~np.isfinite(values)).sum())} that are not. The model's outputs "
            "overflow in this precision; load it in bfloat16 or float32."
        )
