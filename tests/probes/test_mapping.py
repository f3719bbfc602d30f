"""Semantic mapping: planted faults are named, figures are as computed plainly, nothing leaks from the test fold."""

import dataclasses
import json
import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from support.score_interval import score_interval

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.intervals import Estimate, resampled_weights, size_inflation
from medmllm_plugins.probes import output_recalibration
from medmllm_plugins.probes.mapping import MARGIN, Recalibration, kind_of, semantic_mapping
from medmllm_plugins.probes.output_recalibration import (
    UNPARSED,
    ScoredFold,
    ValidationFold,
    affine_features,
    best_relabelling,
    fit_affine,
    fit_offsets,
    relabel,
    trusted_relabelling,
)

PLANTED = ("intact", "permuted", "biased", "missing", "other recalibration", "decoding")


def world(planted, seed, *, classes=3, n=150, size=2):
    """Both folds of a model whose features know the class and whose words have the planted fault."""
    generator = np.random.default_rng(seed)

    def fold():
        truth = generator.integers(classes, size=n)
        known = generator.normal(size=(n, classes))
        known[np.arange(n), truth] += 2.5
        probe = (known + 0.3 * generator.normal(size=known.shape)).argmax(1)
        blank = np.zeros((n, classes))
        scores = known
        match planted:
            case "permuted":
                scores = np.roll(known, 1, axis=1)  # class k is said where k - 1 is meant
            case "biased":
                blank[:, 0] = 6.0
                scores = known + blank
            case "missing":
                scores = generator.normal(size=known.shape)
            case "other recalibration":
                scores = -known
        scores = scores + 20 * generator.normal(size=(n, 1))  # some images make all words likelier
        answers = scores.argmax(1)
        if planted == "decoding":
            answers = np.where(generator.random(n) < 0.6, UNPARSED, generator.integers(classes, size=n))
        return {
            "truth": truth,
            "group": np.arange(n) // size + 7,
            "answers": answers,
            "probe": probe,
            "scores": scores,
            "blank": blank,
            "lens": np.stack([generator.normal(size=(n, classes)), scores]),
        }

    first = fold()
    return ValidationFold(**{k: first[k] for k in ("truth", "group", "answers", "scores")}), ScoredFold(**fold())


def found_in(planted, seed, *, classes=3, n=150, resamples=300, **changes):
    validation, test = world(planted, seed, classes=classes, n=n)
    return semantic_mapping(validation, dataclasses.replace(test, **changes), classes, resamples=resamples)


def rate(answers, truth):
    return (answers == truth).mean()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])  # other data
@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_fault_is_named(planted, seed):
    assert found_in(planted, seed).kind == planted


@pytest.mark.parametrize("planted", ["intact", "permuted", "biased", "missing", "decoding"])
def test_a_planted_fault_is_named_among_two_classes(planted):
    assert found_in(planted, 1, classes=2).kind == planted


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_fault_is_named_among_many_classes(planted):
    assert found_in(planted, 0, classes=8, n=240).kind == planted


def test_reports_of_planted_faults():
    permuted = found_in("permuted", 0)
    assert permuted.relabelling == permuted.permutation == (2, 0, 1)
    assert permuted.relabelled_on == "answers"
    assert permuted.readings["relabelled"].gain.low > 0.5
    assert permuted.readings["permuted"].gain.low > 0.5
    biased = found_in("biased", 0)
    assert biased.readings["blank"].gain.low > 0.2
    assert biased.readings["offsets"].gain.low > 0.2
    assert biased.offsets[0] == pytest.approx(-4, abs=1)  # 6 nats more than the others: -4, 2, 2 about their mean
    missing = found_in("missing", 0)
    assert missing.mapping_gap.low > 0.2
    assert missing.readings["affine"].short_of_probe.low > 0.2
    assert found_in("other recalibration", 0).readings["affine"].gain.low > 0.3
    assert found_in("decoding", 0).readings["scores"].gain.low > 0.3
    intact = found_in("intact", 0)
    assert intact.relabelling == intact.permutation == (0, 1, 2)
    assert intact.readings["relabelled"].gain == intact.readings["permuted"].gain == Estimate(0, 0, 0)


