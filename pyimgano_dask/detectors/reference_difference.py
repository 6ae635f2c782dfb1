"""Golden-reference comparison: each image against a defect-free image of the same object.

The inspection of printed circuits and wafers against a golden board or die. The reference is brought to the
image's size, laid over the image (registration) and matched to its brightness (gain). A pixel is anomalous as
far as it leaves the range of grey levels that the reference takes within a few pixels of it (tolerance).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.detectors.base import Image, Prediction, TrainingFreeDetector
from pyimgano_dask.detectors.differences import DifferenceArguments, DifferenceDetector, reduce_channels, score_of
from pyimgano_dask.detectors.registry import register
from pyimgano_dask.errors import InputError
from pyimgano_dask.settings.knob import knob

Floats = NDArray[np.float32]

COARSE_FACTOR, FINE_FACTOR = 4, 2  # tiles are matched on the image shrunk by these, one after the other
FINE_RADIUS = 1  # pixels of the finer image around the coarse answer
WINDOW_TILES = 2.0  # side of the square compared for a tile, in tiles: neighbours share half of it
LEVELS_PER_STEP = 0.5  # what each pixel away from the shift of the whole image must gain a tile in mean difference
BENDABLE_SIDE = 32767  # cv2.remap counts pixels in 16 bits
DARK_LEVEL = 16.0  # mean grey level below which a tile says nothing about brightness


class ReferenceDifferenceArguments(DifferenceArguments):
    """Arguments of `vision_reference_diff_map`."""

    tolerance_px: int = knob(
        1,
        "Edges may lie this many pixels beside their place: a pixel is compared with the range of grey levels of "
        "the square of this radius around it. 0 compares pixel with pixel.",
        ge=0,
        le=100,
    )
    symmetric: bool = knob(
        True,
        "Also ask that the reference lies in the range of the image, so that a missing part thinner than the "
        "tolerance is seen.",
    )
    registration: Literal["none", "translation", "local"] = knob(
        "none",
        "Lay the reference over the image: shift it as a whole (translation), or tile by tile, for parts that "
        "are bent or scanned unevenly (local).",
    )
    max_shift_px: int = knob(
        8, "Largest shift of registration in x and y. A larger translation is not believed.", ge=1, le=64
    )
    registration_tile_px: int = knob(80, "Side of the tiles of local registration in pixels.", ge=16, le=4096)
    gain_grid: int = knob(
        0,
        "Match the reference to the image's brightness: 0 not at all, 1 by one factor, n by factors on n x n "
        "tiles, for uneven light.",
        ge=0,
        le=64,
    )
    max_gain: float = knob(2.0, "Largest brightness factor believed, and one over the smallest.", ge=1, le=255)


@register
class ReferenceDifferenceMap(
    DifferenceDetector[ReferenceDifferenceArguments], TrainingFreeDetector[ReferenceDifferenceArguments]
):
    """Grey levels, 0 to 255, by which a pixel leaves the range of its reference."""

    name = "vision_reference_diff_map"
    summary = "Grey levels outside the range of a defect-free reference of the same part, after registration."
    tags = ("vision", "classical", "template", "golden_reference", "opencv", "pixel_map")
    reference = "Golden template comparison: max(0, x - dilate(ref), erode(ref) - x)."
    arguments_type = ReferenceDifferenceArguments
    needs_reference: ClassVar[bool] = True

    def predict(self, images: Sequence[Image], references: Sequence[Image] = ()) -> Prediction:
        """Score a batch of images; raises ValueError unless there is one reference for each of them."""
        if len(images) != len(references):
            raise ValueError(
                f"{self.name} compares each image with a reference of its own: "
                f"got {len(images)} images and {len(references)} references"
            )
        maps = tuple(self._map(image, reference) for image, reference in zip(images, references, strict=True))
        return Prediction(np.array([score_of(values, self.arguments) for values in maps], dtype=np.float64), maps)

    def _map(self, image: Image, reference: Image) -> Floats:
        arguments = self.arguments
        reference = resize_to(reference, image.shape[:2])
        if arguments.registration == "translation":
            reference = shift_whole(image, reference, arguments.max_shift_px)
        elif arguments.registration == "local":
            reference = shift_tiles(image, reference, arguments.max_shift_px, arguments.registration_tile_px)
        if arguments.gain_grid > 0:
            reference = match_brightness(image, reference, arguments.gain_grid, arguments.max_gain)
        outside = levels_outside(image, reference, arguments.tolerance_px)
        if arguments.symmetric and arguments.tolerance_px > 0:
            outside = np.maximum(outside, levels_outside(reference, image, arguments.tolerance_px))
        values = outside.astype(np.float32)
        return values if values.ndim == 2 else reduce_channels(values, arguments.channel_reduce)


def resize_to(reference: Image, size_hw: tuple[int, ...]) -> Image:
    """The reference at this size: area interpolation where it shrinks, bilinear where it only grows."""
    height, width = size_hw
    if reference.shape[:2] == (height, width):
        return reference
    shrinks = reference.shape[0] > height or reference.shape[1] > width
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(reference, (width, height), interpolation=how), dtype=np.uint8)


def levels_outside(image: Image, reference: Image, radius: int) -> Image:
    """How far each pixel lies outside the range of `reference` in the square of `radius` around it, uint8.

    max(0, x - dilate(ref), erode(ref) - x); pixels beyond the border do not count.
    """
    square = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    above = cv2.subtract(image, cv2.dilate(reference, square))
    below = cv2.subtract(cv2.erode(reference, square), image)
    return np.maximum(above, below)


def shift_whole(image: Image, reference: Image, max_shift_px: int) -> Image:
    """`reference` moved by the sub-pixel shift that phase correlation finds between the two.

    The shift is believed when it is at most `max_shift_px` in x and y and brings the reference closer to the
    image (mean absolute difference); otherwise the reference stays. What moves in from outside repeats the edge.
    """
    target, levelled = _gray_pair(image, reference)
    height, width = target.shape
    if min(height, width) < 2:
        return reference
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    (dx, dy), _ = cv2.phaseCorrelate(levelled.astype(np.float32), target.astype(np.float32), window)
    if not max(abs(dx), abs(dy)) <= max_shift_px:
        return reference
    moved = _translate(levelled, dx, dy)
    is_closer = cv2.norm(target, moved, cv2.NORM_L1) < cv2.norm(target, levelled, cv2.NORM_L1)
    return _translate(reference, dx, dy) if is_closer else reference


def _translate(image: Image, dx: float, dy: float) -> Image:
    height, width = image.shape[:2]
    matrix = np.array([[1, 0, dx], [0, 1, dy]], dtype=np.float64)
    moved = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, dtype=np.uint8)


def shift_tiles(image: Image, reference: Image, max_shift_px: int, tile_px: int) -> Image:
    """`reference` bent by the shifts that fit it to `image` best around each tile, linear between tile centres.

    Block matching by mean absolute difference from coarse to fine, to a fraction of a pixel. A tile without
    structure follows the whole image. Shifts end at `max_shift_px` in x and y. What moves in from outside repeats
    the edge. Raises InputError for an image with a side of 32767 pixels or more, which OpenCV cannot bend.
    """
    if max(image.shape[:2]) >= BENDABLE_SIDE:
        raise InputError(
            "infer",
            "ImageTooLargeError",
            f"local registration takes sides below {BENDABLE_SIDE} pixels, got {image.shape[1]} x {image.shape[0]}; "
            "use registration translation, or smaller images",
        )
    target, levelled = _gray_pair(image, reference)
    height, width = target.shape
    shifts = np.zeros((max(1, round(height / tile_px)), max(1, round(width / tile_px)), 2), dtype=np.float32)
    coarse_radius = max_shift_px // COARSE_FACTOR + 1
    for factor, radius in ((COARSE_FACTOR, coarse_radius), (FINE_FACTOR, FINE_RADIUS)):
        size_hw = math.ceil(height / factor), math.ceil(width / factor)
        scale_xy = np.array([width / size_hw[1], height / size_hw[0]], dtype=np.float32)
        near = _bend(resize_to(levelled, size_hw), np.divide(shifts, scale_xy, dtype=np.float32))
        shifts += _tile_shifts(resize_to(target, size_hw), near, shifts.shape[:2], radius) * scale_xy
        np.clip(shifts, -max_shift_px, max_shift_px, out=shifts)
    return _bend(reference, shifts)


def _gray_pair(image: Image, reference: Image) -> tuple[Image, Image]:
    """Both images in grey, the reference at the mean brightness of the image, for finding shifts."""
    if image.ndim == 3:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
        reference = np.asarray(cv2.cvtColor(reference, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    levels = cv2.mean(reference)[0]
    brightness = cv2.mean(image)[0] / levels if levels > 0 else 1.0
    return image, np.asarray(cv2.convertScaleAbs(reference, alpha=brightness), dtype=np.uint8)


def _bend(image: Image, shifts: Floats) -> Image:
    """`image` with every pixel moved by `shifts`, (rows, columns, 2) in x and y, given at the centres of tiles."""
    if not shifts.any():
        return image
    height, width = image.shape[:2]
    x, y = (
        cv2.resize(np.ascontiguousarray(shifts[..., axis]), (width, height), interpolation=cv2.INTER_LINEAR)
        for axis in (0, 1)
    )
    np.subtract(np.arange(width, dtype=np.float32), x, out=x)
    np.subtract(np.arange(height, dtype=np.float32)[:, None], y, out=y)
    return np.asarray(cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), dtype=np.uint8)


def _tile_shifts(image: Image, reference: Image, grid: tuple[int, ...], radius: int) -> Floats:
    """Shift of `reference` in x and y, (rows, columns, 2), that fits each tile of `image` best, up to `radius`."""
    costs = _tile_costs(image, reference, grid, radius)
    steps = np.arange(radius, -radius - 1, -1)

    def away_from(dx: float, dy: float) -> NDArray[np.float64]:
        distance: NDArray[np.float64] = np.abs(steps - dy)[:, None, None, None] + np.abs(steps - dx)[:, None, None]
        return LEVELS_PER_STEP * distance

    whole = _least_cost_shifts(costs.mean(axis=(2, 3), keepdims=True) + away_from(0, 0))
    return _least_cost_shifts(costs + away_from(*whole[0, 0].tolist()))


def _least_cost_shifts(costs: NDArray[np.float64]) -> Floats:
    """Shift in x and y, (rows, columns, 2), of least of `costs` as `_tile_costs` makes them."""
    side, _, *grid = costs.shape
    best = costs.reshape(side * side, *grid).argmin(axis=0)
    row, column = best // side, best % side
    along_x = np.take_along_axis(costs, row[None, None], axis=0)[0]
    along_y = np.take_along_axis(costs, column[None, None], axis=1)[:, 0]
    centre = side // 2
    shifts = np.stack([centre - _vertex(along_x, column), centre - _vertex(along_y, row)], axis=-1)
    return shifts.astype(np.float32)


def _tile_costs(image: Image, reference: Image, grid: tuple[int, ...], radius: int) -> NDArray[np.float64]:
    """Mean absolute difference around each tile, (shifts, shifts, rows, columns); shifts run from +radius down."""
    height, width = image.shape
    side = 2 * radius + 1
    rows, columns = _window_edges(height, grid[0]), _window_edges(width, grid[1])
    corners = np.ix_(rows.ravel(), columns.ravel())
    areas = np.outer(rows[1] - rows[0], columns[1] - columns[0])
    padded = cv2.copyMakeBorder(reference, radius, radius, radius, radius, cv2.BORDER_REPLICATE)
    costs = np.empty((side, side, *grid), dtype=np.float64)
    for i in range(side):
        for j in range(side):
            differences = cv2.absdiff(image, padded[i : i + height, j : j + width])
            sums = cv2.integral(differences, sdepth=cv2.CV_64F)[corners].reshape(2, grid[0], 2, grid[1])
            costs[i, j] = (sums[1, :, 1] - sums[0, :, 1] - sums[1, :, 0] + sums[0, :, 0]) / areas
    return costs


def _window_edges(length: int, tiles: int) -> NDArray[np.int64]:
    """Begin and end, (2, tiles), of the windows around `tiles` equal tiles of an axis."""
    tile = length / tiles
    centres = (np.arange(tiles) + 0.5) * tile
    reach = np.array([[-0.5], [0.5]]) * WINDOW_TILES * tile
    return np.clip(np.rint(centres + reach), 0, length).astype(np.int64)


def _vertex(costs: NDArray[np.float64], at: NDArray[np.int64]) -> NDArray[np.float64]:
    """Place of the smallest of `costs` (n, ...) to a fraction of a step, given its index `at`.

    The equiangular fit, lines of equal and opposite slope through three neighbours, which suits absolute
    differences. A smallest cost at either end stays there, and so does one of 0, a perfect fit.
    """
    inner = np.clip(at, 1, len(costs) - 2)[None]
    before, middle, after = (np.take_along_axis(costs, inner + step, axis=0)[0] for step in (-1, 0, 1))
    slope = np.maximum(before, after) - middle
    is_valley = (inner[0] == at) & (slope > 0) & (middle > 0)
    offset = np.where(is_valley, (before - after) / (2 * np.where(is_valley, slope, 1)), 0)
    return np.asarray(at + offset, dtype=np.float64)


def match_brightness(image: Image, reference: Image, grid: int, max_gain: float) -> Image:
    """`reference` times the factors that fit it to `image` on grid x grid tiles, linear between tile centres.

    A factor is a median, so a defect on less than half of a tile does not move it. Tiles too dark to tell take
    the factor of the whole image.
    """
    height, width = image.shape[:2]
    rows, columns = _tile_edges(height, grid), _tile_edges(width, grid)
    overall = _median_ratio(image, reference)
    gains = np.full((len(rows) - 1, len(columns) - 1), overall, dtype=np.float32)
    if gains.size > 1:
        for i, j in np.ndindex(gains.shape):
            tile = slice(rows[i], rows[i + 1]), slice(columns[j], columns[j + 1])
            if reference[tile].mean() >= DARK_LEVEL:
                gains[i, j] = _median_ratio(image[tile], reference[tile])
    field = cv2.resize(gains.clip(1 / max_gain, max_gain), (width, height), interpolation=cv2.INTER_LINEAR)
    field = field if reference.ndim == 2 else field[..., None]
    return np.asarray(np.rint(np.minimum(reference * field, 255)), dtype=np.uint8)


def _tile_edges(length: int, tiles: int) -> list[int]:
    count = min(tiles, length)
    return [length * k // count for k in range(count + 1)]


def _median_ratio(image: Image, reference: Image) -> float:
    """The factor g of least sum |x - g r|: the median of x / r weighted by r; 1 where `reference` is all 0."""
    pairs = np.bincount((reference.astype(np.uint16) << 8 | image).ravel(), minlength=1 << 16)
    levels, ratios, order = _level_ratios()
    weights = np.cumsum((pairs * levels)[order])
    if weights[-1] == 0:
        return 1.0
    return float(ratios[order[np.searchsorted(weights, weights[-1] / 2)]])


@cache
def _level_ratios() -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """For each pair of levels, at 256 r + x: r, x / r, and the order of rising x / r."""
    levels, values = np.divmod(np.arange(1 << 16), 256)
    ratios = values / np.maximum(levels, 1)
    return levels, ratios, np.argsort(ratios, kind="stable")
