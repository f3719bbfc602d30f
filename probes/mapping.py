"""Semantic mapping: whether a model's answers express what its last features contain, and how they differ if not.

The inputs come from one run: the answers, the scores of the labels, and the predictions of a probe on the last token at
the end of the LLM. Output recalibrations (:mod:`medmllm_plugins.probes.output_recalibration`) are fitted on the
validation fold and evaluated on the test fold. What they recover was present in the outputs; what none of them recovers
is present in the features only. A probe shows that a class can be read there, not that the model uses it.

Source: nostalgebraist, "interpreting GPT: the logit lens", 2020 (labels read from inner layers).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import (
    RESAMPLES,
    SHARE,
    Estimate,
    bootstrap,
    effective_groups,
    estimate,
    size_inflation,
)
from medmllm_plugins.probes.output_recalibration import (
    UNPARSED,
    Recalibrations,
    ScoredFold,
    ValidationFold,
    highest_scoring,
)
from medmllm_plugins.results.probe_records import Recalibration, SemanticMapping

Kind: TypeAlias = Literal["intact", "permuted", "biased", "missing", "other recalibration", "decoding", "cannot tell"]
"""Kinds of semantic mapping; :func:`kind_of` has the rules."""

MARGIN = 0.03
"""A difference of accuracies counts if it is at least this large and its interval excludes zero."""
RECOVERED = 0.5
"""A recalibration recovers if it closes at least this fraction of the distance to the probe's accuracy."""
TOLERANCE = 0.10
"""A mapping is intact only if the whole interval of its gap lies below this."""
_SIMPLE: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    ("decoding", ("scores",)),
    ("permuted", ("relabelled", "permuted")),
    ("biased", ("blank", "offsets")),
)
"""Recalibrations by the kind that they indicate, simplest first."""
_COMPARED = ("answer", "probe", "constant", "mapping_gap", "answer_over_constant", "probe_over_constant")


def semantic_mapping(
    validation: ValidationFold,
    test: ScoredFold,
    classes: int,
    *,
    fitted: Recalibrations | None = None,
    lens_layers: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
    margin: float = MARGIN,
) -> SemanticMapping:
    """Compare the probe of the last features with the answers.

    Args:
        validation: the validation fold, on which recalibrations are fitted.
        test: the test fold, on which all figures are computed.
        classes: K, at least 2.
        fitted: the recalibrations, where they have been fitted on ``validation`` before.
        lens_layers: names of the layers of ``test.lens``.
        resamples: bootstrap resamples of the test fold's groups.
        seed: seed of resamples, sign flips and the parts of the validation fold.
        margin: difference of accuracies that counts for ``kind``.

    Raises:
        DataError: an array has another shape, type or range than :class:`ValidationFold` and :class:`ScoredFold` say.
    """
    _check(validation, test, classes)
    fitted = fitted or Recalibrations(validation, classes, seed)
    recalibrated = fitted.apply(test)
    groups, group = np.unique(test.group, return_inverse=True)
    rows = _document_figures(test, fitted.most_common, recalibrated)
    stacked = np.stack(list(rows.values()))
    values, resampled = bootstrap(
        lambda weights: {"": (stacked @ weights / weights.sum(0)).T},
        group.astype(np.intp),
        resamples=resamples,
        seed=seed,
        cells=len(stacked),
    )
    inflations = size_inflation(stacked, group)
    estimates = {
        name: estimate(
            float(values[""][row]),
            resampled[""][:, row],
            groups=effective_groups(group),
            bounds=SHARE if _is_share(name) else None,
            inflation=float(inflations[row]) if _is_share(name) else 1.0,
        )
        for row, name in enumerate(rows)
    }
    readings = {
        name: Recalibration(**{part: estimates[f"{name}:{part}"] for part in Recalibration.__slots__})
        for name in recalibrated
    }
    overall = {name: estimates[name] for name in rows if ":" not in name}
    compared = {name: estimates[name] for name in _COMPARED}
    lens = () if test.lens is None else tuple(estimates[f"lens:{layer}"] for layer in range(len(test.lens)))
    return SemanticMapping(
        **overall,
        kind=kind_of(**compared, readings=readings, margin=margin),
        n=len(test.truth),
        n_groups=len(groups),
        readings=readings,
        relabelling=_to_tuple(fitted.relabelling),
        relabelled_on=fitted.relabelled_on,
        permutation=_to_tuple(fitted.permutation) if "permuted" in recalibrated else None,
        offsets=None if fitted.offsets is None or "offsets" not in recalibrated else tuple(map(float, fitted.offsets)),
        agreement=tuple(tuple(tuple(map(int, row)) for row in table) for table in _agreement(test, classes)),
        lens=lens,
        lens_layers=tuple(lens_layers) if lens else (),
    )


