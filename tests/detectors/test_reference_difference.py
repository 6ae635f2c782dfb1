"""The golden-reference detector on patterns whose shifts, brightness and defects are known."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from pyimgano_dask.detectors.differences import topk_mean
from pyimgano_dask.detectors.reference_difference import ReferenceDifferenceMap
from pyimgano_dask.errors import ConfigError, InputError

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

REGISTRATIONS = ("none", "translation", "local")


def diff(image: Image, reference: Image, **arguments: Any) -> Floats:
    (values,) = ReferenceDifferenceMap.create(**arguments).predict([image], [reference]).maps
    return values


def score(image: Image, reference: Image, **arguments: Any) -> float:
    return float(ReferenceDifferenceMap.create(**arguments).predict([image], [reference]).scores[0])


def texture(seed: int, size_hw: tuple[int, int] = (192, 256), *, dx: float = 0, dy: float = 0) -> Image:
    """A smooth random pattern, sampled `dx`, `dy` pixels further right and down."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size_hw[0], : size_hw[1]].astype(np.float64)
    waves = np.zeros(size_hw)
    for _ in range(40):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        pitch = rng.uniform(9, 60)
        waves += np.sin(2 * np.pi * ((x - dx) * np.cos(angle) + (y - dy) * np.sin(angle)) / pitch + phase)
    return np.clip(np.rint(128 + 14 * waves), 0, 255).astype(np.uint8)


def board(size_hw: tuple[int, int] = (192, 256), *, dx: int = 0, dy: int = 0) -> Image:
    """Tracks and pads, black and white, moved by whole pixels."""
    image = np.full(size_hw, 250, dtype=np.uint8)
    for x in range(16, size_hw[1], 40):
        cv2.line(image, (x + dx, 10 + dy), (x + dx + 12, size_hw[0] - 20 + dy), 5, 5)
        cv2.circle(image, (x + dx, 10 + x // 2 + dy), 9, 5, -1)
    return image


pairs = st.tuples(
    npst.array_shapes(min_dims=2, max_dims=2, max_side=24), npst.array_shapes(min_dims=2, max_dims=2, max_side=24)
).flatmap(lambda sizes: st.tuples(*(npst.arrays(np.uint8, size) for size in sizes)))

anything = st.fixed_dictionaries(
    {
        "registration": st.sampled_from(REGISTRATIONS),
        "tolerance_px": st.integers(0, 4),
        "symmetric": st.booleans(),
        "gain_grid": st.integers(0, 3),
        "reduction": st.sampled_from(["max", "mean", "topk_mean"]),
    }
)


@given(pair=pairs, arguments=anything)
def test_maps_are_finite_never_negative_and_of_the_images_size(
    pair: tuple[Image, Image], arguments: dict[str, Any]
) -> None:
    image, reference = pair
    prediction = ReferenceDifferenceMap.create(**arguments).predict([image], [reference])
    (values,) = prediction.maps
    assert values.dtype == np.float32
    assert values.shape == image.shape
    assert np.isfinite(values).all()
    assert values.min() >= 0
    assert values.max() <= 255
    assert np.isfinite(prediction.scores).all()


@given(image=npst.arrays(np.uint8, npst.array_shapes(min_dims=2, max_dims=2, max_side=24)), arguments=anything)
def test_an_image_equal_to_its_reference_has_a_map_of_zeros(image: Image, arguments: dict[str, Any]) -> None:
    prediction = ReferenceDifferenceMap.create(**arguments).predict([image], [image])
    assert not prediction.maps[0].any()
    assert prediction.scores[0] == 0


@pytest.mark.parametrize("registration", REGISTRATIONS)
@pytest.mark.parametrize(
    "image", [texture(1), board(), board()[:, :37], board() // 60], ids=["texture", "board", "narrow", "dark"]
)
def test_registration_moves_nothing_that_fits_already(registration: str, image: Image) -> None:
    assert not diff(image, image, registration=registration, tolerance_px=0, gain_grid=3).any()


@pytest.mark.parametrize("registration", REGISTRATIONS)
@pytest.mark.parametrize("levels", [(0, 255), (255, 0), (0, 0), (90, 140)])
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 2), (2, 2), (1, 90), (70, 70)])
def test_flat_images_differ_by_their_levels(
    registration: str, levels: tuple[int, int], size_hw: tuple[int, int]
) -> None:
    image, reference = (np.full(size_hw, level, dtype=np.uint8) for level in levels)
    expected = np.full(size_hw, abs(levels[0] - levels[1]), dtype=np.float32)
    np.testing.assert_array_equal(diff(image, reference, registration=registration), expected)


