"""A scikit-learn classifier as a probe: what fitting it by hand gives, with all controls, and clear errors."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from medmllm_plugins.errors import DataError, OptionError, PluginError
from medmllm_plugins.plugins.hookspecs import hookimpl
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.plugins.specs import ProbeSpec
from medmllm_plugins.probes.analysis import analyse
from medmllm_plugins.probes.probe_methods import FittedProbe, ProbeData, load_probe
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.probes.sklearn_probe import SklearnProbe
from medmllm_plugins.results.probe_records import ProbeAnalysis

CLASSES = 3
ROWS, HELD_OUT, WIDTH = 60, 30, 6
nearest = SklearnProbe(KNeighborsClassifier(), grid={"n_neighbors": [15, 5, 1]})
unconverged = SklearnProbe(LogisticRegression(max_iter=1))


@pytest.fixture
def data() -> ProbeData:
    """Two layers, five label sets: the real one, two control tasks and two permutations."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (5, ROWS + HELD_OUT), generator=generator)
    labels[:, :CLASSES] = torch.arange(CLASSES)
    centres = torch.randn(2, CLASSES, WIDTH, generator=generator)
    features = centres[:, labels[0]] + torch.randn(2, ROWS + HELD_OUT, WIDTH, generator=generator)
    features[..., 0] *= 1e4
    return ProbeData(
        train=features[:, :ROWS].contiguous(),
        validation=features[:, ROWS:].contiguous(),
        train_labels=labels[:, :ROWS].contiguous(),
        validation_labels=labels[:, ROWS:].contiguous(),
        control_tasks=2,
        classes=CLASSES,
        strengths=(1.0,),
        seed=7,
    )


