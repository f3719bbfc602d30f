"""A whole evaluation with probes: one pass and one analysis, against answers, a second pass, and a loop of fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from benchmarks.cases.probe_fit import CONTROLS, SHUFFLES, Problem, loop
from benchmarks.harness import Benchmark, Comparison, Details, Run, Sides, expect
from benchmarks.models import (
    QUESTION,
    MeasuredModel,
    PhantomDocument,
    answer,
    answer_and_record,
    model_of_size,
    phantom_documents,
)
from medmllm_plugins.data.core.documents import FOLDS, Fold
from medmllm_plugins.data.layouts import phantoms
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.features.control_features import control_features as image_controls
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.probes.analysis import analyse
from medmllm_plugins.prompts.feature_options import LAST, MEAN
from medmllm_plugins.prompts.protocols import ask
from medmllm_plugins.results.probe_records import RANDOM_ENCODER

Site = tuple[str, str]
"""A layer and a pooling."""


class Evaluation(NamedTuple):
    """Answers to the test fold, test accuracy of the probe at each site, and seconds of the parts of a side."""

    texts: tuple[str, ...]
    accuracy: Mapping[Site, float]
    seconds: Mapping[str, float]


def one_pass(
    model: MeasuredModel, members: Sequence[PhantomDocument], folder: Path, *, random_encoder: bool = True
) -> Evaluation:
    """Evaluate with this package: answers and features in one pass, then the analysis."""
    start = perf_counter()
    texts = answer_and_record(model, members, folder, random_encoder=random_encoder)
    question = ask("closed_set", "", dataset_specs()["demo"].classes)
    outcomes = []
    for document, text in zip((member for member in members if member.fold == "test"), texts, strict=True):
        parsed = question.read(text)
        outcomes.append(Outcome(document.id, document.group, document.label, parsed.label, parsed.status))
    middle = perf_counter()
    analysis = analyse(folder, outcomes, device=model.loaded.device)
    seconds = {"pass": middle - start, "analysis": perf_counter() - middle}
    accuracy = {point.site: point.accuracy.value for point in analysis.points}
    return Evaluation(tuple(texts), accuracy, seconds)


def by_hand(
    model: MeasuredModel, members: Sequence[PhantomDocument], controls: int = CONTROLS, shuffles: int = SHUFFLES
) -> Evaluation:
    """Answer the test fold, run all documents again, compute control features, and fit in a loop."""
    seconds: dict[str, float] = {}

    def step(part: str, work: Callable[[], Any]) -> Any:
        start = perf_counter()
        result = work()
        seconds[part] = perf_counter() - start
        return result

    def random_states() -> list[dict[Site, Tensor]]:
        network = with_random_weights(model.loaded.model)
        return [control_features(model, network, member.picture) for member in members]

    fit = partial(_fit_all, members, _label_sets(members, controls, shuffles), controls)
    texts = step("answers", lambda: answer(model, [member for member in members if member.fold == "test"]))
    states = step("pass", lambda: [hidden_states(model, member.picture) for member in members])
    accuracy = step("fits", lambda: fit(states))
    control_states = step("controls_pass", random_states)
    accuracy |= step("controls_fits", lambda: fit(control_states))
    return Evaluation(tuple(texts), accuracy, seconds)


@torch.inference_mode()
def hidden_states(model: MeasuredModel, picture: Image) -> dict[Site, Tensor]:
    """Return transformers' hidden states of one image, pooled, (d,) each; they lack the LLM's last block."""
    loaded, network = model.loaded, model.loaded.model
    inputs = loaded.prepare([QUESTION], [picture])
    output: Any = network(**inputs, output_hidden_states=True)
    image = inputs["input_ids"][0] == network.config.image_token_id
    # Before transformers 5.21, the states of the tower are not part of the output.
    tower = getattr(output, "image_outputs", None) or network.get_image_features(
        pixel_values=inputs["pixel_values"], output_hidden_states=True
    )
    states = _tower_states(tower)
    *blocks, last = output.hidden_states
    names = ["llm.embed", *(f"llm.{number:02d}" for number in range(len(blocks) - 1)), "llm.norm"]
    for name, hidden in zip(names, [*blocks, last], strict=True):
        states[name, MEAN], states[name, LAST] = hidden[0, image].mean(0), hidden[0, -1]
    return {site: value.float().cpu() for site, value in states.items()}


@torch.inference_mode()
def control_features(model: MeasuredModel, network: Any, picture: Image) -> dict[Site, Tensor]:
    """Return the control features of one image, (d,) each: pixels, regions, and the stages of an untrained tower."""
    values = model.loaded.prepare([QUESTION], [picture])["pixel_values"]
    states = _tower_states(network.get_image_features(pixel_values=values, output_hidden_states=True))
    random = {(f"{RANDOM_ENCODER}{name}", pooling): value.float().cpu() for (name, pooling), value in states.items()}
    own = {
        (name, MEAN): torch.from_numpy(values.astype(np.float32)) for name, values in image_controls(picture).items()
    }
    return {**random, **own}


def _tower_states(output: Any) -> dict[Site, Tensor]:
    blocks = enumerate(output.hidden_states[1:])
    states = {(f"vision.{number:02d}", MEAN): hidden[0].mean(0) for number, hidden in blocks}
    states["vision.norm", MEAN] = output.last_hidden_state[0].mean(0)
    states["connector", MEAN] = torch.cat(list(output.pooler_output)).mean(0)
    return states


def with_random_weights(network: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy whose matrices are random, normal with variance 1 over the number of inputs."""
    torch.manual_seed(seed)
    copy = deepcopy(network)
    with torch.no_grad():
        for value in copy.parameters():
            if value.dim() > 1:
                nn.init.normal_(value, std=1 / math.sqrt(value[0].numel()))
    return copy


