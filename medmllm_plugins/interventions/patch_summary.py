"""What twin patching shows, in words."""

from __future__ import annotations

from typing import Final

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.results.patch_records import TwinPatching

_STAGES: Final = {
    "vision": "the vision tower",
    "connector": "the connector",
    "comprehension": "the LLM",
    "mapping": "the mapping to words, behind the LLM's last layer",
}
_SITES: Final = {"vision": "the end of the vision tower", "connector": "the connector's output"}
_MODULES: Final = {"vision": "vision tower", "connector": "connector", "llm": "LLM"}


def headline(result: TwinPatching) -> str:
    """Return the result in two or three sentences."""
    model, twin = result.worse_accuracy, result.better_accuracy
    if result.worse == "twin":
        model, twin = twin, model
    sentences = [
        f"The model answers {model.value:.1%} of {result.n} documents correctly, its twin {twin.value:.1%}: "
        f"a difference of {_points(result.difference)}."
    ]
    if not result.stages:
        return f"{sentences[0]} The two do not differ clearly enough to be patched."
    sentences.append(_bracket(result))
    if result.shares:
        shares = ", ".join(f"{_MODULES[share.module]} {_points(share.accuracy)}" for share in result.shares)
        sentences.append(f"Shares of the difference by module: {shares}.")
    return " ".join(sentences)


def _bracket(result: TwinPatching) -> str:
    restored, broken = (
        f"from {_SITES.get(site, site)} on" if site else "nowhere"
        for site in (result.first_restoring, result.first_breaking)
    )
    stages = [_STAGES[stage] for stage in result.stages]
    return (
        f"States of the {result.better} restore the answers {restored}, and states of the {result.worse} break them "
        f"{broken}: the difference lies in {' and in '.join(stages)}."
    )


def _points(estimate: Estimate) -> str:
    value, low, high = (100 * number for number in (estimate.value, estimate.low, estimate.high))
    return f"{value:.1f} points (95% CI {low:.1f} to {high:.1f})"
