"""The kinds of planted faults: what each breaks, how strongly, and which diagnoses of it are right.

- *Destroying* faults remove the class from their own stage: no linear probe fitted there or at a later site finds it.
- Faults of *form* leave the class readable after their stage, and hand it on in a form that the next stage never
  learned. Probes that are fitted at each stage lose nothing there.
- *Held-out* faults of form use other mechanisms. Rules and grades of the diagnosis are not tuned on them.
- *Preprocessing* faults change the image before the model sees it; the reference classifier sees the correct one.
- *Harmless* edits change numbers inside the model and hardly any answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from medmllm_plugins.errors import OptionError, shown
from medmllm_plugins.results.probe_records import MODES, Interface, Mode

Strength: TypeAlias = Literal[1, 2, 3]
FaultGroup: TypeAlias = Literal["healthy", "destroying", "form", "held-out form", "preprocessing", "harmless"]

STRENGTHS: Final[tuple[Strength, ...]] = get_args(Strength)
"""Mild, clear, heavy."""


@dataclass(frozen=True, slots=True)
class FaultKind:
    """A kind of fault.

    Attributes:
        group: what it does to the class, see the module.
        modes: the failure modes that it is right to name; the first is that of the broken stage.
        interfaces: for an unread hand-over to be right, one of these must be among the candidates.
        grades: the size of each strength; its unit depends on the kind.
        summary: what is changed, and the unit of the grades.
    """

    group: FaultGroup
    modes: tuple[Mode, ...]
    interfaces: tuple[Interface, ...]
    grades: tuple[float, float, float]
    summary: str


def _kinds(
    group: FaultGroup,
    modes: tuple[Mode, ...],
    interfaces: tuple[Interface, ...],
    grades: Mapping[str, tuple[float, float, float, str]],
) -> dict[str, FaultKind]:
    return {name: FaultKind(group, modes, interfaces, row[:3], row[3]) for name, row in grades.items()}


HEALTHY_KIND: Final = "none"
KINDS: Final[Mapping[str, FaultKind]] = {
    HEALTHY_KIND: FaultKind("healthy", (), (), (0.0, 0.0, 0.0), "the model as it is"),
    # Destroying faults. Fractions of documents mean the same for every model.
    **_kinds(
        "destroying",
        ("vision",),
        ("image -> vision",),
        {
            "tower_noise": (0.5, 1.5, 3.0, "Gaussian noise on all matrices of the vision blocks, in their deviations"),
            "tower_reset": (0.25, 0.75, 1.0, "fraction of the weights of the vision blocks reinitialised"),
            "tower_blur": (
                1.0,
                1.5,
                3.0,
                "after every vision block, one random vector for each document added to all its patches, in standard "
                "deviations of each feature over them",
            ),
            "tower_lost": (0.1, 0.3, 0.6, "fraction of documents for which the vision blocks return zeros"),
        },
    ),
    **_kinds(
        "destroying",
        ("connector",),
        ("vision -> connector",),
        {
            "connector_blur": (8.0, 30.0, 60.0, "as tower_blur, after the connector"),
            "connector_lost": (0.1, 0.3, 0.6, "as tower_lost, for the connector"),
        },
    ),
    **_kinds(
        "destroying",
        ("comprehension",),
        ("llm",),
        {
            "blind": (0.1, 0.4, 1.0, "fraction of documents whose image only image tokens attend to, in every layer"),
            "text_blur": (
                0.9,
                2.0,
                3.0,
                "after every layer of the LLM, one random vector for each document added to the prompt after the last "
                "image token, in root mean squares of each position",
            ),
        },
    ),
    # Faults of form.
    **_kinds(
        "form",
        ("mapping",),
        ("llm -> answer",),
        {
            "labels_permuted": (
                0.0,
                0.5,
                1.0,
                "logits of two labels (at 0), of more than this fraction or of all exchanged in a ring, where their "
                "tokens differ",
            ),
            "label_bias": (4.0, 8.0, 10.0, "logit of the token that distinguishes one label raised, in nats"),
        },
    ),
    **_kinds(
        "form",
        ("connector",),
        ("connector -> llm",),
        {
            "directions_removed": (
                0.1,
                0.4,
                1.0,
                "fraction of documents whose connector output loses the directions that separate the classes",
            ),
        },
    ),
    **_kinds(
        "form",
        ("vision",),
        ("vision -> connector",),
        {
            "tower_signs": (0.25, 0.5, 0.7, "fraction of the tower's features whose sign is changed"),
            "tower_permuted": (0.5, 0.8, 1.0, "fraction of the tower's features permuted"),
            "tower_rotated": (0.5, 0.8, 1.0, "fraction of the tower's features rotated"),
            "tower_offset": (3.0, 10.0, 20.0, "constant vector added, in root mean squares of each patch"),
            "tower_scaled": (0.01, 0.003, 0.001, "factor on the tower's output"),
            "tower_blocks_skipped": (2.0, 3.0, 4.0, "last blocks of the tower skipped"),
        },
    ),
    **_kinds(
        "form",
        ("connector",),
        ("connector -> llm",),
        {
            "connector_signs": (0.25, 0.5, 0.7, "fraction of the connector's features whose sign is changed"),
            "connector_permuted": (0.5, 0.8, 1.0, "fraction of the connector's features permuted"),
            "connector_rotated": (0.5, 0.8, 1.0, "fraction of the connector's features rotated"),
            "connector_offset": (3.0, 10.0, 30.0, "constant vector added, in root mean squares of each token"),
            "connector_projected": (8.0, 3.0, 2.0, "dimensions of a random subspace that the output is projected to"),
        },
    ),
    **_kinds(
        "form",
        ("connector",),
        ("vision -> connector", "connector -> llm"),
        {"connector_reset": (0.6, 0.8, 1.0, "fraction of the connector's weights reinitialised")},
    ),
    **_kinds(
        "form",
        ("comprehension",),
        ("llm",),
        {
            "attention_flat": (0.1, 0.03, 0.01, "factor on the attention logits of the LLM"),
            "attention_sharp": (10.0, 30.0, 100.0, "factor on the attention logits of the LLM"),
            "rope_base": (1e-2, 1e-3, 1e-6, "factor on the base of the rotary position embeddings"),
            "llm_blocks_skipped": (2.0, 4.0, 5.0, "first blocks of the LLM skipped"),
            "values_dropped": (0.25, 0.5, 0.75, "fraction of the features of keys and values set to zero"),
            "llm_noise": (0.5, 1.0, 1.5, "Gaussian noise on all matrices of the LLM, in their standard deviations"),
            "llm_low_rank": (
                2.0,
                5.0,
                10.0,
                "random matrix of rank 1 added to each matrix of the LLM, in spectral norms",
            ),
        },
    ),
    **_kinds(
        "form",
        ("comprehension", "mapping"),
        ("llm", "llm -> answer"),
        {
            "final_permuted": (0.5, 0.8, 1.0, "fraction of the features after the LLM's last norm permuted"),
            "final_signs": (0.3, 0.5, 0.7, "fraction of the features after the last norm whose sign is changed"),
        },
    ),
    # Held-out faults of form: no rule is tuned on them.
    **_kinds(
        "held-out form",
        ("vision",),
        ("vision -> connector",),
        {
            "tower_amplified": (10.0, 30.0, 100.0, "factor on four of the tower's features"),
            "tower_absolute": (0.25, 0.5, 1.0, "fraction of the tower's features whose absolute value is taken"),
        },
    ),
    **_kinds(
        "held-out form",
        ("connector",),
        ("connector -> llm",),
        {
            "tokens_transposed": (0.25, 0.5, 1.0, "fraction of the connector's features that are read transposed"),
            "tokens_reflected": (1.5, 2.0, 3.0, "multiple of the mean over the image tokens subtracted from each"),
            "connector_absolute": (
                0.25,
                0.5,
                1.0,
                "fraction of the connector's features whose absolute value is taken",
            ),
        },
    ),
    **_kinds(
        "held-out form",
        ("comprehension",),
        ("llm",),
        {
            "attention_windowed": (64.0, 32.0, 16.0, "last tokens that each token attends to"),
            "values_rotated": (0.25, 0.5, 1.0, "fraction of the heads whose values are rotated"),
            "keys_permuted": (0.25, 0.5, 1.0, "fraction of the features of the keys permuted"),
            "blocks_swapped": (1.0, 2.0, 3.0, "distance between two blocks of the LLM that exchange their weights"),
        },
    ),
    **_kinds(
        "held-out form",
        ("comprehension", "mapping"),
        ("llm", "llm -> answer"),
        {"final_rotated": (0.5, 0.8, 1.0, "fraction of the features after the LLM's last norm rotated")},
    ),
    **_kinds(
        "preprocessing",
        ("vision",),
        ("image -> vision",),
        {
            "image_shrunk": (0.5, 0.25, 0.125, "factor of the size to which the image is reduced and enlarged again"),
            "image_dark": (0.5, 0.2, 0.05, "factor on the grey levels"),
            "image_flat": (0.5, 0.25, 0.1, "factor on the contrast, around middle grey"),
            "image_window": (0.8, 0.5, 0.3, "share of the grey levels that a window in the middle keeps"),
            "image_cropped": (0.75, 0.5, 0.35, "share of the side that is kept around the centre, enlarged again"),
            "image_negative": (0.6, 0.8, 1.0, "weight of the negative"),
            "image_mean_twice": (0.15, 0.3, 0.5, "grey level subtracted, as a mean is that is subtracted twice"),
            "image_one_channel": (0.5, 0.2, 0.0, "factor on green and blue"),
            "image_rotated": (15.0, 45.0, 90.0, "degrees"),
            "image_tiled": (2.0, 3.0, 4.0, "copies of the image along each side"),
        },
    ),
    **_kinds(
        "harmless",
        (),
        (),
        {
            "tower_slight_noise": (0.005, 0.01, 0.02, "as tower_noise"),
            "connector_slight_noise": (0.005, 0.01, 0.02, "as tower_noise, for the connector"),
            "llm_slight_noise": (0.005, 0.01, 0.02, "as llm_noise"),
            "rounded_weights": (0.0, 0.0, 0.0, "all matrices rounded to bfloat16"),
            "connector_amplified": (3.0, 10.0, 30.0, "factor on the connector's output"),
            "connector_scaled": (0.1, 0.03, 0.01, "factor on the connector's output"),
            "tower_patches_permuted": (0.25, 0.5, 1.0, "fraction of the patches permuted in space"),
            "positions_shifted": (64.0, 256.0, 1024.0, "added to the positions of image tokens"),
            "steps_scaled": (0.7, 0.5, 2.0, "factor on what each block of the LLM adds"),
            "tokens_hidden": (0.25, 0.5, 0.5, "fraction of the image tokens that no other token attends to"),
            "image_noise": (1.0, 2.0, 3.0, "standard deviation of noise on the grey levels"),
        },
    ),
}
"""By name, every kind of fault. The grades were chosen on the embedded demo and on the two families of
``examples/train_families.py``; models differ in what they tolerate, so on another model check the probe after the
broken stage before relying on more than the order of the strengths."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of one stage, and its strength.

    Attributes:
        name: one of :data:`KINDS`.
        strength: 1 is mild, 2 clear and 3 heavy.
        seed: seed of everything random.

    Raises:
        OptionError: the fault does not exist.
    """

    name: str
    strength: Strength = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            raise OptionError(f"Expected `name` of a fault to be one of {sorted(KINDS)}, got {shown(self.name)}.")
        if self.strength not in STRENGTHS:
            raise OptionError(f"Expected `strength` of a fault to be 1, 2 or 3, got {shown(self.strength)}.")

    @property
    def kind(self) -> FaultKind:
        """What is known of all faults of this name."""
        return KINDS[self.name]

    @property
    def grade(self) -> float:
        """The size of the fault."""
        return self.kind.grades[self.strength - 1]


HEALTHY: Final = Fault(HEALTHY_KIND)
"""No fault: the model as it is."""
PAIRS: Final[tuple[tuple[str, str], ...]] = (
    ("tower_lost", "labels_permuted"),
    ("connector_lost", "blind"),
    ("tower_reset", "connector_blur"),
    ("blind", "label_bias"),
    ("connector_signs", "labels_permuted"),
    ("tower_lost", "attention_flat"),
    ("tower_permuted", "connector_rotated"),
    ("connector_offset", "llm_blocks_skipped"),
    ("connector_lost", "final_signs"),
    ("image_dark", "label_bias"),
)
"""Faults of two stages at once, of destroying and of other kinds."""


def names_of(group: FaultGroup, mode: Mode | None = None) -> tuple[str, ...]:
    """Return the names of a group's kinds, or of those whose broken stage is that of one failure mode."""
    return tuple(
        name for name, kind in KINDS.items() if kind.group == group and (mode is None or kind.modes[:1] == (mode,))
    )


def all_faults(seed: int = 0, names: Sequence[str] | None = None) -> tuple[Fault, ...]:
    """Return every kind, or those named, at every strength."""
    return tuple(Fault(name, strength, seed) for name in names or list(KINDS)[1:] for strength in STRENGTHS)


DESTROYING: Final[Mapping[Mode, tuple[str, ...]]] = {
    mode: names for mode in MODES if (names := names_of("destroying", mode))
}
"""Names of the destroying faults by mode. The mapping has none: other words leave the class in the features."""
