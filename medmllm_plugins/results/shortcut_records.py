"""Records of shortcuts and nuisance: what gives the class away beside the finding, and whether the folds differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate
from medmllm_plugins.utils.record import Record

LEVEL: Final = 0.05
"""Level of all tests of a report together, by Holm's correction."""
CLASS_MARGIN: Final = 0.10
"""Least balanced accuracy above chance, as a share of the way from chance to 100%, that is warned of."""
SHIFT_MARGIN: Final = 0.60
"""Least area under the ROC curve of train against test documents that is warned of; 0.5 is no difference."""
DROP_MARGIN: Final = 0.10
"""Least drop of balanced accuracy from the train fold to the test fold at which the folds count as different, as a
share of the way from chance to 100%."""

MASKED_MARGIN: Final = 0.10
"""Least drop of accuracy that is reported where the border is masked."""
ANSWERS: Final = "answers"
"""In place of a layer: the model's answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSetCheck(Record):
    """What one set of features tells of class and fold, by regularised least squares on features and squares.

    Attributes:
        layer: ``control.border``, another control feature, or the last layer of the tower.
        pooling: its pooling.
        within_train: balanced accuracy of the class in the train fold, cross-validated by group.
        to_test: balanced accuracy of the class in the test fold, fitted on the train fold.
        drop: ``within_train - to_test``.
        p_within_train: share of permutations of the classes (by group, refitted) that are predicted as well.
        p_to_test: share of permutations of the test classes (by group) that are predicted as well.
        p_drop: one-sided p-value of the drop.
        shift: area under the ROC curve of test against train documents, cross-validated by group; the features are
            standardised by class, so that other shares of the classes do not count.
        p_shift: share of permutations of fold membership (by group, refitted) that are predicted as well.
        readable: the folds in which the class can be read by at least the margin after Holm's correction; tested for
            border and corners alone.
        shifted: whether train and test are distinguished by at least the margin after Holm's correction.
        dropped: whether the class is read less well in the test fold, likewise.
    """

    layer: str
    pooling: str
    within_train: Estimate
    to_test: Estimate
    drop: Estimate
    p_within_train: float
    p_to_test: float
    p_drop: float
    shift: float
    p_shift: float
    readable: tuple[str, ...] = ()
    shifted: bool = False
    dropped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedCheck(Record):
    """Accuracy on the same test documents with the border of their images shown and masked.

    Attributes:
        layer: the end of a stage, whose probe was fitted on unmasked images; ``answers`` for the model's answers.
        pooling: its pooling; ``""`` for answers.
        n: documents, sampled evenly from the classes.
        groups: their groups.
        shown: accuracy on the images as they are.
        masked: accuracy on the masked images.
        drop: ``shown - masked``, paired.
    """

    layer: str
    pooling: str
    n: int
    groups: int
    shown: Estimate
    masked: Estimate
    drop: Estimate

    @property
    def falls(self) -> bool:
        """Whether accuracy falls by at least the margin, and the interval lies above zero."""
        return self.drop.low > 0 and self.drop.value >= MASKED_MARGIN


@dataclass(frozen=True, slots=True, kw_only=True)
class NuisancePoint(Record):
    """The probe of one site for a nuisance column, on the test fold.

    Attributes:
        layer: the layer.
        part: the part of the model, or ``control``.
        pooling: its pooling.
        balanced: balanced accuracy.
        p: share of permutations of the values (by group) that are predicted as well.
        p_holm: ``p`` after Holm's correction over the layers of the model; NaN for control features.
    """

    layer: str
    part: str
    pooling: str
    balanced: Estimate
    p: float
    p_holm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum(Record):
    """Test documents with one value of a column.

    Attributes:
        value: the value.
        n: documents.
        probe: accuracy of the best class probe.
        majority: share of the class that is most common with this value in the train fold.
    """

    value: str
    n: int
    probe: float
    majority: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Nuisance(Record):
    """One column of the data beside the class, such as the scanner.

    Attributes:
        column: its name.
        counts: documents by value, over all folds; empty for a column of numbers.
        majority: share of the most common value in the test fold; NaN for numbers.
        chance: 1 divided by the number of values that are probed for; NaN where none are.
        class_from_column: balanced accuracy of the class predicted from this column alone, cross-validated by group.
        p: share of permutations of the classes (by group, refitted) that are predicted as well.
        explains_class: whether the column predicts the class by at least the margin after Holm's correction.
        points: the probes for this column at all layers; empty for numbers and for too few groups with each value.
        strata: test documents by value, likewise.
        within: accuracy of the best class probe minus that of the class that is most common with each value in the
            train fold, over the test documents of all values.
    """

    column: str
    counts: Mapping[str, int]
    majority: float
    chance: float = math.nan
    class_from_column: Estimate
    p: float
    explains_class: bool = False
    points: tuple[NuisancePoint, ...] = ()
    strata: tuple[Stratum, ...] = ()
    within: Estimate = UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnsTogether(Record):
    """All columns of the data beside the class, categories as indicators and numbers as they are.

    Attributes:
        columns: their names.
        class_from_columns: balanced accuracy of the class predicted from all of them, cross-validated by group.
        p: share of permutations of the classes (by group, refitted) that are predicted as well.
        explains_class: whether they predict the class by at least the margin after Holm's correction.
    """

    columns: tuple[str, ...]
    class_from_columns: Estimate
    p: float
    explains_class: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortcutReport(Record):
    """Shortcuts and nuisance of one probed task; docs/diagnosis.md explains the tests.

    Attributes:
        chance: ``1 / K``.
        checks: each set of features that was tested.
        masked: the ends of the stages and the answers with the border masked; empty where no masked images were shown.
        nuisances: each column of the data that was tested.
        columns_together: all of these together; ``None`` for fewer than two.
        left_out: columns that were not tested, with the reason.
        warnings: plain sentences; empty if there is nothing to warn of.
        notes: plain sentences about figures that are no evidence of a shortcut.
    """

    chance: float
    checks: tuple[FeatureSetCheck, ...]
    masked: tuple[MaskedCheck, ...] = ()
    nuisances: tuple[Nuisance, ...] = ()
    columns_together: ColumnsTogether | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def folds_differ(self) -> bool:
        """Whether the class is read much less well in the test fold than in documents left out of the train fold.

        Losses of accuracy on the test fold then need not be losses of the model.
        """
        return any(check.dropped for check in self.checks)

    @property
    def masked_answers(self) -> MaskedCheck | None:
        """The answers with the border masked; ``None`` where no masked images were shown."""
        return next((check for check in self.masked if check.layer == ANSWERS), None)

    def check(self, layer: str) -> FeatureSetCheck | None:
        """Return the check of one layer; ``None`` where there is none."""
        return next((check for check in self.checks if check.layer == layer), None)

    def above_chance(self, balanced: float) -> float:
        """Return a balanced accuracy as a share of the way from chance (0) to 100% (1)."""
        return (balanced - self.chance) / (1 - self.chance)