def test_every_figure_is_what_a_plain_computation_gives():
    validation, test = world("biased", 3)
    answers = test.answers.copy()
    answers[::9] = UNPARSED
    test = dataclasses.replace(test, answers=answers)
    result = semantic_mapping(validation, test, 3, resamples=50)
    truth, top = test.truth, test.scores.argmax(1)
    answer, probe = rate(answers, truth), rate(test.probe, truth)
    assert (result.n, result.n_groups) == (150, 75)
    assert result.answer.value == pytest.approx(answer)
    assert result.probe.value == pytest.approx(probe)
    assert result.mapping_gap.value == pytest.approx(probe - answer)
    assert result.probe_only.value == pytest.approx(((test.probe == truth) & (answers != truth)).mean())
    assert result.answer_only.value == pytest.approx(((test.probe != truth) & (answers == truth)).mean())
    assert result.probe_only.value - result.answer_only.value == pytest.approx(result.mapping_gap.value)
    common = np.bincount(validation.truth).argmax()
    assert result.constant.value == pytest.approx(rate(common, truth))
    assert result.probe_over_constant.value == pytest.approx(probe - rate(common, truth))
    assert result.answer_over_constant.value == pytest.approx(answer - rate(common, truth))
    assert result.readings["scores"].accuracy.value == pytest.approx(rate(top, truth))
    assert result.readings["scores"].gain.value == pytest.approx(rate(top, truth) - answer)
    renamed = relabel(answers, np.array(result.relabelling))
    assert result.readings["relabelled"].gain.value == pytest.approx(rate(renamed, truth) - answer)
    affine = fit_affine(validation.scores, validation.truth, validation.group)
    readings = {
        "permuted": np.array(result.permutation)[top],
        "blank": (test.scores - test.blank).argmax(1),
        "offsets": (test.scores + np.array(result.offsets)).argmax(1),
        "affine": affine.predict(affine_features(test.scores)),
    }
    for name, reading in readings.items():
        record = result.readings[name]
        assert record.gain.value == pytest.approx(rate(reading, truth) - rate(top, truth))
        assert record.accuracy.value == pytest.approx(rate(reading, truth))
        assert record.over_answers.value == pytest.approx(rate(reading, truth) - answer)
        assert record.over_constant.value == pytest.approx(rate(reading, truth) - rate(common, truth))
        assert record.short_of_probe.value == pytest.approx(probe - rate(reading, truth))
    assert [layer.value for layer in result.lens] == pytest.approx([rate(x.argmax(1), truth) for x in test.lens])
    assert np.shape(result.agreement) == (3, 3, 4)
    for y, h, a in np.ndindex(3, 3, 4):
        same = (truth == y) & (test.probe == h) & (answers == (UNPARSED if a == 3 else a))
        assert result.agreement[y][h][a] == same.sum()


def test_intervals_are_those_of_a_plain_paired_bootstrap_by_group():
    validation, test = world("decoding", 5, n=40)
    group = np.array([0, 0, 0, 1, *np.repeat(np.arange(2, 20), 2)]) * 10
    result = semantic_mapping(validation, dataclasses.replace(test, group=group), 3, resamples=400, seed=6)
    weights = next(resampled_weights(20, 400, 6, at_once=400))
    quantities = {"answer": [], "mapping_gap": [], "score_gap": [], "probe_only": [], "lens": []}
    for draw in weights.T:
        rows = np.concatenate([np.tile(np.flatnonzero(group == 10 * g), int(times)) for g, times in enumerate(draw)])
        truth, answers, probe = test.truth[rows], test.answers[rows], test.probe[rows]
        quantities["answer"].append(rate(answers, truth))
        quantities["mapping_gap"].append(rate(probe, truth) - rate(answers, truth))
        quantities["score_gap"].append(rate(test.scores[rows].argmax(1), truth) - rate(answers, truth))
        quantities["probe_only"].append(((probe == truth) & (answers != truth)).mean())
        quantities["lens"].append(rate(test.lens[0, rows].argmax(1), truth))
    right, left = test.answers == test.truth, test.probe == test.truth
    hits = {"answer": right, "probe_only": left & ~right, "lens": test.lens[0].argmax(1) == test.truth}
    groups = 40**2 / (np.bincount(group) ** 2).sum()
    for name, values in quantities.items():
        record = {"lens": result.lens[0], "score_gap": result.readings["scores"].gain}.get(name) or getattr(
            result, name
        )
        if name in hits:
            enlarged = np.array(values) * np.sqrt(size_inflation(hits[name].astype(float), group))
            ends = score_interval(record.value, enlarged, groups)
        else:
            error = np.std(values) * np.sqrt(groups / (groups - 1))
            bias, margin = np.mean(values) - record.value, stats.t.ppf(0.975, groups - 1) * error
            centres = record.value, record.value - bias, record.value - bias / (np.sqrt(2) - 1)
            ends = min(centres) - margin, max(centres) + margin
        assert (record.low, record.high) == pytest.approx(ends)


