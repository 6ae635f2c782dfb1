"""Tiles: where they lie, how their maps are blended, and a detector on them beside the same on whole images."""

from __future__ import annotations

import math
import pickle
import tracemalloc
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyimgano_dask.detectors.base import Color, Detector, Image, Prediction, TrainingFreeDetector
from pyimgano_dask.detectors.checkpoint import decode_detector, encode_detector
from pyimgano_dask.detectors.registry import detector_types
from pyimgano_dask.detectors.tiling import (
    BATCH_PIXELS,
    TileGrid,
    blend,
    cut,
    reduce_scores,
    tile_grid,
    tiled,
    window,
)
from pyimgano_dask.errors import InputError
from pyimgano_dask.settings.knob import Block, knob
from pyimgano_dask.settings.tiling import MapReduce, TilingSettings
from tests.detectors.images import colors_of, draw_images, make

Floats = NDArray[np.float32]

REDUCES: tuple[MapReduce, ...] = get_args(MapReduce)
every_reduce = pytest.mark.parametrize("reduce", REDUCES)
NAMES = tuple(name for name, detector_type in detector_types().items() if detector_type.model_file is None)
SIZES_HW = ((24, 31), (16, 16), (40, 18), (1, 1), (7, 50), (33, 33))
WHOLE = {"tolerance_px": 0, "registration": "none", "gain_grid": 0}


@st.composite
def grids(draw: st.DrawFn) -> TileGrid:
    height, width, tile = (draw(st.integers(1, 30)) for _ in range(3))
    return tile_grid(height, width, tile, draw(st.integers(1, tile)))


def drawn_maps(grid: TileGrid, seed: int = 0) -> list[Floats]:
    draw = np.random.default_rng(seed)
    return [draw.normal(0, 50, (grid.tile, grid.tile)).astype(np.float32) for _ in range(len(grid))]


@given(grids())
def test_tiles_cover_every_pixel_and_end_at_the_edge(grid: TileGrid) -> None:
    covered = np.zeros((grid.height, grid.width), np.int64)
    places = list(grid.places())
    for rows, columns in places:
        covered[rows, columns] += 1

    assert covered.min() >= 1
    assert len(places) == len(grid) == len(set(map(str, places)))
    assert (places[-1][0].stop, places[-1][1].stop) == (grid.height, grid.width)
    for starts, length in ((grid.tops, grid.height), (grid.lefts, grid.width)):
        assert starts[0] == 0
        assert starts[-1] == max(length - grid.tile, 0)
        assert all(before < after for before, after in pairwise(starts))


def test_tiles_lie_a_stride_apart_but_for_the_last() -> None:
    places = [(rows.start, columns.start) for rows, columns in tile_grid(9, 11, 4, 3).places()]

    assert places == [(y, x) for y in (0, 3, 5) for x in (0, 3, 6, 7)]


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 3)])
def test_an_image_smaller_than_a_tile_is_mirrored_about_its_last_row_and_column(shape: tuple[int, ...]) -> None:
    image = np.arange(math.prod(shape), dtype=np.uint8).reshape(shape)

    (place,) = tile_grid(2, 3, 5, 5).places()
    tile = cut(image, place, 5)

    assert tile.shape == (5, 5, *shape[2:])
    assert np.array_equal(tile, image[[0, 1, 0, 1, 0]][:, [0, 1, 2, 1, 0]])


def test_one_row_and_one_column_are_repeated() -> None:
    assert cut(np.array([[7]], np.uint8), (slice(0, 1), slice(0, 1)), 3).tolist() == [[7] * 3] * 3


def full_array_blend(grid: TileGrid, maps: Sequence[Floats], reduce: MapReduce) -> NDArray[np.float64]:
    """The same by its definition, in full arrays of float64."""
    n, centre = np.arange(grid.tile), (grid.tile - 1) / 2
    profile = np.ones(grid.tile) if grid.tile <= 2 else np.maximum(np.hanning(grid.tile), 1e-3)
    squares = ((n - centre) / max(centre, 1)) ** 2
    weights = {
        "max": np.ones((grid.tile, grid.tile)),
        "mean": np.ones((grid.tile, grid.tile)),
        "hann": np.outer(profile, profile),
        "gaussian": np.maximum(np.exp(-2 * np.add.outer(squares, squares)), 1e-3),
    }[reduce]
    stack = np.full((len(grid), grid.height, grid.width), np.nan)
    of_pixel = np.zeros(stack.shape)
    for layer, (place, values) in enumerate(zip(grid.places(), maps, strict=True)):
        rows, columns = stack[(layer, *place)].shape
        stack[(layer, *place)], of_pixel[(layer, *place)] = values[:rows, :columns], weights[:rows, :columns]
    if reduce == "max":
        return np.asarray(np.nanmax(stack, axis=0))
    return np.asarray(np.nansum(stack * of_pixel, axis=0) / of_pixel.sum(axis=0))


