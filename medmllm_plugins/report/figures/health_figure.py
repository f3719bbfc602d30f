"""The Feature Health profile of each model: vision tower, connector, LLM and answers."""

from __future__ import annotations

from matplotlib.figure import Figure

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.figures.figure_style import Drawing, SeriesMarks, finish, series_style
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import DatasetRuns


def health(dataset: DatasetRuns, figure_number: int) -> Drawing | None:
    """Draw the Feature Health profile: tower, connector, LLM, answers."""
    probed = dataset.probed()
    if not any(probing.health for _, probing in probed):
        return None
    stops = (("vision", "mean"), ("connector", "mean"), ("llm", "mean"), ("llm", "last"))
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    axes, marks = figure.subplots(), SeriesMarks()
    profiles = []
    for index, (result, probing) in enumerate(probed):
        scores = {(module.module, module.pooling): module.score for module in probing.health}
        profile = [*(scores.get(stop) for stop in stops), probing.answer]
        profiles.append((result.subject.label, profile))
        shift = 0.05 * (index - (len(probed) - 1) / 2)
        series = result.subject.number
        points = [(at + shift, score) for at, score in enumerate(profile) if score is not None and known(score)]
        x, y = [at for at, _ in points], [score.value for _, score in points]
        marks(series, axes.plot(x, y, label=cut(result.subject.label, 30), **series_style(series)))
        for at, score in points:
            if known(score.low):
                colour = series_style(series)["color"]
                marks(series, axes.plot([at, at], [score.low, score.high], color=colour, linewidth=1))
    titles = ("vision tower\n(mean)", "connector\n(mean)", "LLM\n(mean token)", "LLM\n(last token)")
    axes.set_xticks(range(5), [*titles, "answers\n(accuracy)"])
    axes.set_ylabel("Feature Health Score")
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    if len(probed) > 1:
        marks.legend(figure, axes)
    return finish(figure, f"{dataset.name}.health", number=figure_number, data_set=dataset.title, profiles=profiles)
