"""The scale of features in a linear probe, by plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def scaled(train: npt.NDArray[Any], rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Rows (n, D) minus the mean of the train rows, divided by the root mean square of the norms of the train rows."""
    centre = train.astype(np.float64).mean(0)
    scale = np.sqrt(((train - centre) ** 2).sum(1).mean())
    result: npt.NDArray[np.float64] = (rows - centre) / scale
    return result
