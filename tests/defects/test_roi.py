from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyimgano_dask.defects import roi_slices
from pyimgano_dask.defects.roi import without_border, zero_outside

ONES = np.ones((5, 8), np.float32)


@pytest.mark.parametrize(
    ("roi", "rows", "columns"),
    [
        (None, (0, 10), (0, 20)),
        ((0.25, 0.0, 0.75, 0.5), (0, 5), (5, 15)),
        ((0.75, 0.5, 0.25, 0.0), (0, 5), (5, 15)),
        ((-3.0, 0.31, 9.0, 0.39), (3, 4), (0, 20)),
        ((0.5, 0.5, 0.5, 0.5), (5, 5), (10, 10)),
        ((1.5, 0.0, 2.0, 1.0), (0, 10), (20, 20)),
    ],
)
def test_roi_is_clamped_put_in_order_and_widened_to_whole_pixels(
    roi: tuple[float, float, float, float] | None, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    assert roi_slices(roi, (10, 20)) == (slice(*rows), slice(*columns))


@given(st.tuples(*[st.floats(-2, 2)] * 4), st.integers(1, 50), st.integers(1, 50))
def test_roi_lies_in_the_map(roi: tuple[float, float, float, float], height: int, width: int) -> None:
    rows, columns = roi_slices(roi, (height, width))

    assert 0 <= rows.start <= rows.stop <= height
    assert 0 <= columns.start <= columns.stop <= width


def test_zero_outside_keeps_the_inside_only() -> None:
    out = zero_outside(ONES, (slice(1, 3), slice(2, 4)))

    assert np.argwhere(out).tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    assert ONES.all()


@pytest.mark.parametrize(("border_px", "left"), [(0, 40), (1, 18), (2, 4), (3, 0), (4, 0), (10**30, 0)])
def test_without_a_border_the_middle_is_left_or_nothing(border_px: int, left: int) -> None:
    assert ONES[without_border(roi_slices(None, ONES.shape), ONES.shape, border_px)].size == left


def test_a_border_that_meets_in_the_middle_leaves_nothing() -> None:
    assert without_border((slice(0, 4), slice(0, 9)), (4, 9), 2) == (slice(0, 0), slice(0, 0))


@given(st.tuples(*[st.floats(0, 1)] * 4), st.integers(1, 30), st.integers(1, 30), st.integers(0, 20))
def test_a_border_of_a_roi_is_that_of_the_map(
    roi: tuple[float, float, float, float], height: int, width: int, border_px: int
) -> None:
    inside = np.zeros((height, width), np.bool_)
    inside[border_px : max(height - border_px, 0), border_px : max(width - border_px, 0)] = True
    part = roi_slices(roi, (height, width))

    left = np.zeros_like(inside)
    left[without_border(part, (height, width), border_px)] = True

    assert np.array_equal(left, inside & (zero_outside(np.ones_like(inside), part)))
