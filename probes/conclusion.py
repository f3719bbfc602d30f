"""The conclusion of a diagnosis: which failure mode is named, and where only a hand-over can be named.

A mode is named if its step loses most of the accuracy in at least 95% of the resamples. New probes are fitted at each
stage, so they adapt to any form in which a stage passes the class on; the next stage does not. Where the class is
readable up to the end of a stage and the answers do not show it, the fault may therefore lie in any interface before
the answers, and the conclusion is an unread hand-over. Evidence from outside the probes narrows it down: findings given
in words instead of the image (text anchor), marks drawn on the images (positive control), the text of the answers, and
relabellings fitted on the validation fold.

A twin, a second checkpoint that answers better, decides before all of this: its states are put into the model, so that
use is shown and not only availability.

All rules are in this module; docs/diagnosis.md explains them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from medmllm_plugins.results.anchor_records import Anchors
from medmllm_plugins.results.patch_records import TwinPatching
from medmllm_plugins.results.probe_records import HANDOVER, MODES, Diagnosis, Interface, Mode

CERTAIN: Final = 0.95
"""A mode is named if at least this share of the resamples agrees that its step loses most."""
SAME_FOR_ALL_IMAGES: Final = 0.05
"""Nats. If the label scores vary less than this over the images, the LLM does not use the image."""
IMAGE_SIDE: Final[tuple[Interface, ...]] = ("image -> vision", "vision -> connector", "connector -> llm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """Evidence from outside the probes.

    Attributes:
        mapping_kind: kind of semantic mapping, see :mod:`medmllm_plugins.probes.mapping`.
        anchors: results of text anchor and positive control; ``None`` if they were not run.
        relabelling_complete: whether the relabelling leaves no loss of interest between the probe and the answers, with
            at least three classes.
        relabelled_text: whether the relabelling that recovers the answers also corrects the answers to the text anchor.
        unparsed_if_scored: of the documents whose scores are correct and whose answer is not, the share without a
            parsed answer; NaN without such documents.
        score_variation: standard deviation over images of the differences between label scores, in nats, for the label
            that varies most; NaN without scores.
        answers_know_something: whether the answers pass their permutation test.
        folds_differ: whether train and test documents can be distinguished so well that probes may not carry over.
        patching: result of twin patching; ``None`` without a twin.
    """

    mapping_kind: str = "cannot tell"
    anchors: Anchors | None = None
    relabelling_complete: bool = False
    relabelled_text: bool = False
    unparsed_if_scored: float = float("nan")
    score_variation: float = float("nan")
    answers_know_something: bool = False
    folds_differ: bool = False
    patching: TwinPatching | None = None

    @property
    def text_anchor(self) -> str:
        """Verdict of the text anchor: ``answered``, ``not answered``, ``cannot tell`` or ``not run``."""
        return "not run" if self.anchors is None else self.anchors.text

    @property
    def positive_control(self) -> str:
        """Verdict of the positive control, likewise."""
        return "not run" if self.anchors is None else self.anchors.positive


@dataclass(slots=True)
class _Draft:
    """A conclusion in the making."""

    named: str | None = None
    readable_until: str = ""
    candidates: tuple[Interface, ...] = ()
    reasons: list[str] = field(default_factory=list)


def conclude(
    diagnosis: Diagnosis, circumstances: Circumstances, *, answers_match_reference: bool = False
) -> dict[str, Any]:
    """Return the fields ``named``, ``readable_until``, ``candidates``, ``reasons`` and ``patched`` of a diagnosis.

    ``answers_match_reference``: whether the answers are at least as accurate as an informative reference.
    """
    draft = _Draft()
    patched = patched_modes(circumstances.patching)
    if circumstances.patching is not None and patched:
        draft.reasons.append(_patched_reason(circumstances.patching))
        draft.named = patched[0] if len(patched) == 1 else None
        mode = None
    elif answers_match_reference and diagnosis.supported:
        draft.reasons.append("The answers are at least as accurate as the reference classifier, so no mode is named.")
        mode = None
    else:
        mode = _largest(diagnosis, circumstances, draft)
    if mode in ("vision", "connector"):
        draft.named = mode
    elif mode == "comprehension":
        _conclude_comprehension(diagnosis, circumstances, draft)
    elif mode == "mapping":
        _conclude_mapping(diagnosis, circumstances, draft)
    if diagnosis.answers_over_probe.low > 0:
        draft.reasons.append(
            "The answers are more accurate than the probe on the last token of the LLM: the words express more than "
            "this probe reads, the other direction of the paper's fourth mode."
        )
    return {
        "named": draft.named,
        "readable_until": draft.readable_until,
        "candidates": draft.candidates,
        "reasons": tuple(draft.reasons),
        "patched": patched,
    }


def patched_modes(patching: TwinPatching | None) -> tuple[Mode, ...]:
    """Return the failure modes that patching shows, in the order of the stages.

    There are none if the twin is not clearly better: then patching says where the twin fails.
    """
    if patching is None or patching.better != "twin":
        return ()
    return tuple(mode for mode in MODES if mode in patching.stages)


def _patched_reason(patching: TwinPatching) -> str:
    restored, broken = (
        f"from {site} on" if site else "at no site" for site in (patching.first_restoring, patching.first_breaking)
    )
    return (
        f"A twin that answers better ({patching.better_accuracy.value:.1%} of {patching.n} documents, the model "
        f"{patching.worse_accuracy.value:.1%}) restores the answers {restored}; the model's states break the twin's "
        f"answers {broken}."
    )


def _largest(diagnosis: Diagnosis, circumstances: Circumstances, draft: _Draft) -> Mode | None:
    """Return the mode whose step loses most beyond doubt; ``None`` otherwise, with the reason."""
    supported = diagnosis.supported
    if not supported:
        return None
    largest = max(supported, key=lambda effect: effect.probability)
    if largest.probability < CERTAIN:
        draft.reasons.append(
            "It is not certain which step loses most"
            + (
                ": the loss of the tower is not known."
                if diagnosis.effects[0].probability != diagnosis.effects[0].probability
                else "."
            )
        )
        return None
    if largest.mode == "vision" and circumstances.folds_differ:
        draft.reasons.append(
            "Train and test documents differ so much that probes fitted on the one may fail on the other, so the "
            "vision tower is not named."
        )
        return None
    return largest.mode


def _conclude_comprehension(diagnosis: Diagnosis, circumstances: Circumstances, draft: _Draft) -> None:
    """Conclude that the LLM fails on the finding in words, works for other images, or ignores the image."""
    if circumstances.text_anchor == "not answered":
        draft.named = "comprehension"
        draft.reasons.append("The LLM also fails when the finding is given in words.")
    elif circumstances.score_variation < SAME_FOR_ALL_IMAGES:
        draft.named = "comprehension"
        draft.reasons.append("The label scores are the same for all images: the LLM does not use the image.")
    elif circumstances.answers_know_something and diagnosis.of("mapping").verdict != "supported":
        draft.named = "comprehension"
        draft.reasons.append(
            "The answers show all that is left at the end of the LLM, so for some documents every stage reads the form "
            "that it receives; the loss is inside the LLM."
        )
    else:
        _hand_over(diagnosis.of("comprehension").before, (*IMAGE_SIDE, "llm"), circumstances, draft)


def _conclude_mapping(diagnosis: Diagnosis, circumstances: Circumstances, draft: _Draft) -> None:
    """Conclude a faulty semantic mapping only where evidence from outside the probes supports it."""
    kind, text = circumstances.mapping_kind, circumstances.text_anchor
    site = diagnosis.of("mapping").before
    works = text == circumstances.positive_control == "answered"
    if kind == "decoding":
        if works and circumstances.unparsed_if_scored >= 0.5:
            draft.named = "mapping"
            draft.reasons.append("The label that scores highest is correct, and the text of the answer names no class.")
        else:
            _hand_over(site, _candidates_of_decoding(circumstances), circumstances, draft)
            draft.reasons.append("The label that scores highest is correct, the generated text is not.")
    elif kind == "permuted" and (circumstances.relabelled_text or (works and circumstances.relabelling_complete)):
        draft.named = "mapping"
        draft.reasons.append(
            "Renaming the answered classes, fitted on the validation fold, recovers the accuracy, and "
            + (
                "the LLM names the finding correctly when it is given in words."
                if text == "answered"
                else "the same renaming corrects the answers to findings given in words."
            )
        )
    elif text == "answered":
        # Marks show that the LLM reads image tokens at all; a preference for some labels can hide from a clear finding.
        llm: tuple[Interface, ...] = () if circumstances.positive_control == "answered" else ("llm",)
        words: tuple[Interface, ...] = ("llm -> answer",) if kind == "biased" else ()
        _hand_over(site, (*IMAGE_SIDE, *llm, *words), circumstances, draft)
    else:
        _hand_over(site, (*IMAGE_SIDE, "llm", "llm -> answer"), circumstances, draft)


def _candidates_of_decoding(circumstances: Circumstances) -> tuple[Interface, ...]:
    """Return where the fault may lie if the label scores are correct and the generated text is not.

    A broken LLM may generate text that means nothing while its scores are still correct. So may one that receives an
    image in another form.
    """
    if circumstances.text_anchor == "not answered":
        return ("llm", "llm -> answer")
    image_arrives = circumstances.text_anchor == circumstances.positive_control == "answered"
    return ("llm -> answer",) if image_arrives else (*IMAGE_SIDE, "llm", "llm -> answer")


def _hand_over(site: str, candidates: tuple[Interface, ...], circumstances: Circumstances, draft: _Draft) -> None:
    """Conclude that the class is readable up to a site and that nothing after it uses it."""
    draft.named = HANDOVER
    draft.readable_until = site
    draft.candidates = candidates
    text, marks = circumstances.text_anchor, circumstances.positive_control
    if text == "answered":
        draft.reasons.append(
            "The LLM names the finding when it is given in words, so it knows the finding and the words of the answer."
        )
    elif text == "not answered":
        draft.reasons.append(
            "The LLM also fails when the finding is given in words, so the LLM or the words of the answer may be at "
            "fault."
        )
    if marks == "answered":
        draft.reasons.append("Marks drawn on the images are answered correctly, so image information arrives.")
    elif marks == "not answered":
        draft.reasons.append(
            "Not even marks drawn on the images are answered correctly: no image information arrives in a form that "
            "the LLM reads."
        )
