"""The filter bank against sums written out in float64 numpy."""

from __future__ import annotations

from math import factorial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyimgano_dask.detectors.filter_bank import (
    QUANTUM,
    FilterBank,
    blur,
    derivative,
    gaussian_derivative,
    shrink,
    shrunk,
)

Floats = NDArray[np.float64]

ORDERS = [(1, 0), (0, 1), (2, 0), (0, 2), (1, 1)]
SMALL: dict[str, Any] = {"levels": (1,), "stride": 4, "window_px": 4.0, "light": "log", "in_colour": False}


def bank(**arguments: Any) -> FilterBank:
    return FilterBank(**{**SMALL, **arguments})


def values(image: NDArray[np.uint8], **arguments: Any) -> Floats:
    return bank(**arguments).features(image) / QUANTUM


def noise(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def correlate(plane: Floats, kernel: Floats, axis: int) -> Floats:
    """Sum of kernel · shifted plane along an axis, the border mirrored with the edge pixel twice."""
    radius, size = len(kernel) // 2, plane.shape[axis]
    pad = [(radius, radius) if side == axis else (0, 0) for side in range(2)]
    padded = np.pad(plane, pad, mode="symmetric")
    return sum(weight * padded.take(range(k, k + size), axis) for k, weight in enumerate(kernel))


def filtered(plane: Floats, sigma: float, dx: int, dy: int) -> Floats:
    along_x, along_y = (gaussian_derivative(sigma, order).astype(np.float64) for order in (dx, dy))
    return correlate(correlate(plane, along_x, 1), along_y, 0)


def block_means(plane: Floats, factor: int) -> Floats:
    height, width = plane.shape
    return plane.reshape(height // factor, factor, width // factor, factor).mean(axis=(1, 3))


@pytest.mark.parametrize("sigma", [0.25, 0.7, 1.0, 2.0, 3.3])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_kernels_differentiate_polynomials_exactly(sigma: float, order: int) -> None:
    kernel = gaussian_derivative(sigma, order).astype(np.float64)
    x = np.arange(len(kernel)) - len(kernel) // 2
    for power in range(order + 1):
        expected = sigma**order if power == order else 0
        assert kernel @ x.astype(np.float64) ** power / factorial(power) == pytest.approx(expected, abs=1e-5)


def test_kernels_are_sampled_derivatives_of_a_gaussian() -> None:
    sigma, x = 2.0, np.arange(-8, 9)
    gauss = np.exp(-(x**2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(gaussian_derivative(sigma, 0), gauss, rtol=2e-3)
    np.testing.assert_allclose(gaussian_derivative(sigma, 1), x / sigma * gauss, atol=2e-3)
    np.testing.assert_allclose(gaussian_derivative(sigma, 2), (x**2 / sigma**2 - 1) * gauss, atol=4e-3)


@pytest.mark.parametrize(("dx", "dy"), ORDERS)
@pytest.mark.parametrize("size_hw", [(20, 31), (5, 3), (1, 1), (1, 9)])
def test_derivatives_are_correlations_with_a_mirrored_border(dx: int, dy: int, size_hw: tuple[int, int]) -> None:
    plane = np.random.default_rng(0).normal(size=size_hw)
    got = derivative(plane.astype(np.float32), 1.5, dx, dy)
    np.testing.assert_allclose(got, filtered(plane, 1.5, dx, dy), atol=2e-6)


def test_blur_is_a_mean() -> None:
    plane = np.random.default_rng(0).normal(size=(9, 40))
    np.testing.assert_allclose(blur(plane.astype(np.float32), 2), filtered(plane, 2, 0, 0), atol=2e-6)
    np.testing.assert_allclose(blur(np.full((7, 5), 3, dtype=np.float32), 4), 3, rtol=1e-6)


@given(size=st.integers(1, 10_000), factor=st.integers(1, 64))
def test_sides_shrink_by_the_factor_and_never_to_nothing(size: int, factor: int) -> None:
    assert shrunk(size, 1) == size
    assert shrunk(size, factor) == max(1, int(np.floor(size / factor + 0.5)))


def test_shrinking_takes_block_means() -> None:
    plane = np.random.default_rng(0).normal(size=(12, 20))
    np.testing.assert_allclose(shrink(plane.astype(np.float32), (3, 5)), block_means(plane, 4), atol=1e-6)


@pytest.mark.parametrize("light", ["log", "linear"])
def test_features_follow_the_formula(light: str) -> None:
    image = np.kron(noise(0, 16, 20), np.ones((2, 2), dtype=np.uint8))  # halves exactly
    small = block_means(image.astype(np.float64), 2)
    plane = np.log(small + 8) if light == "log" else small / 64
    expected = []
    for level in (0, 1):
        at_level = block_means(plane, 2**level)
        for dx, dy in ORDERS:
            energy = block_means(filtered(at_level, 1, dx, dy) ** 2, 2 ** (1 - level))
            expected.append(np.log(filtered(energy, 1.5, 0, 0) + 1e-4))
    lattice = block_means(plane, 2)
    expected.append(filtered(lattice, 1.5, 0, 0))
    expected += [filtered(lattice, 1.5, 1, 0), filtered(lattice, 1.5, 0, 1)]

    got = values(image, levels=(2, 1), window_px=6.0, light=light)

    assert got.shape == (bank(levels=(1, 2)).n_features, 8, 10)
    np.testing.assert_allclose(got, expected, atol=0.6 / QUANTUM)


def test_colour_adds_means_and_spreads_of_two_differences() -> None:
    image = noise(0, 16, 24, 3)
    log = np.log(image.astype(np.float64) + 8)
    red, green, blue = (log[..., channel] for channel in range(3))
    expected = []
    for plane in (red - green, (red + green) / 2 - blue):
        mean = filtered(block_means(plane, 4), 1, 0, 0)
        expected += [mean, np.log(filtered(block_means(plane**2, 4), 1, 0, 0) - mean**2 + 1e-4)]

    got = values(image, levels=(0,), in_colour=True)

    assert len(got) == bank(levels=(0,), in_colour=True).n_features
    np.testing.assert_allclose(got[-4:], expected, atol=0.6 / QUANTUM)


def test_grey_in_three_channels_has_the_features_of_grey() -> None:
    image = noise(0, 30, 41)
    got = values(np.repeat(image[..., None], 3, axis=2), in_colour=True)
    np.testing.assert_allclose(got[:-4], values(image), atol=2 / QUANTUM)
    assert (got[[-4, -2]] == 0).all()


def test_a_change_of_light_by_a_factor_changes_the_mean_alone() -> None:
    image = noise(0, 40, 40) // 4
    change = values(3 * image + 16, levels=(0,)) - values(image, levels=(0,))
    expected = np.zeros(len(change))
    expected[5] = np.log(3)
    np.testing.assert_allclose(change, np.broadcast_to(expected[:, None, None], change.shape), atol=1.1 / QUANTUM)


def test_stripes_have_energy_across_and_none_along() -> None:
    stripes = np.zeros((32, 32), dtype=np.uint8)
    stripes[:, ::4] = 200
    x, y, xx, yy, xy = values(stripes, levels=(0,))[:5].mean(axis=(1, 2))
    floor = np.log(1e-4)
    assert [y, yy, xy] == pytest.approx([floor] * 3, abs=0.01)
    assert min(x, xx) > floor + 5


@pytest.mark.parametrize("grey", [0, 77, 255])
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 50), (64, 33)])
def test_a_flat_image_has_the_floor_and_its_mean(grey: int, size_hw: tuple[int, int]) -> None:
    got = values(np.full(size_hw, grey, dtype=np.uint8), levels=(0, 1, 2))
    np.testing.assert_allclose(got[:15], np.log(1e-4), atol=1 / QUANTUM)
    np.testing.assert_allclose(got[15], np.log(grey + 8), atol=1 / QUANTUM)
    np.testing.assert_allclose(got[16:], 0, atol=1 / QUANTUM)


def test_a_mirrored_image_has_mirrored_features() -> None:
    image = noise(0, 24, 32)
    got, mirrored = values(image), values(np.ascontiguousarray(image[:, ::-1]))[:, :, ::-1]
    odd = [6]
    np.testing.assert_allclose(np.delete(mirrored, odd, axis=0), np.delete(got, odd, axis=0), atol=1.1 / QUANTUM)
    np.testing.assert_allclose(mirrored[odd], -got[odd], atol=1.1 / QUANTUM)


@pytest.mark.parametrize(("size_hw", "sites_hw"), [((1, 1), (1, 1)), ((16, 17), (4, 4)), ((18, 100), (5, 25))])
def test_there_is_a_site_every_stride(size_hw: tuple[int, int], sites_hw: tuple[int, int]) -> None:
    assert bank().sites_hw(*size_hw) == sites_hw
    assert bank().features(noise(0, *size_hw)).shape == (bank().n_features, *sites_hw)
