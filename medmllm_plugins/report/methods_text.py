"""Methods paragraphs for a paper: what the manifests say was done, with the source of each part that was used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.metrics.summary import Summary
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.report.citations import References
from medmllm_plugins.report.display_names import CHECKS, SCORE_FORMS
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import DatasetRuns, RunCollection, TaskResult
from medmllm_plugins.report.subjects import Subject
from medmllm_plugins.report.templating import text, texts
from medmllm_plugins.results.attribution_records import AttributionIndex
from medmllm_plugins.results.probe_records import (
    CONTROL,
    PIXELS,
    RANDOM_ENCODER,
    RECALIBRATIONS,
    REGIONS,
    ProbeAnalysis,
)
from medmllm_plugins.results.run_reader import RunFolder
from medmllm_plugins.utils.json_values import clean, number, sequence

_TEMPLATE: Final = "methods.txt.jinja"
_METRICS: Final = ("accuracy", "balanced", "macro_f1", "mcc", "auroc", "auprc", "ece", "brier", "kappa")
_PARTS: Final = ("vision", "connector", "llm")
_POOLINGS: Final = ("mean", "last", "cls")
_SAMPLING: Final = ("do_sample", "temperature", "top_p", "top_k", "num_beams")
_MAX_LAYERS: Final = 8
"""Most layers of attributions that the paragraph names."""


@dataclass(frozen=True, slots=True)
class Methods:
    """The paragraphs and their numbered references."""

    paragraphs: tuple[str, ...]
    references: tuple[str, ...]

    def text(self) -> str:
        """Return all of it as plain text."""
        numbered = [f"[{number}] {source}" for number, source in enumerate(self.references, start=1)]
        return "\n\n".join([*self.paragraphs, *(["\n".join(numbered)] if numbered else [])]) + "\n"


@dataclass(frozen=True, slots=True)
class CitedName:
    """A model, probe or attribution method: its name, its source, and more about it."""

    name: str
    citation: str
    description: str = ""
    details: tuple[str, ...] = ()


def methods(collection: RunCollection) -> Methods:
    """Write the paragraphs about all runs that have results."""
    results = [
        result
        for result in collection.results()
        if result.task.scored or result.task.probing or result.task.attributions
    ]
    if not results:
        return Methods((text(_TEMPLATE, "empty"),), ())
    folds = {name: folds for run in reversed(collection.runs) for name, folds in run.folds.items() if folds}
    cite = References()
    paragraphs = texts(
        _TEMPLATE,
        "methods",
        cite=cite,
        models=_models(collection, results),
        versions=_versions(results),
        datasets=[(dataset, folds.get(dataset.name)) for dataset in collection.datasets],
        answers=_answer_facts([result for result in results if result.task.scored]),
        references=[_reference_method(subject) for subject in collection.subjects if subject.reference],
        probes=_probe_facts([result.task.probing for result in results if result.task.probing is not None]),
        attributions=_attribution_facts(
            [result.task.attributions for result in results if result.task.attributions is not None]
        ),
    )
    return Methods(tuple(filter(None, paragraphs)), cite.all())


def _models(collection: RunCollection, results: Sequence[TaskResult]) -> tuple[CitedName, ...]:
    """Return the models that have results."""
    specs, models = get_manager().models(), []
    numbers = {result.subject.number for result in results}
    for subject in collection.models:
        if subject.number in numbers:
            model = subject.runs[0].model
            spec = specs.get(model.name or str(subject.runs[0].command.get("model") or ""))
            details = [detail for detail in (model.dtype, model.load_in) if detail]
            if model.peft:
                details.append(f"adapter {cut(model.peft, 40)}")
            if model.repair:
                details.append(f"repair {cut(model.repair, 40)}")
            models.append(CitedName(subject.label, spec.citation if spec else "", details=tuple(details)))
    return tuple(models)


def _versions(results: Sequence[TaskResult]) -> dict[str, str]:
    """Return the versions of each package that evaluated the models."""
    runs = list({id(result.run): result.run for result in results}.values())
    # Only the wrapper of this package notes the model that it loads, and it loads it with transformers.
    loaded = [run for run in runs if run.manifest.model and not run.baseline]
    users = {"lmms-eval": runs, "medmllm-plugins": runs, **({"transformers": loaded} if loaded else {})}
    versions = {}
    for package, package_runs in users.items():
        numbers = {run.manifest.versions.get(package) for run in package_runs}
        versions[package] = " and ".join(sorted(clean(version) for version in numbers if version))
    return versions


def _answer_facts(results: Sequence[TaskResult]) -> dict[str, Any]:
    """Return how models were asked and how their answers were scored, as the template names it."""
    of_models = [result for result in results if not result.subject.reference]
    protocols = dict.fromkeys(
        "findings" if result.multilabel else result.task.settings.protocol for result in of_models
    )
    decoding: dict[str, dict[str, None]] = {}
    for result in of_models:
        decoding.setdefault(_sampling(result.run), {})[result.subject.label] = None
    defined = {name for result in results for name, value in result.metrics.items() if known(value)}
    metrics: list[str] = [name for name in _METRICS if name in defined]
    if any(known(result.exact_match) for result in results):
        metrics.append("exact_match")
    sources = [source for result in of_models for source in result.task.sources.values()]
    forms = {form for source in sources if isinstance(source, Summary) for form in source.label_scores}
    return {
        "protocols": protocols,
        "shots": sorted({result.shots for result in of_models}),
        "decoding": decoding,
        "metrics": metrics,
        "one_against_rest": not all(result.multilabel for result in results),
        "resamples": max(map(_resamples, results), default=0),
        "multilabel": any(result.multilabel for result in results),
        "score_forms": [form for form in SCORE_FORMS if form in forms],
        "varied": {result.task.varied for result in of_models},
        "images": sorted({clean(result.task.image) for result in of_models} - {"shown"}),
    }


def _sampling(run: RunFolder) -> str:
    """Return the arguments under which a run's answers were sampled; empty for greedy decoding, the default."""
    arguments = run.command.get("gen_kwargs")
    if isinstance(arguments, Mapping):
        values = {clean(name): clean(value) for name, value in arguments.items()}
    else:
        parts = (part.partition("=") for part in clean(arguments or "").split(","))
        values = {name.strip(): value.strip() for name, _, value in parts}
    sampled = values.get("do_sample", "").casefold() in ("true", "1")
    if not sampled and _float(values.get("temperature")) <= 0 and _float(values.get("num_beams")) <= 1:
        return ""
    return ", ".join(f"{name}={cut(values[name], 20)}" for name in _SAMPLING if name in values)


