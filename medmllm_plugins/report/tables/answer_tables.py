"""Tables of the answers: metrics, classes, parsing, and how accuracy depends on the question and the image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from medmllm_plugins.metrics.guessing import GUESSES
from medmllm_plugins.metrics.intervals import UNKNOWN, known
from medmllm_plugins.metrics.prompt_variants import VariantsSummary
from medmllm_plugins.metrics.summary import Summary
from medmllm_plugins.report.base_models import TunedModel
from medmllm_plugins.report.changed_questions import ChangedQuestion
from medmllm_plugins.report.display_names import DECIMALS, METRICS, SCORE_FORMS, STATUSES
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.report.run_pairs import Difference
from medmllm_plugins.report.subgroups import Subgroups
from medmllm_plugins.report.tables.report_table import Column, Row, Table, Value, model_table, read_columns
from medmllm_plugins.report.verdict import Verdict
from medmllm_plugins.utils.json_values import clean


def metrics_results(dataset: DatasetRuns) -> list[TaskResult]:
    """Return the results in the order of the rows of :func:`metrics_table`, the main question of each model first."""
    main = {id(dataset.main(subject)) for subject in dataset.subjects}
    return sorted(
        (result for result in dataset.results if result.task.scored),
        key=lambda result: (
            id(result) not in main,
            not result.task.plain,
            result.task.image != "shown",
            result.subject.number,
        ),
    )


def metrics_table(dataset: DatasetRuns, verdicts: Sequence[Verdict]) -> Table:
    """Tabulate all metrics of all tasks, and the differences from guessing and from the reference classifier."""
    results = metrics_results(dataset)
    names = [
        name for name in METRICS if name != "accuracy" and any(known(result.metrics.get(name)) for result in results)
    ]
    compared = any(verdict.reference.compared for verdict in verdicts)
    findings = any(result.multilabel for result in results)
    # Accuracy is next to the name: a phone shows no more than these two columns.
    columns = [*read_columns("metrics")]
    if compared:
        columns.append(Column("Difference from reference classifier", "difference_from_reference", "difference"))
    columns += [Column(METRICS[name], name, "decimal" if name in DECIMALS else "share") for name in names]
    if findings:
        columns.append(Column("All findings correct", "exact_match", "share"))
    by_result = {id(verdict.result): verdict for verdict in verdicts}

    def values(result: TaskResult) -> Iterator[Value]:
        verdict = by_result.get(id(result))
        yield from (result.metrics.get("accuracy"), result.task.name, result.question_count)
        yield from (result.group_count, result.guess[1])
        yield verdict.guess.difference if verdict else None
        if compared:
            yield verdict.reference.difference if verdict and verdict.reference.compared else None
        yield from (result.metrics.get(name) for name in names)
        if findings:
            yield result.exact_match

    guesses = list(dict.fromkeys(GUESSES[name] for result in results if (name := result.guess[0])))
    rows = [(result, list(values(result))) for result in results]
    return model_table(dataset, "metrics", rows, columns, guesses=guesses, findings=findings)


def differences_table(dataset: DatasetRuns, pairs: Sequence[Difference]) -> Table:
    """Tabulate the paired difference of every two models that answered about the same classes of the same data."""
    rows: list[Row] = []
    for pair in pairs:
        names = (pair.first.task.name, pair.second.subject.label, pair.second.task.name)
        accuracy = pair.second_accuracy + pair.difference.value
        figures = (pair.shared, accuracy, pair.second_accuracy, pair.difference)
        counts = (pair.first_alone, pair.second_alone)
        rows.append((pair.first, (*names, *figures, *counts, pair.p, pair.p_holm)))
    return model_table(dataset, "differences", rows)


def bases_table(dataset: DatasetRuns, tuned: Sequence[TunedModel]) -> Table:
    """Tabulate what each model gained over the one that it was tuned from."""
    rows: list[Row] = []
    for model in tuned:
        shares = [model.shares.get(name) for name in ("vision", "connector", "llm")]
        values = (model.result.task.name, model.base, model.questions, model.accuracy, model.base_accuracy, model.gain)
        rows.append((model.result, (*values, model.fixed, model.broken, *shares)))
    return model_table(dataset, "bases", rows)


def class_table(dataset: DatasetRuns) -> Table:
    """Tabulate the metrics of each class in each model's main task; findings have a table of their own."""
    rows: list[Row] = []
    for result in dataset.main_results():
        summary = result.task.summary
        for row in summary.per_class if isinstance(summary, Summary) else ():
            values = (cut(row.label), row.n, row.sensitivity, row.specificity, row.precision, row.f1, row.parsed)
            rows.append((result, values))
    return model_table(dataset, "classes", rows)


