"""The aligned-pixel detectors against their formulas, written out in plain float64 numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from pyimgano_dask.detectors.differences import topk_mean
from pyimgano_dask.detectors.registry import find_detector_type

Floats = NDArray[np.float64]

MEAN = "vision_pixel_mean_absdiff_map"
GAUSSIAN = "vision_pixel_gaussian_map"
MAD = "vision_pixel_mad_map"

SIZE_HW = (12, 18)
HALF_HW = (6, 9)


def draw(seed: int, n: int, size_hw: tuple[int, int] = SIZE_HW, color: str = "gray") -> NDArray[np.uint8]:
    shape = (n, *size_hw) if color == "gray" else (n, *size_hw, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def halve(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Area interpolation to half the size: means of 2 x 2 pixels, halves rounded up."""
    n, height, width = images.shape[:3]
    blocks = images.reshape(n, height // 2, 2, width // 2, 2, *images.shape[3:]).astype(np.float64)
    return np.floor(blocks.mean(axis=(2, 4)) + 0.5).astype(np.uint8)


def bilinear(values: Floats, size_hw: tuple[int, int]) -> Floats:
    """Bilinear interpolation with aligned pixel centres; the border values go on outside."""
    for axis, size in enumerate(size_hw):
        old = values.shape[axis]
        place = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
        low = np.floor(place).astype(int)
        share = (place - low)[:, None] if axis == 0 else (place - low)[None, :]
        after = np.minimum(low + 1, old - 1)
        values = values.take(low, axis) * (1 - share) + values.take(after, axis) * share
    return values


def anomaly(name: str, train: NDArray[np.uint8], image: NDArray[np.uint8], **arguments: Any) -> Floats:
    """The formula of each detector at the common size, before channels are reduced."""
    normal, x = train.astype(np.float64), image.astype(np.float64)
    if name == MEAN:
        return np.clip(np.abs(x - normal.mean(axis=0)) / 255, 0, 1)
    if name == GAUSSIAN:
        std = normal.std(axis=0, ddof=1) if len(train) > 1 else np.zeros(train.shape[1:])
        return np.abs(x - normal.mean(axis=0)) / (np.maximum(std, arguments.get("std_floor", 1.0)) + 1e-6)
    median = np.median(normal, axis=0)
    mad = np.median(np.abs(normal - median), axis=0)
    factor = 0.6745 if arguments.get("consistency_correction", True) else 1.0
    return factor * np.abs(x - median) / (np.maximum(mad, arguments.get("mad_floor", 1.0)) + 1e-6)


def reduce_channels(values: Floats, mode: str) -> Floats:
    match mode:
        case "max":
            return values.max(axis=-1)
        case "mean":
            return values.mean(axis=-1)
        case _:
            return np.sqrt(np.square(values).mean(axis=-1))


def score(anomaly_map: Floats, reduction: str, topk: float = 0.01) -> float:
    match reduction:
        case "max":
            return float(anomaly_map.max())
        case "mean":
            return float(anomaly_map.mean())
        case _:
            count = int(np.ceil(topk * anomaly_map.size))
            return float(np.sort(anomaly_map, axis=None)[-count:].mean())


every_detector = pytest.mark.parametrize("name", [MEAN, GAUSSIAN, MAD])


@every_detector
@pytest.mark.parametrize("n_train", [1, 2, 5, 8])
def test_grey_map_and_score_follow_the_formula(name: str, n_train: int) -> None:
    train, test = draw(0, n_train), draw(1, 3)
    detector = find_detector_type(name).create(resize_hw=SIZE_HW).fit(list(train))
    prediction = detector.predict(list(test))
    for image, got, got_score in zip(test, prediction.maps, prediction.scores, strict=True):
        expected = anomaly(name, train, image)
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-7)
        assert got_score == pytest.approx(score(expected, "topk_mean"), rel=2e-6)


@every_detector
@pytest.mark.parametrize("mode", ["max", "mean", "l2"])
def test_channels_are_reduced_as_asked(name: str, mode: str) -> None:
    train, (image,) = draw(0, 5, color="rgb"), draw(1, 1, color="rgb")
    detector = find_detector_type(name).create(resize_hw=SIZE_HW, color="rgb", channel_reduce=mode)
    (got,) = detector.fit(list(train)).predict([image]).maps
    np.testing.assert_allclose(got, reduce_channels(anomaly(name, train, image), mode), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "mode"), [(MEAN, "mean"), (GAUSSIAN, "max"), (MAD, "max")])
def test_channels_are_reduced_by_default_as_in_the_reference(name: str, mode: str) -> None:
    train, (image,) = draw(0, 5, color="rgb"), draw(1, 1, color="rgb")
    (got,) = find_detector_type(name).create(resize_hw=SIZE_HW, color="rgb").fit(list(train)).predict([image]).maps
    np.testing.assert_allclose(got, reduce_channels(anomaly(name, train, image), mode), rtol=2e-6, atol=1e-7)


@every_detector
@pytest.mark.parametrize("reduction", ["max", "mean", "topk_mean"])
def test_the_map_becomes_a_score_as_asked(name: str, reduction: str) -> None:
    train, (image,) = draw(0, 5), draw(1, 1)
    detector = find_detector_type(name).create(resize_hw=SIZE_HW, reduction=reduction, topk=0.13).fit(list(train))
    (got,) = detector.predict([image]).scores
    assert got == pytest.approx(score(anomaly(name, train, image), reduction, 0.13), rel=2e-6)


