from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyimgano_dask.defects.image_space import boxes_to_image

SIDES = st.tuples(st.integers(1, 300), st.integers(1, 300))


@given(SIDES, SIDES, st.data())
def test_edges_are_scaled_exactly_and_clamped(
    map_hw: tuple[int, int], image_hw: tuple[int, int], data: st.DataObject
) -> None:
    (map_h, map_w), (height, width) = map_hw, image_hw
    x1, x2 = sorted(data.draw(st.tuples(*[st.integers(0, map_w - 1)] * 2)))
    y1, y2 = sorted(data.draw(st.tuples(*[st.integers(0, map_h - 1)] * 2)))

    [box] = boxes_to_image(np.array([[x1, y1, x2, y2]]), map_hw, image_hw).tolist()

    assert box == [
        min(floor(Fraction(x1 * width, map_w)), width - 1),
        min(floor(Fraction(y1 * height, map_h)), height - 1),
        min(ceil(Fraction((x2 + 1) * width, map_w)) - 1, width - 1),
        min(ceil(Fraction((y2 + 1) * height, map_h)) - 1, height - 1),
    ]
    assert box[0] <= box[2]
    assert box[1] <= box[3]


@given(SIDES)
def test_the_whole_map_becomes_the_whole_image(map_hw: tuple[int, int]) -> None:
    whole = np.array([[0, 0, map_hw[1] - 1, map_hw[0] - 1]])

    assert boxes_to_image(whole, map_hw, (77, 123)).tolist() == [[0, 0, 122, 76]]


@pytest.mark.parametrize(
    ("image_hw", "expected"), [((8, 8), [2, 4, 3, 7]), ((2, 2), [0, 1, 0, 1]), ((6, 6), [1, 3, 2, 5])]
)
def test_known_boxes(image_hw: tuple[int, int], expected: list[int]) -> None:
    assert boxes_to_image(np.array([[1, 2, 1, 3]]), (4, 4), image_hw).tolist() == [expected]


def test_no_boxes_stay_no_boxes() -> None:
    assert boxes_to_image(np.zeros((0, 4), np.int64), (4, 4), (8, 8)).shape == (0, 4)
