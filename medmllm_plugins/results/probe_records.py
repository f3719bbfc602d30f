"""Records of a probe analysis: layer curves, diagnosis, Feature Health and semantic mapping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Self, TypeAlias, get_args

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate, number
from medmllm_plugins.results.anchor_records import Anchors
from medmllm_plugins.results.manifest import ProbeEntry
from medmllm_plugins.results.patch_records import TwinPatching
from medmllm_plugins.results.shortcut_records import ShortcutReport
from medmllm_plugins.utils.record import Record, VersionedRecord, check_version, read_fields

Mode: TypeAlias = Literal["vision", "connector", "comprehension", "mapping"]
Verdict: TypeAlias = Literal["supported", "ruled out", "cannot tell"]
Conclusion: TypeAlias = Literal["vision", "connector", "comprehension", "mapping", "unread hand-over"]
"""What a diagnosis can name: a failure mode, or that a stage's output holds the class but nothing after it uses it."""
Interface: TypeAlias = Literal["image -> vision", "vision -> connector", "connector -> llm", "llm", "llm -> answer"]
Stage: TypeAlias = Literal["reference", "vision", "connector", "llm", "answer"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
"""The four failure modes of "Lost in the Hype" (arXiv:2604.08333), in the order in which an image passes the stages."""
TITLES: Final[Mapping[str, str]] = {
    "vision": "quality limitation in visual representation",
    "connector": "fidelity loss in connector projection",
    "comprehension": "comprehension deficit in LLM reasoning",
    "mapping": "misalignment of semantic mapping",
}
HANDOVER: Final = "unread hand-over"
INTERFACES: Final[tuple[Interface, ...]] = get_args(Interface)
"""Where one part hands the class over to the next, in order; ``llm`` stands for the LLM's own layers."""
CONCLUSION_TITLES: Final[Mapping[str, str]] = {**TITLES, HANDOVER: "readable, but not used"}
MODULES: Final = ("vision", "connector", "llm")
LOST: Final = tuple(f"lost_{mode}" for mode in MODES)
PRINTED_METRICS: Final = ("probe", *(f"fhs_{module}" for module in MODULES), *LOST)
"""Metrics that lmms-eval prints besides the accuracy of the answers."""
CONTROL: Final = "control"
"""The part that control features are filed under, in place of a part of the model."""
RANDOM_ENCODER: Final = "control.random_encoder."
"""Prefix of the layers of the vision tower with random weights."""
PIXELS: Final = "control.pixels"
BORDER: Final = "control.border"
CORNERS: Final = "control.corners"
CENTRE: Final = "control.centre"
REGIONS: Final = (BORDER, CORNERS, CENTRE)
"""Control features of parts of the image."""
RECALIBRATIONS: Final[Mapping[str, str]] = {
    "scores": "highest label score, not the text",
    "relabelled": "classes relabelled",
    "permuted": "highest label score, relabelled",
    "blank": "scores of a blank image subtracted",
    "offsets": "class bias removed",
    "affine": "affine map of the scores",
}
"""Output recalibrations with their names for people, in the order in which they are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePoint(Record):
    """The probe of one site; all figures are of the test fold unless stated otherwise.

    Attributes:
        layer: the layer's name, such as ``vision.03``.
        part: ``vision``, ``connector``, ``llm`` or ``control``.
        pooling: how rows were pooled into one vector: ``mean``, ``last`` or ``cls``.
        width: number of features that the probe was fitted on.
        read: whether the LLM reads this layer; false for layers of the tower after the one it takes.
        accuracy: accuracy of the probe.
        balanced: mean recall over the classes.
        bits: usable information about the class (V-information, Xu et al. 2020), in bits per document: by how much the
            probe's log loss is lower than that of the train fold's class frequencies; NaN without probabilities.
        corrected: balanced accuracy above chance, ``(b - 1/K) / (1 - 1/K)``: 0 is chance, 1 is perfect.
        control: accuracy on the control task, mean over its drawings; NaN without any.
        selectivity: ``accuracy - control``.
        label_permutation: mean balanced accuracy of probes fitted on permuted labels; NaN without any.
        label_permutation_high: its 95th percentile.
        p: share of permutations of the test labels (by group) under which the probe's balanced accuracy is as high.
        p_holm: ``p`` after Holm's correction over the layers of the model; NaN for control features.
        validation: accuracy on the validation fold.
        C: inverse L2 strength chosen on the validation fold, as in scikit-learn; ``null`` without one.
        gradient_norm: gradient norm at the solution; ``null`` likewise.
        repeats: accuracies on further divisions into folds, in order.
    """

    layer: str
    part: str
    pooling: str
    width: int
    read: bool = True
    accuracy: Estimate
    balanced: Estimate
    bits: Estimate = UNKNOWN
    corrected: Estimate
    control: Estimate
    selectivity: Estimate
    label_permutation: float
    label_permutation_high: float
    p: float
    p_holm: float
    validation: float
    C: float | None = None
    gradient_norm: float | None = None
    repeats: tuple[float, ...] = ()

    @property
    def site(self) -> tuple[str, str]:
        """Layer and pooling."""
        return self.layer, self.pooling


@dataclass(frozen=True, slots=True, kw_only=True)
class StageInformation(Record):
    """What is known of the class at the end of one stage, on the test fold.

    A stage is credited with what any later stage, the label scores or the answers show, so accuracy and usable
    information never rise from one stage to the next.

    Attributes:
        stage: ``reference``, ``vision``, ``connector``, ``llm`` or ``answer``.
        source: what shows it: a site, ``label scores``, ``answer`` or ``most common class``.
        own: accuracy of the probe at the stage's own end; NaN for the reference.
        accuracy: credited accuracy.
        balanced: balanced accuracy of the same source.
        bits: usable information about the class, in bits per document; NaN where there are no probabilities.
    """

    stage: Stage
    source: str
    own: Estimate = UNKNOWN
    accuracy: Estimate
    balanced: Estimate = UNKNOWN
    bits: Estimate = UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect(Record):
    """One failure mode.

    Attributes:
        mode: ``vision``, ``connector``, ``comprehension`` or ``mapping``.
        loss: accuracy lost at this step; NaN where it cannot be known.
        balanced_loss: balanced accuracy lost.
        bits_lost: usable information lost, in bits per document.
        probability: share of resamples in which this step loses most of all, and at least the smallest supported loss.
        verdict: ``supported``, ``ruled out`` or ``cannot tell``.
        why: the reason in one sentence.
        before: what the stage before was measured by: a site, ``reference`` or control features.
        after: what this stage was measured by; ``answer`` for the answers.
    """

    mode: Mode
    loss: Estimate
    balanced_loss: Estimate = UNKNOWN
    bits_lost: Estimate = UNKNOWN
    probability: float = math.nan
    verdict: Verdict = "cannot tell"
    why: str = ""
    before: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis(Record):
    """The verdicts on all four failure modes, and the conclusion.

    Attributes:
        effects: one for each mode, in the order in which an image passes the stages.
        stages: what is known of the class at the end of each stage.
        named: the conclusion: the failure mode that loses most, or ``unread hand-over``; ``null`` where the evidence
            supports none or does not single one out.
        readable_until: for an unread hand-over, the last site at which the class can be read.
        candidates: for an unread hand-over, the interfaces that may be broken.
        reasons: what the conclusion rests on, a sentence each.
        patched: the failure modes that patching with a better twin shows, which count before what probes show; empty
            without a twin.
        answers_over_probe: accuracy of the answers minus that of the probe on the last token at the end of the LLM.
        smallest_supported: smallest loss of accuracy that can be supported.
        smallest_of_interest: smallest loss of interest: a loss is ruled out if it is certainly below.
    """

    effects: tuple[Effect, ...]
    stages: tuple[StageInformation, ...] = ()
    named: Conclusion | None = None
    readable_until: str = ""
    candidates: tuple[Interface, ...] = ()
    reasons: tuple[str, ...] = ()
    patched: tuple[Mode, ...] = ()
    answers_over_probe: Estimate = UNKNOWN
    smallest_supported: float = math.nan
    smallest_of_interest: float = math.nan

    @property
    def supported(self) -> tuple[Effect, ...]:
        """The effects that the evidence supports, in the order of the stages."""
        return tuple(effect for effect in self.effects if effect.verdict == "supported")

    @property
    def charged(self) -> tuple[Effect, ...]:
        """The supported effects that stand for their mode; the loss of an unread hand-over may have other causes."""
        unread = self.readable_until if self.named == HANDOVER else None
        return tuple(effect for effect in self.supported if effect.before != unread)

    @property
    def uncertain(self) -> bool:
        """Whether a single mode loses accuracy and is still not named, for one of the ``reasons``."""
        return self.named is None and not self.patched and len(self.supported) == 1

    @property
    def undecided(self) -> tuple[Mode, ...]:
        """The modes whose verdict is ``cannot tell``."""
        return tuple(effect.mode for effect in self.effects if effect.verdict == "cannot tell")

    @property
    def ruled_out(self) -> tuple[Mode, ...]:
        """The modes whose verdict is ``ruled out``."""
        return tuple(effect.mode for effect in self.effects if effect.verdict == "ruled out")

    def of(self, mode: Mode) -> Effect:
        """Return the effect of one mode."""
        return next(effect for effect in self.effects if effect.mode == mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureHealth(Record):
    """The Feature Health Score of one module and pooling.

    Source: Zhu et al., "Lost in the Hype", arXiv 2604.08333, 2026.

    Attributes:
        module: ``vision``, ``connector`` or ``llm``.
        pooling: pooling of the curve.
        layers: the curve's layers, in order.
        score: ``p_end * (1 + growth) * volatility``.
        growth: growth factor, ``ln(p_end / sqrt(p_start * p_min))``; NaN where one of the three is 0.
        volatility: volatility penalty, from 0 to 1 (a flat curve).
        p_start: accuracy at the first layer.
        p_min: lowest accuracy of all layers.
        p_end: accuracy at the last layer.
    """

    module: str
    pooling: str
    layers: tuple[str, ...]
    score: Estimate
    growth: float
    volatility: float
    p_start: float
    p_min: float
    p_end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibration(Record):
    """Accuracy of one output recalibration on the test fold.

    Attributes:
        accuracy: its accuracy.
        gain: gain over what is recalibrated, the answers or the label that scores highest.
        over_answers: gain over the answers.
        over_constant: gain over always answering the most common class of the validation fold.
        short_of_probe: accuracy of the probe minus its accuracy.
    """

    accuracy: Estimate
    gain: Estimate
    over_answers: Estimate
    over_constant: Estimate
    short_of_probe: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticMapping(Record):
    """Where features and answers disagree, on the test fold; estimates are accuracies or differences of accuracies.

    Intervals come from one set of bootstrap resamples of groups. They take the fitted recalibrations as given.

    Attributes:
        kind: ``intact``, ``permuted``, ``biased``, ``missing``, ``other recalibration``, ``decoding`` or
            ``cannot tell``.
        n: documents.
        n_groups: groups they belong to.
        answer: accuracy of the answers; an unparsed answer is wrong.
        probe: accuracy of the probe on the last token at the end of the LLM.
        constant: accuracy of always answering the most common class of the validation fold.
        mapping_gap: probe minus answers.
        probe_only: share of documents that only the probe classifies correctly.
        answer_only: share of documents that only the answer classifies correctly.
        answer_over_constant: answers minus the constant answer.
        probe_over_constant: probe minus the constant answer.
        readings: output recalibrations by name (``scores``, ``relabelled``, ``permuted``, ``blank``, ``offsets``,
            ``affine``), those that the data allow.
        relabelling: for each answered class the class it is renamed to in ``relabelled``; ``null`` without it.
        relabelled_on: what the renaming was fitted on: ``answers`` or ``scores`` of the validation fold.
        permutation: the same as ``relabelling`` for ``permuted``.
        offsets: (K,) nats added to each class in ``offsets``, with mean 0; ``null`` without it.
        agreement: (K, K, K + 1) documents by true class, the probe's class and the answered class, the last being
            unparsed answers.
        lens: accuracy of the labels' logits read off each layer of ``lens_layers`` (logit lens).
        lens_layers: names of these layers.
    """

    kind: str = "cannot tell"
    n: int
    n_groups: int
    answer: Estimate
    probe: Estimate
    constant: Estimate
    mapping_gap: Estimate
    probe_only: Estimate
    answer_only: Estimate
    answer_over_constant: Estimate
    probe_over_constant: Estimate
    readings: Mapping[str, Recalibration]
    relabelling: tuple[int, ...] | None = None
    relabelled_on: str | None = None
    permutation: tuple[int, ...] | None = None
    offsets: tuple[float, ...] | None = None
    agreement: tuple[tuple[tuple[int, ...], ...], ...] = ()
    lens: tuple[Estimate, ...] = ()
    lens_layers: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, content: object) -> Self:
        """Read a mapping; a ragged ``agreement``, and a ``lens`` without names for its layers, are left out."""
        values = read_fields(cls, content)
        tables = values["agreement"]
        if len({len(table) for table in tables}) != 1 or len({len(row) for table in tables for row in table}) != 1:
            values["agreement"] = ()
        if len(values["lens"]) != len(values["lens_layers"]):
            values["lens"] = values["lens_layers"] = ()
        known = values["readings"]
        values["readings"] = {name: known[name] for name in RECALIBRATIONS if name in known}
        return cls(**values)

    def pairs(self) -> list[list[int]]:
        """Return documents by the probe's class (rows) and the answered class (columns), over all true classes."""
        return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*self.agreement, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeAnalysis(VersionedRecord):
    """The probe analysis of one task: the content of ``TASK.probes.json``.

    Attributes:
        task: the task's name.
        model: the model's name.
        headline: the result in one or two sentences.
        options: how probes were fitted.
        labels: the K classes.
        counts: documents by fold.
        groups: groups in the test fold.
        chance: ``1 / K``, the balanced accuracy of guessing.
        majority: accuracy of always answering the most common class of the train fold.
        answer: accuracy of the answers.
        reference: accuracy of the reference classifier; NaN without one.
        reference_name: its name; empty without one.
        diagnosis: the four failure modes.
        diagnosis_without_reference: the same as it would be without the reference classifier.
        health: Feature Health Scores by module and pooling.
        best: the point whose probe is best on the validation fold, the last of those within one standard error; control
            features and unused layers do not compete.
        tied: sites of the model within one standard error of the highest accuracy on the validation fold, as
            ``layer (pooling)``, ``best`` included.
        mapping: the semantic mapping.
        anchors: answers to the anchors; ``null`` where none were asked.
        patching: result of twin patching; ``null`` without a twin.
        points: the layer curves, control features included.
        control_types: number of types in the control task.
        shortcuts: shortcuts and nuisance; its warnings are among ``warnings`` too.
        warnings: what limits these results.
        seconds: wall time by step.
    """

    FORMAT: ClassVar[str] = "medmllm_probes"

    task: str
    model: str
    headline: str = ""
    options: Mapping[str, Any]
    labels: tuple[str, ...]
    counts: Mapping[str, int]
    groups: int
    chance: float
    majority: float
    answer: Estimate
    reference: Estimate = UNKNOWN
    reference_name: str
    diagnosis: Diagnosis
    diagnosis_without_reference: Diagnosis
    health: tuple[FeatureHealth, ...]
    best: ProbePoint
    tied: tuple[str, ...] = ()
    mapping: SemanticMapping | None = None
    anchors: Anchors | None = None
    patching: TwinPatching | None = None
    points: tuple[ProbePoint, ...]
    control_types: int
    shortcuts: ShortcutReport | None = None
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]

    @classmethod
    def from_dict(cls, content: object) -> Self:
        """Read an analysis.

        Raises:
            DataError: the content is something else, of a newer version, or has no points.
        """
        check_version(content, cls.FORMAT, cls.VERSION)
        analysis = cls(**read_fields(cls, content))
        if not analysis.points:
            raise DataError("expected the curves under 'points', got none; run `medmllm diagnose RUN_DIR`")
        return analysis

    def curve(self, pooling: str) -> list[ProbePoint]:
        """Return the points of the model's own layers in order, at one pooling."""
        return [point for point in self.points if point.part != CONTROL and point.pooling == pooling]

    def layers(self) -> list[tuple[str, str]]:
        """Return names and parts of the model's own layers, in the order in which an image passes them."""
        return list({point.layer: point.part for point in self.points if point.part != CONTROL}.items())

    def health_of(self, module: str, pooling: str) -> FeatureHealth | None:
        """Return the health of one module and pooling; ``None`` where there is no such curve."""
        return next((curve for curve in self.health if (curve.module, curve.pooling) == (module, pooling)), None)

    def printed_metrics(self) -> dict[str, float | None]:
        """Return the figures that lmms-eval prints, by metric; ``None`` for what is not known."""
        metrics: dict[str, float | None] = {"probe": self.best.accuracy.value}
        for module in MODULES:
            curve = self.health_of(module, "mean")
            metrics[f"fhs_{module}"] = None if curve is None else number(curve.score.value)
        return metrics | {f"lost_{effect.mode}": number(effect.loss.value) for effect in self.diagnosis.effects}

    def manifest_entry(self) -> ProbeEntry:
        """Return what the run's manifest holds of the analysis."""
        return ProbeEntry(
            named=self.diagnosis.named,
            verdicts={effect.mode: effect.verdict for effect in self.diagnosis.effects},
            best=f"{self.best.layer} ({self.best.pooling})",
            anchors={} if self.anchors is None else {"text": self.anchors.text, "positive": self.anchors.positive},
            printed={name: value for name, value in self.printed_metrics().items() if value is not None},
            seconds=self.seconds,
            warnings=self.warnings,
        )
