"""Values laid over pictures and read off them: cases worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medmllm_plugins.attribution.cells import Cells, make_cells, paint, sample, united
from medmllm_plugins.attribution.geometry import neighbourhoods
from medmllm_plugins.errors import ModelError


def made(*boxes: tuple[float, float, float, float], picture: list[int] | None = None) -> Cells:
    return make_cells(np.array([0] * len(boxes) if picture is None else picture), np.array(boxes, float).reshape(-1, 4))


def test_a_value_fills_its_box_and_nothing_else() -> None:
    painted = paint(made((0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1)), np.array([2.0, 5.0]), (2, 4), 1)
    nan = np.nan
    np.testing.assert_array_equal(painted, [[[2, 2, nan, nan], [nan, nan, 5, 5]]])


def test_cells_that_overlap_are_averaged_by_the_area_they_cover() -> None:
    # The first covers the left three quarters of a row of two pixels, the second all of it.
    painted = paint(made((0, 0, 0.75, 1), (0, 0, 1, 1)), np.array([3.0, 0.0]), (1, 2), 1)
    np.testing.assert_allclose(painted, [[[1.5, 3 * 0.5 / 1.5]]])


def test_values_of_a_cell_stand_in_its_rows_and_columns() -> None:
    values = np.array([[[1.0, 2.0], [3.0, 4.0]]])
    np.testing.assert_array_equal(paint(made((0, 0, 1, 1)), values, (2, 2), 1)[0], values[0])
    np.testing.assert_array_equal(paint(made((0, 0, 1, 1)), values, (4, 2), 1)[0], np.repeat(values[0], 2, axis=0))
    np.testing.assert_array_equal(paint(made((0, 0, 1, 1)), values, (1, 1), 1), [[[2.5]]])
    # Half of the patch is padding above the picture: only its lower values are on it.
    partly = made((0, -1, 1, 1))
    np.testing.assert_array_equal(partly.box, [[0, 0, 1, 1]])
    np.testing.assert_array_equal(paint(partly, values, (1, 2), 1), [[[3, 4]]])


def test_pictures_are_kept_apart_and_rows_on_none_left_out() -> None:
    cells = made((0, 0, 1, 1), (0, 0, 1, 1), (0, 0, 1, 1), picture=[1, -1, 0])
    assert np.isnan(cells.box[1]).all()
    painted = paint(cells, np.array([1.0, 99.0, 2.0]), (2, 2), 3)
    np.testing.assert_array_equal(painted[:2], [np.full((2, 2), 2.0), np.full((2, 2), 1.0)])
    assert np.isnan(painted[2]).all()
    np.testing.assert_array_equal(sample(painted, cells), [1, np.nan, 2])


@pytest.mark.parametrize("size", [(7, 5), (40, 64), (3, 200)])
def test_mass_is_kept(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    across, down = (np.array([0, *np.sort(rng.uniform(0, 1, 5)), 1]) for _ in range(2))
    boxes = [(across[c], down[r], across[c + 1], down[r + 1]) for r in range(6) for c in range(6)]
    values, areas = rng.normal(size=36), np.array([(box[2] - box[0]) * (box[3] - box[1]) for box in boxes])
    painted = paint(made(*boxes), values, size, 1)
    assert painted.mean() == pytest.approx((values * areas).sum())
    fine = rng.normal(size=(36, 3, 3))
    assert paint(made(*boxes), fine, size, 1).mean() == pytest.approx((fine.mean((1, 2)) * areas).sum())


def test_a_map_is_read_by_the_area_of_each_box() -> None:
    painted = np.array([[[1.0, 2.0], [3.0, np.nan]]])
    cells = made((0, 0, 0.5, 0.5), (0, 0, 1, 0.5), (0, 0, 0.75, 0.5), (0, 0, 1, 1), (0.5, 0.5, 1, 1))
    np.testing.assert_allclose(sample(painted, cells), [1, 1.5, (1 + 2 * 0.5) / 1.5, 2, np.nan])


def test_what_was_painted_is_read_again() -> None:
    boxes = [(c / 4, r / 3, (c + 1) / 4, (r + 1) / 3) for r in range(3) for c in range(4)]
    values = np.arange(12.0)
    np.testing.assert_allclose(sample(paint(made(*boxes), values, (30, 40), 1), made(*boxes)), values)


def test_a_token_stands_on_the_box_around_its_patches() -> None:
    cells = made((0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), (0, 0, 1, 1), (9, 9, 9, 9), picture=[0, 0, 1, -1])
    token_cells = united(cells, np.array([[0, 1], [2, -1], [3, 0], [-1, 3]]))
    np.testing.assert_array_equal(token_cells.picture, [0, 1, 0, -1])
    np.testing.assert_array_equal(token_cells.box[:3], [[0, 0, 1, 0.5], [0, 0, 1, 1], [0, 0, 0.5, 0.5]])
    assert np.isnan(token_cells.box[3]).all()
    with pytest.raises(ModelError, match="patches of one picture"):
        united(cells, np.array([[0, 2]]))


def test_what_does_not_fit_together() -> None:
    cells = made((0, 0, 1, 1), picture=[2])
    with pytest.raises(ModelError, match=r"Expected 1 values, one or p x p for each cell, got \(2,\)"):
        paint(cells, np.ones(2), (2, 2), 3)
    with pytest.raises(ModelError, match="Expected cells on 2 pictures, got one on picture 2"):
        paint(cells, np.ones(1), (2, 2), 2)
    with pytest.raises(ModelError, match="got one on picture 2"):
        sample(np.ones((2, 2, 2)), cells)
    with pytest.raises(ModelError, match=r"Expected a map \(pictures, height, width\)"):
        sample(np.ones((2, 2)), cells)
    with pytest.raises(ModelError, match="Expected `picture`"):
        Cells(np.zeros(2, int), np.zeros((1, 4)), np.zeros((2, 4)))


# -- neighbours ---------------------------------------------------------------------------------------------------


def grid(rows: int, columns: int, box: tuple[float, float, float, float] = (0, 0, 1, 1)) -> list[Any]:
    """Boxes of patches, row by row, over a part of a picture."""
    across, down = np.linspace(box[0], box[2], columns + 1), np.linspace(box[1], box[3], rows + 1)
    return [(across[c], down[r], across[c + 1], down[r + 1]) for r in range(rows) for c in range(columns)]


@pytest.mark.parametrize(("rows", "columns", "edge"), [(27, 27, 2), (24, 24, 2), (37, 37, 3), (20, 60, 3), (14, 14, 1)])
def test_neighbours_are_square_blocks(rows: int, columns: int, edge: int) -> None:
    groups = neighbourhoods(made(*grid(rows, columns)), 196)
    places = np.stack(np.divmod(np.arange(rows * columns), columns), axis=1)
    blocks = np.unique(places // edge, axis=0)
    assert sorted(set(groups.tolist())) == list(range(len(blocks))) and len(blocks) <= 196
    for number in range(len(blocks)):
        own = places[groups == number]
        assert (np.ptp(own, axis=0) < edge).all() and len(np.unique(own // edge, axis=0)) == 1


def test_neighbours_are_of_one_slice() -> None:
    boxes = [box for _ in range(32) for box in grid(27, 27)]
    cells = made(*boxes, picture=np.repeat(np.arange(32), 27**2).tolist())
    groups = neighbourhoods(cells, 196)
    assert groups.max() + 1 == 32 * 4  # a quarter of a slice each
    for number in range(groups.max() + 1):
        assert len(set(cells.picture[groups == number].tolist())) == 1
    assert neighbourhoods(cells, 3).max() + 1 == 32  # no fewer than there are slices


def test_tiles_and_the_thumbnail_are_hidden_together() -> None:
    """Two tiles of 4 x 4 patches beside each other, a thumbnail of 4 x 4 of the whole, and padding."""
    boxes = [*grid(4, 4, (0, 0, 0.5, 1)), *grid(4, 4, (0.5, 0, 1, 1)), *grid(4, 4), (0, 0, 1, 1), (0, 0, 1, 1)]
    cells = made(*boxes, picture=[0] * 48 + [-1, -1])
    assert neighbourhoods(cells, 50).tolist() == list(range(50))
    groups = neighbourhoods(cells, 9)
    assert groups[48] == groups[49] and groups.max() + 1 == 9
    for number in set(groups[:48].tolist()):
        own = cells.box[groups == number]
        middles = (own[:, :2] + own[:, 2:]) / 2
        assert len(own) == 6 and (np.ptp(middles, axis=0) < (0.25, 0.5)).all()
