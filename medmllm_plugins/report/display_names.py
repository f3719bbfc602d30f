"""Names that the report prints for metrics, readings of label scores, stages and poolings."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import yaml

from medmllm_plugins.report.templating import template_source

Names: TypeAlias = dict[str, str]
_NAMES: Final[dict[str, Any]] = yaml.safe_load(template_source("names.yaml"))
METRICS: Final[Names] = _NAMES["metrics"]
"""Metrics of a task in the order of columns; shares of 1, apart from those in :data:`DECIMALS`."""
FINDING_METRICS: Final[Names] = _NAMES["finding_metrics"]
"""Metrics of one finding in the order of columns."""
DECIMALS: Final = frozenset({"macro_f1", "f1", "mcc", "auroc", "auprc", "kappa", "ece", "brier"})
"""Metrics that are shown as numbers, not in percent."""
SCORE_FORMS: Final[Names] = _NAMES["score_forms"]
"""Forms of the label scores; see :mod:`medmllm_plugins.metrics.label_scores`."""
STATUSES: Final[Names] = _NAMES["statuses"]
"""Results of parsing an answer."""
PARTS: Final[Names] = _NAMES["parts"]
POOLINGS: Final[Names] = _NAMES["poolings"]
STAGES: Final[Names] = _NAMES["stages"]
"""Stages of a ladder, in the order in which an image passes them."""
CURVES: Final[Names] = _NAMES["curves"]
"""Curves of a layer chart, by pooling."""
CONTROLS: Final[Names] = _NAMES["controls"]
"""Curves of a layer chart that are shown on demand."""
CHECKS: Final[Names] = _NAMES["checks"]
"""Checks of an attribution method."""
ENTRY_CHECKS: Final[Names] = _NAMES["entry_checks"]
"""Checks of one attribution map."""
MAP_CHECKS: Final[dict[str, tuple[str, str]]] = {name: tuple(words) for name, words in _NAMES["map_checks"].items()}
"""Checks of the maps of an attribution method: heading, and what passes."""
