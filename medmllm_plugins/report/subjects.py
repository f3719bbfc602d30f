"""Models and reference classifiers: which runs belong to one model, and a short label for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.results.run_folders import BLIND
from medmllm_plugins.results.run_reader import RunFolder
from medmllm_plugins.utils.json_values import clean, number
from medmllm_plugins.utils.plain_text import quantity

_IDENTITY: Final = (
    "name",
    "pretrained",
    "fingerprint",
    "method",
    "dtype",
    "peft",
    "repair",
    "load_in",
    "system",
    "max_new_tokens",
)
"""Facts about a model; two runs with the same values are runs of one model."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model or a reference classifier.

    Attributes:
        number: index among all subjects; decides its colour and marker everywhere.
        reference: whether it is a reference classifier (``medmllm baseline``).
        blind: whether it sees no image.
    """

    number: int
    label: str
    runs: tuple[RunFolder, ...]
    reference: bool = False
    blind: bool = False


def group_subjects(runs: Sequence[RunFolder]) -> tuple[list[Subject], dict[int, Subject]]:
    """Group runs by model; a second plain evaluation of a task by the same model starts another subject.

    Runs that add analyses to a task, such as the repairs of ``medmllm repair``, belong to the model of the evaluation.

    Returns:
        The subjects, models first, and the subject of each run by the run's :func:`id`.
    """
    bundles: list[tuple[tuple[str, ...], list[RunFolder]]] = []
    for run in runs:
        key, names = _key(run), _evaluated(run)
        for other_key, members in bundles:
            if key == other_key and not names & {name for member in members for name in _evaluated(member)}:
                members.append(run)
                break
        else:
            bundles.append((key, [run]))
    labels = _labels([members[0] for _, members in bundles])
    labelled = sorted(
        zip(labels, (members for _, members in bundles), strict=True), key=lambda pair: bool(pair[1][0].baseline)
    )
    subjects = [
        Subject(index, label, tuple(members), bool(members[0].baseline), members[0].baseline == BLIND)
        for index, (label, members) in enumerate(labelled)
    ]
    return subjects, {id(run): subject for subject in subjects for run in subject.runs}


def _evaluated(run: RunFolder) -> set[str]:
    """Return the tasks that a run only evaluates, without analyses of the answers."""
    return {task.name for task in run.tasks if not task.analysed}


def _key(run: RunFolder) -> tuple[str, ...]:
    """Return what identifies a model: its facts, and the arguments that change its answers."""
    arguments = _answer_arguments(run)
    if run.manifest.model is None:
        return (str(run.command.get("model") or run.name), str(run.command.get("model_args") or ""), *arguments)
    return (*(str(getattr(run.model, name)) for name in _IDENTITY), *arguments)


def _answer_arguments(run: RunFolder) -> list[str]:
    """Return the arguments of the command that change every answer, as text; empty at their defaults."""
    examples, arguments = number(run.command.get("num_fewshot")), run.command.get("gen_kwargs")
    return [
        quantity(int(examples), "example") if known(examples) and examples > 0 else "",
        clean(arguments) if arguments else "",
    ]


def _labels(runs: Sequence[RunFolder]) -> list[str]:
    """Return the shortest labels that differ: model, adapter and repair, loading and prompting options, run folder."""
    forms = [_label_forms(run) for run in runs]
    chosen, longest = [0] * len(forms), 3
    for depth in range(longest):
        labels = [form[index] for form, index in zip(forms, chosen, strict=True)]
        repeated = {label for label in labels if labels.count(label) > 1}
        chosen = [depth + 1 if label in repeated else at for label, at in zip(labels, chosen, strict=True)]
    labels = [form[index] for form, index in zip(forms, chosen, strict=True)]
    return [
        label if labels.count(label) == 1 else f"{label} #{labels[:index].count(label) + 1}"
        for index, label in enumerate(labels)
    ]


def _label_forms(run: RunFolder) -> tuple[str, str, str, str]:
    model = run.model
    name = cut(model.name or run.command.get("model") or run.name, 40)
    size = cut(Path(model.pretrained).name, 30) if model.pretrained else ""
    if run.manifest.model is None and run.command.get("model_args"):
        size = cut(run.command["model_args"], 40)
    plain = f"{name} ({size})" if size else name
    added = {"adapter": model.peft, "repair": model.repair}
    changed = "".join(f", {kind} {cut(Path(path).name, 30)}" for kind, path in added.items() if path)
    options = [
        option for option in (model.dtype, model.load_in, model.peft, model.repair, *_answer_arguments(run)) if option
    ]
    precise = f"{plain}, {cut(', '.join(options), 60)}" if options else plain
    return plain, plain + changed, precise, f"{plain}, {cut(run.name, 60)}"