def parsing_table(dataset: DatasetRuns) -> Table:
    """Tabulate the shares of answers that were parsed, ambiguous, not in the list or refusals."""
    columns = (
        Column("Task", "task"),
        Column("Answers", "n", "count"),
        *(Column(title, name, "share") for name, title in STATUSES.items()),
        Column("Accuracy of the parsed", "accuracy_on_parsed", "share"),
    )
    rows: list[Row] = []
    for result in dataset.results:
        if result.task.scored:
            counts = statuses(result)
            total = sum(counts.values())
            shares = (count / total if total else math.nan for count in counts.values())
            summary = result.task.summary
            parsed = summary.accuracy_on_parsed if isinstance(summary, Summary) else UNKNOWN
            rows.append((result, (result.task.name, total, *shares, parsed)))
    return model_table(dataset, "parsing", rows, columns)


def statuses(result: TaskResult) -> dict[str, int]:
    """Count the answers of each status, over all variants of a task."""
    return {name: sum(source.statuses.get(name, 0) for source in result.task.sources.values()) for name in STATUSES}


def label_scores_table(dataset: DatasetRuns) -> Table:
    """Tabulate the metrics of the label with the highest score as the answer, for each form of the scores."""
    names = ("accuracy", "balanced", "macro_f1", "auroc")
    columns = (
        Column("Task", "task"),
        Column("Variant", "variant"),
        Column("Score", "form"),
        *(Column(METRICS[name], name, "decimal" if name in DECIMALS else "share") for name in names),
        Column("Accuracy of the text", "text_accuracy", "share"),
    )
    rows: list[Row] = []
    for result in dataset.results:
        for variant, source in result.task.sources.items():
            for form, values in source.label_scores.items() if isinstance(source, Summary) else ():
                scores = (values.get(name, UNKNOWN) for name in names)
                accuracy = source.metrics.get("accuracy", UNKNOWN)
                row = (result.task.name, variant or None, SCORE_FORMS.get(form, form), *scores, accuracy)
                rows.append((result, row))
    return model_table(dataset, "label_scores", rows, columns)


def unparsed_table(dataset: DatasetRuns, limit: int = 8) -> Table:
    """Tabulate the most frequent answers without a class, at most ``limit`` per task; texts are not cut."""
    rows: list[Row] = [
        (result, (result.task.name, answer.status.replace("_", " "), answer.count, clean(answer.text)))
        for result in dataset.results
        for answer in result.task.unparsed[:limit]
    ]
    return model_table(dataset, "unparsed", rows)


def sensitivity_table(dataset: DatasetRuns, changes: Sequence[ChangedQuestion]) -> Table:
    """Tabulate how accuracy depends on the order of options, the wording, the protocol and the image."""
    rows: list[Row] = []
    for change in changes:
        spread = change.result.metrics.get("spread")
        usual = change.usual.task.name if change.usual is not None else None
        figures = (change.accuracy, usual, change.shared or None, change.usual_accuracy, change.difference)
        ends = (min(change.variants, default=math.nan), max(change.variants, default=math.nan))
        values = (change.result.task.name, change.change, *figures, change.changed_answers, *ends, spread)
        rows.append((change.result, values))
    return model_table(dataset, "sensitivity", rows)


def subgroups_table(dataset: DatasetRuns, subgroups: Subgroups) -> Table:
    """Tabulate accuracy by subgroup."""
    rows: list[Row] = [
        (row.subject, (row.column, row.value or None, row.documents, row.groups, row.accuracy))
        for row in subgroups.rows
    ]
    return model_table(dataset, "subgroups", rows)


def positions_table(dataset: DatasetRuns) -> Table:
    """Tabulate the share of answers by the option's position in the list; no rows unless a task varies the order."""
    shares = [
        (result, name, by_position)
        for result in dataset.results
        if isinstance(result.task.summary, VariantsSummary)
        for name, by_position in result.task.summary.positions.items()
    ]
    longest = max((len(by_position) for _, _, by_position in shares), default=0)
    columns = (
        Column("Variant", "variant"),
        *(Column(f"Position {index}", f"position_{index}", "share") for index in range(1, longest + 1)),
    )
    rows: list[Row] = [
        (result, (name, *by_position, *[None] * (longest - len(by_position)))) for result, name, by_position in shares
    ]
    return model_table(dataset, "positions", rows, columns)