def test_nothing_of_the_test_fold_reaches_the_maps():
    validation, test = world("permuted", 2)
    before = semantic_mapping(validation, test, 3, resamples=20)
    shuffled = dataclasses.replace(test, truth=np.random.default_rng(0).permutation(test.truth))
    after = semantic_mapping(validation, shuffled, 3, resamples=20)
    assert (before.relabelling, before.permutation) == (after.relabelling, after.permutation)
    assert before.offsets == after.offsets
    affine = fit_affine(validation.scores, validation.truth, validation.group).predict(affine_features(test.scores))
    assert before.readings["affine"].accuracy.value == pytest.approx(rate(affine, test.truth))
    assert after.readings["affine"].accuracy.value == pytest.approx(rate(affine, shuffled.truth))
    common = np.bincount(validation.truth).argmax()
    assert after.constant.value == pytest.approx(rate(common, shuffled.truth))


@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(1, 40))
@settings(max_examples=60)
def test_the_best_relabelling_beats_all_others(seed, classes, n):
    generator = np.random.default_rng(seed)
    truth, answers = generator.integers(classes, size=n), generator.integers(-1, classes, size=n)
    result = best_relabelling(answers, truth, classes)
    assert sorted(result) == list(range(classes))
    hits = {
        candidate: (
            int((relabel(answers, np.array(candidate)) == truth).sum()),
            sum(k == to for k, to in enumerate(candidate)),
        )
        for candidate in permutations(range(classes))
    }
    assert hits[tuple(result)] == max(hits.values())  # of equally good ones, one that renames fewest


def test_unparsed_answers_stay_unparsed():
    assert relabel(np.array([0, UNPARSED, 1]), np.array([1, 0])).tolist() == [1, UNPARSED, 0]


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_guesses_are_seldom_relabelled(classes):
    renamed = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        truth, answers = generator.integers(classes, size=(2, 40))
        result = trusted_relabelling(answers, truth, np.arange(40), classes, seed)
        renamed += (result != np.arange(classes)).any()
    # one-sided use of a two-sided p-value below 0.05: 1.5 expected; 7 or more happen in one of 2,000 series
    assert renamed < 7


def test_a_swap_of_two_classes_among_many_is_found_in_few_documents():
    truth = np.repeat(np.arange(8), 6)
    answers = np.array([1, 0, 2, 3, 4, 5, 6, 7])[truth]
    answers[::12] = UNPARSED
    assert trusted_relabelling(answers, truth, np.arange(48), 8).tolist() == [1, 0, 2, 3, 4, 5, 6, 7]