def _is_share(name: str) -> bool:
    return (
        name in ("answer", "probe", "constant", "probe_only", "answer_only")
        or name.endswith(":accuracy")
        or (name.startswith("lens:"))
    )


def _document_figures(test: ScoredFold, most_common: int, recalibrated: Mapping[str, Ints]) -> dict[str, Floats]:
    """Return every figure by name as one value per document, (n,), whose mean is the figure."""

    def hits(answers: Ints) -> Floats:
        correct: Floats = (answers == test.truth).astype(np.float64)
        return correct

    answer, probe = hits(test.answers), hits(test.probe)
    constant = hits(np.full(len(test.truth), most_common))
    rows = {
        "answer": answer,
        "probe": probe,
        "constant": constant,
        "mapping_gap": probe - answer,
        "probe_only": probe * (1 - answer),
        "answer_only": answer * (1 - probe),
        "answer_over_constant": answer - constant,
        "probe_over_constant": probe - constant,
    }
    by_name = {name: hits(answers) for name, answers in recalibrated.items()}
    for name, row in by_name.items():
        source = answer if name in ("scores", "relabelled") else by_name["scores"]
        rows |= {
            f"{name}:accuracy": row,
            f"{name}:gain": row - source,
            f"{name}:over_answers": row - answer,
            f"{name}:over_constant": row - constant,
            f"{name}:short_of_probe": probe - row,
        }
    if test.lens is not None:
        rows |= {f"lens:{layer}": hits(highest_scoring(logits)) for layer, logits in enumerate(test.lens)}
    return rows


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
    """Return the kind of semantic mapping that the evidence supports.

    A difference *counts* if it is at least ``margin`` and its interval lies above zero. A recalibration *recovers* if
    its gain over what it recalibrates, its gain over the answers and its gain over the constant answer all count, and
    it closes at least the fraction :data:`RECOVERED` of the distance from the better of the answers and the constant
    answer to the probe. The constant answer matters because switching to the most common class is a gain that needs no
    knowledge of the image. The rules, in this order:

    1. A simple recalibration recovers: the best of them names the kind, or the simplest of those less than ``margin``
       behind it. ``"decoding"``: the label that scores highest is correct where the answer is wrong. ``"permuted"``:
       renaming classes, in the answers or in the scores. ``"biased"``: removing a preference for certain labels,
       measured on a blank image or fitted.
    2. The mapping gap does not count. ``"intact"`` if its interval lies below :data:`TOLERANCE` and the answers' lead
       over the constant answer counts; ``"cannot tell"`` otherwise.
    3. The gap counts, but the probe's lead over the constant answer does not: ``"cannot tell"``, because nothing shows
       that the features contain the class.
    4. The gap counts and the affine map recovers: ``"other recalibration"``.
    5. The gap counts and the probe's lead over the affine map counts: ``"missing"``.
    6. ``"cannot tell"``: there are no scores, or too few documents.

    With fewer than two groups there are no intervals, so nothing counts and the kind is ``"cannot tell"``.
    """

    def counts(difference: Estimate) -> bool:
        return difference.value >= margin and difference.low > 0

    if simple := _simple_kind(_recovering(answer, probe, constant, readings, counts), margin):
        return simple
    if not counts(mapping_gap):
        narrow = mapping_gap.high < TOLERANCE
        return "intact" if narrow and counts(answer_over_constant) else "cannot tell"
    if not counts(probe_over_constant):
        return "cannot tell"
    if "affine" in _recovering(answer, probe, constant, readings, counts):
        return "other recalibration"
    if "affine" in readings and counts(readings["affine"].short_of_probe):
        return "missing"
    return "cannot tell"


