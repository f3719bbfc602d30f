"""Probe features that were not recorded by a run, such as arrays in a notebook, with the controls of ``med_probe``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from medmllm_plugins.data.core.documents import FOLDS
from medmllm_plugins.data.core.folds import grouped_folds
from medmllm_plugins.errors import DataError, OptionError, shown
from medmllm_plugins.features.control_features import control_features as image_features
from medmllm_plugins.metrics.classification import Floats
from medmllm_plugins.metrics.usable_information import class_log_frequencies
from medmllm_plugins.models.base import VisualInput
from medmllm_plugins.models.options import resolve_device
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.probes.analysis import best_point, fit_warnings, repeated_accuracies
from medmllm_plugins.probes.chain import MAJORITY
from medmllm_plugins.probes.curves import Classifier, bootstrap_figures, curve_points, site_p_values
from medmllm_plugins.probes.fitting import fit_probes
from medmllm_plugins.probes.labelled_features import read_labelled_features
from medmllm_plugins.probes.probe_methods import Probe
from medmllm_plugins.probes.probe_options import CONTROLS, PERMUTATIONS, Options
from medmllm_plugins.prompts.feature_options import MEAN
from medmllm_plugins.results.feature_store import Header, StoredLayer
from medmllm_plugins.results.probe_files import CURVE_COLUMNS, curve_rows
from medmllm_plugins.results.probe_records import CONTROL, MODULES, PIXELS, ProbePoint

Site: TypeAlias = str | tuple[str, str]
"""A name of features, or a layer and a pooling."""
OWN: Final = "features"
"""The name of features that are given without one, and the part of features that are of no part of a model."""
NO_POOLING: Final = "none"
_NO_GROUPS: Final = (
    "Each row counts as a group of its own. If several rows are of one patient, pass `groups`: otherwise the same "
    "patient may be in train and test, and intervals are too narrow."
)
_NO_IMAGES: Final = (
    "There is no control task and there are no control features, because there are no images. Pass `images`, so that "
    "the probes can be compared with probes of the raw pixels."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResults:
    """Results of probes of F sites of one's own features.

    Attributes:
        points: one for each site, control features last; all figures are of the test fold unless stated otherwise.
        best: the most accurate site on the validation fold, of several within one standard error the last.
        labels: the classes, K.
        counts: documents by fold.
        groups: number of groups of the test fold, which are resampled for the intervals.
        chance: 1 / K.
        majority: accuracy on the test fold of the most common class of the train fold.
        control_types: types of images of the control task; with fewer than two there is none.
        warnings: what limits the results, a sentence each.
    """

    points: tuple[ProbePoint, ...]
    best: ProbePoint
    labels: tuple[str, ...]
    counts: Mapping[str, int]
    groups: int
    chance: float
    majority: float
    control_types: int
    warnings: tuple[str, ...]

    def frame(self) -> pd.DataFrame:
        """Return all figures as a table with the columns of :attr:`Run.probes`, without the column ``task``."""
        frame = pd.DataFrame(list(curve_rows(self.points)), columns=list(CURVE_COLUMNS))
        return frame.astype(dict.fromkeys(("value", "low", "high"), np.float64))

    def __getitem__(self, site: Site) -> ProbePoint:
        """Return the point of some features, by the key that they were given under.

        Raises:
            OptionError: there are none of that name.
        """
        name = _site(site)
        points = {point.site: point for point in self.points}
        if name not in points:
            raise OptionError(f"Expected a site among {list(points)}, got {shown(site)}.")
        return points[name]


class FeatureArrays:
    """Arrays in memory, read like a :class:`~medmllm_plugins.results.feature_store.FeatureStore`."""

    def __init__(self, index: pd.DataFrame, labels: tuple[str, ...], arrays: Mapping[tuple[str, str], Floats]) -> None:
        """Lay out arrays by site, (n, d) each, those of control features under names that begin with ``control.``."""
        self.folder = Path(OWN)
        self.index = index
        self._arrays = arrays
        poolings: dict[str, list[str]] = {}
        for layer, pooling in arrays:
            poolings.setdefault(layer, []).append(pooling)
        layers = tuple(
            StoredLayer(name, _part(name), tuple(names), tuple(arrays[name, pooling].shape[1] for pooling in names))
            for name, names in poolings.items()
        )
        self.header = Header(OWN, "", labels, "", "", "", layers)

    def __len__(self) -> int:
        return len(self.index)

    def layer(self, name: str) -> StoredLayer:
        """Return the layer of that name."""
        return next(layer for layer in self.header.layers if layer.name == name)

    def features(self, layer: str, pooling: str, rows: npt.NDArray[np.intp] | None = None) -> npt.NDArray[np.float32]:
        """Return the features of some rows, (n, d) float32."""
        array = self._arrays[layer, pooling]
        return np.ascontiguousarray(array if rows is None else array[rows], dtype=np.float32)


def probe_features(
    features: npt.ArrayLike | Mapping[Site, npt.ArrayLike],
    labels: Sequence[object],
    *,
    groups: Sequence[object] | None = None,
    folds: Sequence[str] | None = None,
    images: Sequence[VisualInput] | None = None,
    control_features: Mapping[str, npt.ArrayLike] | None = None,
    classes: Sequence[str] | None = None,
    probe: str | Probe = "linear",
    width: int = 0,
    permutations: int = PERMUTATIONS,
    controls: int = CONTROLS,
    repeats: int = 0,
    seed: int = 0,
    device: str | None = None,
) -> ProbeResults:
    """Probe features for the class, with the controls and intervals of ``med_probe``.

    The probe is fitted on the train fold, its penalty chosen on the validation fold, and tested once on the test fold.

    Args:
        features: (n, d), or several such arrays by name; a name is a string, or a layer and a pooling.
        labels: (n,) classes.
        groups: (n,) patients, lesions or sources, which stay on one side of a split and are resampled together; each
            row is a group of its own by default.
        folds: (n,) ``train``, ``validation`` or ``test``; by default random ones that divide no group, 60, 20 and 20%.
        images: (n,) the images that the features are of. They give the control task its types of images, and control
            features (pixels, border, corners, centre), which a probe has to beat. Without them there are neither.
        control_features: further control features, (n, d) by name, such as those of an untrained encoder.
        classes: order of the classes; sorted by default.
        probe: ``"linear"``, ``"paper"``, the name of a plugin's probe, or a probe such as a ``SklearnProbe``.
        width: project the features at random to this many dimensions; 0 for no projection.
        permutations: refits on permuted labels; 0 for none.
        controls: control tasks; 0 for none.
        repeats: further random divisions into folds on which the probes are fitted again.
        seed: of all random generators.
        device: where to fit, such as ``cpu`` or ``cuda``; a CUDA device by default if there is one.

    Raises:
        DataError: the arrays differ in length or are not finite, or the folds are too small.
        OptionError: there is no such probe or device, or a number is out of range.

    Example:
        >>> import numpy as np
        >>> from medmllm_plugins import probe_features
        >>> generator = np.random.default_rng(0)
        >>> labels = np.arange(300) % 3
        >>> good = np.eye(3)[labels] + 0.3 * generator.standard_normal((300, 3))
        >>> noise = generator.standard_normal((300, 8))
        >>> results = probe_features({"good": good, "noise": noise}, labels, permutations=5)
        >>> results["good"].accuracy.value > 0.9 > 0.6 > results["noise"].accuracy.value
        True
        >>> results["good"].p_holm < 0.01 < results["noise"].p_holm
        True

    See Also:
        :attr:`medmllm_plugins.results.run.Run.probes`: the same figures of a run.
    """
    if isinstance(probe, str) and probe not in (known := get_manager().probes()):
        raise OptionError(f"Expected `probe` to be a probe or one of {sorted(known)}, got {probe!r}.")
    arrays = _arrays(features)
    index = _index(labels, groups, folds, seed)
    own_controls = {_control_name(name): np.asarray(values) for name, values in (control_features or {}).items()}
    if images is not None:
        own_controls |= _image_controls(images)
    arrays |= {(name, MEAN): values for name, values in own_controls.items()}
    for site, array in arrays.items():
        _check_array(site, array, len(index))
    options = Options(
        protocol=probe if isinstance(probe, str) else "linear",
        width=width,
        permutations=permutations,
        controls=controls if PIXELS in own_controls else 0,
        repeats=repeats,
        seed=seed,
    )
    store = FeatureArrays(index, _classes(index, classes), arrays)
    results = _probe_store(
        store, options, None if isinstance(probe, str) else probe, None if device is None else resolve_device(device)
    )
    missing = (
        *([] if groups is not None else [_NO_GROUPS]),
        *([] if PIXELS in own_controls or not controls else [_NO_IMAGES]),
    )
    return replace(results, warnings=(*missing, *results.warnings))


def _probe_store(
    store: FeatureArrays, options: Options, probe: Probe | None, device: torch.device | None
) -> ProbeResults:
    """Fit and compare the probes of all sites; ``probe`` is that of the options if ``None``."""
    labelled = read_labelled_features(store, options.seed)
    fitted = fit_probes(store, labelled, options, device, probe)
    log_frequencies = class_log_frequencies(labelled.of("train"), len(labelled.labels))
    most_common = np.full(len(labelled.rows["test"]), log_frequencies.argmax(), dtype=np.intp)
    classifiers = {MAJORITY: Classifier(most_common, np.zeros(len(most_common)))}
    figures = bootstrap_figures(labelled, classifiers, fitted=fitted, seed=options.seed)
    accuracies = repeated_accuracies(store, labelled, options, device, fitted, probe)
    points = curve_points(fitted, labelled, figures, site_p_values(fitted, labelled, seed=options.seed), accuracies)
    return ProbeResults(
        points=points,
        best=best_point(points, fitted, labelled)[0],
        labels=labelled.labels,
        counts={fold: len(rows) for fold, rows in labelled.rows.items()},
        groups=figures.groups,
        chance=1 / len(labelled.labels),
        majority=float(figures.values[MAJORITY]),
        control_types=fitted.types,
        warnings=fit_warnings(labelled, fitted, points, options),
    )


def _arrays(features: npt.ArrayLike | Mapping[Site, npt.ArrayLike]) -> dict[tuple[str, str], Floats]:
    """Return arrays by layer and pooling."""
    named = features if isinstance(features, Mapping) else {OWN: features}
    if not named:
        raise DataError("Expected at least one array of features, got none.")
    arrays = {_site(name): np.asarray(values) for name, values in named.items()}
    if reserved := [layer for layer, _ in arrays if layer.startswith(f"{CONTROL}.")]:
        raise OptionError(f"Expected names that do not begin with `control.`, got {reserved}. Use `control_features`.")
    return arrays


def _site(name: Site) -> tuple[str, str]:
    return (name, NO_POOLING) if isinstance(name, str) else (str(name[0]), str(name[1]))


def _part(layer: str) -> str:
    part = layer.partition(".")[0]
    return part if part in (*MODULES, CONTROL) else OWN


def _control_name(name: str) -> str:
    return name if name.startswith(f"{CONTROL}.") else f"{CONTROL}.{name}"


def _image_controls(images: Sequence[VisualInput]) -> dict[str, Floats]:
    """Return the control features of images, (n, d) by layer."""
    rows = [image_features(image) for image in images]
    if not rows:
        raise DataError("Expected an image for each row of the features, got none.")
    return {layer: np.stack([row[layer] for row in rows]).astype(np.float32) for layer in rows[0]}


def _index(
    labels: Sequence[object], groups: Sequence[object] | None, folds: Sequence[str] | None, seed: int
) -> pd.DataFrame:
    """Return the table of documents that a feature store has."""
    count = len(labels)
    for name, column in (("groups", groups), ("folds", folds)):
        if column is not None and len(column) != count:
            raise DataError(f"Expected `{name}` to have {count} entries, as `labels` has, got {len(column)}.")
    ids = [f"row {number}" for number in range(count)]
    names = [str(label) for label in labels]
    group = ids if groups is None else [str(value) for value in groups]
    fold = list(grouped_folds(ids, names, group, seed=seed)) if folds is None else [str(value) for value in folds]
    if unknown := sorted(set(fold) - set(FOLDS)):
        raise DataError(f"Expected `folds` among {', '.join(FOLDS)}, got {shown(unknown)}.")
    return pd.DataFrame({"id": ids, "label": names, "group": group, "fold": fold})


def _classes(index: pd.DataFrame, classes: Sequence[str] | None) -> tuple[str, ...]:
    known = sorted(set(index["label"]))
    if classes is not None and (missing := [label for label in known if label not in map(str, classes)]):
        raise DataError(f"Expected `classes` to hold every label, got none for {shown(missing)}.")
    return tuple(known) if classes is None else tuple(map(str, classes))


def _check_array(site: tuple[str, str], array: Floats, count: int) -> None:
    name = site[0] if site[1] == NO_POOLING else f"{site[0]} ({site[1]})"
    if array.ndim != 2 or len(array) != count or not array.shape[1] or array.dtype.kind not in "fiub":
        raise DataError(
            f"{name}: expected numbers of shape ({count}, d), a row for each label, got {array.dtype} of shape "
            f"{array.shape}. Pool or flatten the features of each document into one vector."
        )
    if bad := int((~np.isfinite(array).all(axis=1)).sum()):
        raise DataError(f"{name}: expected finite numbers, got NaN or infinity in {bad} of {count} rows.")
