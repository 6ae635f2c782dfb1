"""The images that models are tried on."""

from __future__ import annotations

import numpy as np
import pytest

from pyimgano_dask.detectors.trial_images import smooth_squares


@pytest.mark.parametrize("size", [16, 33, 64, 224])
def test_they_are_smooth_and_differ(size: int) -> None:
    squares = smooth_squares(size)
    assert squares.shape == (3, size, size, 3)
    assert squares.dtype == np.uint8
    assert np.abs(np.diff(squares.astype(int), axis=1)).max() < 100
    for one, other in ((0, 1), (1, 2), (2, 0)):
        assert (squares[one] != squares[other]).mean() > 0.9


@pytest.mark.parametrize("channels", [slice(None), 0], ids=["colour", "grey"])
def test_the_values_of_each_lie_within_those_of_the_one_before(channels: slice | int) -> None:
    wide, middle, narrow = smooth_squares(64)[..., channels]
    assert wide.min() < middle.min() < narrow.min() < narrow.max() < middle.max() < wide.max()