def _float(value: str | None) -> float:
    try:
        parsed = float(value or 0)
    except ValueError:
        return 0.0
    return parsed if known(parsed) else 0.0


def _resamples(result: TaskResult) -> int:
    return next((source.resamples for source in result.task.sources.values()), 0)


def _reference_method(subject: Subject) -> tuple[str, str]:
    """Return the kind of a reference classifier and its name."""
    method = subject.runs[0].baseline
    if method.startswith("timm"):
        return "timm", cut(method.partition(":")[2], 40)
    return ("majority" if subject.blind else method), cut(method, 40)


def _probe_facts(probings: Sequence[ProbeAnalysis]) -> dict[str, Any]:
    """Return which states were recorded, which probes were fitted and with which controls; empty without probes."""
    if not probings:
        return {}
    points = [point for probing in probings for point in probing.points]
    layers = [point for point in points if point.part != CONTROL]
    maps = [probing.mapping for probing in probings if probing.mapping is not None]
    recalibrations = {name for record in maps for name in record.readings}
    widths = {number(probing.options.get("width")) for probing in probings}
    kinds = {result.kind for probing in probings if probing.anchors for result in probing.anchors.results}
    controls = {
        "control_task": any(known(point.control) for point in layers),
        "label_permutation": any(known(point.label_permutation) for point in layers),
        "p_values": any(known(point.p_holm) for point in layers),
        "random_encoder": any(point.layer.startswith(RANDOM_ENCODER) for point in points),
        "pixels": any(point.layer == PIXELS for point in points),
        "regions": any(point.layer in REGIONS for point in points),
    }
    return {
        "chosen_layers": any(probing.options.get("layers") for probing in probings),
        "parts": [part for part in _PARTS if any(point.part == part for point in layers)],
        "poolings": [pooling for pooling in _POOLINGS if any(point.pooling == pooling for point in layers)],
        "kinds": _probe_kinds(probings),
        "widths": sorted({int(width) for width in widths if known(width) and width}),
        "best": any(probing.best.layer for probing in probings),
        "controls": [name for name, used in controls.items() if used],
        "health": any(probing.health for probing in probings),
        "modes": any(probing.diagnosis.effects for probing in probings),
        "anchors": list(dict.fromkeys("text" if kind == "text" else "marks" for kind in sorted(kinds, reverse=True))),
        "mapped": bool(maps),
        "recalibrations": [name for name in RECALIBRATIONS if name in recalibrations],
        "lens": any(record.lens for record in maps),
    }