@given(pair=pairs, radius=st.integers(0, 4), symmetric=st.booleans())
def test_the_map_is_the_distance_from_the_range_of_the_reference(
    pair: tuple[Image, Image], radius: int, symmetric: bool
) -> None:
    def outside(x: Image, around: Image) -> NDArray[np.int64]:
        answer = np.zeros(x.shape, dtype=np.int64)
        for i, j in np.ndindex(x.shape):
            square = around[max(0, i - radius) : i + radius + 1, max(0, j - radius) : j + radius + 1]
            answer[i, j] = max(0, int(x[i, j]) - int(square.max()), int(square.min()) - int(x[i, j]))
        return answer

    image = pair[0]
    reference = np.resize(pair[1], image.shape)
    expected = outside(image, reference)
    if symmetric:
        expected = np.maximum(expected, outside(reference, image))
    np.testing.assert_array_equal(diff(image, reference, tolerance_px=radius, symmetric=symmetric), expected)


def test_a_shift_within_the_tolerance_is_no_difference_and_a_larger_one_is() -> None:
    values = diff(board(dx=2, dy=-2), board(), tolerance_px=2)
    assert not values[4:-4, 4:-4].any()
    assert diff(board(dx=3), board(), tolerance_px=2)[4:-4, 4:-4].any()


@pytest.mark.parametrize(("level", "expected"), [(255, 35), (20, 80), (220, 0), (150, 0), (99, 1)])
def test_a_pixel_outside_the_range_shows_by_how_far(level: int, expected: int) -> None:
    reference = np.full((20, 20), 100, dtype=np.uint8)
    reference[:, 10:] = 220
    image = reference.copy()
    image[8, 10] = level
    values = diff(image, reference, tolerance_px=1)
    assert values[8, 10] == expected
    values[8, 10] = 0
    assert not values.any()


def test_a_missing_line_thinner_than_the_tolerance_is_seen_when_symmetric() -> None:
    """Beside a thin line both its level and the ground's are in range, so only the line's absence can tell."""
    reference = np.full((40, 40), 240, dtype=np.uint8)
    reference[:, 20:22] = 10
    image = np.full((40, 40), 240, dtype=np.uint8)
    assert not diff(image, reference, tolerance_px=2, symmetric=False).any()
    assert (diff(image, reference, tolerance_px=2)[:, 20:22] == 230).all()


@pytest.mark.parametrize("registration", ["translation", "local"])
@pytest.mark.parametrize(("dx", "dy"), [(0.5, 0), (-3.25, 1.5), (6, -5), (0.25, 7.5)])
def test_registration_finds_a_shift_to_a_fraction_of_a_pixel(registration: str, dx: float, dy: float) -> None:
    image, reference = texture(3, dx=dx, dy=dy), texture(3)
    inner = np.s_[12:-12, 12:-12]
    before = diff(image, reference, tolerance_px=0)[inner]
    after = diff(image, reference, tolerance_px=0, registration=registration)[inner]
    assert np.quantile(after, 0.99) < 6
    assert after.mean() < 0.25 * before.mean()


def test_registration_is_off_by_default() -> None:
    image, reference = texture(3, dx=4), texture(3)
    np.testing.assert_array_equal(diff(image, reference), diff(image, reference, registration="none"))
    assert diff(image, reference).mean() > 4 * diff(image, reference, registration="translation").mean()


@pytest.mark.parametrize("registration", ["translation", "local"])
def test_registration_ignores_brightness(registration: str) -> None:
    image, reference = texture(3, dx=5, dy=-3), texture(3)
    darker = np.rint(image * 0.6).astype(np.uint8)
    values = diff(darker, reference, tolerance_px=0, registration=registration, gain_grid=1)
    assert np.quantile(values[12:-12, 12:-12], 0.99) < 12


def test_a_translation_beyond_the_largest_shift_is_not_believed() -> None:
    image, reference = texture(3, dx=6), texture(3)
    far = diff(image, reference, registration="translation", max_shift_px=5)
    np.testing.assert_array_equal(far, diff(image, reference))
    near = diff(image, reference, registration="translation", max_shift_px=7)
    assert near[12:-12, 12:-12].mean() < 0.1 * far.mean()


def test_a_translation_that_brings_nothing_is_not_believed() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        image, reference = rng.integers(0, 256, (2, 48, 64), dtype=np.uint8)
        moved = diff(image, reference, tolerance_px=0, registration="translation", max_shift_px=64)
        assert moved.sum() <= diff(image, reference, tolerance_px=0).sum()


