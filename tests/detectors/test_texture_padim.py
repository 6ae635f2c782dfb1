"""The texture detector against its formula and on textures with known flaws."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyimgano_dask.detectors.differences import topk_mean
from pyimgano_dask.detectors.filter_bank import QUANTUM, FilterBank
from pyimgano_dask.detectors.texture_padim import TexturePadim, cells
from pyimgano_dask.errors import ConfigError

Image = NDArray[np.uint8]

SMALL: dict[str, Any] = {"levels": (0, 1), "stride": 4, "window_px": 4.0, "smoothing_px": 0.0, "grid_hw": (2, 3)}


def texture(seed: int, size_hw: tuple[int, int] = (96, 128), light: float = 1.0) -> Image:
    """Grain brushed from top to bottom."""
    rng = np.random.default_rng(seed)
    grain = cv2.GaussianBlur(rng.normal(size=size_hw), (0, 0), sigmaX=0.8, sigmaY=6.0)
    return np.clip(light * (90 + 80 * grain), 0, 255).astype(np.uint8)


def textures(n: int, size_hw: tuple[int, int] = (96, 128)) -> list[Image]:
    return [texture(seed, size_hw) for seed in range(n)]


def scratched(image: Image, row: int = 60, start: int = 40, stop: int = 80) -> Image:
    flawed = image.copy()
    flawed[row : row + 2, start:stop] = 30
    return flawed


def gaussians(
    images: list[Image], prior_sites: float, shrinkage: float
) -> tuple[FilterBank, list[tuple[NDArray[np.float64], NDArray[np.float64]]]]:
    """Mean and covariance of the cells of SMALL, from the sites of all images one by one."""
    bank = FilterBank(SMALL["levels"], SMALL["stride"], SMALL["window_px"], "log", in_colour=False)
    sites: list[list[NDArray[np.float64]]] = [[] for _ in range(6)]
    for image in images:
        features = bank.features(image) / QUANTUM
        _, height, width = features.shape
        for y, x in np.ndindex(height, width):
            sites[int((y + 0.5) / height * 2) * 3 + int((x + 0.5) / width * 3)].append(features[:, y, x])
    cells_of_sites = [np.array(cell) for cell in sites]
    everything = np.concatenate(cells_of_sites)
    centred = np.concatenate([cell - cell.mean(axis=0) for cell in cells_of_sites])
    prior = centred.T @ centred / len(everything)
    found = []
    for cell in cells_of_sites:
        mean = np.vstack([cell, everything.mean(axis=0)]).mean(axis=0)
        scatter = np.cov(cell.T, bias=True) * len(cell)
        covariance = (scatter + prior_sites * prior) / (len(cell) + prior_sites)
        covariance = (1 - shrinkage) * covariance + shrinkage * np.diag(np.diag(covariance))
        found.append((mean, covariance + 1e-4 * np.eye(len(covariance))))
    return bank, found


@pytest.mark.parametrize(("prior_sites", "shrinkage"), [(32.0, 0.02), (1.0, 0.0), (500.0, 0.5)])
def test_the_map_is_the_mahalanobis_distance(prior_sites: float, shrinkage: float) -> None:
    images = [texture(seed, (48, 72)) for seed in range(4)]
    bank, found = gaussians(images, prior_sites, shrinkage)
    image = scratched(texture(9, (40, 60)), 20, 10, 30)
    features = bank.features(image) / QUANTUM
    expected = np.empty(features.shape[1:])
    for y, x in np.ndindex(expected.shape):
        mean, covariance = found[int((y + 0.5) / 10 * 2) * 3 + int((x + 0.5) / 15 * 3)]
        offset = features[:, y, x] - mean
        expected[y, x] = np.sqrt(offset @ np.linalg.solve(covariance, offset) / len(offset))

    detector = TexturePadim.create(**SMALL, prior_sites=prior_sites, shrinkage=shrinkage, topk=0.1).fit(images)
    prediction = detector.predict([image])

    enlarged = cv2.resize(expected.astype(np.float32), (60, 40), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(prediction.maps[0], enlarged, rtol=1e-3)
    assert prediction.scores[0] == pytest.approx(topk_mean(expected, 0.1), rel=1e-3)


def test_normal_places_are_at_a_distance_of_about_one() -> None:
    detector = TexturePadim.create(**SMALL).fit(textures(10))
    values = detector.predict([texture(20)]).maps[0]
    assert 0.7 < values.mean() < 1.3


def test_smoothing_is_a_gaussian_of_so_many_pixels() -> None:
    images, image = textures(4), scratched(texture(9))
    rough, smooth = (
        TexturePadim.create(**{**SMALL, "smoothing_px": sigma}).fit(images).predict([image]).maps[0]
        for sigma in (0.0, 12.0)
    )
    assert smooth.mean() == pytest.approx(rough.mean(), rel=0.05)
    assert smooth.max() < 0.8 * rough.max()
    y, x = np.unravel_index(smooth.argmax(), smooth.shape)
    assert 50 <= y < 72
    assert 36 <= x < 84


@pytest.mark.parametrize("grid_hw", [(1, 1), (12, 12)])
@pytest.mark.parametrize("start", [0, 40, 88])
def test_a_scratch_is_found_at_its_place(grid_hw: tuple[int, int], start: int) -> None:
    detector = TexturePadim.create(grid_hw=grid_hw).fit(textures(10))
    clean = texture(20)
    prediction = detector.predict([clean, scratched(clean, 47, start, start + 40)])
    assert prediction.scores[1] > 1.5 * prediction.scores[0]
    y, x = np.unravel_index(prediction.maps[1].argmax(), clean.shape)
    assert abs(y - 48) <= 12
    assert start - 4 <= x < start + 44


def test_images_of_other_sizes_are_compared_at_the_same_scale() -> None:
    detector = TexturePadim.create(**SMALL).fit(textures(10))
    larger = texture(20, (190, 310))
    normal, flawed = detector.predict([larger, scratched(larger, 120, 200, 260)]).scores
    assert normal < 2 * detector.predict([texture(21)]).scores[0]
    assert flawed > 1.5 * normal


def test_a_patch_of_another_colour_is_seen_in_colour_only() -> None:
    images = [np.repeat(image[..., None], 3, axis=2) for image in textures(10)]
    tinted = images[-1].copy()
    patch = tinted[30:60, 40:80].astype(np.float64) + 8
    tinted[30:60, 40:80] = np.rint(patch * (1.2, 1.0, 1 / 1.2)).astype(np.int64) - 8
    detector = TexturePadim.create(color="rgb").fit(images[:-1])
    normal, seen = detector.predict([images[-1], tinted]).scores
    assert seen > 3 * normal
    y, x = np.unravel_index(detector.predict([tinted]).maps[0].argmax(), tinted.shape[:2])
    assert 26 <= y < 64
    assert 36 <= x < 84


def test_light_that_varies_among_normal_images_makes_no_difference() -> None:
    images = [texture(seed, light=light) for seed, light in enumerate(np.linspace(0.6, 1.8, 10).tolist())]
    normal, bright = texture(20, light=1.2), texture(20, light=1.7)
    by_contrast, by_levels = (
        [
            values.mean()
            for values in TexturePadim.create(**SMALL, light=light).fit(images).predict([normal, bright]).maps
        ]
        for light in ("log", "linear")
    )
    assert by_contrast[1] == pytest.approx(by_contrast[0], rel=0.1)
    assert by_levels[1] > 1.2 * by_levels[0]


def test_a_grid_knows_what_belongs_where() -> None:
    def part(band: slice, seed: int) -> Image:
        image = texture(seed)
        image[:, band] = 90
        return image

    left, right = slice(20, 50), slice(78, 108)
    images = [part(left, seed) for seed in range(10)]
    normal, moved = part(left, 20), part(right, 20)
    placed, free = (
        TexturePadim.create(**{**SMALL, "grid_hw": grid_hw}).fit(images).predict([normal, moved]).scores
        for grid_hw in ((6, 8), (1, 1))
    )
    assert placed[1] > 1.5 * placed[0]
    assert free[1] < 1.2 * free[0]


def test_only_a_grid_is_bound_to_positions() -> None:
    assert TexturePadim.create().is_position_bound
    assert TexturePadim.create(grid_hw=(1, 2)).is_position_bound
    assert not TexturePadim.create(grid_hw=(1, 1)).is_position_bound


def test_the_score_leaves_out_the_border_and_the_map_does_not() -> None:
    images = textures(10)
    clean = texture(20)
    flawed = scratched(clean, 0, 0, 40)
    whole, inner = (
        TexturePadim.create(**SMALL, score_border_px=border).fit(images).predict([clean, flawed]) for border in (0, 32)
    )
    assert whole.scores[1] > 1.5 * whole.scores[0]
    assert inner.scores[1] < 1.05 * inner.scores[0]
    np.testing.assert_array_equal(whole.maps[1], inner.maps[1])


@pytest.mark.parametrize("size_hw", [(1, 1), (9, 200), (30, 31)])
def test_a_border_wider_than_the_image_leaves_its_middle(size_hw: tuple[int, int]) -> None:
    detector = TexturePadim.create(score_border_px=10_000, smoothing_px=0.0).fit(textures(3))
    (score,) = detector.predict([texture(20, size_hw)]).scores
    assert np.isfinite(score)
    assert score > 0


@pytest.mark.parametrize("reduction", ["max", "mean", "topk_mean"])
def test_the_map_becomes_a_score_as_asked(reduction: str) -> None:
    detector = TexturePadim.create(**{**SMALL, "stride": 1}, reduction=reduction, topk=0.2).fit(textures(2, (24, 24)))
    prediction = detector.predict([texture(9, (24, 24))])
    share = {"max": 1e-9, "mean": 1.0, "topk_mean": 0.2}[reduction]
    assert prediction.scores[0] == pytest.approx(topk_mean(prediction.maps[0], share), rel=1e-6)


def test_cells_that_saw_nothing_use_what_all_saw() -> None:
    images = textures(4, (20, 20))  # 3 x 3 sites, which lie in the rows and columns 2, 6 and 10 of the cells
    state = TexturePadim.create().fit(images).state()
    common = TexturePadim.create(grid_hw=(1, 1)).fit(images).state()
    seen = {12 * row + column for row in (2, 6, 10) for column in (2, 6, 10)}
    for cell in range(144):
        is_common = np.allclose(state["mean"][cell], common["mean"][0], atol=1e-5)
        assert is_common == (cell not in seen)
    unseen = np.delete(state["whitening"], sorted(seen), axis=0)
    assert (unseen == unseen[0]).all()


def test_flat_images_are_normal_where_flat_images_are() -> None:
    flat = np.full((64, 64), 90, dtype=np.uint8)
    detector = TexturePadim.create().fit([flat, flat])
    normal, flawed = detector.predict([flat, scratched(flat, 30, 20, 40)]).scores
    assert normal < 1e-3
    assert flawed > 10


@given(sites=st.tuples(st.integers(1, 40), st.integers(1, 40)), grid=st.tuples(st.integers(1, 15), st.integers(1, 15)))
def test_each_site_belongs_to_the_cell_of_its_centre(sites: tuple[int, int], grid: tuple[int, int]) -> None:
    owner = np.full(sites, -1)
    for cell in cells(sites, grid):
        assert (owner[cell.rows, cell.columns] == -1).all()
        owner[cell.rows, cell.columns] = cell.number
    for y, x in np.ndindex(sites):
        row, column = (2 * y + 1) * grid[0] // (2 * sites[0]), (2 * x + 1) * grid[1] // (2 * sites[1])
        assert owner[y, x] == row * grid[1] + column


def test_native_threads_change_no_bit() -> None:
    image = texture(20, (700, 900))
    before = cv2.getNumThreads()
    answers = []
    try:
        for n_threads in (1, 4):
            cv2.setNumThreads(n_threads)
            answers.append(TexturePadim.create().fit([image]).predict([scratched(image)]))
    finally:
        cv2.setNumThreads(before)
    np.testing.assert_array_equal(answers[0].maps[0], answers[1].maps[0])
    np.testing.assert_array_equal(answers[0].scores, answers[1].scores)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"levels": ()}, r"levels must be one or more different numbers, got \(\)"),
        ({"levels": (1, 1)}, r"levels must be one or more different numbers, got \(1, 1\)"),
        ({"levels": (1, 6)}, r"levels must lie between 0 and 5, got \(1, 6\)"),
        ({"grid_hw": (0, 3)}, r"grid_hw must be two numbers from 1 to 256, got \(0, 3\)"),
    ],
)
def test_a_faulty_argument_is_told_with_what_is_allowed(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TexturePadim.create(**argument)


def test_the_state_of_another_grid_is_refused_with_both_shapes() -> None:
    state = TexturePadim.create(**SMALL).fit(textures(1)).state()
    with pytest.raises(ConfigError, match=r"mean must have shape \(144, 13\), got \(6, 13\)"):
        TexturePadim.create(**{**SMALL, "grid_hw": (12, 12)}).with_state(state)
