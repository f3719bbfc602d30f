"""From a feature store and the answers to the whole picture: curves, health, semantic mapping, diagnosis."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from medmllm_plugins.errors import DataError
from medmllm_plugins.features.store import FeatureStore, StoredLayer
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import UNKNOWN
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.probes.curves import BootstrapAccuracies, bootstrap_accuracies, curve_points
from medmllm_plugins.probes.diagnosis import ANSWER, MAJORITY, REFERENCE, SCORES, diagnose
from medmllm_plugins.probes.feature_health import health, health_score
from medmllm_plugins.probes.fitting import LAST_LAYER, ProbePredictions, fit_probes
from medmllm_plugins.probes.labelled_features import (
    LabelledFeatures,
    count_shared_groups,
    read_labelled_features,
    resplit,
)
from medmllm_plugins.probes.mapping import semantic_mapping
from medmllm_plugins.probes.output_recalibration import UNPARSED, ScoredFold, ValidationFold
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.probes.reference_run import Reference
from medmllm_plugins.prompts.feature_options import LAST, MEAN
from medmllm_plugins.results.probe_records import (
    MODES,
    MODULES,
    PROVEN,
    TITLES,
    Effect,
    FeatureHealth,
    ProbeAnalysis,
    ProbePoint,
    SemanticMapping,
)

LOST: Final = tuple(f"lost_{mode}" for mode in MODES)
PRINTED: Final = ("probe", "fhs_vision", "fhs_connector", "fhs_llm", *LOST)
"""Figures that the host prints beside the answers' accuracy."""
MAPPING_CAVEAT: Final = (
    "Either the words are to blame, or a stage before hands the image over in a form that the next has not learnt to "
    "read: probes, which are fitted anew at every stage, cannot tell."
)
"""What is added where the mapping is named and the label scores do not show that the LLM came to the right word."""


def _headline(analysis: ProbeAnalysis) -> str:
    """Return the result in one or two sentences."""
    diagnosis, best = analysis.diagnosis, analysis.best
    first = (
        f"answers {analysis.answer.percent()}, best probe {best.accuracy.percent()} at {best.layer} ({best.pooling})"
    )
    undecided = f"; cannot tell of {', '.join(diagnosis.undecided)}" if diagnosis.undecided else ""
    if not diagnosis.supported:
        return f"{first}. No failure mode is supported{undecided}."
    named = diagnosis.named
    if named is None:
        return f"{first}. Supported, but not charged to one stage: {_lost(diagnosis.supported)}{undecided}."
    is_proven = analysis.mapping is not None and analysis.mapping.kind in PROVEN
    caveat = f" {MAPPING_CAVEAT}" if named == "mapping" and not is_proven else ""
    others = diagnosis.supported[1:]
    also = f" Supported beside it: {_lost(others)}." if others else ""
    return f"{first}. {TITLES[named].capitalize()} ({named}): {diagnosis.of(named).why}{caveat}{also}"


def _lost(effects: Sequence[Effect]) -> str:
    """Such as "connector (7.1 points), mapping (53.0 points)"."""
    return ", ".join(f"{one.mode} ({100 * one.loss.value:.1f} points)" for one in effects)


