"""The part of a map that counts: region of interest and ignored border."""

from __future__ import annotations

import math

import numpy as np

from pyimgano_dask.settings.defects import RoiXyxyNorm, clamped_roi

Part = tuple[slice, slice]


def roi_slices(roi_xyxy_norm: RoiXyxyNorm | None, shape_hw: tuple[int, int]) -> Part:
    """Rows and columns of a map that lie in the region of interest.

    `roi_xyxy_norm` is (x1, y1, x2, y2) in fractions of the map's width and height. It is clamped to [0, 1]
    and put in order; pixels it touches in part are included. None is the whole map.

    >>> roi_slices((0.25, 0.0, 0.75, 0.5), (10, 10))
    (slice(0, 5, None), slice(2, 8, None))
    """
    height, width = shape_hw
    if roi_xyxy_norm is None:
        return slice(0, height), slice(0, width)
    x1, y1, x2, y2 = clamped_roi(roi_xyxy_norm)
    return _touched(y1, y2, height), _touched(x1, x2, width)


def _touched(low: float, high: float, length: int) -> slice:
    return slice(math.floor(low * length), math.ceil(high * length))


def zero_outside(image: np.ndarray, part: Part) -> np.ndarray:
    """`image` (H, W) with every pixel outside `part` set to 0; the image itself when `part` is all of it."""
    inside = image[part]
    if inside.shape == image.shape:
        return image
    out = np.zeros(image.shape, image.dtype)
    out[part] = inside
    return out


def without_border(part: Part, shape_hw: tuple[int, int], border_px: int) -> Part:
    """What is left of a part of a map of `shape_hw` without `border_px` pixels on each side of the map.

    Nothing, when no pixel lies between the borders.

    >>> without_border((slice(0, 5), slice(2, 8)), (10, 10), 3)
    (slice(3, 5, None), slice(3, 7, None))
    """
    if border_px == 0:
        return part
    if 2 * border_px >= min(shape_hw):
        return slice(0, 0), slice(0, 0)
    rows, columns = (
        slice(max(along.start, border_px), min(along.stop, length - border_px))
        for along, length in zip(part, shape_hw, strict=True)
    )
    return rows, columns
