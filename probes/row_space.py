"""Features of several layers, scaled and rotated to their principal axes, so that many fits share the work."""

from __future__ import annotations

import torch
from torch import Tensor

from medmllm_plugins.errors import DataError, OptionError

_SMALLEST = 1e-10
"""Axes whose variance is smaller than this share of the largest are left out: float16 features hold noise there."""
_DECOMPOSED = {"cpu": 1, "cuda": 1 << 27}
"""Float64 numbers decomposed at once, at least one layer; a CPU gains nothing from more."""


def standardise(train: Tensor, *, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Scale every feature of each layer to mean 0 and variance 1; a constant feature becomes 0.

    Args:
        train: (L, N, D) float32.
        first: number of the first layer, for messages.

    Returns:
        Mean (L, D) and scale (L, D) in float32, to apply to further rows, and the scaled rows, (L, N, D) in float64.

    Raises:
        DataError: a feature is NaN or infinite.
    """
    rows = train.double()
    mean = rows.mean(1).float()
    rows -= mean.double()[:, None]
    scale = rows.std(1, correction=0).float()
    if not bool(scale.isfinite().all()):
        raise DataError(not_finite(train, first=first))
    scale[scale == 0] = 1
    rows /= scale.double()[:, None]
    return mean, scale, rows


class RowSpace:
    """Train features of several layers in coordinates along their principal axes.

    Features are centred and divided by one number for each layer, so that the squared norm of a train row is 1 on
    average. The coordinates, and all that is fitted on them, then depend only on inner products of the rows: a layer
    has the same probe after a rotation, a change of scale, or a projection into more dimensions that keeps distances.
    A layer of constant features has the scale 1.

    With fewer rows than features the axes come from the N x N matrix of inner products, else from the D x D one. Either
    is made and decomposed in float64: in float32 its rounding would exceed weak penalties.

    Attributes:
        mean: (L, D) float32, subtracted from features.
        basis: (L, D, r) float32, from centred features to coordinates, r = min(N, D); zero for axes left out.
        train: (L, N, r) float32, Z, the coordinates of the train rows. Z^T Z is diagonal.
        squares: (L, r) float32, that diagonal, descending; its sum is N.
    """

    mean: Tensor
    basis: Tensor
    train: Tensor
    squares: Tensor

    def __init__(self, train: Tensor) -> None:
        """Centre, scale and decompose.

        Args:
            train: (L, N, D) float32 features of L layers of one width.

        Raises:
            DataError: a feature is NaN or infinite.
            OptionError: the shape or the type is another.
        """
        expect_features("train", train)
        layers, rows, width = train.shape
        rank = min(rows, width)
        self.mean = train.new_empty(layers, width)
        self.basis = train.new_empty(layers, width, rank)
        self.train = train.new_empty(layers, rows, rank)
        self.squares = train.new_empty(layers, rank)
        at_once = max(1, _DECOMPOSED[device_kind(train)] // (rows * width))
        for start in range(0, layers, at_once):
            self._decompose(train, slice(start, start + at_once))

    def _decompose(self, train: Tensor, at: slice) -> None:
        exact = train[at].double()
        scale = exact.var(1, correction=0).sum(-1).sqrt()[:, None, None]
        if not bool(scale.isfinite().all()):
            raise DataError(not_finite(train[at], first=at.start))
        scale[scale == 0] = 1
        self.mean[at] = exact.mean(1)
        exact = (exact - self.mean[at, None].double()) / scale
        rows = exact.float()
        if exact.shape[1] < exact.shape[2]:
            squares, axes = torch.linalg.eigh(exact @ exact.mT)
        else:
            squares, axes = torch.linalg.eigh(exact.mT @ exact)
        squares, axes = squares.flip(-1), axes.flip(-1)
        used = squares > _SMALLEST * squares[:, :1]
        squares = squares.where(used, 0)
        length = squares.sqrt()
        if exact.shape[1] < exact.shape[2]:
            self.train[at] = axes * length[:, None]
            basis = rows.mT @ (axes / length.where(used, torch.inf)[:, None]).float()
        else:
            basis = (axes * used[:, None]).float()
            self.train[at] = rows @ basis
        self.basis[at] = basis / scale
        self.squares[at] = squares

    def coordinates(self, features: Tensor) -> Tensor:
        """Bring (L, M, D) further rows into the (L, M, r) coordinates, with the centre and scale of the train rows.

        Features and coordinates are float32 on the device of the train rows. What lies outside of the span of
        the train rows is lost, as it has no weight.

        Raises:
            DataError: a feature is NaN or infinite.
            OptionError: the shape or the type is another.
        """
        expect_alike(features, self.mean)
        coordinates = (features - self.mean[:, None]) @ self.basis
        if not bool(coordinates.isfinite().all()):
            raise DataError(not_finite(features, first=0))
        return coordinates


def device_kind(tensor: Tensor) -> str:
    """Return ``"cuda"`` or ``"cpu"``, by which sizes of blocks are chosen."""
    return "cuda" if tensor.device.type == "cuda" else "cpu"


def expect_features(name: str, features: Tensor) -> None:
    """Check the type and shape of features.

    Raises:
        OptionError: they are wrong.
    """
    if features.ndim != 3 or 0 in features.shape or features.dtype != torch.float32:
        raise OptionError(
            f"Expected argument `{name}` to be float32 of the shape (layers, rows, features), none of them 0, got "
            f"{features.dtype} of the shape {tuple(features.shape)}: stack layers of one width, and cast them."
        )


def expect_alike(features: Tensor, mean: Tensor) -> None:
    """Check that ``features`` match the layers that a probe was fitted on, whose means are (L, D).

    Raises:
        OptionError: they do not.
    """
    expect_features("features", features)
    layers, width = mean.shape
    if features.shape[0] != layers or features.shape[2] != width:
        raise OptionError(
            f"Expected argument `features` to have the shape ({layers}, rows, {width}) of the train rows, got "
            f"{tuple(features.shape)}: pass the same layers in the same order."
        )


def not_finite(features: Tensor, *, first: int) -> str:
    """Return the message about the first NaN or infinite feature; ``first`` is the number of the first layer."""
    layer, row, column = (~features.isfinite()).nonzero()[0].tolist()
    return (
        f"Expected finite features, got {features[layer, row, column].item()} in layer {first + layer}, row {row}, "
        f"column {column}. Record the features again, or leave that document out."
    )