def analyse(
    store: FeatureStore | Path,
    outcomes: Sequence[Outcome],
    options: Options | None = None,
    *,
    reference: Reference | None = None,
    device: torch.device | None = None,
) -> ProbeAnalysis:
    """Fit the probes of a task and judge what they tell.

    Args:
        store: the features.
        outcomes: the scored answers of the test fold.
        options: how; the defaults where ``None``.
        reference: the run of a reference classifier.
        device: where to fit; a CUDA device where there is one, by default.

    Raises:
        DataError: the folds cannot carry probes, features are damaged or not finite, or features and answers are not
            of the same documents.
    """
    began = time.perf_counter()
    options = options or Options()
    store = FeatureStore(store) if isinstance(store, Path) else store
    samples = read_labelled_features(store, options.seed)
    answers = _answers(store, samples, outcomes)
    fitted = fit_probes(store, samples, options, device)
    fit_seconds = time.perf_counter() - began
    truth = samples.of("test")
    majority = int(np.bincount(samples.of("train")).argmax())
    beside: dict[str, Floats] = {
        ANSWER: (answers == truth).astype(np.float64),
        MAJORITY: (truth == majority).astype(np.float64),
    }
    if reference is not None:
        beside[REFERENCE] = (_referred(store, samples, reference.predicted) == truth).astype(np.float64)
    scores, tested = _scores(store, samples, "validation"), _scores(store, samples, "test")
    scored = None
    if scores is not None and tested is not None:
        scored = float((scores.argmax(1) == samples.of("validation")).mean())
        beside[SCORES] = (tested.argmax(1) == truth).astype(np.float64)
    draws = bootstrap_accuracies(fitted, samples, beside, seed=options.seed)
    curve = curve_points(fitted, samples, draws, _repeated(store, samples, options, device, fitted), seed=options.seed)
    own = [one for one in curve if one.part != "control" and one.read]
    analysis = ProbeAnalysis(
        task=store.header.task,
        model=store.header.model,
        options=options.to_dict(),
        labels=samples.labels,
        counts={fold: len(rows) for fold, rows in samples.rows.items()},
        groups=draws.groups,
        chance=1 / len(samples.labels),
        majority=float(draws.values[MAJORITY]),
        answer=draws.estimate(float(draws.values[ANSWER]), draws.resampled[ANSWER]),
        reference=UNKNOWN
        if reference is None
        else draws.estimate(float(draws.values[REFERENCE]), draws.resampled[REFERENCE]),
        reference_name="" if reference is None else reference.name,
        points=curve,
        best=max(own, key=lambda one: one.validation),
        health=_health(fitted, draws, store.header.layers),
        mapping=_mapping(store, samples, fitted, answers, scores, options.seed),
        diagnosis=diagnose(fitted, draws, samples.of("validation"), scored),
        diagnosis_without_reference=diagnose(fitted, draws.without(REFERENCE), samples.of("validation"), scored),
        control_types=fitted.types,
        warnings=_warnings(samples, fitted, curve, options),
        seconds={"fit": round(fit_seconds, 3), "all": round(time.perf_counter() - began, 3)},
    )
    return replace(analysis, headline=_headline(analysis))


def _answers(store: FeatureStore, samples: LabelledFeatures, outcomes: Sequence[Outcome]) -> Ints:
    """The class answered to each document of the test fold; :data:`UNPARSED` where none."""
    by_id = {outcome.id: outcome for outcome in outcomes}
    rows = samples.rows["test"]
    ids = store.index["id"].astype(str).to_numpy()[rows]
    featured = set(ids)
    if without := [identifier for identifier in by_id if identifier not in featured]:
        raise DataError(
            f"{store.header.task}: expected features of all {len(by_id)} answered documents, found none of "
            f"{len(without)}, such as {without[0]!r}: the host's cache served their answers without asking the model. "
            "Run again without --use_cache, or with another folder for it."
        )
    if missing := [identifier for identifier in ids if identifier not in by_id]:
        raise DataError(
            f"{store.header.task}: expected an answer to every document of the test fold, found none to "
            f"{len(missing)}, such as {missing[0]!r}; features and outcomes are of different runs, or the file of "
            "outcomes is cut short."
        )
    place_of = {label: place for place, label in enumerate(samples.labels)}
    for identifier, row in zip(ids, rows, strict=True):
        if by_id[identifier].label != samples.labels[samples.truth[row]]:
            raise DataError(
                f"{store.header.task}: expected one class of {identifier!r}, found "
                f"{samples.labels[samples.truth[row]]!r} in the features and {by_id[identifier].label!r} in the "
                "answers: they are of different data."
            )
    predicted = [by_id[identifier].predicted for identifier in ids]
    return np.array([UNPARSED if one is None else place_of[one] for one in predicted], dtype=np.intp)


def _referred(store: FeatureStore, samples: LabelledFeatures, reference: Mapping[str, str | None]) -> Ints:
    ids = store.index["id"].astype(str).to_numpy()[samples.rows["test"]]
    if missing := [identifier for identifier in ids if identifier not in reference]:
        raise DataError(
            f"Expected the reference run to have every document of the test fold, found {len(missing)} missing, such "
            f"as {missing[0]!r}; run `medmllm baseline TASK` on the same data without a limit."
        )
    place_of = {label: place for place, label in enumerate(samples.labels)}
    return np.array([place_of.get(str(reference[identifier]), UNPARSED) for identifier in ids], dtype=np.intp)


def _scores(store: FeatureStore, samples: LabelledFeatures, fold: str, column: str = "scores") -> Floats | None:
    """Label scores of a fold's documents, (n, K); ``None`` unless all have them."""
    rows = samples.rows[fold]  # type: ignore[index]
    values = [store.index[column].iloc[row] for row in rows]
    if any(one is None or np.ndim(one) == 0 for one in values):
        return None
    return np.array([np.asarray(one, dtype=np.float64) for one in values])