def test_few_groups_relabel_nothing():
    truth = np.tile([0, 1], 50)
    for groups, expected in ((1, [0, 1]), (5, [0, 1]), (6, [1, 0])):
        group = np.arange(100) // 2 % groups
        assert trusted_relabelling(1 - truth, truth, group, 2).tolist() == expected


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_offsets_are_the_most_likely_ones(scale):
    generator = np.random.default_rng(1)
    truth = generator.integers(4, size=120)
    scores = scale * generator.normal(size=(120, 4)) + scale * np.array([3.0, 0, -2, 1])
    scores[np.arange(120), truth] += scale

    def loss(offsets):
        z = scores + offsets
        z = z - z.max(1, keepdims=True)
        p = z - np.log(np.exp(z).sum(1, keepdims=True))
        return -p[np.arange(120), truth].sum() + output_recalibration.RIDGE / 2 * offsets @ offsets

    result = fit_offsets(scores, truth)
    other = minimize(loss, np.zeros(4), method="Powell", options={"xtol": 1e-9, "ftol": 1e-13, "maxiter": 10_000})
    assert loss(result) <= other.fun + 1e-6
    assert result.mean() == pytest.approx(0, abs=1e-9)
    step = 1e-4
    slopes = [(loss(result + step * e) - loss(result - step * e)) / (2 * step) for e in np.eye(4)]
    assert slopes == pytest.approx([0] * 4, abs=1e-3)


def test_offsets_undo_a_shift_and_ignore_what_all_scores_share():
    generator = np.random.default_rng(2)
    truth = generator.integers(3, size=200)
    scores = generator.normal(size=(200, 3)) + np.eye(3)[truth]
    plain, shift = fit_offsets(scores, truth), np.array([2.0, -1, -1])
    assert fit_offsets(scores + shift, truth) == pytest.approx(plain - shift, abs=1e-3)
    assert fit_offsets(scores + 50 * generator.normal(size=(200, 1)), truth) == pytest.approx(plain, abs=1e-6)


def test_a_class_that_never_occurs_gets_a_bounded_offset():
    generator = np.random.default_rng(3)
    offsets = fit_offsets(generator.normal(size=(60, 3)), generator.integers(2, size=60))
    assert offsets[2] == offsets.min()
    assert np.abs(offsets).max() < 20


def test_the_affine_map_is_that_of_logistic_regression_on_what_separates():
    validation, test = world("other recalibration", 0)
    model = fit_affine(validation.scores, validation.truth, validation.group)
    features = affine_features(validation.scores)
    assert features[:, :3] + features[:, 3:] == pytest.approx(validation.scores)
    mean, spread = features.mean(0), features.std(0)
    plain = LogisticRegression(C=model[-1].C, max_iter=5000).fit((features - mean) / spread, validation.truth)
    other = plain.predict((affine_features(test.scores) - mean) / spread)
    assert (model.predict(affine_features(test.scores)) == other).all()


def test_the_affine_map_needs_no_class_in_every_group():
    truth = np.array([0] * 20 + [1] * 4)
    group = np.array([*range(20), 20, 20, 20, 20])  # the second class is one patient's
    scores = np.random.default_rng(0).normal(size=(24, 3)) + 3 * np.eye(3)[truth]
    assert rate(fit_affine(scores, truth, group).predict(affine_features(scores)), truth) > 0.8
    alone = fit_affine(scores, truth, np.zeros(24, dtype=int))  # nothing to hold out: the strongest penalty
    strength = alone[-1].C
    assert strength == min(output_recalibration.STRENGTHS)


def test_parts_hold_whole_groups_and_spread_classes():
    truth = np.repeat([0] * 40 + [1] * 10, 2)
    group = np.repeat(np.random.default_rng(0).permutation(50), 2)
    parts = output_recalibration._held_out_parts(truth, group, 0)
    assert len(parts) == output_recalibration.FOLDS
    assert (np.sum(parts, axis=0) == 1).all()
    assert all(len(np.unique(np.array(parts)[:, group == g].argmax(0))) == 1 for g in range(50))
    assert [int(truth[part].sum()) for part in parts] == [4] * 5


def test_without_scores_what_rests_on_them_is_none():
    validation, test = world("permuted", 0)
    validation = dataclasses.replace(validation, scores=None)
    test = dataclasses.replace(test, scores=None, blank=None, lens=None)
    result = semantic_mapping(validation, test, 3, resamples=200)
    assert result.kind == "permuted"
    assert set(result.readings) == {"relabelled"}
    record = result.to_dict()
    assert [record[name] for name in ("permutation", "offsets")] == [None, None] and record["lens"] == []