def _recovering(
    answer: Estimate,
    probe: Estimate,
    constant: Estimate,
    readings: Mapping[str, Recalibration],
    counts: Callable[[Estimate], bool],
) -> dict[str, float]:
    """Return the accuracies of the recalibrations that recover; see :func:`kind_of`."""
    base = max(answer.value, constant.value)
    required = base + RECOVERED * (probe.value - base)
    return {
        name: reading.accuracy.value
        for name, reading in readings.items()
        if all(map(counts, (reading.gain, reading.over_answers, reading.over_constant)))
        and reading.accuracy.value >= required
    }


def _simple_kind(recovering: Mapping[str, float], margin: float) -> Kind | None:
    """Return the kind of the best simple recalibration that recovers, or of a simpler one that is about as good."""
    reached = [
        (kind, max(recovering[name] for name in names if name in recovering))
        for kind, names in _SIMPLE
        if any(name in recovering for name in names)
    ]
    best = max((accuracy for _, accuracy in reached), default=math.nan)
    return next((kind for kind, accuracy in reached if accuracy > best - margin), None)


def _to_tuple(renaming: Ints | None) -> tuple[int, ...] | None:
    return None if renaming is None else tuple(map(int, renaming))


def _agreement(test: ScoredFold, classes: int) -> Ints:
    answered = np.where(test.answers == UNPARSED, classes, test.answers)
    cell = (test.truth * classes + test.probe) * (classes + 1) + answered
    counts: Ints = np.bincount(cell, minlength=classes**2 * (classes + 1)).reshape(classes, classes, classes + 1)
    return counts


def _check(validation: ValidationFold, test: ScoredFold, classes: int) -> None:
    if classes < 2:
        raise DataError(f"Expected `classes` to be at least 2, got {classes}. With one class there is nothing to map.")
    for name, fold in (("validation", validation), ("test", test)):
        n = len(fold.truth)
        if n == 0:
            raise DataError(f"Expected documents in the {name} fold, got none. Check the split and --limit.")
        _check_indices(f"{name}.truth", fold.truth, n, 0, classes)
        _check_indices(f"{name}.group", fold.group, n, None, None)
        if fold.answers is not None:
            _check_indices(f"{name}.answers", fold.answers, n, UNPARSED, classes)
        _check_numbers(f"{name}.scores", fold.scores, (n, classes))
    if len(np.unique(validation.truth)) < 2:
        raise DataError(
            f"Expected at least two classes in `validation.truth`, got class {validation.truth[0]} only. "
            "Recalibrations are fitted there: split by group so that each fold contains every class."
        )
    n = len(test.truth)
    _check_indices("test.probe", test.probe, n, 0, classes)
    if test.blank is not None and test.scores is None:
        raise DataError("Expected `test.scores` together with `test.blank`, got none. Give both or neither.")
    _check_numbers("test.blank", test.blank, (n, classes))
    if test.lens is not None:
        if test.lens.ndim != 3 or not len(test.lens):
            raise DataError(
                f"Expected `test.lens` of shape (L, {n}, {classes}) with at least one layer, got shape "
                f"{test.lens.shape}. Give one matrix of label logits per layer, or None."
            )
        _check_numbers("test.lens", test.lens, (len(test.lens), n, classes))


def _check_indices(name: str, values: Ints, n: int, low: int | None, classes: int | None) -> None:
    # A narrower type would overflow in the counts of triples of classes.
    if values.shape != (n,) or values.dtype != np.intp:
        raise DataError(
            f"Expected `{name}` to be {n} integers of type {np.dtype(np.intp)}, got shape {values.shape} of "
            f"{values.dtype}. Give one index per document, in the order of `truth`."
        )
    if low is not None and classes is not None and (values.min() < low or values.max() >= classes):
        raise DataError(
            f"Expected `{name}` between {low} and {classes - 1}, got {values.min()} to {values.max()}. Give indices "
            f"into the {classes} classes{', and -1 for answers not parsed' if low == UNPARSED else ''}."
        )


def _check_numbers(name: str, values: Floats | None, shape: tuple[int, ...]) -> None:
    if values is None:
        return
    if values.shape != shape or values.dtype.kind != "f":
        raise DataError(
            f"Expected `{name}` to be floats of shape {shape}, got shape {values.shape} of {values.dtype}. Give one "
            "number for each document and class, in the order of `truth` and of the classes."
        )
    if not np.isfinite(values).all():
        raise DataError(
            f"Expected finite `{name}`, got {int((~np.isfinite(values)).sum())} that are not. The model's outputs "
            "overflow in this precision: load it in bfloat16 or float32."
        )
