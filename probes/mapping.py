"""Semantic mapping: whether a model's words say what its last features know, and if not, how the two part.

All comes from one run: the answers, the scores of the labels, and the predictions of a probe on the last token's
features at the end of the LLM. Fixed re-readings of the answers or scores are fitted on the validation fold and judged
on the test fold. What a re-reading recovers was in the words and was misread; what none recovers is in the features
only. A probe shows that a class is available there, not that the model uses it.

Source: nostalgebraist, "interpreting GPT: the logit lens", 2020 (words read off inner layers). Those of re-readings
stand in :mod:`medmllm_plugins.probes.output_recalibration`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import RESAMPLES, Estimate, bootstrap, estimate
from medmllm_plugins.probes.output_recalibration import (
    UNPARSED,
    Recalibrations,
    ScoredFold,
    ValidationFold,
    highest_scoring,
)
from medmllm_plugins.results.probe_records import Recalibration, SemanticMapping

Kind: TypeAlias = Literal["intact", "permuted", "biased", "missing", "other re-reading", "decoding", "cannot tell"]
"""What :func:`kind_of` can find; its docstring has the rules."""

MARGIN = 0.03
"""A difference of accuracies counts from here on, given that its interval excludes zero."""
RECOVERED = 0.5
"""A re-reading recovers the features' knowledge if it comes this far on the way up to the probe's accuracy."""
TOLERANCE = 0.10
"""A mapping is called intact only where the whole interval of its gap lies below this; a wider one cannot tell."""


def semantic_mapping(
    validation: ValidationFold,
    test: ScoredFold,
    classes: int,
    *,
    lens_layers: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
    margin: float = MARGIN,
) -> SemanticMapping:
    """Compare what the features know with what the words say.

    Args:
        validation: the validation fold, on which re-readings are fitted.
        test: the test fold, on which all figures are computed.
        classes: K, at least 2.
        lens_layers: names of the layers of ``test.lens``.
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
    readings = {
        name: Recalibration(**{part: found[f"{name}:{part}"] for part in Recalibration.__slots__}) for name in read
    }
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
        agreement=tuple(tuple(tuple(map(int, row)) for row in table) for table in _agreement(test, classes)),
        lens=tuple(found[name] for name in lens or ()),
        lens_layers=tuple(lens_layers) if lens else (),
    )


def kind_of(
    *,
    answer: Estimate,
    probe: Estimate,
    constant: Estimate,
    mapping_gap: Estimate,
    answer_over_constant: Estimate,
    probe_over_constant: Estimate,
    readings: Mapping[str, Recalibration],
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