@pytest.mark.parametrize("planted", ["biased", "missing", "decoding", "other recalibration"])
def test_without_scores_other_faults_cannot_be_told_apart(planted):
    validation, test = world(planted, 0)
    test = dataclasses.replace(test, scores=None, blank=None)
    result = semantic_mapping(dataclasses.replace(validation, scores=None), test, 3, resamples=200)
    # Negated scores leave two wrong answers, and for neither is there one right name.
    assert result.kind == "cannot tell"


def test_without_answers_on_validation_scores_stand_in():
    validation, test = world("permuted", 0)
    result = semantic_mapping(dataclasses.replace(validation, answers=None), test, 3, resamples=100)
    assert result.relabelled_on == "scores"
    assert result.relabelling == result.permutation == (2, 0, 1)
    assert result.readings["relabelled"].gain.low > 0.5


def test_without_anything_on_validation_nothing_is_fitted():
    validation, test = world("decoding", 0)
    result = semantic_mapping(dataclasses.replace(validation, answers=None, scores=None), test, 3, resamples=200)
    assert set(result.readings) == {"scores", "blank"}
    assert result.relabelled_on is result.relabelling is None
    assert result.kind == "decoding"


def test_one_group_gives_no_intervals_and_no_verdict():
    result = found_in("permuted", 0, group=np.zeros(150, dtype=int))
    assert result.n_groups == 1
    assert math.isnan(result.mapping_gap.low)
    assert result.mapping_gap.value > 0.5
    assert result.kind == "cannot tell"
    assert result.to_dict()["lens"][1]["low"] is None


def test_features_that_know_nothing_leave_the_mapping_open():
    generator = np.random.default_rng(8)
    kinds = []
    for seed in range(6):
        validation, test = world("missing", seed)
        test = dataclasses.replace(test, probe=generator.integers(3, size=150))
        kinds.append(semantic_mapping(validation, test, 3, resamples=200).kind)
    assert set(kinds) == {"cannot tell"}


def test_switching_to_the_most_common_class_is_no_recovery():
    generator = np.random.default_rng(4)

    def fold(n=200):
        truth = (generator.random(n) < 0.7).astype(np.intp)
        probe = np.where(generator.random(n) < 0.9, truth, 1 - truth)
        scores = generator.normal(size=(n, 2)) + np.array([6.0, 0.0])  # always "0", which is true of 30 %
        return truth, np.arange(n), scores.argmax(1), probe, scores

    (y, g, a, _, s), test = fold(), fold()
    result = semantic_mapping(ValidationFold(y, g, a, s), ScoredFold(*test), 2, resamples=300)
    assert result.readings["offsets"].gain.low > 0.1
    assert result.kind == "missing"


def estimates(value, spread=0.02):
    return Estimate(value, value - spread, value + spread)


def judged(answer, probe, constant=0.4, *, spread=0.02, margin=MARGIN, **readings):
    def reading(name, accuracy):
        base = answer if name in ("scores", "relabelled") else readings["scores"]
        return Recalibration(
            accuracy=estimates(accuracy),
            gain=estimates(accuracy - base, spread),
            over_answers=estimates(accuracy - answer, spread),
            over_constant=estimates(accuracy - constant, spread),
            short_of_probe=estimates(probe - accuracy, spread),
        )

    return kind_of(
        answer=estimates(answer),
        probe=estimates(probe),
        constant=estimates(constant),
        mapping_gap=estimates(probe - answer, spread),
        answer_over_constant=estimates(answer - constant, spread),
        probe_over_constant=estimates(probe - constant, spread),
        readings={name: reading(name, accuracy) for name, accuracy in readings.items()},
        margin=margin,
    )