def test_local_registration_follows_an_image_that_is_bent() -> None:
    """Stretched by 3 %: one translation fits in the middle only."""
    reference = texture(5, (256, 256))
    image = np.asarray(
        cv2.warpAffine(reference, np.array([[1.03, 0, -4], [0, 1, 2]], np.float64), (256, 256)), dtype=np.uint8
    )
    inner = np.s_[12:-12, 12:-12]
    whole = diff(image, reference, registration="translation")[inner]
    local = diff(image, reference, registration="local")[inner]
    assert local.mean() < 0.2 * whole.mean()


def test_a_plain_tile_follows_the_whole_image() -> None:
    """A dot too faint to place its own tile is found where the rest of the image says it lies."""
    reference = texture(3, (480, 480))
    reference[120:360, 120:360] = 250
    reference[238:242, 238:242] = 238
    image = np.roll(reference, (6, 6), axis=(0, 1))
    inner = np.s_[200:280, 200:280]
    assert diff(image, reference)[inner].max() == 12
    assert not diff(image, reference, registration="local")[inner].any()


def test_local_shifts_end_at_the_largest() -> None:
    image, reference = texture(3, dx=6), texture(3)
    values = diff(image, reference, registration="local", max_shift_px=2)
    rest = diff(texture(3, dx=4), reference)
    assert values[12:-12, 12:-12].mean() == pytest.approx(rest[12:-12, 12:-12].mean(), rel=0.1)


def test_too_long_an_image_is_refused_by_local_registration_alone() -> None:
    image = np.zeros((1, 40000), dtype=np.uint8)
    with pytest.raises(InputError, match=r"below 32767.*40000 x 1"):
        diff(image, image, registration="local")
    assert not diff(image, image, registration="none").any()


@pytest.mark.parametrize("gain_grid", [1, 4])
@pytest.mark.parametrize("factor", [0.6, 0.9, 1.1])
def test_gain_removes_a_brightness_factor(gain_grid: int, factor: float) -> None:
    reference = np.clip(texture(7), 20, 200)
    image = np.rint(reference * factor).astype(np.uint8)
    assert diff(image, reference, tolerance_px=0).mean() > 8
    assert diff(image, reference, tolerance_px=0, gain_grid=gain_grid).max() <= 2


def test_local_gain_removes_light_that_falls_off_to_one_side() -> None:
    reference = np.clip(texture(7), 20, 200)
    light = np.linspace(0.7, 1.1, reference.shape[1])
    image = np.rint(reference * light).astype(np.uint8)
    assert diff(image, reference, gain_grid=1).max() > 20
    assert diff(image, reference, gain_grid=8).max() < 8


def test_a_gain_beyond_the_largest_is_cut_to_it() -> None:
    reference = np.full((8, 8), 100, dtype=np.uint8)
    assert (diff(np.full((8, 8), 200, np.uint8), reference, gain_grid=1, max_gain=1.5) == 50).all()
    assert (diff(np.full((8, 8), 20, np.uint8), reference, gain_grid=1, max_gain=2) == 30).all()


def test_tiles_too_dark_to_tell_take_the_gain_of_the_image() -> None:
    reference = np.full((80, 80), 200, dtype=np.uint8)
    reference[:, :40] = 4
    image = reference.copy()
    image[:, :40] = 7
    assert diff(image, reference, gain_grid=4).max() == 3


@pytest.mark.parametrize("registration", REGISTRATIONS)
@pytest.mark.parametrize("gain_grid", [0, 1, 4])
def test_a_defect_survives_registration_and_gain(registration: str, gain_grid: int) -> None:
    reference = texture(11, (256, 256))
    image = texture(11, (256, 256), dx=0 if registration == "none" else 3)
    image[120:130, 100:112] = 255 - image[120:130, 100:112] // 3
    values = diff(image, reference, tolerance_px=2, registration=registration, gain_grid=gain_grid)
    defect = values[121:129, 101:111].mean()
    values[116:134, 96:116] = 0
    assert defect > 40
    assert defect > 10 * values[12:-12, 12:-12].mean()


@pytest.mark.parametrize("factor", [2, 3])
def test_a_larger_reference_shrinks_to_the_image_by_area(factor: int) -> None:
    reference = np.random.default_rng(0).integers(0, 256, (20 * factor, 30 * factor), dtype=np.uint8)
    means = reference.reshape(20, factor, 30, factor).mean(axis=(1, 3))
    assert diff(np.floor(means + 0.5).astype(np.uint8), reference, tolerance_px=0).max() <= 1


def test_a_smaller_reference_grows_to_the_image() -> None:
    y, x = np.mgrid[:40, :60]
    image = (2 * x + y).astype(np.uint8)
    reference = image.reshape(20, 2, 30, 2).mean(axis=(1, 3)).astype(np.uint8)
    assert diff(image, reference)[2:-2, 2:-2].max() <= 1