def _fit_all(
    members: Sequence[PhantomDocument], sets: Tensor, controls: int, rows: Sequence[Mapping[Site, Tensor]]
) -> dict[Site, float]:
    """Fit scikit-learn's probes of every site, and return their test accuracy."""
    indices = [torch.tensor([row for row, member in enumerate(members) if member.fold == fold]) for fold in FOLDS]
    labels, accuracy = tuple(sets[:, index] for index in indices), {}
    for site in rows[0]:
        features = torch.stack([row[site] for row in rows])[None]
        problem = Problem(tuple(features[:, index] for index in indices), labels)
        accuracy[site] = float(loop(problem, (0,), controls)[0, 0])
    return accuracy


def _label_sets(members: Sequence[PhantomDocument], controls: int, shuffles: int) -> Tensor:
    """Return the real labels, control labels drawn for each patient, and shuffled ones, (sets, n)."""
    generator = np.random.default_rng(0)
    truth = np.array([phantoms.LABELS.index(member.label) for member in members])
    patient = np.unique([member.group for member in members], return_inverse=True)[1]
    drawn = [generator.integers(len(phantoms.LABELS), size=patient.max() + 1)[patient] for _ in range(controls)]
    shuffled = [truth[generator.permutation(len(truth))] for _ in range(shuffles)]
    return torch.from_numpy(np.stack([truth, *drawn, *shuffled]))


def check(ours: Evaluation, baseline: Evaluation, *, points: float = 1.0) -> Details:
    """Check that both sides answered alike and that their probes' mean test accuracies are within some points.

    Sites of the random encoder are left out of the average, since each side draws its own weights.
    """
    differ = sum(a != b for a, b in zip(ours.texts, baseline.texts, strict=True))
    missing = sorted(set(baseline.accuracy) - set(ours.accuracy))
    got = f"{differ} different answers and no probe of ours at {missing[:3]}"
    expect(not differ and not missing, "the same answers, and probes at the same sites,", got, "tests/features")
    trained = {site: value for site, value in baseline.accuracy.items() if not site[0].startswith(RANDOM_ENCODER)}
    better = 100 * float(np.mean([ours.accuracy[site] - value for site, value in trained.items()]))
    expected = f"mean test accuracies of probes within {points:g} points"
    expect(abs(better) <= points, expected, f"{better:+.2f}", "tests/probes")
    sides = {"by_hand": baseline, "one_pass": ours}
    return {
        "points_better": round(better, 3),
        **{f"probes_{name}": len(side.accuracy) for name, side in sides.items()},
        **{f"{name}_{part}_s": round(value, 3) for name, side in sides.items() for part, value in side.seconds.items()},
    }


def setup(run: Run, documents: dict[Fold, int], points: float = 1.0, **label_sets: int) -> Sides:
    """Load the demo and draw the documents; ratios without control features are among the details."""
    model, members, numbers = model_of_size("tiny", run.device), phantom_documents(documents), count()

    def warm_up() -> None:
        hidden_states(model, members[0].picture)
        answer(model, members[-2:])

    def details(comparison: Comparison) -> Details:
        bare = one_pass(model, members, run.folder / "bare", random_encoder=False)
        ours, baseline = comparison.ours_result, comparison.baseline_result
        seconds = sum(value for part, value in baseline.seconds.items() if not part.startswith("controls"))
        return {
            "ratio_controls_on_our_side_alone": round(seconds / sum(ours.seconds.values()), 3),
            "ratio_without_random_encoder": round(seconds / sum(bare.seconds.values()), 3),
        }

    return Sides(
        ours=lambda: one_pass(model, members, run.folder / str(next(numbers))),
        baseline=partial(by_hand, model, members, **label_sets),
        check=partial(check, points=points),
        warm_up=warm_up,
        details=details,
    )


BENCHMARK = Benchmark(
    name="diagnosis",
    ours="answers and features in one pass, and the analysis",
    baseline="answers, a second pass one image at a time, control features likewise, a loop with scikit-learn",
    setup=setup,
    sizes={
        "full": {"documents": {"train": 400, "validation": 160, "test": 240}},
        "quick": {
            "documents": {"train": 96, "validation": 32, "test": 48},
            "controls": 0,
            "shuffles": 1,
            "points": 10.0,
        },
    },
    targets={("full", device): 5.0 for device in ("cpu", "cuda")},
    repeats=1,
    devices=("cpu", "cuda"),
)
