"""Effects of patching against counts by hand, and the stage that they point to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from support.phantom_images import phantom_dataset

from medmllm_plugins.errors import ModelError
from medmllm_plugins.interventions.patch_effects import stage_of, twin_effects
from medmllm_plugins.interventions.twin_patching import (
    Answers,
    PatchedAnswer,
    PatchSite,
    patch_sites,
    patch_twins,
)
from medmllm_plugins.models.formats.medm_vl import load
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.probes.validation.fault_kinds import Fault
from medmllm_plugins.probes.validation.planted_faults import plant_faults
from medmllm_plugins.prompts.protocols import ask
from medmllm_plugins.results.patch_records import TwinPatching

torch.set_num_threads(1)
TRUTH = np.tile([0, 1], 40)
GROUP = np.arange(80)
VISION, CONNECTOR, BLOCK = PatchSite("vision"), PatchSite("connector"), PatchSite("llm.02", "last")


def answers(hits: int, odds: float = 0.0) -> list[PatchedAnswer]:
    """Return answers to 80 documents, the first ``hits`` of them correct, all with the same log-odds of the truth."""
    rows = []
    for index, label in enumerate(TRUTH):
        scores = [0.0, 0.0]
        scores[label] = odds
        rows.append(PatchedAnswer("ab"[label if index < hits else 1 - label], tuple(scores)))
    return rows


def effects(worse: dict[PatchSite | None, int], better: dict[PatchSite | None, int]) -> TwinPatching:
    sides: list[Answers] = [{site: answers(hits) for site, hits in side.items()} for side in (worse, better)]
    return twin_effects(*sides, TRUTH, GROUP, "ab".find, names=("worse", "better"))


def test_effects_are_shares_of_the_difference() -> None:
    result = effects({VISION: 20, CONNECTOR: 45, BLOCK: 60, None: 20}, {VISION: 60, CONNECTOR: 25, BLOCK: 10, None: 60})
    assert (result.worse_accuracy.value, result.better_accuracy.value, result.n, result.groups) == (0.25, 0.75, 80, 80)
    assert result.difference.value == 0.5 and 0 < result.difference.low < 0.5 < result.difference.high
    by_name = {(point.direction, point.layer): point for point in result.points}
    assert [by_name["restore", layer].effect.value for layer in ("vision", "connector", "llm.02")] == [0, 0.625, 1]
    assert [by_name["break", layer].effect.value for layer in ("vision", "connector", "llm.02")] == [0, 0.875, 1.25]
    assert by_name["restore", "connector"].accuracy.value == 45 / 80
    assert (result.first_restoring, result.first_breaking) == ("connector", "connector")
    # A part of the difference, 0.375, comes in behind the connector.
    assert result.stages == ("connector", "comprehension")


@pytest.mark.parametrize(
    ("worse", "better", "stages"),
    [
        ({VISION: 60, BLOCK: 60, None: 20}, {VISION: 20, BLOCK: 20, None: 60}, ("vision",)),
        ({VISION: 20, BLOCK: 60, None: 20}, {VISION: 60, BLOCK: 20, None: 60}, ("comprehension",)),
        ({VISION: 20, BLOCK: 20, None: 20}, {VISION: 60, BLOCK: 60, None: 60}, ("mapping",)),
        # Two faults: the last one is where states restore, the first one where they break.
        ({VISION: 20, BLOCK: 60, None: 20}, {VISION: 20, BLOCK: 20, None: 60}, ("vision", "comprehension")),
        ({VISION: 20, BLOCK: 20, None: 20}, {VISION: 20, BLOCK: 20, None: 60}, ("vision", "mapping")),
        # The first fault costs less than half of what both cost: breaking shows it, restoring the other one.
        ({VISION: 20, BLOCK: 60, None: 20}, {VISION: 44, BLOCK: 20, None: 60}, ("vision", "comprehension")),
        # Less than a fifth comes in at the tower.
        ({VISION: 24, BLOCK: 60, None: 20}, {VISION: 56, BLOCK: 20, None: 60}, ("comprehension",)),
        # Models that answer alike have no stage that differs.
        ({VISION: 60, BLOCK: 60, None: 60}, {VISION: 60, BLOCK: 60, None: 60}, ()),
        ({VISION: 60, BLOCK: 60, None: 59}, {VISION: 20, BLOCK: 20, None: 61}, ()),
    ],
)
def test_stages_follow_from_the_first_sites_that_restore_and_break(
    worse: dict[PatchSite | None, int], better: dict[PatchSite | None, int], stages: tuple[str, ...]
) -> None:
    assert effects(worse, better).stages == stages


ALONE = PatchSite("connector alone")


def test_shares_are_shapley_values_of_all_orders() -> None:
    # Hits by the modules that are exchanged (tower, connector, LLM), made up so that modules interact.
    hits = {"": 10, "t": 14, "c": 20, "l": 12, "tc": 40, "tl": 18, "cl": 30, "tcl": 70}
    worse = {VISION: hits["t"], ALONE: hits["c"], CONNECTOR: hits["tc"], None: hits[""]}
    better = {VISION: hits["cl"], ALONE: hits["tl"], CONNECTOR: hits["l"], None: hits["tcl"]}
    result = effects(worse, better)
    expected = dict.fromkeys("tcl", 0.0)
    for order in itertools.permutations("tcl"):
        exchanged = ""
        for module in order:
            more = "".join(sorted(exchanged + module, key="tcl".index))
            expected[module] += (hits[more] - hits[exchanged]) / 80 / 6
            exchanged = more
    assert [share.module for share in result.shares] == ["vision", "connector", "llm"]
    assert [share.accuracy.value for share in result.shares] == pytest.approx(list(expected.values()))
    assert sum(share.accuracy.value for share in result.shares) == pytest.approx(result.difference.value)
    assert all(share.accuracy.low < share.accuracy.value < share.accuracy.high for share in result.shares)
    by_modules = {(each.vision, each.connector, each.llm): each.accuracy.value for each in result.combinations}
    assert len(by_modules) == 8 and by_modules["better", "worse", "worse"] == 14 / 80
    assert by_modules["worse", "better", "better"] == 30 / 80 and by_modules["worse", "better", "worse"] == 20 / 80


def test_no_shares_without_all_combinations() -> None:
    result = effects({VISION: 20, None: 20}, {VISION: 60, None: 60})
    assert result.shares == result.combinations == ()


def test_the_connector_alone_is_no_first_site() -> None:
    # It restores all, as where the worse model's own tower is read by a repaired connector.
    result = effects({VISION: 20, ALONE: 60, CONNECTOR: 60, None: 20}, {VISION: 60, ALONE: 20, CONNECTOR: 20, None: 60})
    assert (result.first_restoring, result.first_breaking) == ("connector", "connector")


def test_log_odds_are_those_of_the_correct_label_against_all_others() -> None:
    sides = [{BLOCK: answers(40, 1.0), None: answers(20, -1.0)}, {BLOCK: answers(20, 0.0), None: answers(60, 3.0)}]
    result = twin_effects(sides[0], sides[1], TRUTH, GROUP, "ab".find, names=("worse", "better"))
    restore, breaks = result.points
    assert restore.log_odds_effect.value == pytest.approx((1 - -1) / (3 - -1))
    assert breaks.log_odds_effect.value == pytest.approx((0 - 3) / (-1 - 3))


def test_an_answer_without_a_class_is_wrong_and_counted() -> None:
    worse = {BLOCK: [PatchedAnswer("?", (0.0, 0.0))] * 80, None: answers(20)}
    result = twin_effects(worse, {BLOCK: answers(20), None: answers(60)}, TRUTH, GROUP, "ab".find, names=("", ""))
    assert (result.points[0].parsed, result.points[0].accuracy.value) == (0.0, 0.0)


def test_documents_of_one_group_leave_no_interval() -> None:
    sides = [{BLOCK: answers(60), None: answers(20)}, {BLOCK: answers(20), None: answers(60)}]
    result = twin_effects(sides[0], sides[1], TRUTH, np.zeros(80, dtype=np.intp), "ab".find, names=("", ""))
    assert math.isnan(result.difference.low) and result.stages == ()


def test_records_survive_json() -> None:
    result = effects({VISION: 20, None: 20}, {VISION: 60, None: 60})
    assert TwinPatching.from_dict(result.to_dict()) == result


def test_stage_of_a_site() -> None:
    assert [stage_of(site) for site in ("vision", "connector", "llm.embed (all)", "llm.norm (all)", "")] == [
        *("vision", "connector", "comprehension", "comprehension", "mapping")
    ]


@pytest.mark.parametrize(
    ("faults", "stages"),
    [
        ((Fault("tower_lost", 3),), ("vision",)),
        ((Fault("connector_signs", 3),), ("connector",)),
        ((Fault("attention_flat", 3),), ("comprehension",)),
        ((Fault("labels_permuted", 3),), ("mapping",)),
        ((Fault("connector_signs", 3), Fault("labels_permuted", 3)), ("connector", "mapping")),
    ],
)
def test_a_healthy_twin_names_the_broken_stage(faults: Sequence[Fault], stages: tuple[str, ...]) -> None:
    options, data = LoadOptions("demo", device="cpu", dtype="float32"), phantom_dataset()
    broken, healthy = load(options), load(options)
    question, labels = ask("closed_set", data.spec.modality, data.spec.classes), list(data.spec.labels)
    documents = data.select(["test"])[::16]
    sites = [site for site in patch_sites(broken, every=3) if site.tokens == "all"]
    images = [[data.image(document)] for document in documents]
    with plant_faults(broken, *faults, question=question.text, labels=question.labels):
        worse, better = patch_twins(broken, healthy, question.text, images, list(question.labels), sites)
    result = twin_effects(
        worse,
        better,
        np.array([labels.index(document.labels[0]) for document in documents]),
        np.unique([document.group for document in documents], return_inverse=True)[1],
        lambda text: -1 if (label := question.read(text).label) is None else labels.index(label),
        names=("broken", "healthy"),
    )
    assert result.stages == stages


def test_twins_must_see_the_same_tokens() -> None:
    model, data = load(LoadOptions("demo", device="cpu", dtype="float32")), phantom_dataset()

    class Longer:
        """A model whose prompt is longer."""

        loaded = model

        def __getattr__(self, name: str) -> object:
            return getattr(model, name)

        def prepare(self, questions: Sequence[str], images: Sequence[object]) -> object:
            return model.prepare([f"{question} Look." for question in questions], images)  # type: ignore[arg-type]

    image = [[data.image(data.documents[0])]]
    with pytest.raises(ModelError, match="see the same tokens"):
        patch_twins(model, Longer(), "What is it?", image, ["a", "b"], [BLOCK])  # type: ignore[arg-type]