def _repeated(
    store: FeatureStore,
    samples: LabelledFeatures,
    options: Options,
    device: torch.device | None,
    fitted: ProbePredictions,
) -> Floats:
    """Accuracies on further divisions into folds, (repeats, F)."""
    found = np.empty((options.repeats, len(fitted.sites)))
    options = replace(options, permutations=0, controls=0)
    for turn in range(len(found)):
        divided = resplit(samples, store, options.seed + 1 + turn)
        again = fit_probes(store, divided, options, device)
        found[turn] = (again.test == divided.of("test")).mean(1)
    return found


def _health(
    fitted: ProbePredictions, draws: BootstrapAccuracies, layers: Sequence[StoredLayer]
) -> tuple[FeatureHealth, ...]:
    """The scores of the modules all of whose layers were looked at; of some of them there would be another score."""
    found = []
    for module in MODULES:
        for pooling in (MEAN, LAST):
            places = [
                fitted.index_of(layer.name, pooling)
                for layer in layers
                # The LLM's input is the connector's output among words; its first layer is its first block.
                if layer.part == module and pooling in layer.poolings and layer.read and layer.name != "llm.embed"
            ]
            if not places or min(places) < 0:
                continue
            resampled = health_score(np.clip(draws.resampled["probe"][:, places], 0, 1))
            parts = health(np.clip(draws.values["probe"][places], 0, 1))
            found.append(
                FeatureHealth(
                    module=module,
                    pooling=pooling,
                    layers=tuple(fitted.sites[place].layer for place in places),
                    score=draws.estimate(parts.score, resampled),
                    growth=parts.growth,
                    volatility=parts.volatility,
                    p_start=parts.p_start,
                    p_min=parts.p_min,
                    p_end=parts.p_end,
                )
            )
    return tuple(found)


def _mapping(
    store: FeatureStore,
    samples: LabelledFeatures,
    fitted: ProbePredictions,
    answers: Ints,
    scores: Floats | None,
    seed: int,
) -> SemanticMapping:
    test = samples.rows["test"]
    tested = _scores(store, samples, "test")
    blank = _scores(store, samples, "test", "blank")
    lens = store.lens(test)
    last = fitted.index_of(LAST_LAYER, LAST)
    both = scores is not None and tested is not None
    return semantic_mapping(
        ValidationFold(samples.of("validation"), samples.groups_of("validation"), None, scores if both else None),
        ScoredFold(
            truth=samples.of("test"),
            group=samples.groups_of("test"),
            answers=answers,
            probe=fitted.test[last],
            scores=tested if both else None,
            blank=blank if both else None,
            lens=None if lens is None else lens.transpose(1, 0, 2).astype(np.float64),
        ),
        len(samples.labels),
        lens_layers=store.header.lens,
        seed=seed,
    )


def _warnings(
    samples: LabelledFeatures, fitted: ProbePredictions, curve: Sequence[ProbePoint], options: Options
) -> tuple[str, ...]:
    found = []
    if options.controls and fitted.types < 2:
        found.append(
            "There is no control task: fewer than two types of pictures occur in every fold, so that the folds are too "
            "small or their pictures all alike."
        )
    elif options.controls and fitted.types < len(samples.labels):
        found.append(
            f"The control task has fewer classes than the data: only {fitted.types} types of pictures occur in every "
            f"fold, for {len(samples.labels)} classes, so it is easier than it should be."
        )
    narrow = sorted({one.width for one in curve if one.part != "control" and one.width < options.width})
    if narrow:
        found.append(
            f"Not all layers are {options.width} wide: some hold no more than {narrow[0]} features and stay as they are."
        )
    if shared := count_shared_groups(samples):
        found.append(
            f"{shared} of {len(samples.rows['test'])} test documents share a group (patient, lesion, source) with "
            "another fold, as the published split has it: probes may know the group, and their figures flatter."
        )
    stuck = [one for one in curve if one.gradient_norm is not None and not one.gradient_norm < 1e-2]
    if stuck:
        found.append(f"{len(stuck)} probes stopped before they converged, such as {stuck[0].layer}.")
    if fitted.warnings:
        message, count = max(fitted.warnings.items(), key=lambda item: item[1])
        found.append(f"{sum(fitted.warnings.values())} fits raised warnings. The most common ({count} fits): {message}")
    return tuple(found)
