"""Curves, verdicts and files, on stores whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss
from support.linear_probe import one_standard_error, scaled

from medmllm_plugins.errors import DataError, OptionError, PluginError
from medmllm_plugins.metrics.intervals import resampled_weights
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.probes import analysis
from medmllm_plugins.probes.analysis import analyse
from medmllm_plugins.probes.analysis_text import render
from medmllm_plugins.probes.curves import Classifier, bootstrap_figures, permutation_p_values
from medmllm_plugins.probes.fitting import fit_probes
from medmllm_plugins.probes.labelled_features import read_labelled_features
from medmllm_plugins.probes.probe_methods import FittedProbe, ProbeData
from medmllm_plugins.probes.probe_options import Options, default_counts, parse_strengths
from medmllm_plugins.probes.reference_run import Reference
from medmllm_plugins.results.probe_files import write_probes
from medmllm_plugins.results.probe_records import PRINTED_METRICS, ProbeAnalysis

QUICK = Options(permutations=5, controls=2)


def test_accuracies_are_those_of_scikit_learn(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store(clear={"vision.00": 0.3})
    result = analyse(store, outcomes, QUICK)
    samples = read_labelled_features(store)
    for point in result.points:
        features = store.features(point.layer, point.pooling).astype(np.float64)
        train, test = samples.rows["train"], samples.rows["test"]
        model = LogisticRegression(C=point.C, tol=1e-8, max_iter=2000)
        model.fit(scaled(features[train], features[train]), samples.of("train"))
        predicted = model.predict(scaled(features[train], features[test]))
        assert point.accuracy.value == pytest.approx(accuracy_score(samples.of("test"), predicted), abs=0.012)
        assert point.balanced.value == pytest.approx(balanced_accuracy_score(samples.of("test"), predicted), abs=0.012)
        assert point.corrected.value == pytest.approx((point.balanced.value - 1 / 3) / (1 - 1 / 3))


def test_the_strength_is_chosen_by_the_one_standard_error_rule(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store(clear={"vision.00": 0.3})
    result = analyse(store, outcomes, QUICK)
    samples = read_labelled_features(store)
    train, validation = samples.rows["train"], samples.rows["validation"]
    truth, group = samples.of("validation"), samples.groups_of("validation")
    stiffer = 0
    for point in result.points[:6]:
        features = store.features(point.layer, point.pooling).astype(np.float64)
        probabilities = []
        for strength in QUICK.strengths:
            model = LogisticRegression(C=strength, tol=1e-8, max_iter=5000)
            model.fit(scaled(features[train], features[train]), samples.of("train"))
            probabilities.append(model.predict_proba(scaled(features[train], features[validation])))
        chosen = one_standard_error(probabilities, truth, group, samples.of("train"))
        assert pytest.approx(QUICK.strengths[chosen]) == point.C
        stiffer += chosen < int(np.argmin([log_loss(truth, table) for table in probabilities]))
    assert stiffer > 0


def test_controls_separate_features_with_and_without_the_class(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store((300, 90, 150), clear={"llm.00/last": 0.0})
    result = analyse(store, outcomes, QUICK)
    by_name = {(entry.layer, entry.pooling): entry for entry in result.points}
    clear, nothing = by_name["connector", "mean"], by_name["llm.embed", "last"]
    assert clear.p == pytest.approx(1e-4) and clear.p_holm < 0.01 and clear.balanced.low > clear.label_permutation_high
    assert nothing.p > 0.01 and nothing.p_holm > 0.05
    assert nothing.accuracy.low < result.chance + 0.05
    assert clear.selectivity.low > 0.2
    assert all(abs(entry.label_permutation - result.chance) < 0.1 for entry in result.points)
    assert np.isnan(by_name["control.pixels", "mean"].p_holm)  # floors are no layers of the model
    assert result.best.layer not in ("vision.00", "vision.norm") and result.best.part != "control"


def test_p_values_are_exact_where_nothing_is_to_be_found(make_store: Callable[..., Any]) -> None:
    store, _ = make_store((60, 30, 90))
    samples = read_labelled_features(store)
    generator = np.random.default_rng(0)
    guesses = generator.integers(0, 3, (400, 90))
    p = permutation_p_values(guesses, samples, permutations=499)
    for level in (0.05, 0.2, 0.5):
        # Of 400 guessers that many come under a level, but for chance (three standard errors).
        assert abs(float((p <= level).mean()) - level) < 3 * (level * (1 - level) / 400) ** 0.5 + 1 / 500
    truth = samples.of("test")
    assert permutation_p_values(truth[None], samples, permutations=499)[0] == pytest.approx(1 / 500)
    assert permutation_p_values(np.zeros((1, 90), dtype=np.intp), samples, permutations=499)[0] == 1.0


def test_bands_are_those_of_a_plain_loop_over_groups(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store(
        answers=lambda truth, generator: truth if generator.random() < 0.1 else int(generator.integers(0, 3))
    )
    samples = read_labelled_features(store)
    fitted = fit_probes(store, samples, QUICK)
    answers = np.array([samples.labels.index(str(outcome.predicted)) for outcome in outcomes])
    hits = answers == samples.of("test")
    bits = np.random.default_rng(0).normal(size=len(answers))
    resamples = bootstrap_figures(samples, {"answer": Classifier(answers, bits)}, fitted=fitted)
    group = samples.groups_of("test")
    (weights,) = resampled_weights(resamples.groups, 2000, 0, at_once=2000)
    right = fitted.test[3] == samples.of("test")
    for turn in range(0, 2000, 97):
        repeated = np.repeat(np.arange(len(group)), weights[group, turn].astype(int))
        assert resamples.resampled["probe"][turn, 3] == pytest.approx(right[repeated].mean(), abs=1e-5)
        assert resamples.resampled["answer"][turn] == pytest.approx(hits[repeated].mean(), abs=1e-5)
        assert resamples.resampled["answer:bits"][turn] == pytest.approx(bits[repeated].mean(), abs=1e-5)
        recalls = [right[repeated][samples.of("test")[repeated] == k].mean() for k in range(3)]
        assert resamples.resampled["balanced"][turn, 3] == pytest.approx(np.mean(recalls), abs=1e-5)


def test_health_follows_the_curves(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store(clear={"vision.00": 0.3})
    result = analyse(store, outcomes, QUICK)
    vision, connector, llm = (result.health_of(module, "mean") for module in ("vision", "connector", "llm"))
    assert vision is not None and connector is not None and llm is not None
    assert vision.layers == ("vision.00", "vision.01")  # the norm is never read
    assert llm.layers == ("llm.00", "llm.norm")
    accuracy = {(entry.layer, entry.pooling): entry.accuracy.value for entry in result.points}
    start, end = accuracy["vision.00", "mean"], accuracy["vision.01", "mean"]
    low = min(start, end)
    expected = end * (1 + np.log(end / np.sqrt(start * low))) * np.exp(-0.2 * abs(end - start) / end)
    assert vision.score.value == pytest.approx(expected)
    assert vision.score.low <= vision.score.value <= vision.score.high
    assert connector.score.value == pytest.approx(accuracy["connector", "mean"])


@pytest.mark.parametrize(
    "options",
    [
        Options(permutations=2, controls=1, width=8),
        Options(permutations=2, controls=1, strengths=(1e-2, 1.0)),
        Options(permutations=2, controls=1, poolings=("last",)),
        Options(permutations=2, controls=1, layers=("vision.00",)),
        Options(permutations=2, controls=1, repeats=2),
    ],
)
def test_other_options(make_store: Callable[..., Any], options: Options) -> None:
    store, outcomes = make_store()
    result = analyse(store, outcomes, options)
    names = {(entry.layer, entry.pooling) for entry in result.points}
    # What the verdicts rest on is always there.
    assert {("vision.01", "mean"), ("connector", "mean"), ("llm.norm", "last"), ("control.pixels", "mean")} <= names
    assert all(len(entry.repeats) == options.repeats for entry in result.points)
    assert all(entry.C in [pytest.approx(value) for value in options.strengths] for entry in result.points)
    assert {name for name, _ in names if name.startswith("control.")} == {
        "control.pixels",
        "control.border",
        "control.corners",
        "control.centre",
        "control.random_encoder.vision.01",
    }
    assert not options.width or {entry.width for entry in result.points} == {options.width}
    if options.repeats:
        assert "2 further random divisions into folds" in render(result)
    if options.layers:
        # A score of some layers only would not be the module's.
        assert result.health_of("vision", "mean") is not None and result.health_of("llm", "mean") is None
        assert ("llm.00", "mean") not in names and ("vision.00", "mean") in names
    if options.poolings:
        assert ("llm.00", "mean") not in names and ("llm.00", "last") in names
    json.dumps(result.to_dict(), allow_nan=False)


def test_repeats_are_fitted_on_the_real_labels_alone(
    make_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, outcomes = make_store()
    options_seen: list[Options] = []

    def spy(*arguments: Any) -> Any:
        options_seen.append(arguments[2])
        return fit_probes(*arguments)

    monkeypatch.setattr(analysis, "fit_probes", spy)
    analyse(store, outcomes, replace(QUICK, repeats=2))
    assert [(entry.permutations, entry.controls) for entry in options_seen] == [(5, 2), (0, 0), (0, 0)]


@pytest.mark.parametrize("width", [0, 12, 40])
def test_loud_features_do_not_drown_the_class(make_store: Callable[..., Any], width: int) -> None:
    store, outcomes = make_store()
    plain, noise = store.features, np.random.default_rng(5).normal(0, 3000, (len(store), 2))

    def loud(layer: str, pooling: str, rows: Any = None) -> Any:
        result = plain(layer, pooling, rows)
        if layer == "connector":
            result[:, :2] = noise if rows is None else noise[rows]
        return result

    store.features = loud
    result = analyse(store, outcomes, replace(QUICK, width=width))
    (point,) = (entry for entry in result.points if entry.layer == "connector")
    assert point.width == (width or 16) and point.accuracy.value > 0.9
    assert not result.warnings


def test_pictures_all_alike_leave_out_the_control_task_alone(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store()
    plain = store.features

    def alike(layer: str, pooling: str, rows: Any = None) -> Any:
        result = plain(layer, pooling, rows)
        return np.zeros_like(result) if layer == "control.pixels" else result

    store.features = alike
    result = analyse(store, outcomes, QUICK)
    assert result.control_types == 1 and "There is no control task" in result.warnings[0]
    assert all(np.isnan(entry.control.value) and np.isnan(entry.selectivity.value) for entry in result.points)
    assert result.points[3].accuracy.value > 0.9 and result.points[3].label_permutation < 0.5
    json.dumps(result.to_dict(), allow_nan=False)
    assert "connector" in render(result)


@pytest.mark.slow
def test_the_papers_protocol(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store((120, 45, 60))
    result = analyse(store, outcomes, Options(protocol="paper", permutations=0, controls=1))
    by_name = {(entry.layer, entry.pooling): entry for entry in result.points}
    assert by_name["connector", "mean"].accuracy.value > 0.8
    assert by_name["connector", "mean"].C is None


def test_files_are_tidy(make_store: Callable[..., Any], tmp_path: Path) -> None:
    store, outcomes = make_store()
    result = analyse(store, outcomes, QUICK)
    written = write_probes(tmp_path, "med_probe_x", result)
    assert [path.name for path in written] == [
        "med_probe_x.probes.json",
        "med_probe_x.probes.csv",
        "med_probe_x.diagnosis.csv",
    ]
    table = pd.read_csv(written[1])
    assert len(table.drop_duplicates(["layer", "pooling", "fold", "metric"])) == len(table)
    curve = table.query("fold == 'test' and metric == 'accuracy' and pooling == 'mean'").set_index("layer")["value"]
    assert curve["connector"] == pytest.approx(result.points[3].accuracy.value)
    assert list(pd.read_csv(written[2])["mode"]) == ["vision", "connector", "comprehension", "mapping"]
    content = json.loads(written[0].read_text(encoding="utf-8"))
    assert content["diagnosis"]["named"] == result.diagnosis.named and set(result.printed_metrics()) == set(
        PRINTED_METRICS
    )
    text = render(result)
    assert "connector" in text and "not that the model uses it" in text and result.headline in text


def test_an_analysis_repeats_itself(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store()

    def without_seconds(entry: ProbeAnalysis) -> dict[str, Any]:
        return {key: value for key, value in entry.to_dict().items() if key != "seconds"}

    assert without_seconds(analyse(store, outcomes, QUICK)) == without_seconds(analyse(store, outcomes, QUICK))


def test_features_and_answers_of_different_runs(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store()
    with pytest.raises(DataError, match="run again without --use_cache"):
        analyse(store, [*outcomes, Outcome("doc-9999", "g", "benign", "benign", "parsed")], QUICK)
    with pytest.raises(DataError, match="Features and outcomes belong to different runs"):
        analyse(store, outcomes[1:], QUICK)
    first = outcomes[0]
    other = next(label for label in ("benign", "normal") if label != first.label)
    with pytest.raises(DataError, match="They belong to different data sets"):
        analyse(store, [Outcome(first.id, first.group, other, other, "parsed"), *outcomes[1:]], QUICK)
    with pytest.raises(DataError, match="without a limit"):
        analyse(store, outcomes, QUICK, reference=Reference("short", Path(), {first.id: "benign"}))


def test_constant_features_are_no_better_than_chance(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store()
    plain = store.features

    def constant(layer: str, pooling: str, rows: Any = None) -> Any:
        result = plain(layer, pooling, rows)
        return np.full_like(result, 3.0) if layer == "vision.00" else result

    store.features = constant
    result = analyse(store, outcomes, QUICK)
    assert result.points[0].balanced.value == pytest.approx(1 / 3)
    assert result.points[0].p == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "tree"}, "`protocol`"),
        ({"strengths": ()}, "`strengths`"),
        ({"strengths": (0.0,)}, "`strengths`"),
        ({"strengths": (float("nan"),)}, r"`strengths` \(grid\)"),
        ({"permutations": -1}, "`permutations`"),
        ({"repeats": -1}, r"`repeats` \(folds\)"),
        ({"width": -1}, "`width`"),
        ({"refits": -1}, "`refits`"),
    ],
)
def test_options_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Options(**settings)


def test_unknown_poolings_and_layers_list_what_there_is(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store()
    with pytest.raises(OptionError, match=r"\['last', 'mean'\], which the store contains, got \['max'\]"):
        analyse(store, outcomes, Options(poolings=("max",)))
    with pytest.raises(OptionError, match=r"`layers` to be among .*got \['llm.99'\]"):
        analyse(store, outcomes, Options(layers=("llm.99",)))


def test_the_mlp_is_not_refitted_as_often() -> None:
    options = Options()
    assert default_counts("linear") == (options.permutations, options.controls, options.refits) == (20, 3, 20)
    assert default_counts("paper") == (0, 1, 0)


def test_strengths_from_text() -> None:
    assert parse_strengths("1e-3,1") == (1e-3, 1.0)
    with pytest.raises(OptionError, match="got '1,x'"):
        parse_strengths("1,x")


def nearest_centre(data: ProbeData) -> FittedProbe:
    """A plugin's probe: the class whose mean is nearest."""
    kinds = range(data.classes)
    centres = [
        torch.stack([data.train[:, labels == kind].mean(1) for kind in kinds], dim=1) for labels in data.train_labels
    ]

    def predict(features: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.cdist(features, centre).argmin(-1) for centre in centres], dim=1)

    validation = predict(data.validation)[:, 0]
    return FittedProbe(predict, validation, validation_loss=(validation != data.validation_labels[0]).float().mean(-1))


