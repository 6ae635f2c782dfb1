from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyimgano_dask.defects import roi_slices
from pyimgano_dask.defects.roi import zero_border, zero_outside_roi

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


def test_zero_outside_roi_keeps_the_inside_only() -> None:
    out = zero_outside_roi(ONES, (slice(1, 3), slice(2, 4)))

    assert np.argwhere(out).tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    assert ONES.all()


@pytest.mark.parametrize(("border_px", "left"), [(0, 40), (1, 18), (2, 4), (3, 0), (4, 0), (10**30, 0)])
def test_zero_border_leaves_the_middle_or_nothing(border_px: int, left: int) -> None:
    assert zero_border(ONES, border_px).sum() == left


def test_a_border_that_meets_in_the_middle_leaves_nothing() -> None:
    assert not zero_border(np.ones((4, 9), np.float32), 2).any()
