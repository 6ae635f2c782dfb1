from __future__ import annotations

import numpy as np
import pytest

from pyimgano_dask.defects.smoothing import smooth
from pyimgano_dask.settings.defects import MapSmoothing

SPIKE = np.zeros((5, 5), np.float32)
SPIKE[2, 2] = 9


@pytest.mark.parametrize(
    "smoothing",
    [
        MapSmoothing(method="none", ksize=5, sigma=2.0),
        MapSmoothing(method="median", ksize=1),
        MapSmoothing(method="box", ksize=1, sigma=2.0),
        MapSmoothing(method="box", ksize=0, sigma=2.0),
        MapSmoothing(method="gaussian", ksize=0, sigma=0.0),
    ],
)
def test_settings_that_ask_for_nothing_leave_the_map(smoothing: MapSmoothing) -> None:
    np.testing.assert_array_equal(smooth(SPIKE, smoothing), SPIKE)


def test_box_spreads_a_spike_evenly() -> None:
    expected = np.zeros((5, 5), np.float32)
    expected[1:4, 1:4] = 1

    np.testing.assert_allclose(smooth(SPIKE, MapSmoothing(method="box", ksize=3)), expected, atol=1e-6)


def test_an_even_box_is_taken_as_it_is() -> None:
    spread = smooth(SPIKE, MapSmoothing(method="box", ksize=2))

    assert np.argwhere(spread > 1e-3).tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]


def test_median_removes_a_spike() -> None:
    assert not smooth(SPIKE, MapSmoothing(method="median", ksize=3)).any()


@pytest.mark.parametrize("method", ["median", "gaussian"])
def test_an_even_ksize_is_raised_by_one(method: str) -> None:
    noise = np.random.default_rng(1).random((9, 9), dtype=np.float32)
    even, odd = (smooth(noise, MapSmoothing(method=method, ksize=ksize, sigma=1.0)) for ksize in (4, 5))

    np.testing.assert_array_equal(even, odd)
    assert not np.array_equal(even, noise)


@pytest.mark.parametrize(("ksize", "sigma"), [(0, 1.5), (3, 0.0), (3, 1.5)])
def test_gaussian_keeps_the_sum_and_lowers_the_peak(ksize: int, sigma: float) -> None:
    wide = np.zeros((31, 31), np.float32)
    wide[15, 15] = 1

    spread = smooth(wide, MapSmoothing(method="gaussian", ksize=ksize, sigma=sigma))

    assert spread.sum() == pytest.approx(1, abs=1e-5)
    assert spread.max() == spread[15, 15] < 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1)])
@pytest.mark.parametrize(("method", "ksize"), [("median", 5), ("box", 9), ("gaussian", 9)])
def test_a_kernel_larger_than_the_map_leaves_a_constant_map_constant(
    shape: tuple[int, int], method: str, ksize: int
) -> None:
    flat = np.full(shape, 0.25, np.float32)

    np.testing.assert_allclose(smooth(flat, MapSmoothing(method=method, ksize=ksize, sigma=2.0)), flat, rtol=1e-6)
