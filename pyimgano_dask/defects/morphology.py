"""Opening, closing and hole filling of masks, uint8 (H, W) with values 0 and 1."""

from __future__ import annotations

import cv2
import numpy as np


def opened(mask: np.ndarray, ksize: int) -> np.ndarray:
    """Open `mask` with a square of `ksize` pixels a side; 0 and 1 do nothing.

    Pixels outside the map do not count. An even square moves what it leaves one pixel to the right and down, as
    OpenCV's does. A square that covers the map from every pixel is cut down to the smallest that does.
    """
    return _morphed(mask, cv2.MORPH_OPEN, ksize)


def closed(mask: np.ndarray, ksize: int) -> np.ndarray:
    """Close `mask` with a square of `ksize` pixels a side, else as `opened`."""
    return _morphed(mask, cv2.MORPH_CLOSE, ksize)


def _morphed(mask: np.ndarray, operation: int, ksize: int) -> np.ndarray:
    if ksize <= 1:
        return mask
    side = min(ksize, 2 * max(mask.shape))
    return cv2.morphologyEx(mask, operation, np.ones((side, side), np.uint8))


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """`mask` with background that is not 4-connected to the edge of the map turned into foreground."""
    x, y, width, height = cv2.boundingRect(mask)
    if min(width, height) < 3:
        return mask
    box = slice(y, y + height), slice(x, x + width)
    walled = cv2.copyMakeBorder(mask[box], 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    outside = 2
    cv2.floodFill(walled, None, (0, 0), outside, flags=4)
    out = mask.copy()
    np.not_equal(walled[1:-1, 1:-1], outside, out=out[box].view(np.bool_))
    return out
