"""Tiled inference: another detector on overlapping tiles of each image, and its maps blended into one.

Coordinates, mirroring, windows and the order of blending are those of the tiling in the package pyimgano 0.9.1, so
that maps are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.detectors.base import Color, Detector, Image, Prediction, State
from pyimgano_dask.detectors.differences import topk_mean
from pyimgano_dask.detectors.reference_difference import resize_to
from pyimgano_dask.errors import InputError
from pyimgano_dask.settings.tiling import MapReduce, TilingSettings

Floats = NDArray[np.float32]
Place = tuple[slice, slice]

# Pixels of the tiles, and of their references, that a detector is given at once; one tile may exceed it on its own.
BATCH_PIXELS = 1 << 22
SMALLEST_WEIGHT = np.float32(1e-3)
GAUSSIAN_SIGMA = 0.5  # in halves of a tile


@dataclass(frozen=True)
class TileGrid:
    """Where the tiles of an image lie: squares of `tile` pixels a side that begin at each of `tops` and `lefts`."""

    height: int
    width: int
    tile: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def places(self) -> Iterator[Place]:
        """Rows and columns of the image under each tile, row by row of tiles; shorter where the image is."""
        for top in self.tops:
            rows = slice(top, min(top + self.tile, self.height))
            for left in self.lefts:
                yield rows, slice(left, min(left + self.tile, self.width))


@lru_cache(maxsize=64)
def tile_grid(height: int, width: int, tile: int, stride: int) -> TileGrid:
    """The tiles of an image of this size; the last ones end at its edge. All in pixels, `stride` at most `tile`.

    >>> tile_grid(5, 11, 4, 3).lefts
    (0, 3, 6, 7)
    """
    return TileGrid(height, width, tile, _starts(height, tile, stride), _starts(width, tile, stride))


def _starts(length: int, tile: int, stride: int) -> tuple[int, ...]:
    last = max(length - tile, 0)
    return (*range(0, last, stride), last)


def cut(image: Image, place: Place, tile: int) -> Image:
    """A copy of the tile at `place`, filled up to (tile, tile) by mirroring about the last row and column."""
    part = image[place]
    missing = [(0, tile - part.shape[0]), (0, tile - part.shape[1])] + [(0, 0)] * (image.ndim - 2)
    return np.ascontiguousarray(part) if part.shape[:2] == (tile, tile) else np.pad(part, missing, mode="reflect")


def blend(grid: TileGrid, tile_maps: Iterable[Floats], reduce: MapReduce) -> Floats:
    """One map, float32 (height, width), of the maps of all tiles, each float32 (tile, tile), in the order of `places`.

    `max` takes the largest value. The others are weighted means: `mean` weighs all pixels of a tile alike, `hann` and
    `gaussian` as `window` says. Values are added in the order of the tiles, so a map has the same bits however its
    tiles were batched. Beside the map itself only the weights of one row of tiles are held.
    """
    if reduce == "max":
        return _largest(grid, tile_maps)
    return _weighted_mean(grid, tile_maps, window(reduce, grid.tile, *_covered(grid)))


def _covered(grid: TileGrid) -> tuple[int, int]:
    """Rows and columns of a tile that lie on the image."""
    return min(grid.tile, grid.height), min(grid.tile, grid.width)


def _largest(grid: TileGrid, tile_maps: Iterable[Floats]) -> Floats:
    rows, columns = _covered(grid)
    out = np.full((grid.height, grid.width), -np.inf, np.float32)
    for place, values in zip(grid.places(), tile_maps, strict=True):
        np.maximum(out[place], values[:rows, :columns], out=out[place])
    return out


def _weighted_mean(grid: TileGrid, tile_maps: Iterable[Floats], weights: Floats) -> Floats:
    """Sums grow in the map itself; a row is divided by its weights as soon as no later tile touches it."""
    rows, columns = weights.shape
    out = np.zeros((grid.height, grid.width), np.float32)
    sums = np.zeros((rows, grid.width), np.float32)
    maps = iter(tile_maps)
    for top, next_top in pairwise((*grid.tops, grid.height)):
        for left, values in zip(grid.lefts, islice(maps, len(grid.lefts)), strict=True):
            across = slice(left, left + columns)
            out[top : top + rows, across] += values[:rows, :columns] * weights
            sums[:, across] += weights
        done = next_top - top
        out[top:next_top] /= sums[:done]
        sums[: rows - done] = sums[done:]
        sums[rows - done :] = 0
    return out


@lru_cache(maxsize=2)
def window(reduce: MapReduce, tile: int, rows: int, columns: int) -> Floats:
    """Weights of the pixels of a tile, float32 (rows, columns): the top left part of them, of a tile that is cut off.

    With x and y from -1 to 1 across the tile, `hann` is (1 + cos(pi x)) / 2 in each direction, at least 0.001 before
    the two are multiplied; `gaussian` is exp(-(x² + y²) / (2 · 0.5²)), at least 0.001; `mean` is 1, and so is the hann
    of one or two pixels.
    """
    weights = np.ones((rows, columns), np.float32)
    if reduce == "hann" and tile > 2:
        profile = np.maximum(_hann(tile).astype(np.float32), SMALLEST_WEIGHT)
        np.multiply.outer(profile[:rows], profile[:columns], out=weights)
    elif reduce == "gaussian":
        profile = _gaussian(tile)
        np.multiply.outer(profile[:rows], profile[:columns], out=weights, casting="same_kind")
        np.maximum(weights, SMALLEST_WEIGHT, out=weights)
    weights.setflags(write=False)
    return weights


def _hann(tile: int) -> NDArray[np.float64]:
    """As `numpy.hanning`, whose cosine may differ in its last bit from one processor to another."""
    return np.array([0.5 + 0.5 * math.cos(math.pi * n / (tile - 1)) for n in range(1 - tile, tile, 2)])


def _gaussian(tile: int) -> NDArray[np.float64]:
    centre = (tile - 1) / 2
    places = ((n - centre) / max(centre, 1.0) for n in range(tile))
    return np.array([math.exp(-0.5 * (x / GAUSSIAN_SIGMA) ** 2) for x in places])


class TiledDetector(Detector[Any]):
    """A detector that scores large images tile by tile.

    It is fitted on whole images, as the detector inside it, whose name, arguments and state it has. An image is cut
    into tiles that lie at the same places for every image of its size; the scores of these are reduced to one, their
    maps blended. A reference is first brought to the size of its image, then cut at the same places.
    """

    def __init__(self, inner: Detector[Any], tile: int, stride: int, settings: TilingSettings) -> None:
        self.inner = inner
        super().__init__(inner.arguments)
        self._tile, self._stride, self._settings = tile, stride, settings

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.inner.name

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        return self.inner.needs_reference

    @property
    def is_position_bound(self) -> bool:  # type: ignore[override]
        return self.inner.is_position_bound

    @property
    def gives_maps(self) -> bool:  # type: ignore[override]
        return self.inner.gives_maps

    @property
    def extra(self) -> str | None:  # type: ignore[override]
        return self.inner.extra

    @property
    def model_file(self) -> str | None:  # type: ignore[override]
        return self.inner.model_file

    @property
    def fits_closely(self) -> bool:  # type: ignore[override]
        return self.inner.fits_closely

    @property
    def trains_network(self) -> bool:  # type: ignore[override]
        return self.inner.trains_network

    @property
    def libraries(self) -> frozenset[str]:
        return self.inner.libraries

    @property
    def files_named(self) -> Mapping[str, str]:
        return self.inner.files_named

    @property
    def scoring_arguments(self) -> tuple[str, ...]:
        return self.inner.scoring_arguments

    @property
    def runs_code(self) -> bool:
        return self.inner.runs_code

    @property
    def color(self) -> Color:
        return self.inner.color

    @property
    def contamination(self) -> float | None:
        return self.inner.contamination

    @property
    def is_fitted(self) -> bool:
        return self.inner.is_fitted

    def select_training(self, n_images: int) -> Sequence[int]:
        return self.inner.select_training(n_images)

    def accumulate(self, images: Sequence[Image]) -> State:
        return self.inner.accumulate(images)

    def merge(self, states: Sequence[State]) -> State:  # type: ignore[override]
        return self.inner.merge(states)

    def finalize(self, state: State) -> Self:
        return self._around(self.inner.finalize(state))

    def state(self) -> State:
        return self.inner.state()

    def with_state(self, state: State) -> Self:
        return self._around(self.inner.with_state(state))

    def check(self) -> tuple[str, ...]:
        return self.inner.check()

    def _around(self, inner: Detector[Any]) -> Self:
        return type(self)(inner, self._tile, self._stride, self._settings)

    def predict(self, images: Sequence[Image], references: Sequence[Image] = ()) -> Prediction:
        """Score a batch of images of any sizes; raises ValueError unless there are as many references as needed.

        Maps have the values of the detector's own where one tile covers a pixel, so a value that is not finite stays.
        """
        if self.needs_reference and len(images) != len(references):
            raise ValueError(
                f"{self.name} compares each image with a reference of its own: "
                f"got {len(images)} images and {len(references)} references"
            )
        answers = self._answers(images, references if self.needs_reference else ())
        scores = np.empty(len(images))
        maps: list[Floats | None] = []
        for number, image in enumerate(images):
            grid = self._grid(image)
            of_image = islice(answers, len(grid))
            tile_scores: list[float] = []
            if self.gives_maps:
                maps.append(blend(grid, _maps(of_image, tile_scores), self._settings.map_reduce))
            else:
                tile_scores += (score for score, _ in of_image)
                maps.append(None)
            scores[number] = reduce_scores(tile_scores, self._settings)
        return Prediction(scores, tuple(maps))

    def _grid(self, image: Image) -> TileGrid:
        return tile_grid(image.shape[0], image.shape[1], self._tile, self._stride)

    def _answers(self, images: Sequence[Image], references: Sequence[Image]) -> Iterator[tuple[float, Floats | None]]:
        """Score and map of every tile of all images, in order; tiles of several images share a batch."""
        tiles = self._tiles(images, references)
        size = max(1, BATCH_PIXELS // (self._tile**2 * (2 if references else 1)))
        while batch := list(islice(tiles, size)):
            prediction = self.inner.predict(
                [tile for tile, _ in batch], [reference for _, reference in batch if reference is not None]
            )
            for score, values in zip(prediction.scores.tolist(), prediction.maps, strict=True):
                if values is not None and values.shape != (self._tile, self._tile):
                    raise InputError(
                        "infer",
                        "PredictionError",
                        f"{self.name} must give a map of the size of its tile, {self._tile} x {self._tile} pixels, "
                        f"got the shape {values.shape}",
                    )
                yield score, values

    def _tiles(self, images: Sequence[Image], references: Sequence[Image]) -> Iterator[tuple[Image, Image | None]]:
        for number, image in enumerate(images):
            reference = resize_to(references[number], image.shape[:2]) if references else None
            for place in self._grid(image).places():
                yield cut(image, place, self._tile), None if reference is None else cut(reference, place, self._tile)


def _maps(answers: Iterable[tuple[float, Floats | None]], scores: list[float]) -> Iterator[Floats]:
    """The maps of tiles one by one; their scores go to the end of `scores`."""
    for score, values in answers:
        scores.append(score)
        assert values is not None
        yield values


def reduce_scores(scores: Sequence[float], settings: TilingSettings) -> float:
    """The score of an image from those of its tiles, at least one; NaN where one of these is NaN."""
    values = np.array(scores, dtype=np.float64)
    if settings.score_reduce == "max":
        return float(values.max())
    return topk_mean(values, 1.0 if settings.score_reduce == "mean" else settings.score_topk)


def tiled(detector: Detector[Any], settings: TilingSettings) -> Detector[Any]:
    """The detector on tiles where the settings ask for them, else the detector itself."""
    if settings.tile_size is None:
        return detector
    return TiledDetector(detector, settings.tile_size, settings.stride or settings.tile_size, settings)