def test_rules_of_the_kind():
    level = {"scores": 0.5, "relabelled": 0.5, "permuted": 0.5, "blank": 0.5, "offsets": 0.5, "affine": 0.5}
    assert judged(0.5, 0.9, **level) == "missing"
    assert judged(0.5, 0.9, **level | {"offsets": 0.8}) == "biased"
    assert judged(0.5, 0.9, **level | {"offsets": 0.8, "permuted": 0.78}) == "permuted"  # the simpler, as good
    assert judged(0.5, 0.9, **level | {"offsets": 0.8, "permuted": 0.72}) == "biased"  # the better by far
    assert judged(0.5, 0.9, **level | {"offsets": 0.69}) == "missing"  # less than halfway
    assert judged(0.5, 0.9, **level | {"affine": 0.8}) == "other recalibration"
    assert judged(0.5, 0.9, **level | {"affine": 0.69}) == "missing"
    assert judged(0.5, 0.9, **level | {"affine": 0.8, "blank": 0.75}) == "biased"
    assert judged(0.5, 0.9, **dict.fromkeys(level, 0.9) | {"relabelled": 0.5}) == "decoding"
    assert judged(0.5, 0.9) == "cannot tell"  # no scores to look for it in
    assert judged(0.5, 0.9, constant=0.9, **level) == "cannot tell"  # the probe may know nothing
    assert judged(0.9, 0.9, **dict.fromkeys(level, 0.9)) == "intact"
    assert judged(0.9, 0.8) == "intact"  # words that know more than the probe are no fault of the mapping
    assert judged(0.9, 0.9, spread=0.11) == "cannot tell"
    assert judged(0.42, 0.45) == "cannot tell"  # nothing known, nothing to map
    assert judged(0.9, 0.95) == "cannot tell"
    assert judged(0.9, 0.95, margin=0.06) == "intact"


def test_the_margin_reaches_the_verdict():
    validation, test = world("permuted", 0)
    assert semantic_mapping(validation, test, 3, resamples=50, margin=0.99).kind == "cannot tell"


def test_the_same_seed_gives_the_same_result_and_json_holds_it():
    record = [found_in("biased", 1, resamples=60).to_dict() for _ in range(2)]
    assert record[0] == record[1]
    assert json.loads(json.dumps(record[0], allow_nan=False)) == record[0]
    assert set(record[0]["mapping_gap"]) == {"value", "low", "high"}
    assert np.sum(record[0]["agreement"]) == 150


@pytest.mark.parametrize(
    ("fold", "name", "value", "message"),
    [
        ("validation", "truth", np.full(150, 3), r"`validation.truth` between 0 and 2, got 3 to 3"),
        ("validation", "truth", np.zeros(150, dtype=int), r"two classes in `validation.truth`, got class 0 only"),
        ("validation", "truth", np.zeros(0, dtype=int), r"documents in the validation fold, got none"),
        ("validation", "answers", np.full(150, -2), r"`validation.answers` between -1 and 2, .* -1 for answers"),
        ("validation", "scores", np.zeros((150, 2)), r"`validation.scores` .* \(150, 3\), got shape \(150, 2\)"),
        (
            "test",
            "group",
            np.zeros(149, dtype=int),
            r"`test.group` to be 150 integers of type int64, got shape \(149,\)",
        ),
        ("test", "probe", np.zeros(150), r"`test.probe` to be 150 integers of type int64, .* of float64"),
        ("test", "answers", np.zeros(150, dtype=np.int8), r"`test.answers` to be 150 integers .* of int8"),
        ("test", "probe", np.full(150, -1), r"`test.probe` between 0 and 2"),
        ("test", "scores", np.full((150, 3), np.nan), r"finite `test.scores`, got 450"),
        ("test", "scores", None, r"`test.scores` together with `test.blank`"),
        ("test", "blank", np.zeros((1, 3)), r"`test.blank` .* got shape \(1, 3\)"),
        ("test", "lens", np.zeros((150, 3)), r"`test.lens` of shape \(L, 150, 3\)"),
        ("test", "lens", np.zeros((0, 150, 3)), r"at least one layer"),
        ("test", "lens", np.zeros((2, 150, 3), dtype=int), r"floats of shape \(2, 150, 3\)"),
    ],
)
def test_wrong_arrays_are_refused(fold, name, value, message):
    folds = dict(zip(("validation", "test"), world("intact", 0), strict=True))
    folds[fold] = dataclasses.replace(folds[fold], **{name: value})
    with pytest.raises(DataError, match=message):
        semantic_mapping(**folds, classes=3)


def test_one_class_is_refused():
    with pytest.raises(DataError, match="`classes` to be at least 2, got 1"):
        semantic_mapping(*world("intact", 0), 1)
