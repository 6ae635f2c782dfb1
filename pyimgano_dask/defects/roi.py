"""The part of a map that counts: region of interest and ignored border."""

from __future__ import annotations

import math

import numpy as np

from pyimgano_dask.settings.defects import RoiXyxyNorm, clamped_roi


def roi_slices(roi_xyxy_norm: RoiXyxyNorm | None, shape_hw: tuple[int, int]) -> tuple[slice, slice]:
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


def zero_outside_roi(image: np.ndarray, roi: tuple[slice, slice]) -> np.ndarray:
    """`image` (H, W) with every pixel outside `roi` set to 0; the image itself when `roi` is all of it."""
    inside = image[roi]
    if inside.shape == image.shape:
        return image
    out = np.zeros(image.shape, image.dtype)
    out[roi] = inside
    return out


def zero_border(scores: np.ndarray, border_px: int) -> np.ndarray:
    """`scores` (H, W) with `border_px` pixels on each side set to 0: all when none is left between."""
    if border_px == 0:
        return scores
    out = np.zeros(scores.shape, scores.dtype)
    height, width = scores.shape
    if 2 * border_px < min(height, width):
        inner = slice(border_px, height - border_px), slice(border_px, width - border_px)
        out[inner] = scores[inner]
    return out