def standardised(data: ProbeData, layer: int, *, scale: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Train and validation rows of a layer, as StandardScaler scales them."""
    train, validation = (part[layer].double().numpy() for part in (data.train, data.validation))
    scaler = StandardScaler(with_mean=scale, with_std=scale).fit(train)
    return scaler.transform(train), scaler.transform(validation)


def assert_equals_by_hand(data: ProbeData, fitted: FittedProbe, make: Callable[[], Any], **scaling: bool) -> None:
    predicted = fitted.predict(data.validation)
    assert predicted.shape == (2, 5, HELD_OUT) and predicted.dtype == torch.int64
    for layer, number in np.ndindex(2, 5):
        train, validation = standardised(data, layer, **scaling)
        expected = make().fit(train, data.train_labels[number].numpy()).predict(validation)
        np.testing.assert_array_equal(predicted[layer, number].numpy(), expected)
    assert torch.equal(fitted.validation, predicted[:, 0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: SVC(kernel="rbf"),  # decision_function only
        lambda: RidgeClassifier(),
        lambda: LinearDiscriminantAnalysis(),
        lambda: DecisionTreeClassifier(random_state=7),
        lambda: make_pipeline(StandardScaler(), KNeighborsClassifier(3)),
    ],
    ids=["svc", "ridge", "lda", "tree", "pipeline"],
)
def test_predictions_equal_those_of_the_estimator_fitted_by_hand(data: ProbeData, make: Callable[[], Any]) -> None:
    assert_equals_by_hand(data, SklearnProbe(make())(data), make)


def test_an_open_random_state_is_the_seed_of_the_analysis(data: ProbeData) -> None:
    fitted = SklearnProbe(DecisionTreeClassifier(max_features=1))(data)
    assert_equals_by_hand(data, fitted, lambda: DecisionTreeClassifier(max_features=1, random_state=data.seed))


def test_without_standardisation_the_features_are_passed_as_they_are(data: ProbeData) -> None:
    fitted = SklearnProbe(SVC(kernel="rbf"), standardise=False)(data)
    assert_equals_by_hand(data, fitted, lambda: SVC(kernel="rbf"), scale=False)
    assert not torch.equal(
        fitted.predict(data.validation), SklearnProbe(SVC(kernel="rbf"))(data).predict(data.validation)
    )


def test_parameters_are_chosen_by_log_loss_on_the_validation_fold(data: ProbeData) -> None:
    grid = [1e-4, 1e-2, 1.0]
    fitted = SklearnProbe(LogisticRegression(), grid={"C": grid})(data)
    predicted = fitted.predict(data.validation)
    for layer in range(2):
        train, validation = standardised(data, layer)
        chosen = 0.0
        for number in range(5):
            labels, held_out = data.train_labels[number].numpy(), data.validation_labels[number].numpy()
            models = [LogisticRegression(C=strength).fit(train, labels) for strength in grid]
            losses = [log_loss(held_out, model.predict_proba(validation), labels=range(CLASSES)) for model in models]
            best = int(np.argmin(losses)) if number <= data.control_tasks else grid.index(chosen)
            if number == 0:
                chosen = grid[best]
                assert float(fitted.validation_loss[layer]) == pytest.approx(losses[best])
                assert fitted.strength is not None and float(fitted.strength[layer]) == pytest.approx(chosen)
            np.testing.assert_array_equal(predicted[layer, number].numpy(), models[best].predict(validation))


def test_without_probabilities_parameters_are_chosen_by_error_rate_and_the_first_of_equals_wins(
    data: ProbeData,
) -> None:
    grid = [1e-6, 1e-5, 1.0]  # the first two predict one class and are equally good
    fitted = SklearnProbe(SVC(), grid={"C": grid})(data)
    for layer in range(2):
        train, validation = standardised(data, layer)
        errors = [
            (
                SVC(C=c).fit(train, data.train_labels[0].numpy()).predict(validation)
                != data.validation_labels[0].numpy()
            ).mean()
            for c in grid
        ]
        assert errors[0] == errors[1] > errors[2]
        assert float(fitted.validation_loss[layer]) == pytest.approx(errors[2])
    weak = SklearnProbe(SVC(), grid={"C": grid[:2]})(data)
    assert weak.strength is not None and weak.strength.tolist() == pytest.approx([1e-6, 1e-6])


def test_log_probabilities_are_those_of_predict_proba(data: ProbeData) -> None:
    fitted = SklearnProbe(LogisticRegression())(data)
    assert fitted.log_p is not None
    log_p = fitted.log_p(data.validation)
    assert log_p.dtype == torch.float32
    for layer in range(2):
        train, validation = standardised(data, layer)
        expected = LogisticRegression().fit(train, data.train_labels[0].numpy()).predict_log_proba(validation)
        np.testing.assert_allclose(log_p[layer].numpy(), expected.clip(np.log(1e-6)), rtol=1e-4, atol=1e-5)
    without = SklearnProbe(SVC())(data)
    assert without.log_p is not None and bool(without.log_p(data.validation).isnan().all())
    data.train_labels[0] = data.train_labels[0].clamp_max(1)
    lacking = SklearnProbe(LogisticRegression())(data)
    assert lacking.log_p is not None
    torch.testing.assert_close(lacking.log_p(data.validation)[..., 2].unique(), torch.tensor([1e-6]).log())
    data.train_labels[0] = 2
    single = SklearnProbe(LogisticRegression())(data)
    assert single.log_p is not None and bool((single.log_p(data.validation).argmax(-1) == 2).all())


class Reversed(ClassifierMixin, BaseEstimator):
    """A logistic regression whose columns are in reverse order and whose predictions are floats in a column."""

    def fit(self, rows: Any, labels: Any) -> Reversed:
        self.model_ = LogisticRegression().fit(rows, labels)
        self.classes_ = self.model_.classes_[::-1]
        return self

    def predict(self, rows: Any) -> Any:
        return self.model_.predict(rows).astype(float)[:, None]

    def predict_proba(self, rows: Any) -> Any:
        return self.model_.predict_proba(rows)[:, ::-1]


def test_classes_may_come_in_any_order(data: ProbeData) -> None:
    usual, reverse = SklearnProbe(LogisticRegression())(data), SklearnProbe(Reversed())(data)
    assert torch.equal(reverse.predict(data.validation), usual.predict(data.validation))
    torch.testing.assert_close(reverse.validation_loss, usual.validation_loss)
    assert reverse.log_p is not None and usual.log_p is not None
    torch.testing.assert_close(reverse.log_p(data.validation), usual.log_p(data.validation))


def test_label_sets_that_lack_classes(data: ProbeData) -> None:
    data.train_labels[1] = data.train_labels[1].clamp_max(1)
    data.train_labels[3] = 2
    fitted = SklearnProbe(SVC(), grid={"C": [0.1, 1.0]})(data)
    predicted = fitted.predict(data.validation)
    assert set(predicted[:, 1].unique().tolist()) <= {0, 1} and bool((predicted[:, 3] == 2).all())
    train, validation = standardised(data, 0)
    lacking = SklearnProbe(LogisticRegression())._fit(
        train, validation, data.train_labels[1].numpy(), np.full(HELD_OUT, 2), {}, 0
    )
    assert lacking.loss == pytest.approx(-np.log(1e-6))  # finite although the class has no column


class Faulty(ClassifierMixin, BaseEstimator):
    """A classifier with a fault."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def fit(self, rows: Any, labels: Any) -> Faulty:
        if self.fault == "fit":
            raise np.linalg.LinAlgError("singular matrix")
        self.classes_ = np.unique(labels)
        return self

    def predict(self, rows: Any) -> Any:
        if self.fault == "predict":
            raise KeyError("no such thing")
        if self.fault == "outputs":
            return np.zeros((len(rows), 2))
        if self.fault == "names":
            return np.array(["benign"] * len(rows))
        return np.full(len(rows), 5 if self.fault == "classes" else 0)

    def predict_proba(self, rows: Any) -> Any:
        return np.full((len(rows), 2 if self.fault == "columns" else len(self.classes_)), 0.5)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("fit", r"Faulty\(fault='fit'\): expected `fit` to accept 60 rows of 6 features, got .*singular matrix"),
        ("predict", r"expected `predict` to accept 30 rows"),
        ("outputs", r"one of the classes \[0, 1, 2\] for each of 30 rows, got an array of shape \(30, 2\)"),
        ("names", r"one of the classes .* with \['benign'\]"),
        ("classes", r"one of the classes .* with \[5\]"),
        ("columns", r"`predict_proba` to return shape \(30, 3\) .* got shape \(30, 2\)"),
    ],
)
def test_an_estimator_that_fails_is_named(data: ProbeData, fault: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        SklearnProbe(Faulty(fault))(data)


def test_warnings_are_counted_and_kept_from_the_screen(data: ProbeData) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        fitted = unconverged(data)
    assert len(fitted.warnings) == 10 and all(warning.startswith("ConvergenceWarning: ") for warning in fitted.warnings)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_named(data: ProbeData, value: float) -> None:
    fitted = SklearnProbe(DecisionTreeClassifier())(data)
    data.validation[1, 2, 3] = value
    with pytest.raises(DataError, match="in layer 1, row 2, column 3"):
        fitted.predict(data.validation)
    data.train[0, 4, 5] = value
    with pytest.raises(DataError, match="in layer 0, row 4, column 5"):
        SklearnProbe(DecisionTreeClassifier())(data)


@pytest.mark.parametrize(
    ("estimator", "grid", "message"),
    [
        (SVC, None, "to be a scikit-learn classifier"),
        (LinearRegression(), None, "to be a scikit-learn classifier"),
        (StandardScaler(), None, "to be a scikit-learn classifier"),
        ("svc", None, "to be a scikit-learn classifier, got 'svc'"),
        (SVC(), {"c": [1.0]}, r"`grid` to name parameters of SVC\(\), got \['c'\]"),
        (SVC(), {"C": []}, "`grid` to give a list of values"),
        (SVC(), {"C": 1.0}, "`grid` to give a list of values"),
    ],
)
def test_arguments_are_checked(estimator: Any, grid: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SklearnProbe(estimator, grid=grid)


@contextmanager
def plugin_with(name: str) -> Iterator[None]:
    class Plugin:
        @hookimpl
        def medmllm_probes(self) -> list[ProbeSpec]:
            return [ProbeSpec(name=name, target=f"{__name__}:{name}", summary="A scikit-learn classifier.")]

    plugin = Plugin()
    get_manager().pluggy.register(plugin, name=name)
    try:
        yield
    finally:
        get_manager().pluggy.unregister(plugin)


def test_the_example_plugin_declares_one(monkeypatch: pytest.MonkeyPatch, data: ProbeData) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "plugin"))
    example = importlib.import_module("medmllm_example")
    get_manager().pluggy.register(example, name="example")
    try:
        fitted = load_probe("nearest")(data)
    finally:
        get_manager().pluggy.unregister(example)
        for name in [name for name in sys.modules if name.startswith("medmllm_example")]:
            monkeypatch.delitem(sys.modules, name)
    assert torch.equal(fitted.predict(data.validation), nearest(data).predict(data.validation))