@pytest.mark.parametrize(("mode", "expected"), [("max", 60), ("mean", 30), ("l2", np.sqrt(1500))])
def test_channels_are_reduced_as_asked(mode: str, expected: float) -> None:
    reference = np.full((6, 7, 3), 100, dtype=np.uint8)
    image = reference + np.array([60, 30, 0], dtype=np.uint8)
    values = diff(image, reference, color="rgb", channel_reduce=mode)
    assert values.shape == (6, 7)
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("registration", ["translation", "local"])
def test_all_channels_of_a_colour_image_move_together(registration: str) -> None:
    image, reference = (
        np.stack([texture(3, dx=dx), texture(4, dx=dx), texture(5, dx=dx)], axis=-1) for dx in (5.0, 0.0)
    )
    values = diff(image, reference, color="rgb", registration=registration, gain_grid=1)
    assert values[12:-12, 12:-12].mean() < 0.5


@pytest.mark.parametrize("reduction", ["max", "mean", "topk_mean"])
def test_the_map_becomes_a_score_as_asked(reduction: str) -> None:
    image, reference = texture(1), texture(2)
    values = diff(image, reference)
    expected = {"max": values.max(), "mean": values.mean(dtype=np.float64), "topk_mean": topk_mean(values, 0.1)}
    assert score(image, reference, reduction=reduction, topk=0.1) == pytest.approx(float(expected[reduction]))


@pytest.mark.parametrize("registration", REGISTRATIONS)
def test_each_image_is_compared_with_its_own_reference_whatever_the_batch(registration: str) -> None:
    images = [texture(seed, (60 + seed, 80)) for seed in range(4)]
    references = [texture(seed, (60 + seed, 80), dx=seed) for seed in range(4)]
    detector = ReferenceDifferenceMap.create(registration=registration, gain_grid=1)
    whole = detector.predict(images, references)
    for index, (image, reference) in enumerate(zip(images, references, strict=True)):
        alone = detector.predict([image], [reference])
        np.testing.assert_array_equal(whole.maps[index], alone.maps[0])
        assert whole.scores[index] == alone.scores[0]
    turned = detector.predict(images, references[::-1])
    assert not np.array_equal(turned.maps[0], whole.maps[0])


@pytest.mark.parametrize("registration", REGISTRATIONS)
def test_images_and_references_are_left_as_they_are(registration: str) -> None:
    image, reference = texture(1, dx=3), texture(1)
    ReferenceDifferenceMap.create(registration=registration, gain_grid=2).predict([image], [reference])
    np.testing.assert_array_equal(image, texture(1, dx=3))
    np.testing.assert_array_equal(reference, texture(1))


def test_an_empty_batch_has_an_empty_answer() -> None:
    prediction = ReferenceDifferenceMap.create().predict([], [])
    assert prediction.scores.shape == (0,)
    assert prediction.maps == ()


@pytest.mark.parametrize("n_references", [0, 1, 3])
def test_a_wrong_number_of_references_is_refused_with_both_numbers(n_references: int) -> None:
    image = np.zeros((4, 4), dtype=np.uint8)
    with pytest.raises(ValueError, match=f"2 images and {n_references} references"):
        ReferenceDifferenceMap.create().predict([image, image], [image] * n_references)


def test_it_needs_references_and_no_fitting() -> None:
    assert ReferenceDifferenceMap.needs_reference
    assert ReferenceDifferenceMap.create().is_fitted


@pytest.mark.parametrize(
    "argument",
    [
        {"tolerance_px": -1},
        {"tolerance_px": 1.5},
        {"registration": "affine"},
        {"max_shift_px": 0},
        {"max_shift_px": 65},
        {"registration_tile_px": 8},
        {"gain_grid": -1},
        {"max_gain": 0.5},
        {"max_gain": float("nan")},
        {"color": "blue"},
        {"contamination": 0},
        {"topk": 0},
        {"reduction": "median"},
        {"channel_reduce": "min"},
        {"resize_hw": [16, 16]},
    ],
)
def test_a_bad_argument_is_refused_by_name(argument: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"model_kwargs\.{next(iter(argument))}"):
        ReferenceDifferenceMap.create(**argument)


def test_opencv_threads_change_nothing() -> None:
    image, reference = texture(9, dx=2.5), texture(9)
    threads = cv2.getNumThreads()
    answers = []
    try:
        for n in (1, 4):
            cv2.setNumThreads(n)
            answers.append([diff(image, reference, registration=how, gain_grid=2) for how in REGISTRATIONS])
    finally:
        cv2.setNumThreads(threads)
    for one, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, other)
