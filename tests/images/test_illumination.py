"""Illumination and contrast correction against the formulas in plain numpy, on any image."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from pyimgano_dask.images.illumination import (
    clahe,
    contrast_stretch,
    gamma_correction,
    gray_world,
    homomorphic_filter,
    max_rgb,
)
from tests.images.samples import smooth_noise

Pixels = NDArray[np.uint8]

DEFAULTS = {"cutoff": 0.5, "gamma_low": 0.7, "gamma_high": 1.5, "c": 1.0, "per_channel": True}
STEPS: dict[str, Callable[[Pixels], Pixels]] = {
    "gray_world": gray_world,
    "max_rgb": max_rgb,
    "homomorphic": lambda image: homomorphic_filter(image, **DEFAULTS),
    "homomorphic of the intensity": lambda image: homomorphic_filter(image, **{**DEFAULTS, "per_channel": False}),
    "clahe": lambda image: clahe(image, 2.0, (8, 8)),
    "gamma": lambda image: gamma_correction(image, 1.4),
    "contrast_stretch": lambda image: contrast_stretch(image, 2.0, 98.0),
}
every_step = pytest.mark.parametrize("step", STEPS.values(), ids=list(STEPS))

SIZES = st.tuples(st.integers(1, 24), st.integers(1, 24))
SHAPES = SIZES | SIZES.map(lambda hw: (*hw, 3))
RGB_IMAGES = hnp.arrays(np.uint8, SIZES.map(lambda hw: (*hw, 3)))
IMAGES = hnp.arrays(np.uint8, SHAPES)


def channels_of(image: Pixels) -> list[Pixels]:
    return [image] if image.ndim == 2 else [image[..., channel] for channel in range(3)]


def stacked(channels: list[Pixels], like: Pixels) -> Pixels:
    return channels[0] if like.ndim == 2 else np.stack(channels, axis=2)


def cut(values: NDArray[np.floating]) -> Pixels:
    return np.clip(values, 0, 255).astype(np.uint8)


@every_step
@given(image=IMAGES)
def test_an_image_of_its_shape_comes_out_and_what_went_in_stays(
    step: Callable[[Pixels], Pixels], image: Pixels
) -> None:
    before = image.copy()
    answer = step(image)
    assert (answer.dtype, answer.shape) == (image.dtype, image.shape)
    assert answer is image or not np.shares_memory(answer, image)
    np.testing.assert_array_equal(image, before)


@every_step
@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (1, 9, 3), (9, 1), (17, 23), (17, 23, 3)], ids=str)
@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_a_flat_image_stays_flat(step: Callable[[Pixels], Pixels], shape: tuple[int, ...], level: int) -> None:
    image = np.full(shape, level, np.uint8)
    answer = step(image)
    assert np.ptp(answer) <= (1 if level in (1, 128) else 0), "rounding of the Fourier transform at most"


@every_step
def test_memory_of_any_order_is_read_alike(step: Callable[[Pixels], Pixels]) -> None:
    image = smooth_noise(3, 30, 40, 3)
    np.testing.assert_array_equal(step(np.asfortranarray(image)), step(image))


@every_step
def test_bytes_do_not_depend_on_the_number_of_threads(step: Callable[[Pixels], Pixels]) -> None:
    image = smooth_noise(4, 211, 307, 3)
    before = cv2.getNumThreads()
    try:
        answers = []
        for count in (1, 3):
            cv2.setNumThreads(count)
            answers.append(step(image))
    finally:
        cv2.setNumThreads(before)
    np.testing.assert_array_equal(*answers)


@given(image=RGB_IMAGES)
def test_gray_world_makes_the_means_of_the_channels_one(image: Pixels) -> None:
    means = np.array([np.float32(int(channel.sum(dtype=np.int64)) / channel.size) for channel in channels_of(image)])
    gains = means.mean() / np.maximum(means, np.float32(1e-6))
    np.testing.assert_array_equal(gray_world(image), cut(image.astype(np.float32) * gains))


def test_gray_world_takes_away_a_colour_cast() -> None:
    grey = smooth_noise(5, 60, 60) // 2
    cast = (grey[..., None] * np.array([1.0, 0.8, 0.5])).astype(np.uint8)
    means = gray_world(cast).mean(axis=(0, 1))
    assert np.ptp(means) < 1 < np.ptp(cast.mean(axis=(0, 1)))


def test_means_are_exact_where_sums_in_float32_are_not() -> None:
    image = np.full((6000, 3000, 3), 255, np.uint8)
    image[..., 2] = 254
    assert gray_world(image)[0, 0].tolist() == [254, 254, 254]


@given(image=RGB_IMAGES)
def test_max_rgb_makes_the_largest_values_of_the_channels_one(image: Pixels) -> None:
    largest = image.reshape(-1, 3).max(axis=0).astype(np.float32)
    gains = largest.max() / np.maximum(largest, np.float32(1e-6))
    np.testing.assert_array_equal(max_rgb(image), cut(image.astype(np.float32) * gains))


@given(image=hnp.arrays(np.uint8, SIZES))
def test_white_balance_leaves_grey_images_alone(image: Pixels) -> None:
    assert gray_world(image) is image
    assert max_rgb(image) is image


@given(image=IMAGES, gamma=st.floats(0.05, 20))
def test_gamma_is_the_power_of_each_level(image: Pixels, gamma: float) -> None:
    table = np.array([int((level / 255) ** (1 / gamma) * 255) for level in range(256)], np.uint8)
    np.testing.assert_array_equal(gamma_correction(image, gamma), table[image])


@pytest.mark.parametrize("gamma", [5e-324, 1e-300, 1e300])
def test_gammas_without_measure_are_black_or_white(gamma: float) -> None:
    levels = gamma_correction(np.arange(256, dtype=np.uint8)[None], gamma)[0]
    assert levels.tolist() == ([0, *[255] * 255] if gamma > 1 else [*[0] * 255, 255])


@given(image=IMAGES, percentiles=st.tuples(st.floats(0, 100), st.floats(0, 100)).map(sorted))
def test_contrast_stretch_maps_the_percentiles_to_black_and_white(image: Pixels, percentiles: list[float]) -> None:
    assume(percentiles[0] < percentiles[1])
    expected = []
    for channel in channels_of(image):
        low, high = np.percentile(channel, percentiles)
        expected.append(channel if low == high else cut((channel - low) * 255.0 / (high - low)))
    np.testing.assert_array_equal(contrast_stretch(image, *percentiles), stacked(expected, image))


@pytest.mark.parametrize(
    ("row", "percentiles"),
    [
        ([193, 56, 135, 22, 202], (73, 75)),
        ([139, 218, 51, 111, 158], (15, 40)),
        ([18, 12, 78, 201], (4, 44)),
        ([35, 168, 183, 249, 61], (59, 76)),
    ],
)
def test_percentiles_round_as_numpy_s_where_a_level_hangs_on_it(row: list[int], percentiles: tuple[int, int]) -> None:
    """Here levels are whole numbers but for the last bit of a percentile."""
    image = np.array([row], np.uint8)
    low, high = np.percentile(image, percentiles)
    np.testing.assert_array_equal(contrast_stretch(image, *percentiles), cut((image - low) * 255.0 / (high - low)))


@given(image=hnp.arrays(np.uint8, SIZES), clip_limit=st.floats(0.01, 300), grid=st.tuples(*[st.integers(1, 12)] * 2))
def test_clahe_of_a_grey_image_is_that_of_opencv(image: Pixels, clip_limit: float, grid: tuple[int, int]) -> None:
    expected = cv2.createCLAHE(clip_limit, grid).apply(image)
    np.testing.assert_array_equal(clahe(image, clip_limit, grid), expected)


@given(image=RGB_IMAGES)
def test_clahe_of_a_colour_image_scales_the_colours_with_the_intensity(image: Pixels) -> None:
    mean = image.astype(np.float32).sum(axis=2) / np.float32(3)
    equalised = cv2.createCLAHE(2.0, (4, 3)).apply(mean.astype(np.uint8)).astype(np.float32)
    expected = cut(image * (equalised / np.maximum(mean, np.float32(1)))[..., None])
    np.testing.assert_array_equal(clahe(image, 2.0, (4, 3)), expected)


@pytest.mark.parametrize("clip_limit", [256.0, 1e300])
def test_a_clip_limit_beyond_all_histograms_clips_nothing(clip_limit: float) -> None:
    image = smooth_noise(6, 50, 70)
    np.testing.assert_array_equal(clahe(image, clip_limit, (3, 2)), cv2.createCLAHE(255.9, (3, 2)).apply(image))


def filtered_in_float64(channel: Pixels, cutoff: float, gamma_low: float, gamma_high: float, c: float) -> Pixels:
    """The homomorphic filter by the full transform in double precision."""
    logs = np.log(np.maximum(channel / 255.0, 1e-6))
    height, width = channel.shape
    rows, columns = np.ogrid[:height, :width]
    distance_squared = (rows - height // 2) ** 2 + (columns - width // 2) ** 2
    radius_squared = max((cutoff * max(height, width) / 2) ** 2, 1e-6)
    gains = (gamma_high - gamma_low) * (1 - np.exp(-c * distance_squared / radius_squared)) + gamma_low
    spectrum = np.fft.fftshift(np.fft.fft2(logs)) * gains
    return cut(np.exp(np.minimum(np.fft.ifft2(np.fft.ifftshift(spectrum)).real, 0)) * 255)


GAINS = st.fixed_dictionaries(
    {"cutoff": st.floats(1e-9, 1), "gamma_low": st.floats(0, 3), "gamma_high": st.floats(0, 3), "c": st.floats(0, 9)}
)


@given(image=IMAGES, gains=GAINS)
def test_the_homomorphic_filter_is_that_of_the_full_transform(image: Pixels, gains: dict[str, float]) -> None:
    answer = homomorphic_filter(image, **gains, per_channel=True)
    expected = stacked([filtered_in_float64(channel, **gains) for channel in channels_of(image)], image)
    assert np.abs(answer.astype(int) - expected).max() <= 1, "a level where a fraction is cut off"


@given(image=RGB_IMAGES)
def test_the_homomorphic_filter_of_the_intensity_keeps_the_ratios_of_colours(image: Pixels) -> None:
    settings = {**DEFAULTS, "per_channel": False}
    mean = image.astype(np.float32).sum(axis=2) / np.float32(3)
    intensity = homomorphic_filter(mean.astype(np.uint8), **settings).astype(np.float32)
    expected = cut(image * (intensity / np.maximum(mean, np.float32(1e-6)))[..., None])
    np.testing.assert_array_equal(homomorphic_filter(image, **settings), expected)


def test_hardly_a_level_differs_from_double_precision() -> None:
    image = smooth_noise(7, 331, 257)
    gains = {"cutoff": 0.25, "gamma_low": 0.8, "gamma_high": 1.2, "c": 1.0}
    answer = homomorphic_filter(image, **gains, per_channel=True)
    assert np.mean(answer != filtered_in_float64(image, **gains)) < 2e-3


def test_the_homomorphic_filter_evens_out_a_slope_of_light() -> None:
    texture = 90 + smooth_noise(8, 120, 200) // 8
    lit = (texture * np.linspace(0.3, 1, 200)).astype(np.uint8)
    even = homomorphic_filter(lit, cutoff=0.1, gamma_low=0.3, gamma_high=1.0, c=1.0, per_channel=True)
    columns = even.mean(axis=0)
    before = lit.mean(axis=0)
    assert np.ptp(columns[20:-20]) / columns.mean() < 0.6 * np.ptp(before[20:-20]) / before.mean()


def test_no_float_copy_of_a_large_image_is_cut_into_the_wrong_bands() -> None:
    image = np.tile(smooth_noise(9, 40, 50, 3), (30, 40, 1))
    assert image.shape[0] * image.shape[1] > 1 << 20
    mean = image.astype(np.float32).sum(axis=2) / np.float32(3)
    equalised = cv2.createCLAHE(2.0, (8, 8)).apply(mean.astype(np.uint8)).astype(np.float32)
    expected = cut(image * (equalised / np.maximum(mean, np.float32(1)))[..., None])
    np.testing.assert_array_equal(clahe(image, 2.0, (8, 8)), expected)
