from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from pyimgano_dask.defects.morphology import closed, fill_holes, opened
from tests.defects import reference
from tests.defects.strategies import masks


def grid(*rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows]).astype(np.uint8)


def test_opening_removes_what_is_smaller_than_the_square() -> None:
    mask = grid("###..", "###.#", "###..")

    np.testing.assert_array_equal(opened(mask, 3), grid("###..", "###..", "###.."))


def test_closing_fills_gaps_smaller_than_the_square_and_comes_after_opening() -> None:
    pair, joined = np.pad(grid(*["###.###"] * 3), 3), np.pad(grid(*["#######"] * 3), 3)

    np.testing.assert_array_equal(closed(pair, 3), joined)
    np.testing.assert_array_equal(closed(opened(pair, 3), 3), joined)
    assert not closed(opened(pair, 5), 3).any()


def test_an_even_square_moves_what_it_leaves_by_a_pixel() -> None:
    mask = grid(".....", ".##..", ".##..", ".....")
    moved = grid(".....", ".....", "..##.", "..##.")

    np.testing.assert_array_equal(opened(mask, 2), moved)
    np.testing.assert_array_equal(closed(mask, 2), moved)


@pytest.mark.parametrize("ksize", [0, 1])
def test_squares_without_extent_do_nothing(ksize: int) -> None:
    mask = grid("#.#", ".#.")

    np.testing.assert_array_equal(closed(opened(mask, ksize), ksize), mask)


@pytest.mark.parametrize("ksize", [6, 7, 40, 10**9])
def test_a_square_larger_than_the_map_opens_to_nothing_and_closes_to_everything(ksize: int) -> None:
    mask = grid("#.#", ".#.")

    assert not opened(mask, ksize).any()
    assert closed(mask, ksize).all()
    assert closed(opened(np.ones_like(mask), ksize), ksize).all()


def test_a_hole_closed_by_corners_is_filled_and_one_at_the_edge_is_not() -> None:
    mask = grid(".#...#.", "#.#..##", ".#.....")

    np.testing.assert_array_equal(fill_holes(mask), grid(".#...#.", "###..##", ".#....."))


def test_an_island_in_a_hole_is_filled_with_it() -> None:
    mask = np.ones((7, 7), np.uint8)
    mask[1:6, 1:6] = 0
    mask[3, 3] = 1

    assert fill_holes(mask).all()


@given(masks())
def test_filling_agrees_with_a_search_from_the_edge(mask: np.ndarray) -> None:
    before = mask.copy()

    filled = fill_holes(mask)

    np.testing.assert_array_equal(filled, reference.fill_holes(mask))
    np.testing.assert_array_equal(fill_holes(filled), filled)
    np.testing.assert_array_equal(mask, before)