def transposed(data: ProbeData) -> FittedProbe:
    """A plugin's probe with a fault: its log probabilities have the classes before the rows."""
    return replace(nearest_centre(data), log_p=lambda features: torch.zeros(len(features), 3, features.shape[1]))


@pytest.fixture
def probe_plugin() -> Iterator[None]:
    from medmllm_plugins.plugins.hookspecs import hookimpl
    from medmllm_plugins.plugins.manager import get_manager
    from medmllm_plugins.plugins.specs import ProbeSpec

    class Plugin:
        @hookimpl
        def medmllm_probes(self) -> list[ProbeSpec]:
            return [
                ProbeSpec(name="centre", target=f"{__name__}:nearest_centre", summary="Nearest centre."),
                ProbeSpec(name="transposed", target=f"{__name__}:transposed", summary="Faulty."),
            ]

    plugin = Plugin()
    get_manager().pluggy.register(plugin, name="centre")
    yield
    get_manager().pluggy.unregister(plugin)


@pytest.mark.usefixtures("probe_plugin")
def test_a_plugin_brings_a_probe(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store()
    options = Options(protocol="centre", permutations=2, controls=1)
    result = analyse(store, outcomes, options)
    by_name = {(entry.layer, entry.pooling): entry for entry in result.points}
    assert by_name["connector", "mean"].accuracy.value > 0.9 and by_name["connector", "mean"].C is None
    # It gives no log probabilities.
    labelled = read_labelled_features(store)
    fitted = fit_probes(store, labelled, options)
    assert np.isnan(fitted.validation_log_p).all() and fitted.test_log_p.shape == (len(fitted.sites), 90, 3)
    with pytest.raises(PluginError, match=r"return the shape \(\d, 90, 3\), .*got \(\d, 3, 90\)"):
        fit_probes(store, labelled, replace(options, protocol="transposed"))


def test_the_probe_of_a_plugin_that_is_not_installed() -> None:
    with pytest.raises(OptionError, match=r"\['linear', 'paper'\], got 'centre'"):
        Options(protocol="centre")


def test_log_probabilities_are_those_of_scikit_learn(make_store: Callable[..., Any]) -> None:
    store, _ = make_store(clear={"vision.00": 0.3})
    labelled = read_labelled_features(store)
    fitted = fit_probes(store, labelled, QUICK)
    assert fitted.validation_log_p.dtype == fitted.test_log_p.dtype == np.float32
    for index, site in enumerate(fitted.sites):
        features = store.features(site.layer, site.pooling).astype(np.float64)
        model = LogisticRegression(C=fitted.strength[index], tol=1e-8, max_iter=2000)
        model.fit(scaled(features[labelled.rows["train"]], features[labelled.rows["train"]]), labelled.of("train"))
        for fold, log_p in (("validation", fitted.validation_log_p[index]), ("test", fitted.test_log_p[index])):
            expected = model.predict_proba(scaled(features[labelled.rows["train"]], features[labelled.rows[fold]]))
            np.testing.assert_allclose(np.exp(log_p), expected, atol=2e-3)
        true = fitted.validation_log_p[index][np.arange(60), labelled.of("validation")]
        assert fitted.validation_loss[index] == pytest.approx(-true.mean(), rel=1e-5)
        predicted = fitted.test_log_p[index][np.arange(90), fitted.test[index]]
        np.testing.assert_allclose(predicted, fitted.test_log_p[index].max(1), atol=1e-5)
