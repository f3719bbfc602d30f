"""Records of the attributions of a task: maps of single documents, and how each method passed its checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate
from medmllm_plugins.utils.record import Record, VersionedRecord

SETTINGS: Final = ("method", "layer", "mode", "baseline", "steps")
"""Fields that maps must share to be summarised together."""
CHECKS: Final = (
    "completeness_gap",
    "deletion",
    "deletion_random",
    "insertion",
    "insertion_random",
    "stability",
    "inside",
    "area",
)
"""Numbers under a map, in this order."""
RANDOMISATION_LEVELS: Final = ("head", "upper LLM", "LLM", "connector", "tower")
"""Weights that are shuffled, one after the other; each level keeps those before it shuffled."""


ONE_SIDED, TWO_SIDED = "cividis", "PuOr"
"""Colour maps without and with negative values: perceptually uniform, and suitable for colour-blind readers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionMethod(Record):
    """An attribution method.

    Attributes:
        name: its name, as in ``method=NAME``.
        target: the function that computes it, as ``module:function``.
        summary: what it does, in one line.
        description: its sentence in the methods section of a paper.
        citation: reference for the method.
        at: ``layers``, those that the user chooses, or the name of the one layer it has values for.
        gradients: whether it takes gradients; ``null`` where the index does not say.
        captum: whether it runs on Captum's code; likewise.
    """

    name: str
    target: str = ""
    summary: str
    description: str = ""
    citation: str
    at: str = "layers"
    gradients: bool | None = None
    captum: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAttribution(Record):
    """A token of the prompt.

    Attributes:
        text: the token.
        value: its attribution.
    """

    text: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MapChecks(Record):
    """Checks of one map; ``null`` for what does not apply to it.

    Attributes:
        completeness_gap: by how much the sum of a path method misses the difference it explains, as a share of it.
        deletion: area under the target's probability while the most important parts are removed first (Petsiuk et al.,
            arXiv:1806.07421); low is good.
        deletion_random: the same, mean over random orders.
        insertion: area while the most important parts are inserted first; high is good.
        insertion_random: the same, mean over random orders; equal to ``deletion_random``, since what is left while an
            order is removed is what its reverse inserts.
        flat: whether all values of the map are alike, so that it orders nothing.
        stability: rank correlation with maps of the image under noise, mean over noise samples.
        inside: share of the positive values that lie in the lesion.
        area: share of the visible image that the lesion covers: the chance level of ``inside``.
        pointing: whether the largest value lies in the lesion (Zhang et al., arXiv:1608.00507).
    """

    completeness_gap: float | None = None
    deletion: float | None = None
    deletion_random: float | None = None
    insertion: float | None = None
    insertion_random: float | None = None
    flat: bool | None = None
    stability: float | None = None
    inside: float | None = None
    area: float | None = None
    pointing: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionEntry(Record):
    """One attribution of one document.

    Attributes:
        id: the row's id.
        document: the document's id.
        group: the document's group (patient, lesion).
        label: the true class.
        predicted: the answered class; ``null`` where the answer was not parsed.
        answer: the model's answer.
        hit: whether it is correct.
        target: what is explained: a label, or the answer itself.
        value: the label's log-odds, or the answer's log-probability, in nats.
        method: the method's name.
        layer: ``pixels``, ``vision.05``, ``connector``, ``llm.03`` or ``prompt``.
        mode: which target was asked for: ``decision``, ``truth``, ``answer`` or a class.
        baseline: the baseline image.
        steps: steps of a path method.
        original: image that the model was shown; files are relative to the folder of the index.
        heat: the map as an image to lay over it.
        overlay: both in one image.
        map: the map as arrays (NumPy ``.npz``).
        slices: number of slices of a volume, one below the other in the images.
        scale: attribution at the two ends of the colour scale.
        tokens: the prompt's tokens; ``null`` where the map is of the image.
        checks: the checks of this map.
    """

    id: str
    document: str
    group: str
    label: str
    predicted: str | None = None
    answer: str
    hit: bool
    target: str
    value: float
    method: str = "unnamed"
    layer: str = "pixels"
    mode: str = ""
    baseline: str = ""
    steps: int | None = None
    original: Path | None = None
    heat: Path | None = None
    overlay: Path | None = None
    map: Path | None = None
    slices: int = 1
    scale: tuple[float, float] | None = None
    tokens: tuple[TokenAttribution, ...] | None = None
    checks: MapChecks = MapChecks()


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomisationLevel(Record):
    """How alike a map stays while weights are shuffled, down to one level (Adebayo et al., arXiv:1810.03292).

    Attributes:
        randomised: which weights are shuffled.
        similarity: rank correlation of the values.
        absolute_similarity: rank correlation of their sizes.
        structural_similarity: structural similarity of the maps; ``null`` where they are no images.
    """

    randomised: str
    similarity: float
    absolute_similarity: float
    structural_similarity: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLevel(RandomisationLevel):
    """One level as one process measured it, on some documents.

    Attributes:
        documents: their number.
    """

    documents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessCascade(Record):
    """Levels of one method at one layer, as one process measured them; see :class:`AttributionSummary`."""

    method: str
    layer: str
    mode: str = ""
    baseline: str = ""
    steps: int | None = None
    levels: tuple[ProcessLevel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionSummary(Record):
    """The checks of one method at one layer, over all documents explained with the same settings.

    Attributes:
        method: the method's name.
        layer: the layer's name.
        mode: which target was asked for.
        baseline: the baseline image.
        steps: steps of a path method.
        n: documents.
        completeness_gap: means over the documents, as for :class:`MapChecks`; ``null`` where there are no values.
        stability: likewise.
        inside: likewise.
        pointing: likewise, the share of documents.
        inside_hits: ``inside`` of documents that were answered correctly.
        inside_errors: ``inside`` of documents that were not.
        deletion_gain: ``deletion_random - deletion``; above zero, the map is better than a random order.
        insertion_gain: ``insertion - insertion_random``; likewise.
        flat: number of maps whose values are all alike; ``null`` where this was not checked.
        area: mean share of the visible image that the lesion covers.
        randomisation: similarity under shuffled weights, in the order of the cascade.
        failed: a sentence on each failed check.
        unchecked: checks that were not made.
        trusted: whether all checks were made and none failed.
    """

    method: str = "unnamed"
    layer: str = "pixels"
    mode: str = ""
    baseline: str = ""
    steps: int | None = None
    n: int
    completeness_gap: Estimate | None = None
    stability: Estimate | None = None
    inside: Estimate | None = None
    pointing: Estimate | None = None
    inside_hits: Estimate | None = None
    inside_errors: Estimate | None = None
    deletion_gain: Estimate | None = None
    insertion_gain: Estimate | None = None
    flat: int | None = None
    area: float | None = None
    randomisation: tuple[RandomisationLevel, ...] = ()
    failed: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    trusted: bool = False

    @property
    def settings(self) -> str:
        """Target, baseline and steps, for people."""
        return ", ".join(str(value) for value in (self.mode, self.baseline, self.steps) if value not in ("", None))

    @property
    def survives(self) -> float | None:
        """Rank correlation with all weights shuffled, of values or of their sizes, whichever is higher."""
        last = [level for level in self.randomisation if level.randomised == RANDOMISATION_LEVELS[-1]]
        return max(last[0].similarity, last[0].absolute_similarity) if last else None

    def figure(self, name: str) -> Estimate:
        """Return the mean of one check, such as ``stability``; NaN where there is none."""
        estimate: Estimate | None = getattr(self, name)
        return UNKNOWN if estimate is None else estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionFault(Record):
    """Something that could not be computed.

    Attributes:
        document: the document's id and size.
        method: the method; empty where the whole document is left out.
        part: the layer or check; empty where the whole method is left out.
        why: the error's message.
    """

    document: str
    method: str
    part: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedDocument(Record):
    """All attributions of one document: the content of ``entries/DOCUMENT.json``.

    Attributes:
        state: hash of the options it was explained with.
    """

    state: str
    entries: tuple[AttributionEntry, ...] = ()
    faults: tuple[AttributionFault, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessResults(Record):
    """What one process found for all its documents: the content of ``process-N.json``.

    Attributes:
        state: hash of the options.
        methods: the methods in use.
        randomised: similarity of maps under shuffled weights.
        warnings: what limits these results.
        faults: what could not be computed.
    """

    state: str
    methods: tuple[AttributionMethod, ...] = ()
    randomised: tuple[ProcessCascade, ...] = ()
    warnings: tuple[str, ...] = ()
    faults: tuple[AttributionFault, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionIndex(VersionedRecord):
    """All attributions of one task: the content of ``attributions/TASK/index.json``.

    Attributes:
        task: the task's name.
        model: the model's name.
        labels: the K classes.
        methods: the methods in use.
        entries: one attribution of one document each.
        summary: one method at one layer each.
        faults: what could not be computed.
        warnings: what limits these results.
    """

    FORMAT: ClassVar[str] = "medmllm_attributions"

    task: str
    model: str
    labels: tuple[str, ...]
    methods: tuple[AttributionMethod, ...]
    entries: tuple[AttributionEntry, ...]
    summary: tuple[AttributionSummary, ...]
    faults: tuple[AttributionFault, ...]
    warnings: tuple[str, ...]

    def settings_of(self, row: AttributionSummary) -> str:
        """Return the settings of a row where its method has several rows at its layer, else an empty text."""
        alike = [other for other in self.summary if (other.method, other.layer) == (row.method, row.layer)]
        return row.settings if len(alike) > 1 else ""