@every_detector
@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_images_are_compared_small_and_maps_come_back_at_full_size(name: str, color: str) -> None:
    train, (image,) = draw(0, 5, color=color), draw(1, 1, color=color)
    detector = find_detector_type(name).create(resize_hw=HALF_HW, color=color, channel_reduce="max")
    (got,) = detector.fit(list(train)).predict([image]).maps
    small = anomaly(name, halve(train), halve(image[None])[0])
    expected = bilinear(small if color == "gray" else reduce_channels(small, "max"), SIZE_HW)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@every_detector
def test_images_smaller_than_the_common_size_are_enlarged(name: str) -> None:
    flat = np.full((3, 5, 4), 40, dtype=np.uint8)
    detector = find_detector_type(name).create(resize_hw=SIZE_HW).fit(list(flat))
    (got,) = detector.predict([np.full((2, 3), 50, dtype=np.uint8)]).maps
    large = np.full((1, *SIZE_HW), 40, dtype=np.uint8)
    expected = anomaly(name, large, np.full(SIZE_HW, 50, dtype=np.uint8))
    np.testing.assert_allclose(got, bilinear(expected, (2, 3)), rtol=1e-5)


@pytest.mark.parametrize("floor", [0.5, 1.0, 30.0])
def test_a_floor_holds_small_spreads_up(floor: float) -> None:
    train, (image,) = draw(0, 7) // 8, draw(1, 1)
    for name, argument in ((GAUSSIAN, "std_floor"), (MAD, "mad_floor")):
        detector = find_detector_type(name).create(resize_hw=SIZE_HW, **{argument: floor}).fit(list(train))
        (got,) = detector.predict([image]).maps
        np.testing.assert_allclose(got, anomaly(name, train, image, **{argument: floor}), rtol=1e-5)


def test_the_gaussian_divides_by_n_minus_one() -> None:
    train = np.array([[[10]], [[20]]], dtype=np.uint8)
    detector = find_detector_type(GAUSSIAN).create(resize_hw=(1, 1)).fit(list(train))
    (got,) = detector.predict([np.array([[115]], dtype=np.uint8)]).maps
    assert got[0, 0] == pytest.approx(100 / (np.sqrt(50) + 1e-6), rel=1e-6)


def test_the_consistency_correction_can_be_off() -> None:
    train, (image,) = draw(0, 5), draw(1, 1)
    detector = find_detector_type(MAD).create(resize_hw=SIZE_HW, consistency_correction=False).fit(list(train))
    (got,) = detector.predict([image]).maps
    np.testing.assert_allclose(got, anomaly(MAD, train, image, consistency_correction=False), rtol=2e-6)


@given(stack=npst.arrays(np.uint8, st.tuples(st.integers(1, 12), st.just(3), st.just(4))))
def test_median_and_mad_are_those_of_numpy(stack: NDArray[np.uint8]) -> None:
    state = find_detector_type(MAD).create(resize_hw=(3, 4), mad_floor=0, eps=1e-30).fit(list(stack)).state()
    median = np.median(stack, axis=0)
    mad = np.median(np.abs(stack - median), axis=0)
    np.testing.assert_array_equal(state["median"], median.astype(np.float32))
    np.testing.assert_array_equal(state["mad"], np.maximum(mad, 1e-30).astype(np.float32))


def test_mad_takes_a_drawn_128_of_many_training_images() -> None:
    n = 300
    drawn = np.sort(np.random.default_rng(0).choice(n, 128, replace=False))
    detector = find_detector_type(MAD).create(resize_hw=SIZE_HW)
    assert list(detector.select_training(n)) == drawn.tolist()
    assert list(detector.select_training(128)) == list(range(128))

    train, (image,) = draw(0, n), draw(1, 1)
    (got,) = detector.fit(list(train)).predict([image]).maps
    np.testing.assert_allclose(got, anomaly(MAD, train[drawn], image), rtol=2e-6)


def test_the_subsample_follows_its_seed_and_size() -> None:
    detector = find_detector_type(MAD).create(max_train_images=5, random_state=7)
    drawn = np.sort(np.random.default_rng(7).choice(40, 5, replace=False))
    assert list(detector.select_training(40)) == drawn.tolist()


@every_detector
def test_exact_sums_do_not_drift_over_many_images(name: str) -> None:
    train = np.full((128, 2, 2), 255, dtype=np.uint8)
    detector = find_detector_type(name).create(resize_hw=(2, 2)).fit(list(train))
    (got,) = detector.predict([train[0]]).maps
    assert (got == 0).all()


@given(
    values=npst.arrays(
        np.float32, npst.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats(0, 1e6, width=32)
    ),
    topk=st.floats(1e-4, 1),
)
def test_topk_mean_is_the_mean_of_the_largest(values: NDArray[np.float32], topk: float) -> None:
    count = int(np.ceil(topk * values.size))
    expected = np.sort(values, axis=None)[::-1][:count].astype(np.float64).mean()
    assert topk_mean(values, topk) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_topk_mean_of_known_values() -> None:
    values = np.arange(1, 11, dtype=np.float32).reshape(2, 5)
    assert topk_mean(values, 0.01) == 10
    assert topk_mean(values, 0.11) == 9.5
    assert topk_mean(values, 0.3) == 9
    assert topk_mean(values, 1) == 5.5