def _probe_kinds(probings: Sequence[ProbeAnalysis]) -> tuple[CitedName, ...]:
    """Return the kinds of probes, ours and those of plugins, with description and source."""
    specs = get_manager().probes()
    names = dict.fromkeys(clean(probing.options.get("protocol") or "linear") for probing in probings)
    return tuple(
        CitedName(name, specs[name].citation, specs[name].description or name)
        if name in specs
        else CitedName(name, "", name)
        for name in names
    )


def _attribution_facts(attributions: Sequence[AttributionIndex]) -> dict[str, Any]:
    """Return what was attributed, at which layers, by whose methods and with which checks; empty without maps."""
    if not attributions:
        return {}
    specs = get_manager().attributions()
    summaries = [summary for record in attributions for summary in record.summary]
    used = {method.name: method for record in attributions for method in record.methods}
    of_answers = [summary.mode == "answer" for summary in summaries]
    layers = dict.fromkeys(entry.layer for record in attributions for entry in record.entries)
    figures = {name for name in CHECKS if any(known(summary.figure(name)) for summary in summaries)}
    checks = {
        "completeness": "completeness_gap" in figures,
        "deletion": bool(figures & {"deletion_gain", "insertion_gain"}),
        "randomisation": any(summary.randomisation for summary in summaries),
        "stability": "stability" in figures,
        "inside": "inside" in figures,
        "pointing": "pointing" in figures,
    }
    by_library: dict[bool, list[CitedName]] = {True: [], False: []}
    for name, method in used.items():
        spec = specs.get(name)
        # Indices of older runs do not say whether Captum computed the method.
        captum = (spec is not None and spec.captum) if method.captum is None else method.captum
        citation, description = (method.citation or spec.citation, spec.description) if spec else (method.citation, "")
        by_library[captum].append(CitedName(name, citation, description))
    return {
        "of_labels": not of_answers or not all(of_answers),
        "of_answers": any(of_answers),
        "layers": list(layers) if len(layers) <= _MAX_LAYERS else [],
        "captum": by_library[True],
        "own": by_library[False],
        "checks": [name for name, made in checks.items() if made],
    }


def dataset_citations(dataset: DatasetRuns) -> list[str]:
    """Return source and licence of a data set, for the page."""
    if dataset.spec is None:
        return []
    licence = f"Licence: {dataset.spec.licence}" if dataset.spec.licence else ""
    return [clean(line) for line in (dataset.spec.citation, licence) if line]


def prompts(collection: RunCollection) -> list[tuple[str, str]]:
    """Return the whole prompt of each task, as the manifests have it."""
    labels: dict[tuple[str, str], list[str]] = {}
    for result in collection.results():
        ways = result.task.entry.prompts or {"": result.task.entry.prompt}
        for way, prompt in ways.items():
            name = f"{result.task.name}, {way}" if way else result.task.name
            if prompt:
                labels.setdefault((name, prompt), []).append(result.subject.label)
    names = [name for name, _ in labels]
    return sorted(
        (f"{name} ({', '.join(whose)})" if names.count(name) > 1 else name, prompt)
        for (name, prompt), whose in labels.items()
    )


def command_line(run: RunFolder) -> str:
    """Return the command line of a run, as far as the manifest has it."""
    command = run.command
    if not command:
        return ""
    if run.baseline:
        tasks = " ".join(map(clean, sequence(command.get("tasks"))))
        return f"medmllm baseline {tasks} --method {run.baseline}"
    options = [f"--{clean(name)} {clean(value)}" for name, value in command.items() if value not in (None, "", [])]
    return " ".join(["lmms-eval", *options])
