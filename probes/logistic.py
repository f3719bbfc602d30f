"""Many multinomial logistic regressions at once: all layers, label sets and L2 strengths in a few matrix products.

The objective of every problem is scikit-learn's ``LogisticRegression(C=...)`` on the scaled rows: the sum of log
losses times C, plus half of the squared weights, with free intercepts. Two facts make many of them cheap. The
solution lies in the span of the train rows, so with N rows of D > N features the fit moves to N coordinates, once for
each layer, and the penalty stays what it is. And in coordinates along the principal axes the curvature of the loss is
nearly diagonal, whatever the labels, so one diagonal preconditioner serves each problem and conjugate gradients need
few steps.

Sources: Boehning, "Multinomial logistic regression algorithm", Ann. Inst. Stat. Math. 44, 1992 (the curvature of the
loss is at most one half of that of least squares); Hastie and Tibshirani, "Efficient quadratic regularization for
expression arrays", Biostatistics 5, 2004 (the row space); Nocedal and Wright, "Numerical Optimization", 2006, chapter 5
(nonlinear conjugate gradients, Polak and Ribiere).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from medmllm_plugins.errors import OptionError
from medmllm_plugins.probes.row_space import RowSpace, device_kind

STRENGTHS = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
"""Inverse strengths of the penalty, scikit-learn's ``C`` on rows of squared norm 1 on average, from stiff to free.

