"""The rules of the conclusion, one by one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.probes.answer_evidence import renaming_corrects_text
from medmllm_plugins.probes.conclusion import IMAGE_SIDE, Circumstances, conclude
from medmllm_plugins.results.anchor_records import AnchorResult, Anchors
from medmllm_plugins.results.patch_records import TwinPatching
from medmllm_plugins.results.probe_records import HANDOVER, MODES, Diagnosis, Effect

LARGE = Estimate(0.4, 0.3, 0.5)
NONE = Estimate(0.0, -0.01, 0.01)
ALL = (*IMAGE_SIDE, "llm", "llm -> answer")


def diagnosis(*supported: str, largest: str | None = None, probability: float = 1.0, **fields: Any) -> Diagnosis:
    """Return a diagnosis with large losses at some steps."""
    effects = tuple(
        Effect(
            mode=mode,
            loss=LARGE if mode in supported else NONE,
            probability=probability if mode == (largest or (supported[-1:] and supported[-1])) else 0.0,
            verdict="supported" if mode in supported else "ruled out",
            before=f"before {mode}",
        )
        for mode in MODES
    )
    return Diagnosis(effects=effects, **fields)


def anchors(text: str = "answered", marks: str = "answered") -> Anchors:
    """Return anchors with these verdicts."""
    return Anchors(results=tuple(anchor(kind, text if kind == "text" else marks) for kind in ("text", "presence")))


def anchor(kind: str, verdict: str) -> AnchorResult:
    return AnchorResult(
        kind=kind, n=40, groups=40, accuracy=LARGE, chance=0.5, parsed=1.0, recalls={"yes": 1.0}, verdict=verdict
    )


def test_without_a_supported_loss_nothing_is_named() -> None:
    assert conclude(diagnosis(), Circumstances())["named"] is None


@pytest.mark.parametrize("mode", ["vision", "connector"])
def test_the_step_that_loses_most_is_named(mode: str) -> None:
    assert conclude(diagnosis(mode), Circumstances())["named"] == mode


def test_several_losses_have_no_invented_order() -> None:
    unclear = conclude(diagnosis("connector", "comprehension", largest="connector", probability=0.94), Circumstances())
    assert unclear["named"] is None and "not certain which step loses most" in unclear["reasons"][0]
    clear = diagnosis("connector", "comprehension", largest="connector", probability=0.95)
    assert conclude(clear, Circumstances())["named"] == "connector"


@pytest.mark.parametrize("mode", MODES)
def test_answers_as_good_as_the_reference_leave_nothing_to_name(mode: str) -> None:
    assert conclude(diagnosis(mode), Circumstances(), answers_match_reference=True)["named"] is None


def test_the_tower_is_not_named_where_train_and_test_differ() -> None:
    shifted = Circumstances(folds_differ=True)
    assert conclude(diagnosis("vision"), shifted)["named"] is None
    assert conclude(diagnosis("connector"), shifted)["named"] == "connector"


@pytest.mark.parametrize(
    ("circumstances", "named"),
    [
        ({}, HANDOVER),
        ({"anchors": anchors(text="not answered")}, "comprehension"),
        ({"anchors": anchors(text="answered")}, HANDOVER),
        ({"anchors": anchors(text="answered"), "answers_know_something": True}, "comprehension"),
        ({"anchors": anchors(text="answered"), "score_variation": 0.001}, "comprehension"),
        ({"score_variation": 3.0}, HANDOVER),
    ],
)
def test_the_llm_is_named_only_where_something_shows_that_it_reads_the_form(
    circumstances: dict[str, Any], named: str
) -> None:
    conclusion = conclude(diagnosis("comprehension"), Circumstances(**circumstances))
    assert conclusion["named"] == named
    if named == HANDOVER:
        assert conclusion["readable_until"] == "before comprehension"
        assert conclusion["candidates"] == (*IMAGE_SIDE, "llm")


def test_answers_that_fall_short_of_the_llm_do_not_show_that_it_reads_the_form() -> None:
    both = diagnosis("comprehension", "mapping", largest="comprehension")
    assert conclude(both, Circumstances(answers_know_something=True))["named"] == HANDOVER


@pytest.mark.parametrize(
    ("circumstances", "named", "candidates"),
    [
        ({}, HANDOVER, ALL),
        ({"mapping_kind": "missing", "anchors": anchors("answered", "answered")}, HANDOVER, IMAGE_SIDE),
        ({"mapping_kind": "missing", "anchors": anchors("answered", "not answered")}, HANDOVER, (*IMAGE_SIDE, "llm")),
        ({"mapping_kind": "missing", "anchors": anchors("answered", "cannot tell")}, HANDOVER, (*IMAGE_SIDE, "llm")),
        ({"mapping_kind": "biased", "anchors": anchors()}, HANDOVER, (*IMAGE_SIDE, "llm -> answer")),
        ({"mapping_kind": "missing", "anchors": anchors(text="not answered")}, HANDOVER, ALL),
        ({"mapping_kind": "biased", "anchors": anchors(text="cannot tell")}, HANDOVER, ALL),
        ({"mapping_kind": "permuted"}, HANDOVER, ALL),
        (
            {"mapping_kind": "permuted", "anchors": anchors(text="answered"), "relabelling_complete": True},
            "mapping",
            (),
        ),
        (
            # Another form of the image may exchange classes consistently too; then marks arrive no better.
            {"mapping_kind": "permuted", "anchors": anchors(marks="not answered"), "relabelling_complete": True},
            HANDOVER,
            (*IMAGE_SIDE, "llm"),
        ),
        ({"mapping_kind": "permuted", "anchors": anchors(text="answered")}, HANDOVER, IMAGE_SIDE),
        ({"mapping_kind": "permuted", "relabelling_complete": True}, HANDOVER, ALL),
        ({"mapping_kind": "permuted", "anchors": anchors(text="not answered")}, HANDOVER, ALL),
        ({"mapping_kind": "permuted", "anchors": anchors("not answered"), "relabelled_text": True}, "mapping", ()),
        ({"mapping_kind": "decoding", "unparsed_if_scored": 0.9, "anchors": anchors()}, "mapping", ()),
        ({"mapping_kind": "decoding", "unparsed_if_scored": 0.1, "anchors": anchors()}, HANDOVER, ("llm -> answer",)),
        (
            {"mapping_kind": "decoding", "unparsed_if_scored": math.nan, "anchors": anchors()},
            HANDOVER,
            ("llm -> answer",),
        ),
        ({"mapping_kind": "decoding", "unparsed_if_scored": 0.9}, HANDOVER, ALL),
        (
            {"mapping_kind": "decoding", "unparsed_if_scored": 0.9, "anchors": anchors(marks="cannot tell")},
            HANDOVER,
            ALL,
        ),
        (
            # The text of a broken LLM means nothing either.
            {"mapping_kind": "decoding", "unparsed_if_scored": 0.9, "anchors": anchors(text="not answered")},
            HANDOVER,
            ("llm", "llm -> answer"),
        ),
    ],
)
def test_the_mapping_is_named_only_with_evidence_from_outside_the_probes(
    circumstances: dict[str, Any], named: str, candidates: tuple[str, ...]
) -> None:
    conclusion = conclude(diagnosis("mapping"), Circumstances(**circumstances))
    assert (conclusion["named"], conclusion["candidates"]) == (named, candidates)
    assert conclusion["readable_until"] == ("before mapping" if named == HANDOVER else "")


def test_what_the_marks_show_is_said() -> None:
    arrived = conclude(diagnosis("mapping"), Circumstances(anchors=anchors(marks="answered")))
    assert any("image information arrives" in reason for reason in arrived["reasons"])
    blind = conclude(diagnosis("mapping"), Circumstances(anchors=anchors(marks="not answered")))
    assert any("no image information arrives" in reason for reason in blind["reasons"])


def twins(*stages: str, better: str = "twin") -> TwinPatching:
    """Return the result of patching with a twin."""
    worse = "model" if better == "twin" else "twin"
    return TwinPatching(
        worse=worse,
        better=better,
        n=80,
        groups=40,
        worse_accuracy=Estimate(0.5, 0.4, 0.6),
        better_accuracy=Estimate(0.9, 0.8, 0.95),
        first_restoring="connector",
        stages=stages,
    )


@pytest.mark.parametrize("match", [True, False])
def test_a_better_twin_decides_before_probes(match: bool) -> None:
    evidence = Circumstances(mapping_kind="permuted", anchors=anchors(), patching=twins("connector"))
    result = conclude(diagnosis("mapping"), evidence, answers_match_reference=match)
    assert (result["named"], result["patched"], result["candidates"]) == ("connector", ("connector",), ())
    assert result["reasons"] == (
        "A twin that answers better (90.0% of 80 documents, the model 50.0%) restores the answers from connector on; "
        "the model's states break the twin's answers at no site.",
    )


def test_two_stages_of_a_twin_are_both_given_and_none_is_named() -> None:
    result = conclude(diagnosis("vision"), Circumstances(patching=twins("mapping", "connector")))
    assert (result["named"], result["patched"]) == (None, ("connector", "mapping"))


@pytest.mark.parametrize("patching", [None, twins(), twins("vision", better="model")])
def test_without_a_better_twin_the_probes_decide(patching: TwinPatching | None) -> None:
    result = conclude(diagnosis("connector"), Circumstances(patching=patching))
    assert (result["named"], result["patched"]) == ("connector", ())


def test_answers_above_the_last_probe_are_reported() -> None:
    above = diagnosis(answers_over_probe=Estimate(0.1, 0.05, 0.15))
    assert "more accurate than the probe" in conclude(above, Circumstances())["reasons"][0]
    assert conclude(diagnosis(answers_over_probe=Estimate(0.1, -0.05, 0.25)), Circumstances())["reasons"] == ()


@pytest.mark.parametrize(
    ("answered", "renaming", "corrects"),
    [
        ({"a": {"b": 3}, "b": {"a": 2, "b": 1}}, (1, 0), True),
        ({"a": {"b": 3}, "b": {"a": 1, "b": 2}}, (1, 0), False),
        ({"a": {"a": 3}, "b": {"b": 3}}, (0, 1), False),  # nothing is renamed
        ({"a": {"b": 3}, "b": {"": 3}}, (1, 0), False),
        ({"a": {"b": 3}}, (1, 0), False),  # nothing was asked about b
        ({"a": {"b": 3}, "b": {"a": 3}}, None, False),
    ],
)
def test_whether_a_renaming_corrects_the_answers_to_findings_in_words(
    answered: dict[str, dict[str, int]], renaming: tuple[int, int] | None, corrects: bool
) -> None:
    text = replace(anchor("text", "not answered"), answered=answered)
    assert renaming_corrects_text(Anchors(results=(text,)), ("a", "b"), renaming) is corrects
    assert not renaming_corrects_text(None, ("a", "b"), renaming)