@every_reduce
@settings(deadline=None)
@given(grid=grids())
def test_blending_in_bands_is_blending_in_full_arrays(reduce: MapReduce, grid: TileGrid) -> None:
    maps = drawn_maps(grid)

    blended = blend(grid, iter(maps), reduce)

    assert blended.dtype == np.float32
    expected = full_array_blend(grid, maps, reduce)
    if reduce == "max":
        assert np.array_equal(blended, expected.astype(np.float32))
    else:
        np.testing.assert_allclose(blended, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("reduce", "row"),
    [
        ("max", [1.25, 1.3125, 2.25, 3.25, 3.3125, 3.375, 3.4375]),
        ("mean", [1.25, 1.3125, 1.8125, 2.3333333, 2.84375, 2.90625, 3.4375]),
        ("hann", [1.25, 1.3125, 1.3761652, 2.312583, 2.84375, 3.3737516, 3.4375]),
        ("gaussian", [1.25, 1.3125, 1.5015055, 2.3203945, 2.8437498, 3.2394583, 3.4375]),
    ],
)
def test_the_values_are_those_of_pyimgano(reduce: MapReduce, row: list[float]) -> None:
    grid = tile_grid(3, 7, 4, 2)
    ramp = np.arange(16, dtype=np.float32).reshape(4, 4) / 16

    blended = blend(grid, [ramp + np.float32(number) for number in (1, 2, 3)], reduce)

    np.testing.assert_allclose(blended[1], row, rtol=1e-6)


@every_reduce
@settings(deadline=None)
@given(grid=grids(), level=st.floats(-1e6, 1e6, width=32))
def test_constant_maps_blend_to_the_constant(reduce: MapReduce, grid: TileGrid, level: float) -> None:
    blended = blend(grid, [np.full((grid.tile, grid.tile), level, np.float32)] * len(grid), reduce)

    np.testing.assert_allclose(blended, np.float32(level), rtol=2e-5 if reduce != "max" else 0, atol=1e-30)


