"""Any scikit-learn classifier as a probe, with the same controls as the built-in ones."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import clone, is_classifier
from sklearn.model_selection import ParameterGrid
from torch import Tensor

from medmllm_plugins.errors import DataError, OptionError, PluginError, one_line, shown
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.probes.probe_methods import FittedProbe, ProbeData
from medmllm_plugins.probes.row_space import expect_alike, not_finite, standardise

_SMALLEST_PROBABILITY = 1e-6
"""Smaller probabilities count as this, so that no single document decides the log loss."""
_ONE_AT_A_TIME = threading.Lock()
"""Warning filters belong to the whole process, so threads take turns at fitting."""


class SklearnProbe:
    """A scikit-learn classifier that a :class:`~medmllm_plugins.plugins.specs.ProbeSpec` can name as its target.

    The classifier is cloned and fitted for every site and every label set: the real labels, the control tasks and the
    permuted labels. Selectivity, p-values, curves and Feature Health follow as for the linear probe. An estimator whose
    ``random_state`` is ``None`` gets the seed of the analysis.

    With a ``grid``, the parameters are chosen on the validation fold, for the real labels and for each control task
    separately; permuted labels take the parameters of the real ones. The criterion is the log loss if the estimator has
    ``predict_proba``, else the error rate. The first of equally good settings wins, so list the strongest
    regularisation first.

    Args:
        estimator: a classifier, such as ``SVC()`` or a pipeline that ends in one.
        grid: values to try for each parameter, as :class:`sklearn.model_selection.ParameterGrid` takes them.
        standardise: scale each feature to mean 0 and variance 1 with the statistics of the train fold.

    Raises:
        OptionError: the estimator is not a classifier, or the grid is empty or names a parameter that it lacks.

    Example:
        >>> from sklearn.neighbors import KNeighborsClassifier
        >>> SklearnProbe(KNeighborsClassifier(), grid={"n_neighbors": [15, 5, 1]})
        SklearnProbe(KNeighborsClassifier())
    """

    def __init__(
        self, estimator: Any, *, grid: Mapping[str, Sequence[Any]] | None = None, standardise: bool = True
    ) -> None:
        if isinstance(estimator, type) or not hasattr(estimator, "get_params") or not is_classifier(estimator):
            raise OptionError(
                f"Expected argument `estimator` to be a scikit-learn classifier, got {shown(estimator)}. Pass an "
                "instance such as SVC(); classes, regressors and transformers do not predict a class."
            )
        if unknown := sorted(set(grid or ()) - set(estimator.get_params())):
            raise OptionError(
                f"Expected argument `grid` to name parameters of {shown(estimator)}, got {unknown}. "
                "`estimator.get_params()` lists them."
            )
        try:
            self._settings: list[dict[str, Any]] = list(ParameterGrid(grid or {}))
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"Expected argument `grid` to give a list of values for each parameter, got {shown(grid)}: "
                f"{one_line(error)}."
            ) from error
        self._estimator = estimator
        self._standardise = standardise

    def __repr__(self) -> str:
        return f"SklearnProbe({self._estimator!r})"

    def __call__(self, data: ProbeData) -> FittedProbe:
        """Fit the classifier for every layer and label set of a block.

        Raises:
            DataError: a feature is NaN or infinite.
            PluginError: the estimator raises an error, or predicts something other than the classes it was fitted on.
        """
        mean, scale, rows = standardise(data.train)
        if not self._standardise:
            mean, scale, rows = torch.zeros_like(mean), torch.ones_like(scale), data.train.double()

        def scaled(features: Tensor) -> Floats:
            expect_alike(features, mean)
            if not bool(features.isfinite().all()):
                raise DataError(not_finite(features, first=0))
            result: Floats = ((features.double() - mean[:, None].double()) / scale[:, None].double()).cpu().numpy()
            return result

        validation = scaled(data.validation)
        with _ONE_AT_A_TIME:
            fits = [
                self._fit_layer(layer_train, layer_validation, data)
                for layer_train, layer_validation in zip(rows.cpu().numpy(), validation, strict=True)
            ]

        def predict(features: Tensor) -> Tensor:
            layers = zip(fits, scaled(features), strict=True)
            predicted = [[fit.predict(rows) for fit in layer_fits] for layer_fits, rows in layers]
            return torch.from_numpy(np.array(predicted, dtype=np.int64)).to(features.device)

        real = [layer_fits[0] for layer_fits in fits]

        def log_p(features: Tensor) -> Tensor:
            layers = zip(real, scaled(features), strict=True)
            by_layer = np.array([fit.log_p(rows, data.classes) for fit, rows in layers], dtype=np.float32)
            return torch.from_numpy(by_layer).to(features.device)

        predicted = [fit.predict(rows) for fit, rows in zip(real, validation, strict=True)]
        only_c = all(set(settings) == {"C"} for settings in self._settings)
        return FittedProbe(
            predict=predict,
            validation=torch.from_numpy(np.array(predicted, dtype=np.int64)),
            validation_loss=torch.tensor([fit.loss for fit in real], dtype=torch.float64),
            strength=torch.tensor([float(fit.settings["C"]) for fit in real]) if only_c else None,
            warnings=tuple(fit.warning for layer_fits in fits for fit in layer_fits if fit.warning),
            log_p=log_p,
        )

    def _fit_layer(self, train: Floats, validation: Floats, data: ProbeData) -> list[_Fit]:
        """Fit every label set to the train rows (N, D) of one layer, with the settings that validate best."""
        fits: list[_Fit] = []
        label_sets = zip(data.train_labels.cpu().numpy(), data.validation_labels.cpu().numpy(), strict=True)
        for number, (labels, held_out_labels) in enumerate(label_sets):
            permuted = number > data.control_tasks
            tried = [
                self._fit(train, validation, labels, held_out_labels, settings, data.seed)
                for settings in ([fits[0].settings] if permuted else self._settings)
            ]
            fits.append(min(tried, key=lambda fit: fit.loss))
        return fits

    def _fit(
        self,
        train: Floats,
        validation: Floats,
        labels: Ints,
        held_out_labels: Ints,
        settings: dict[str, Any],
        seed: int,
    ) -> _Fit:
        if len(present := np.unique(labels)) == 1:  # most estimators refuse a single class
            return _Fit(None, settings, present, float((held_out_labels != present[0]).mean()))
        estimator = clone(self._estimator).set_params(**settings)
        unseeded = [
            name
            for name, value in estimator.get_params().items()
            if value is None and name.rpartition("__")[2] == "random_state"
        ]
        estimator.set_params(**dict.fromkeys(unseeded, seed))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _call(estimator, "fit", train, labels)
        warning = f"{caught[0].category.__name__}: {' '.join(str(caught[0].message).split())[:200]}" if caught else ""
        if hasattr(estimator, "predict_proba"):
            log_p = _log_p(estimator, validation, present, max(*present, *held_out_labels) + 1)
            loss = float(-log_p[np.arange(len(validation)), held_out_labels].mean())
        else:
            loss = float((_predict(estimator, validation, present) != held_out_labels).mean())
        return _Fit(estimator, settings, present, loss, warning)


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """A classifier fitted to one layer and label set, and its loss on the validation fold; ``None`` for one class."""

    estimator: Any
    settings: dict[str, Any]
    classes: Ints
    loss: float
    warning: str = ""

    def predict(self, rows: Floats) -> Ints:
        if self.estimator is None:
            return np.full(len(rows), self.classes[0])
        return _predict(self.estimator, rows, self.classes)

    def log_p(self, rows: Floats, classes: int) -> Floats:
        """Return log probabilities (n, K) in nats; NaN if the estimator has no probabilities."""
        if self.estimator is None:
            probabilities = np.arange(classes) == self.classes[0]
            return np.tile(np.log(probabilities.clip(_SMALLEST_PROBABILITY)), (len(rows), 1))
        if not hasattr(self.estimator, "predict_proba"):
            return np.full((len(rows), classes), np.nan)
        return _log_p(self.estimator, rows, self.classes, classes)


def _call(estimator: Any, method: str, rows: Floats, *labels: Ints) -> Any:
    try:
        return getattr(estimator, method)(rows, *labels)
    except Exception as error:  # an estimator may raise anything
        raise PluginError(
            f"{shown(estimator)}: expected `{method}` to accept {rows.shape[0]} rows of {rows.shape[1]} features, got "
            f"{one_line(error)}. Change the estimator's parameters or the grid of its SklearnProbe."
        ) from error


def _predict(estimator: Any, rows: Floats, classes: Ints) -> Ints:
    """Predict the class of each row, (n,); whatever numeric type the estimator returns."""
    predicted = np.asarray(_call(estimator, "predict", rows))
    if predicted.size != len(rows) or not np.isin(predicted, classes).all():
        raise PluginError(
            f"{shown(estimator)}: expected `predict` to return one of the classes {classes.tolist()} for each of "
            f"{len(rows)} rows, got an array of shape {predicted.shape} with "
            f"{shown(np.unique(predicted)[:5].tolist())}. A probe needs a classifier with one output."
        )
    return predicted.reshape(-1).astype(np.intp)


def _log_p(estimator: Any, rows: Floats, present: Ints, classes: int) -> Floats:
    """Return log probabilities (n, K) in nats of an estimator of the present classes, with columns in any order."""
    probabilities = np.asarray(_call(estimator, "predict_proba", rows))
    columns = np.asarray(getattr(estimator, "classes_", present))
    if probabilities.shape != (len(rows), len(present)) or sorted(columns.tolist()) != present.tolist():
        raise PluginError(
            f"{shown(estimator)}: expected `predict_proba` to return shape ({len(rows)}, {len(present)}) with a column "
            f"for each of the classes {present.tolist()}, got shape {probabilities.shape} for "
            f"{shown(columns.tolist())}. A probe needs a classifier with one output."
        )
    by_class = np.zeros((len(rows), classes))  # the probability of a class that the train fold lacks is 0
    by_class[:, columns.astype(np.intp)] = np.nan_to_num(probabilities)
    log_p: Floats = np.log(by_class.clip(_SMALLEST_PROBABILITY, 1))
    return log_p