The stiff end is close to the class frequencies, the free end separates most train folds perfectly.
"""

_ABSENT = -50.0
"""Logit of a class without train rows: a probability of about 1e-21, yet a finite log loss."""
_CELLS = {"cpu": 1 << 19, "cuda": 1 << 27}
"""Numbers in one array of logits: on a CPU few enough for its cache and enough to make Python's overhead small; on a
GPU what leaves room in its memory."""
_MAX_SEARCHES = 6
"""Lengths that a line search tries at most; one or two are the rule."""
_SLOPE_FRACTION = 0.2
"""A line search ends where the slope has fallen to this share of what it was."""
_OPEN_FRACTION = 0.75
"""Finished problems are dropped once the layer with most open ones has at most this fraction of its problems left."""
_MIN_CURVATURE = 1e-6
"""Least mean curvature that the preconditioner reckons with."""
_MIN_OBJECTIVE = 1e-3
"""Least objective in nats a row to which the norm is relative; of a smaller one, float32 has too few digits."""
_TINY = 1e-30
"""In place of a divisor of zero."""


@dataclass(frozen=True, slots=True)
class Solution:
    """Fitted regressions of L layers, P label sets and G strengths each, with K classes.

    Attributes:
        weights: (L, P, G, K, r) float32, on the coordinates of a :class:`RowSpace`.
        intercepts: (L, P, G, K) float32.
        gradient_norm: (L, P, G) float32, what :func:`solve` stops on.
        converged: (L, P, G) bool, whether it came under the tolerance.
        steps: (L, P, G) int64, steps taken.
    """

    weights: Tensor
    intercepts: Tensor
    gradient_norm: Tensor
    converged: Tensor
    steps: Tensor

    def logits(self, coordinates: Tensor) -> Tensor:
        """Return the logits (L, P, G, M, K) of coordinates (L, M, r) float32; their softmax is the probability."""
        layers, sets, grid, classes, rank = self.weights.shape
        if coordinates.ndim != 3 or coordinates.shape[0] != layers or coordinates.shape[2] != rank:
            raise OptionError(
                f"Expected argument `coordinates` to have the shape ({layers}, rows, {rank}), got "
                f"{tuple(coordinates.shape)}: make them with `RowSpace.coordinates` of the space that was solved."
            )
        logits = self.weights.flatten(1, 3) @ coordinates.mT
        return (logits.view(layers, sets, grid, classes, coordinates.shape[1]) + self.intercepts[..., None]).mT

    def choose(self, indices: Tensor) -> Solution:
        """Keep one strength for each layer and label set.

        Args:
            indices: (L, P) int64, into the G strengths.

        Returns:
            The same regressions with G = 1.

        Raises:
            OptionError: the shape is another, or an index is not one of the strengths.
        """
        layers, sets, grid = self.steps.shape
        if indices.shape != (layers, sets) or not _within(indices, grid):
            raise OptionError(
                f"Expected argument `indices` to hold ({layers}, {sets}) integers from 0 to {grid - 1}, got "
                f"{_described(indices)}: choose one of the {grid} strengths for each layer and label set."
            )
        layer = torch.arange(layers, device=indices.device)[:, None]
        label_set = torch.arange(sets, device=indices.device)
        parts = (self.weights, self.intercepts, self.gradient_norm, self.converged, self.steps)
        return Solution(*(part[layer, label_set, indices][:, :, None] for part in parts))


def solve(
    space: RowSpace,
    targets: Tensor,
    strengths: Tensor,
    *,
    classes: int,
    row_weights: Tensor | None = None,
    tolerance: float = 1e-4,
    most_steps: int = 300,
) -> Solution:
    """Fit multinomial logistic regressions for all layers, label sets and strengths.

    Each equals scikit-learn's ``LogisticRegression(C=strength)`` on the centred and scaled rows: with the classes that
    occur in its labels, and with one weight vector where these are two. A class that does not occur gets a probability
    near zero; where only one occurs it is always predicted.

    The norm that decides when to stop is that of the gradient g in the metric of the mean curvature M, relative to the
    objective F, or to a thousandth of a nat a row if that is more: sqrt(g^T M^-1 g / F). Half of its square is about
    the share of the objective that is still to be gained, so the default of 1e-4 leaves about 1e-8 of it.

    Args:
        space: the layers.
        targets: int64 classes from 0 to K - 1 of the train rows: (P, N) for all layers alike, or (L, P, N).
        strengths: float, above 0: (G,) tried for every problem, or (L, P) one for each, and then G = 1.
        classes: K, at least 2.
        row_weights: (P, N) finite and at least 0, how much each train row counts in each label set, scikit-learn's
            ``sample_weight``; by default 1. A class counts as absent if all of its rows have weight 0.
        tolerance: of the norm above.
        most_steps: after which a problem is given up and reported as not converged.

    Raises:
        OptionError: an argument has another shape or range.
    """
    layers, rows, rank = space.train.shape
    device = space.train.device
    targets, strengths = targets.to(device), strengths.to(device, torch.float32)
    if targets.ndim == 2:
        targets = targets[None]
    _check_problems(targets, strengths, layers=layers, rows=rows, classes=classes)
    sets = targets.shape[1]
    grid = strengths.shape[0] if strengths.ndim == 1 else 1
    strength = strengths.expand(layers, sets, grid) if strengths.ndim == 1 else strengths[..., None]
    problems = sets * grid
    targets = (
        targets.expand(layers, sets, rows)[:, :, None].expand(layers, sets, grid, rows).reshape(layers, problems, rows)
    )
    strength = strength.reshape(layers, problems)
    if row_weights is not None:
        row_weights = row_weights.to(device, torch.float32)
        _check_row_weights(row_weights, sets=sets, rows=rows)
        row_weights = row_weights.repeat_interleave(grid, 0)
    at_once = max(1, _CELLS[device_kind(targets)] // max(1, problems * classes * max(rows, rank)))
    parts = zip(
        *(torch.split(part, at_once) for part in (space.train, space.squares, targets, strength)),
        strict=True,
    )
    blocks = [
        _solve(train, squares, _start(target, inverse, row_weights, classes, rank), tolerance, most_steps)
        for train, squares, target, inverse in parts
    ]
    weights, intercepts, norm, steps = (torch.cat(part) for part in zip(*blocks, strict=True))
    shape = (layers, sets, grid)
    return Solution(
        weights=weights.view(*shape, classes, rank),
        intercepts=intercepts.view(*shape, classes),
        gradient_norm=norm.view(shape),
        converged=(norm <= tolerance).view(shape),
        steps=steps.view(shape),
    )


def _check_problems(targets: Tensor, strengths: Tensor, *, layers: int, rows: int, classes: int) -> None:
    """Check the arguments of :func:`solve`; ``targets`` has three dimensions."""
    if classes < 2:
        raise OptionError(
            f"Expected argument `classes` to be at least 2, got {classes}: with one class there is nothing to fit."
        )
    if targets.ndim != 3 or targets.shape[0] not in (1, layers) or targets.shape[2] != rows:
        raise OptionError(
            f"Expected argument `targets` to have the shape (label sets, {rows}) or ({layers}, label sets, {rows}), "
            f"got {tuple(targets.shape)}: give each train row one class in each label set."
        )
    if not _within(targets, classes):
        raise OptionError(
            f"Expected argument `targets` to hold int64 classes from 0 to {classes - 1}, got "
            f"{_described(targets)}: number the classes from 0."
        )
    if strengths.ndim != 1 and strengths.shape != (layers, targets.shape[1]):
        raise OptionError(
            f"Expected argument `strengths` to have the shape (strengths,) or ({layers}, {targets.shape[1]}), got "
            f"{tuple(strengths.shape)}: give one grid for all, or one strength for each layer and label set."
        )
    if not bool(((strengths > 0) & strengths.isfinite()).all()):
        raise OptionError(f"Expected argument `strengths` to be above 0, got {_described(strengths)}.")


def _check_row_weights(row_weights: Tensor, *, sets: int, rows: int) -> None:
    if row_weights.shape != (sets, rows) or not bool(((row_weights >= 0) & row_weights.isfinite()).all()):
        raise OptionError(
            f"Expected argument `row_weights` to hold ({sets}, {rows}) finite numbers of at least 0, got "
            f"{_described(row_weights)}: give each train row one weight in each label set."
        )
    if not bool((row_weights.sum(1) > 0).all()):
        raise OptionError("Expected argument `row_weights` to be above 0 for some rows of each label set, got only 0.")


@dataclass(frozen=True, slots=True)
class _State:
    """The state of the problems of some layers, l layers with q problems each, and the step that led to it."""

    problem: Tensor  # (l, q) int64, the number of the problem
    target: Tensor  # (l, q, 1, N) int64
    row_weights: Tensor | None  # (l, q, 1, N); None: all are 1
    one_hot: Tensor  # (l, q, K, N), the target as zeros and ones, times the weights
    total: Tensor  # (l, q), sum of the weights
    penalty: Tensor  # (l, q), the factor of half the squared weights where that of the loss is 1
    degrees: Tensor  # (l, q), classes that occur, less one, and at least 1
    weights: Tensor  # (l, q, K, r)
    intercepts: Tensor  # (l, q, K)
    logits: Tensor  # (l, q, K, N)
    probability: Tensor  # (l, q, K, N), the softmax of the logits
    direction: Tensor  # (l, q, K, r), of the weights
    intercept_direction: Tensor  # (l, q, K), the direction of the intercepts
    gradient: Tensor  # (l, q, K, r), of the weights where the step began
    intercept_gradient: Tensor  # (l, q, K), the gradient of the intercepts there
    square: Tensor  # (l, q), the squared norm of that gradient
    slope: Tensor  # (l, q), of the objective along the direction where the step ended
    norm: Tensor  # (l, q), what decides when to stop
    steps: Tensor  # (l, q) int64

    def pick(self, at: Tensor) -> _State:
        """Select the problems with the indices (l, q') of each layer."""
        layer = _column(at)
        parts = (getattr(self, part.name) for part in fields(self))
        picked: list[Any] = [None if part is None else part[layer, at] for part in parts]
        return _State(*picked)


def _start(targets: Tensor, strength: Tensor, row_weights: Tensor | None, classes: int, rank: int) -> _State:
    """Return zero weights and the best-fitting intercepts.

    Targets are (l, q, N) int64, strength (l, q) and row weights (q, N) float32.
    """
    layers, problems, _ = targets.shape
    one_hot = (targets[:, :, None] == torch.arange(classes, device=targets.device)[:, None]).to(strength.dtype)
    if row_weights is not None:
        row_weights = row_weights[:, None].expand(layers, problems, 1, -1)
        one_hot *= row_weights
    counts = one_hot.sum(-1)
    occurs = counts > 0
    occurring = occurs.sum(-1)
    intercepts = counts.where(occurs, 1).log()
    intercepts = (intercepts - (intercepts.sum(-1) / occurring)[..., None]).where(occurs, _ABSENT)
    logits = intercepts[..., None].expand_as(one_hot).contiguous()
    nothing = torch.zeros_like(strength)
    weights = strength.new_zeros(layers, problems, classes, rank)
    return _State(
        problem=torch.arange(problems, device=targets.device).expand(layers, problems),
        target=targets[:, :, None],
        row_weights=row_weights,
        one_hot=one_hot,
        total=counts.sum(-1),
        # For two classes scikit-learn fits one weight vector w. It is -w/2 and w/2 here, which has half its square.
        penalty=torch.where(occurring == 2, 2, 1) / strength,
        degrees=(occurring - 1).clamp_min(1),
        weights=weights,
        intercepts=intercepts,
        logits=logits,
        probability=logits.softmax(2),
        direction=weights,
        intercept_direction=torch.zeros_like(intercepts),
        gradient=weights,
        intercept_gradient=torch.zeros_like(intercepts),
        square=nothing,
        slope=nothing,
        norm=nothing,
        steps=torch.zeros_like(occurring),
    )


def _solve(
    train: Tensor, squares: Tensor, state: _State, tolerance: float, most_steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take steps until every problem of a block is solved or given up, for train (l, N, r) and squares (l, r) float32.

    Returns:
        Weights (l, q, K, r), intercepts (l, q, K), norms of the gradient (l, q) and steps (l, q).
    """
    solution = tuple(torch.empty_like(part) for part in _solution(state))
    for step in range(most_steps + 1):
        state, scaled, scaled_intercept_gradient, gradient, intercept_gradient, square = _evaluate(
            train, squares, state
        )
        is_open = state.norm > tolerance
        count = 0 if step == most_steps or not is_open.numel() else int(is_open.sum(1).max())
        if count <= _OPEN_FRACTION * is_open.shape[1]:
            # Store and drop finished problems. A layer with fewer open ones than another keeps some of them.
            for whole, part in zip(solution, _solution(state), strict=True):
                whole[_column(state.problem), state.problem] = part
            if count == 0:
                break
            at = is_open.int().argsort(dim=1, descending=True, stable=True)[:, :count]
            layer = _column(at)
            state, is_open = state.pick(at), is_open[layer, at]
            parts = (scaled, scaled_intercept_gradient, gradient, intercept_gradient, square)
            scaled, scaled_intercept_gradient, gradient, intercept_gradient, square = (
                part[layer, at] for part in parts
            )
        shared = _dot(state.gradient, scaled) + (state.intercept_gradient * scaled_intercept_gradient).sum(-1)
        beta = ((square - shared) / state.square.clamp_min(_TINY)).clamp_min(0)
        # The new direction leads down unless the last search ended far from the bottom: then restart.
        beta = beta.where(beta * state.slope < 0.9 * square, 0)[..., None]
        state = replace(
            state,
            direction=beta[..., None] * state.direction - scaled,
            intercept_direction=beta * state.intercept_direction - scaled_intercept_gradient,
            gradient=gradient,
            intercept_gradient=intercept_gradient,
            square=square,
        )
        state = _line_search(train, state, is_open)
    weights, intercepts, norm, steps = solution
    return weights, intercepts, norm, steps


def _evaluate(train: Tensor, squares: Tensor, state: _State) -> tuple[_State, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradient and the norm that decides when to stop.

    Returns:
        The state with its norm; the gradient times the preconditioner, for the weights (l, q, K, r) and the intercepts
        (l, q, K); the gradient itself, likewise; the product of the two, (l, q).
    """
    penalty = state.penalty[..., None, None]
    probability = _weighted(state.probability, state)
    residual = probability - state.one_hot
    gradient = torch.addcmul(_times(residual, train), penalty, state.weights)
    intercept_gradient = residual.sum(-1)
    # Boehning's bound has 1/2 in place of this mean, which is far less where the rows are classified with confidence.
    spread = 1 - _dot(probability, state.probability) / state.total
    curvature = (spread / state.degrees).clamp_min(_MIN_CURVATURE)[..., None]
    scaled = gradient / torch.addcmul(penalty, curvature[..., None], squares[:, None, None])
    scaled_intercept_gradient = intercept_gradient / (curvature * state.total[..., None])
    square = _dot(gradient, scaled) + (intercept_gradient * scaled_intercept_gradient).sum(-1)
    loss = -_weighted(state.probability.gather(2, state.target).clamp_min(_TINY).log(), state).sum((2, 3))
    objective = loss + state.penalty * _dot(state.weights, state.weights) / 2
    norm = (square / objective.maximum(_MIN_OBJECTIVE * state.total)).sqrt()
    return replace(state, norm=norm), scaled, scaled_intercept_gradient, gradient, intercept_gradient, square


def _line_search(train: Tensor, state: _State, is_open: Tensor) -> _State:
    """Move along the direction to approximately the minimum; finished problems do not move.

    Logits are linear in the length of the step, so that one product serves every length that is tried.
    """
    move = _times(state.direction, train.mT) + state.intercept_direction[..., None]
    penalty_curvature = state.penalty * _dot(state.direction, state.direction)
    constant_slope = state.penalty * _dot(state.weights, state.direction) - _dot(state.one_hot, move)
    counted = _weighted(move, state)
    products = state.probability * counted
    start = products.sum((2, 3)) + constant_slope
    squares = products.sum(2).square()
    if state.row_weights is not None:
        squares = squares / state.row_weights[:, :, 0].clamp_min(_TINY)
    second = _dot(products, move) - squares.sum(-1) + penalty_curvature
    goes = is_open & (start < 0)
    length = (-start / second.clamp_min(_TINY)).where(goes, 0)
    low, slope_low = torch.zeros_like(length), start
    high, slope_high = torch.full_like(length, torch.inf), torch.full_like(length, torch.inf)
    for search in range(_MAX_SEARCHES):
        logits = torch.addcmul(state.logits, length[..., None, None], move)
        probability = logits.softmax(2)
        slope = _dot(probability, counted) + constant_slope + length * penalty_curvature
        wide = goes & (slope.abs() > _SLOPE_FRACTION * start.abs())
        if search == _MAX_SEARCHES - 1 or not bool(wide.any()):
            break
        below = slope < 0
        low, slope_low = length.where(below, low), slope.where(below, slope_low)
        high, slope_high = high.where(below, length), slope_high.where(below, slope)
        between = low - slope_low * (high - low) / (slope_high - slope_low)
        length = between.where(high.isfinite(), 4 * low).where(wide, length)
    return replace(
        state,
        logits=logits,
        probability=probability,
        slope=slope,
        weights=torch.addcmul(state.weights, length[..., None, None], state.direction),
        intercepts=torch.addcmul(state.intercepts, length[..., None], state.intercept_direction),
        steps=state.steps + is_open,
    )


def _solution(state: _State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return state.weights, state.intercepts, state.norm, state.steps


def _weighted(values: Tensor, state: _State) -> Tensor:
    """Multiply (l, q, ..., N) by the weights of the rows."""
    return values if state.row_weights is None else values * state.row_weights


def _column(at: Tensor) -> Tensor:
    """Return the number of each layer, (l, 1), to combine with indices (l, q)."""
    return torch.arange(at.shape[0], device=at.device)[:, None]


def _times(left: Tensor, right: Tensor) -> Tensor:
    """Multiply (l, q, K, a) by (l, a, b) to (l, q, K, b), as one product for each layer."""
    return (left.flatten(1, 2) @ right).view(*left.shape[:3], right.shape[-1])


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Compute inner products over the last two dimensions, (l, q)."""
    return (left * right).sum((2, 3))


def _within(integers: Tensor, end: int) -> bool:
    """Return whether all are int64 from 0 to ``end`` - 1."""
    return integers.dtype == torch.int64 and bool(((integers >= 0) & (integers < end)).all())


def _described(tensor: Tensor) -> str:
    span = f" from {tensor.min().item():g} to {tensor.max().item():g}" if tensor.numel() else ""
    return f"{tensor.dtype} of the shape {tuple(tensor.shape)}{span}"
