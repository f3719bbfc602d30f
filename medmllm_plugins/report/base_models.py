"""Models beside the ones that they were tuned from: what tuning gained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.report.run_pairs import Difference, negated
from medmllm_plugins.results.manifest import ModelEntry
from medmllm_plugins.results.patch_records import TwinPatching


@dataclass(frozen=True, slots=True, eq=False)
class TunedModel:
    """A model and its base.

    Attributes:
        result: the model's result.
        base: the base: a label of this report, or a checkpoint.
        questions: number of questions that both answered.
        accuracy: accuracy of the model on these.
        base_accuracy: that of its base.
        gain: the former minus the latter, paired.
        fixed: questions that the model alone answered correctly; ``None`` where only patching compared the two.
        broken: likewise for the base.
        shares: what each module has in the gain, by ``vision``, ``connector`` and ``llm``; empty without patching.
    """

    result: TaskResult
    base: str
    questions: int
    accuracy: float
    base_accuracy: float
    gain: Estimate
    fixed: int | None = None
    broken: int | None = None
    shares: Mapping[str, Estimate] = field(default_factory=dict)


def tuned_models(dataset: DatasetRuns, pairs: Sequence[Difference]) -> list[TunedModel]:
    """Compare each model of a data set with its base, where the base was evaluated too, or patching had it as twin.

    The base is the twin that a run of the model names, or else the one that the model's declaration states.

    Args:
        dataset: the data set.
        pairs: the differences between its models.
    """
    patched = {result.subject.number: patching for result, patching in dataset.patched()}
    models = []
    for result in dataset.main_results():
        base = _base_of(result)
        if base is None:
            continue
        patching = patched.get(result.subject.number)
        shares = {} if patching is None else _shares(patching)
        pair = next((pair for pair in pairs if _is_pair(pair, result, base)), None)
        if pair is not None:
            first = pair.first is result
            accuracies = (pair.second_accuracy + pair.difference.value, pair.second_accuracy)
            counts = (pair.first_alone, pair.second_alone)
            models.append(
                TunedModel(
                    result=result,
                    base=(pair.second if first else pair.first).subject.label,
                    questions=pair.shared,
                    accuracy=accuracies[not first],
                    base_accuracy=accuracies[first],
                    gain=pair.seen_from(result),
                    fixed=counts[not first],
                    broken=counts[first],
                    shares=shares,
                )
            )
        elif patching is not None:
            better = patching.better == "model"
            accuracies = (patching.better_accuracy.value, patching.worse_accuracy.value)
            models.append(
                TunedModel(
                    result=result,
                    base=base.pretrained,
                    questions=patching.n,
                    accuracy=accuracies[not better],
                    base_accuracy=accuracies[better],
                    gain=_seen_from_model(patching, patching.difference),
                    shares=shares,
                )
            )
    return models


@dataclass(frozen=True, slots=True)
class _Base:
    """What identifies a base among the models of a report: its checkpoint and adapter."""

    pretrained: str
    peft: str | None


def _base_of(result: TaskResult) -> _Base | None:
    entries = [run.manifest.model for run in result.subject.runs if run.manifest.model is not None]
    for entry in entries:
        if entry.twin:
            return _Base(entry.twin, entry.twin_peft)
    spec = get_manager().models().get(entries[0].name) if entries else None
    stated = spec.base_of(entries[0].pretrained or "") if spec is not None else None
    return None if stated is None else _Base(stated, None)


def _is_pair(pair: Difference, result: TaskResult, base: _Base) -> bool:
    if pair.first is not result and pair.second is not result:
        return False
    other = pair.second if pair.first is result else pair.first
    entries: list[ModelEntry] = [run.manifest.model for run in other.subject.runs if run.manifest.model is not None]
    return any(
        PurePosixPath(entry.pretrained or "").name == PurePosixPath(base.pretrained).name
        and entry.peft == base.peft
        and entry.repair is None
        for entry in entries
    )


def _shares(patching: TwinPatching) -> dict[str, Estimate]:
    return {share.module: _seen_from_model(patching, share.accuracy) for share in patching.shares}


def _seen_from_model(patching: TwinPatching, difference: Estimate) -> Estimate:
    """Return a difference of the better model minus the other as the model minus its twin."""
    return difference if patching.better == "model" else negated(difference)