def test_it_comes_with_all_controls_and_curves(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store(clear={"vision.00": 0.3, "llm.00/last": 0.0})
    with plugin_with("nearest"):
        options = Options(protocol="nearest", permutations=5, controls=2)
        analysis, again = (analyse(store, outcomes, options) for _ in range(2))
    points = {point.site: point for point in analysis.points}
    clear, empty = points["connector", "mean"], points["llm.embed", "last"]
    assert clear.accuracy.value > 0.9 and clear.selectivity.low > 0.2 and clear.p_holm < 0.01
    assert clear.balanced.low > clear.label_permutation_high
    assert empty.p > 0.01 and empty.accuracy.low < analysis.chance + 0.05
    assert clear.C is None and "control.pixels" in {layer for layer, _ in points}
    vision = analysis.health_of("vision", "mean")
    assert vision is not None and vision.p_end == pytest.approx(points["vision.01", "mean"].accuracy.value)
    assert analysis.mapping is not None
    assert analysis.mapping.probe.value == pytest.approx(points["llm.norm", "last"].accuracy.value)
    first, second = ({**result.to_dict(), "seconds": None} for result in (analysis, again))
    assert first == second


def test_warnings_reach_the_analysis(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store((60, 30, 45))
    with plugin_with("unconverged"):
        analysis: ProbeAnalysis = analyse(store, outcomes, Options(protocol="unconverged", permutations=1, controls=1))
    (warning,) = analysis.warnings
    assert warning.startswith("45 fits raised warnings. The most common (") and "ConvergenceWarning" in warning
