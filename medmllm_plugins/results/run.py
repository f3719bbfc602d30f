"""The public reader of run folders: tidy pandas frames, features as NumPy arrays, layer curves as a figure."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from medmllm_plugins.data.core.documents import FOLDS
from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.results.attribution_files import read_map
from medmllm_plugins.results.attribution_records import CHECKS, AttributionEntry
from medmllm_plugins.results.feature_store import FeatureStore
from medmllm_plugins.results.file_names import FEATURES, file_stem
from medmllm_plugins.results.interchange_files import INTERCHANGE_COLUMNS, interchange_rows
from medmllm_plugins.results.intervention_files import INTERVENTION_COLUMNS, intervention_rows
from medmllm_plugins.results.knockout_files import KNOCKOUT_COLUMNS, knockout_rows
from medmllm_plugins.results.manifest import Manifest
from medmllm_plugins.results.metric_files import tables
from medmllm_plugins.results.patch_files import POINT_COLUMNS, point_rows
from medmllm_plugins.results.probe_files import (
    CURVE_COLUMNS,
    EFFECT_COLUMNS,
    SHORTCUT_COLUMNS,
    curve_rows,
    effect_rows,
    shortcut_rows,
)
from medmllm_plugins.results.probe_records import CONTROL, PIXELS, RANDOM_ENCODER, ProbeAnalysis
from medmllm_plugins.results.repair_files import GAIN_COLUMNS, gain_rows
from medmllm_plugins.results.run_folders import one_run
from medmllm_plugins.results.run_reader import TaskRun, read_run
from medmllm_plugins.results.seal import describe
from medmllm_plugins.results.steering_files import STEERING_COLUMNS, steering_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ENTRY_COLUMNS: Final = (
    "task", "id", "document", "group", "label", "predicted", "answer", "hit", "target", "value", "method", "layer",
    "mode", "baseline", "steps", "slices", "map", "overlay",
)  # fmt: skip
FRAME_COLUMNS: Final = {
    "outcomes": (
        "task", "id", "document", "group", "label", "predicted", "correct", "status", "answer", "finding", "variant",
        "scores", "blank_scores", "label_tokens",
    ),
    "metrics": ("task", "source", "metric", "value", "low", "high"),
    "probes": ("task", *CURVE_COLUMNS),
    "diagnosis": ("task", *EFFECT_COLUMNS),
    "stages": ("task", "stage", "source", "metric", "value", "low", "high"),
    "anchors": ("task", "kind", "n", "groups", "accuracy", "low", "high", "chance", "parsed", "verdict"),
    "shortcuts": ("task", *SHORTCUT_COLUMNS),
    "patching": ("task", *POINT_COLUMNS),
    "interchange": ("task", *INTERCHANGE_COLUMNS),
    "knockout": ("task", *KNOCKOUT_COLUMNS),
    "steering": ("task", *STEERING_COLUMNS),
    "interventions": ("task", *INTERVENTION_COLUMNS),
    "repairs": ("task", *GAIN_COLUMNS),
    "folds": ("dataset", "id", "label", "group", "fold"),
    "attributions": (*_ENTRY_COLUMNS, *CHECKS, "pointing"),
}  # fmt: skip
"""Columns of each frame; docs/results.md explains them."""
_POOLINGS: Final = {
    "mean": ("mean over tokens", "o", "-"),
    "last": ("last token", "s", "--"),
    "cls": ("class token", "^", "-."),
}


class Run:
    """A run folder, for notebooks and scripts.

    Files that are missing, damaged or different from the seal of the finished run are left out, with one warning each.
    docs/results.md lists the columns of every frame and their units.

    Attributes:
        folder: the run folder.
        notes: what is missing or cannot be relied on, one sentence each.

    Example:
        >>> from medmllm_plugins import Run
        >>> run = Run("medmllm_runs/20260101T000000-medm_vl-1")  # doctest: +SKIP
        >>> run.probes.query("metric == 'accuracy'").sort_values("value").tail()  # doctest: +SKIP
        >>> features, index = run.features("llm.12", "last")  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a run folder.

        Args:
            folder: the folder, or the ``--output_path`` of an evaluation with one run in it.

        Raises:
            DataError: the folder does not exist, or is no run folder.
            OptionError: it holds several runs.
        """
        self.folder = one_run(Path(folder))
        self._run = read_run(self.folder)
        self.notes = tuple(self._run.all_missing())
        for note in self.notes:
            warnings.warn(f"{self.folder}: {note}", stacklevel=2)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, tasks={self.tasks})"

    @property
    def tasks(self) -> list[str]:
        """Names of the run's tasks."""
        return [task.name for task in self._run.tasks]

    @property
    def manifest(self) -> Manifest:
        """Model, command, software, tasks and costs of the run."""
        return self._run.manifest

    @cached_property
    def outcomes(self) -> pd.DataFrame:
        """Every scored answer, a row each."""
        return _frame("outcomes", (row for task in self._run.tasks for row in _outcome_rows(task)))

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Metrics with 95% intervals, a row for each task, source and metric.

        ``source`` is ``model``, or the name of a baseline that answers without the image and has no interval.
        """
        rows: list[tuple[Any, ...]] = []
        for task in self._run.tasks:
            if task.summary is None:
                continue
            header, body = tables(task.summary)["metrics"]
            for name, value, low, high, *scores in body:
                rows.append((task.name, "model", name, value, low, high))
                pairs = zip(header[4:], scores, strict=True)
                rows += [(task.name, source, name, score, None, None) for source, score in pairs if score is not None]
        return _numeric(_frame("metrics", rows), "value", "low", "high")

    @cached_property
    def probes(self) -> pd.DataFrame:
        """Layer curves with their controls, a row for each task, site, fold and metric."""
        probed = ((task.name, task.probing) for task in self._run.tasks if task.probing)
        rows = ((name, *row) for name, analysis in probed for row in curve_rows(analysis.points))
        return _numeric(_frame("probes", rows), "value", "low", "high")

    @cached_property
    def diagnosis(self) -> pd.DataFrame:
        """The four failure modes of each task, a row each."""
        rows = ((task.name, *row) for task in self._run.tasks if task.probing for row in effect_rows(task.probing))
        return _numeric(_frame("diagnosis", rows), "loss", "low", "high", "balanced_loss", "bits_lost", "probability")

    @cached_property
    def stages(self) -> pd.DataFrame:
        """What is known of the class at the end of each stage, a row for each task, stage and metric."""
        rows = (
            (task.name, stage.stage, stage.source, name, *getattr(stage, name).to_dict().values())
            for task in self._run.tasks
            for stage in (task.probing.diagnosis.stages if task.probing else ())
            for name in ("own", "accuracy", "balanced", "bits")
        )
        return _numeric(_frame("stages", rows), "value", "low", "high")

    @cached_property
    def anchors(self) -> pd.DataFrame:
        """The answers to the anchors, a row for each task and kind."""
        rows = (
            (
                *(task.name, anchor.kind, anchor.n, anchor.groups, *anchor.accuracy.to_dict().values()),
                *(anchor.chance, anchor.parsed, anchor.verdict),
            )
            for task in self._run.tasks
            for anchor in (task.probing.anchors.results if task.probing and task.probing.anchors else ())
        )
        return _numeric(_frame("anchors", rows), "accuracy", "low", "high")

    @cached_property
    def shortcuts(self) -> pd.DataFrame:
        """What gives the class away beside the finding, a row for each figure."""
        rows = ((task.name, *row) for task in self._run.tasks if task.probing for row in shortcut_rows(task.probing))
        return _numeric(_frame("shortcuts", rows), "figure", "low", "high")

    @cached_property
    def patching(self) -> pd.DataFrame:
        """What the states of a twin restore and break, and each module's share, a row for each figure."""
        rows = ((task.name, *row) for task in self._run.tasks if task.patching for row in point_rows(task.patching))
        return _numeric(_frame("patching", rows), "value", "low", "high")

    @cached_property
    def interchange(self) -> pd.DataFrame:
        """What states of other documents do to the answers, a row for each figure."""
        rows = (
            (task.name, *row)
            for task in self._run.tasks
            if task.interchange
            for row in interchange_rows(task.interchange)
        )
        return _numeric(_frame("interchange", rows), "value", "low", "high")

    @cached_property
    def knockout(self) -> pd.DataFrame:
        """What the answers lose if the image is hidden in some layers, a row for each figure."""
        rows = ((task.name, *row) for task in self._run.tasks if task.knockout for row in knockout_rows(task.knockout))
        return _numeric(_frame("knockout", rows), "value", "low", "high")

    @cached_property
    def steering(self) -> pd.DataFrame:
        """What pushes along directions of probes do to the answers, a row for each figure."""
        rows = ((task.name, *row) for task in self._run.tasks if task.steering for row in steering_rows(task.steering))
        return _numeric(_frame("steering", rows), "value", "low", "high")

    @cached_property
    def interventions(self) -> pd.DataFrame:
        """What the answers lose under interventions of plugins, a row for each figure."""
        rows = (
            (task.name, *row)
            for task in self._run.tasks
            if task.interventions
            for row in intervention_rows(task.interventions)
        )
        return _numeric(_frame("interventions", rows), "value", "low", "high")

    @cached_property
    def repairs(self) -> pd.DataFrame:
        """What each repair gains, a row for each figure."""
        rows = ((task.name, *row) for task in self._run.tasks if task.repairs for row in gain_rows(task.repairs))
        return _numeric(_frame("repairs", rows), "value", "low", "high")

    @cached_property
    def folds(self) -> pd.DataFrame:
        """The documents of each data set with their group and fold, a row each."""
        rows = (
            (folds.dataset, *(document.get(name) for name in ("id", "label", "group", "fold")))
            for folds in self._run.folds.values()
            for document in folds.manifest.rows()
        )
        return _frame("folds", rows)

    @cached_property
    def attributions(self) -> pd.DataFrame:
        """Every attribution of a document, a row each, with its checks."""
        rows = (
            (task.name, *(getattr(entry, name) for name in _ENTRY_COLUMNS[1:]), *_checks(entry))
            for task, entry in self._entries()
        )
        return _numeric(_frame("attributions", rows), *CHECKS)

    def attribution_map(
        self, document: str, method: str, layer: str = "pixels", *, task: str | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the map of one document.

        Args:
            document: its id.
            method: the attribution method.
            layer: the layer's name.
            task: the task; may be left out where one task has this map.

        Returns:
            (slices, height, width) float32; (n,) float32 over the tokens of a prompt. Positive values speak for the
            target.

        Raises:
            OptionError: there is no such map, or several.
            DataError: its file is damaged.
        """
        wanted = (document, method, layer)
        entries = [
            entry
            for owner, entry in self._entries()
            if (entry.document, entry.method, entry.layer) == wanted and task in (None, owner.name)
        ]
        if len(entries) != 1:
            raise OptionError(
                f"{self.folder}: expected one map of {document} by {method} at {layer}, got {len(entries)}. "
                "`run.attributions` lists what there is."
            )
        return read_map(entries[0])

    def features(
        self, layer: str, pooling: str = "mean", *, task: str | None = None
    ) -> tuple[npt.NDArray[np.float32], pd.DataFrame]:
        """Return the features of a task's documents at one site.

        Args:
            layer: the layer's name, such as ``llm.12``.
            pooling: ``mean``, ``last`` or ``cls``.
            task: the task; may be left out where one task kept features.

        Returns:
            (n, d) float32, and a frame of n rows in the same order: ``id``, ``document``, ``group``, ``fold``,
            ``label``, ``answer``.

        Raises:
            OptionError: there is no such task.
            DataError: the store has no such site, or is damaged or not the one that was sealed.
        """
        name = self._one_task(task, lambda run: (self.folder / FEATURES / file_stem(run.name)).is_dir(), "features")
        folder = self.folder / FEATURES / file_stem(name)
        if differing := self._run.seal.among(f"{FEATURES}/{file_stem(name)}/"):
            raise DataError(
                f"{folder}: expected the files that were sealed when the run finished, got other ones: "
                f"{describe(differing)}. Copy the run folder again, or run the task again."
            )
        store = FeatureStore(folder)
        store = store.only(np.flatnonzero(store.index["fold"].isin(FOLDS)))
        columns = ["id", "document", "group", "fold", "label", "answer"]
        return store.features(layer, pooling), store.index[columns].copy()

    def plot_layers(self, task: str | None = None, axes: Sequence[Axes] | None = None) -> tuple[Axes, Axes]:
        """Plot the scores of the probes over the layers, with all controls.

        The first panel shows accuracy with 95% intervals, the control task, the control features, the most common class
        and the answers. The second shows balanced accuracy with chance and label permutation, from its mean to its 95th
        percentile.

        Args:
            task: the task; may be left out where one task has probes.
            axes: two axes to draw on; those of a new figure by default.

        Returns:
            The two axes: layers from the image to the answer on x, percent on y.

        Raises:
            OptionError: there is no such task.
        """
        name = self._one_task(task, lambda run: run.probing is not None, "probes")
        analysis = next(run.probing for run in self._run.tasks if run.name == name)
        assert analysis is not None
        if axes is None:
            from matplotlib import pyplot

            options: dict[str, Any] = {"figsize": (9.6, 5.9), "height_ratios": (1.9, 1), "layout": "constrained"}
            _, axes = pyplot.subplots(2, 1, sharex=True, **options)
        upper, lower = axes
        layers = [layer for layer, _ in analysis.layers()]
        _plot_accuracy(upper, analysis, layers)
        _plot_balanced_accuracy(lower, analysis, layers)
        upper.set_title(name)
        for panel, title in ((upper, "accuracy (%)"), (lower, "balanced accuracy (%)")):
            panel.set_ylim(0, 103)
            panel.set_ylabel(title)
            panel.set_xticks(range(len(layers)), layers, rotation=90, fontsize=7.5)
            panel.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1, 0.5))
        return upper, lower

    def _entries(self) -> Iterator[tuple[TaskRun, AttributionEntry]]:
        for task in self._run.tasks:
            for entry in task.attributions.entries if task.attributions else ():
                yield task, entry

    def _one_task(self, name: str | None, has: Callable[[TaskRun], bool], what: str) -> str:
        """Return the named task, or the only one that ``has`` accepts.

        Raises:
            OptionError: there is no such task, or several.
        """
        names = [task.name for task in self._run.tasks if has(task)]
        if name is None and len(names) == 1:
            return names[0]
        if name is None or name not in names:
            raise OptionError(
                f"{self.folder}: expected argument `task` to be one of the tasks with {what}, {names}, got {name!r}."
            )
        return name


def _plot_accuracy(axes: Axes, analysis: ProbeAnalysis, layers: Sequence[str]) -> None:
    for pooling, (title, marker, line) in _POOLINGS.items():
        points = analysis.curve(pooling)
        if not points:
            continue
        x = [layers.index(point.layer) for point in points]
        accuracy = 100 * np.array([(p.accuracy.value, p.accuracy.low, p.accuracy.high) for p in points])
        (curve,) = axes.plot(x, accuracy[:, 0], line, marker=marker, markersize=4, label=f"{title}, accuracy")
        axes.fill_between(x, accuracy[:, 1], accuracy[:, 2], color=curve.get_color(), alpha=0.16, linewidth=0)
        control = [100 * point.control.value for point in points]
        axes.plot(x, control, ":", color=curve.get_color(), linewidth=1, label=f"{title}, control task")
    controls = {point.layer: 100 * point.accuracy.value for point in analysis.points if point.part == CONTROL}
    encoder = [controls.get(f"{RANDOM_ENCODER}{layer}", math.nan) for layer in layers]
    if not np.isnan(encoder).all():
        axes.plot(range(len(layers)), encoder, "x--", color="tab:red", linewidth=1, label="control: random encoder")
    if PIXELS in controls:
        axes.plot([-0.5], [controls[PIXELS]], "P", color="tab:red", label="control: raw pixels")
    axes.axhline(100 * analysis.majority, color="black", linestyle=":", linewidth=0.9, label="most common class")
    if not math.isnan(analysis.answer.value):
        axes.axhline(100 * analysis.answer.value, color="black", linewidth=0.9, label="answers")


def _plot_balanced_accuracy(axes: Axes, analysis: ProbeAnalysis, layers: Sequence[str]) -> None:
    label: str | None = "label permutation (mean to 95th percentile)"
    for pooling, (title, marker, line) in _POOLINGS.items():
        points = analysis.curve(pooling)
        if not points:
            continue
        x = [layers.index(point.layer) for point in points]
        balanced = [100 * point.balanced.value for point in points]
        axes.plot(x, balanced, line, marker=marker, markersize=4, label=f"{title}, balanced accuracy")
        band = 100 * np.array([(point.label_permutation, point.label_permutation_high) for point in points])
        if not np.isnan(band).all():
            axes.fill_between(x, band[:, 0], band[:, 1], color="tab:gray", alpha=0.3, linewidth=0, label=label)
            label = None
    axes.axhline(100 * analysis.chance, color="black", linestyle="--", linewidth=0.9, label="chance (1 / classes)")


def _outcome_rows(task: TaskRun) -> Iterator[tuple[Any, ...]]:
    for outcome in task.outcomes:
        yield (
            task.name, outcome.id, outcome.document or outcome.id, outcome.group, outcome.label, outcome.predicted,
            outcome.predicted == outcome.label, outcome.status, task.answers.get(outcome.id), outcome.finding,
            outcome.variant, outcome.scores, outcome.blank, outcome.tokens,
        )  # fmt: skip


def _checks(entry: AttributionEntry) -> tuple[Any, ...]:
    return tuple(getattr(entry.checks, name) for name in (*CHECKS, "pointing"))


def _frame(name: str, rows: Iterable[Sequence[Any]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(FRAME_COLUMNS[name]))


def _numeric(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    return frame.astype(dict.fromkeys(columns, np.float64))