@pytest.mark.parametrize("reduce", ["hann", "gaussian"])
@pytest.mark.parametrize("tile", [1, 2, 3, 8, 33])
def test_windows_are_symmetric_never_below_their_floor_and_highest_in_the_middle(reduce: MapReduce, tile: int) -> None:
    weights = window(reduce, tile, tile, tile)

    assert weights.dtype == np.float32
    assert np.array_equal(weights, weights[::-1, ::-1])
    assert np.array_equal(weights, weights.T)
    assert weights.min() >= (1e-6 if reduce == "hann" else np.float32(1e-3))
    assert weights.max() == weights[tile // 2, tile // 2] <= 1
    assert np.array_equal(window(reduce, tile, 1, tile), weights[:1])


@every_reduce
def test_a_value_that_is_not_finite_stays(reduce: MapReduce) -> None:
    grid = tile_grid(8, 8, 4, 2)
    maps = drawn_maps(grid)
    maps[4][1, 1] = np.nan

    assert np.argwhere(np.isnan(blend(grid, maps, reduce))).tolist() == [[3, 3]]


@pytest.mark.parametrize("reduce", ["max", "hann"])
def test_beside_the_map_only_a_band_of_rows_is_held(reduce: MapReduce) -> None:
    side, tile = 2048, 128
    grid = tile_grid(side, side, tile, 96)
    window(reduce, tile, tile, tile)
    tracemalloc.start()
    try:
        blend(grid, (np.ones((tile, tile), np.float32) for _ in range(len(grid))), reduce)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 4 * side * side + 3 * 4 * tile * side


@pytest.mark.parametrize(
    ("how", "topk", "expected"),
    [("max", 0.1, 9.0), ("mean", 0.1, 3.875), ("topk_mean", 0.3, 20 / 3), ("topk_mean", 0.01, 9.0)],
)
def test_scores_of_tiles_become_one(how: Any, topk: float, expected: float) -> None:
    tiling = TilingSettings(tile_size=8, score_reduce=how, score_topk=topk)

    assert reduce_scores([3, 1, 4, 1, 5, 9, 2, 6], tiling) == pytest.approx(expected, rel=1e-12)
    assert math.isnan(reduce_scores([1, math.nan, 2], tiling))


def on_tiles(detector: Detector[Any], tile: int = 16, stride: int = 12, **reducing: Any) -> Detector[Any]:
    return tiled(detector, TilingSettings(tile_size=tile, stride=stride, **reducing))


def references_of(detector: Detector[Any], images: Sequence[Image]) -> list[Image]:
    """Drawn references that are a little larger than the images, where the detector needs some."""
    sizes_hw = [(image.shape[0] + 3, image.shape[1] + 5) for image in images]
    return draw_images(1, detector.color, sizes_hw) if detector.needs_reference else []


@pytest.mark.parametrize(
    ("name", "color", "reduce"),
    [
        (name, color, reduce)
        for name in NAMES
        for color in colors_of(name)
        for reduce in (("hann",) if detector_types()[name].extra else REDUCES)
    ],
)
def test_images_of_mixed_sizes_at_once_are_the_images_one_by_one(name: str, color: str, reduce: MapReduce) -> None:
    detector = on_tiles(make(name, color).fit(draw_images(1, color)), map_reduce=reduce, score_reduce="topk_mean")
    images = draw_images(2, color, SIZES_HW)
    references = references_of(detector, images)

    together = detector.predict(images, references)

    assert [values.shape for values in together.maps] == list(SIZES_HW)
    assert {values.dtype for values in together.maps} == {np.dtype(np.float32)}
    for number, image in enumerate(images):
        alone = detector.predict([image], references[number : number + 1])
        assert alone.scores[0] == together.scores[number]
        assert alone.maps[0].tobytes() == together.maps[number].tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_fitting_and_the_checkpoint_are_those_of_the_detector_inside(name: str) -> None:
    inner = make(name)
    images = draw_images(1, "rgb")
    outer = on_tiles(inner).fit(images)

    assert (outer.name, outer.color, outer.contamination) == (inner.name, inner.color, inner.contamination)
    assert encode_detector(outer) == encode_detector(inner.fit(images))
    assert outer.is_fitted
    again = on_tiles(decode_detector(encode_detector(outer), "detector.npz"))
    references = references_of(inner, images)
    expected = outer.predict(images, references)
    for other in (again, pickle.loads(pickle.dumps(outer)), on_tiles(inner).with_state(outer.state())):
        answer = other.predict(images, references)
        assert np.array_equal(answer.scores, expected.scores)
        assert all(np.array_equal(one, two) for one, two in zip(answer.maps, expected.maps, strict=True))


def test_without_a_tile_size_the_detector_stays_as_it_is() -> None:
    detector = make("vision_reference_diff_map", "gray")

    assert tiled(detector, TilingSettings(stride=4)) is detector


@pytest.mark.parametrize("color", ["gray", "rgb"])
@pytest.mark.parametrize("extra_hw", [(0, 0), (9, 4), (-5, 7)])
@every_reduce
def test_a_comparison_of_single_pixels_is_the_same_on_tiles(
    color: str, extra_hw: tuple[int, int], reduce: MapReduce
) -> None:
    """Also where the reference has another size: it is brought to the size of the image before it is cut."""
    detector = make("vision_reference_diff_map", color, **WHOLE)
    images = draw_images(2, color, [(37, 50)])
    references = draw_images(1, color, [(37 + extra_hw[0], 50 + extra_hw[1])])

    (whole,), (on_tiles_,) = (
        each.predict(images, references).maps for each in (detector, on_tiles(detector, map_reduce=reduce))
    )

    np.testing.assert_allclose(on_tiles_, whole, rtol=1e-5, atol=1e-4)


def test_each_image_needs_its_reference() -> None:
    detector = on_tiles(make("vision_reference_diff_map", "gray"))

    with pytest.raises(ValueError, match="got 2 images and 1 references"):
        detector.predict(draw_images(2, "gray", [(9, 9), (9, 9)]), draw_images(1, "gray", [(9, 9)]))


class NotingArguments(Block):
    """Arguments of `NotesBatches`."""

    crop: int = knob(0, "Rows that maps are short of.", ge=0)


class NotesBatches(TrainingFreeDetector[NotingArguments]):
    """Scores the largest grey level, and notes how many tiles it is given at once."""

    name = "notes_batches"
    summary = "Notes batches."
    tags = ("test",)
    reference = "None."
    arguments_type = NotingArguments
    color: Color = "gray"
    contamination = None

    def __init__(self, arguments: NotingArguments) -> None:
        super().__init__(arguments)
        self.sizes: list[int] = []

    def predict(self, images: Sequence[Image], references: Sequence[Image] = ()) -> Prediction:
        self.sizes.append(len(images))
        maps = tuple(image[self.arguments.crop :].astype(np.float32) for image in images)
        return Prediction(np.array([image.max() for image in images], dtype=np.float64), maps)


def numbered_images(sizes_hw: Sequence[tuple[int, int]]) -> Iterator[Image]:
    for number, size_hw in enumerate(sizes_hw):
        yield np.full(size_hw, number + 1, np.uint8)


def test_tiles_of_several_images_share_batches_of_bounded_size() -> None:
    inner = NotesBatches.create()
    sizes_hw = [(900, 1700), (300, 10), (1000, 1000), (1500, 800)]

    prediction = on_tiles(inner, 512, 512).predict(list(numbered_images(sizes_hw)))

    assert inner.sizes == [BATCH_PIXELS // 512**2, 3]
    assert prediction.scores.tolist() == [1, 2, 3, 4]
    assert [(values.shape, set(values.ravel())) for values in prediction.maps] == [
        (size_hw, {number + 1}) for number, size_hw in enumerate(sizes_hw)
    ]


def test_a_tile_larger_than_the_budget_comes_alone() -> None:
    inner = NotesBatches.create()

    on_tiles(inner, 2100, 2100).predict(list(numbered_images([(4, 4), (5, 5)])))

    assert inner.sizes == [1, 1]


def test_a_map_of_another_size_than_its_tile_is_told() -> None:
    with pytest.raises(InputError, match=r"must give a map of the size of its tile, 16 x 16 pixels, got the shape"):
        on_tiles(NotesBatches.create(crop=1)).predict(list(numbered_images([(20, 20)])))
