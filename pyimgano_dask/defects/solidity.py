"""Solidity of components: the area of the outer contour divided by the area of its convex hull.

Both areas are those of polygons through pixel centres. All components are worked out together: contours from counts
of 2x2 windows, hulls from the leftmost and rightmost pixel of each row.
"""

from __future__ import annotations

import cv2
import numpy as np

from pyimgano_dask.defects.components import Components

# A 2x2 window is coded as 1 * top left + 2 * top right + 4 * bottom left + 8 * bottom right.
EMPTY, FULL = 0, 15
PIXELS_IN_WINDOW = np.array([code.bit_count() for code in range(16)])
IS_DIAGONAL = np.isin(np.arange(16), [1 + 8, 2 + 4])
# What a window takes off the pixel count to give the contour area, and what it adds to the number of components
# less the number of holes, both times four (Gray 1971, https://doi.org/10.1109/T-C.1971.223289).
AREA_TAKEN = np.array([0, 1, 2, 1, 0])[PIXELS_IN_WINDOW]
EULER_ADDED = np.where(IS_DIAGONAL, -2, np.array([0, 1, 0, -1, 0])[PIXELS_IN_WINDOW])


def solidities(components: Components) -> np.ndarray:
    """Solidity of each component, float64 (N,) in [0, 1]; NaN where the hull has no area.

    Holes do not count against it. A component of one row, one column or one diagonal has a hull without area.
    """
    values = np.full(len(components), np.nan)
    if len(components) == 0:
        return values
    left, top = components.boxes_xyxy[:, :2].min(axis=0).tolist()
    right, bottom = components.boxes_xyxy[:, 2:].max(axis=0).tolist()
    labels = np.pad(components.labels[top : bottom + 1, left : right + 1], 1)
    hull_areas = _hull_areas(components, labels, top - 1)
    np.divide(_contour_areas(components, labels), hull_areas, out=values, where=hull_areas > 0)
    return values


def _contour_areas(components: Components, labels: np.ndarray) -> np.ndarray:
    """Area inside the outer contour of each component, float64 (N,).

    `labels` (h, w) are cut out around the components and walled with zeros, so that windows which run over the
    end of a row are empty.
    """
    width, flat = labels.shape[1], labels.ravel()
    pixel = (flat != 0).view(np.uint8)
    code = pixel[: -width - 1] | pixel[1:-width] << 1 | pixel[width:-1] << 2 | pixel[width + 1 :] << 3
    mixed = np.flatnonzero((code != EMPTY) & (code != FULL))
    code = code[mixed]
    first_pixel = np.array([[0, 1, width, width + 1][(c & -c).bit_length() - 1] for c in range(1, FULL)])
    owner = flat[mixed + first_pixel[code - 1]].astype(np.int64)
    windows = np.bincount(owner << 4 | code, minlength=16 * (int(owner.max()) + 1))
    windows = windows.reshape(-1, 16)[components.numbers]
    areas: np.ndarray = components.areas - windows @ AREA_TAKEN / 4
    for row in np.flatnonzero(windows @ EULER_ADDED != 4).tolist():
        areas[row] = _traced_area(components, row)
    return areas


def _traced_area(components: Components, row: int) -> float:
    """Area inside the outer contour of one component, traced within its box (Suzuki and Abe 1985)."""
    left, top, right, bottom = components.boxes_xyxy[row].tolist()
    alone = components.labels[top : bottom + 1, left : right + 1] == components.numbers[row]
    (contour, *_), _ = cv2.findContours(alone.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return cv2.contourArea(contour)


def _hull_areas(components: Components, labels: np.ndarray, top: int) -> np.ndarray:
    """Area of the convex hull of each component, float64 (N,); `labels` as for contours, from row `top` on."""
    tops = components.boxes_xyxy[:, 1]
    heights = components.boxes_xyxy[:, 3] - tops + 1
    ends = np.cumsum(heights)
    ours = np.zeros(int(labels.max()) + 1, np.bool_)
    ours[components.numbers] = True
    row_zero = np.zeros(len(ours), np.int64)
    row_zero[components.numbers] = ends - heights - (tops - top)

    width, flat = labels.shape[1], labels.ravel()
    pixel = flat != 0
    leftmost, rightmost = np.full(ends[-1], width), np.full(ends[-1], -1)
    for extreme, update, beside in (
        (leftmost, np.minimum, pixel[:-2]),
        (rightmost, np.maximum, pixel[2:]),
    ):
        at = np.flatnonzero(pixel[1:-1] > beside) + 1
        owner = flat[at]
        at, owner = at[ours[owner]], owner[ours[owner]]
        y = at // width
        update.at(extreme, row_zero[owner] + y, at - y * width)
    part = np.repeat(np.arange(len(components)), heights)
    areas: np.ndarray = (_under_hull(part, -rightmost) + _under_hull(part, leftmost)) / -2
    return areas


def _under_hull(part: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Twice the sum of x along the lower hull of each part, float64 (parts,).

    Points of a part follow one another at rising whole y. A point that is not below the line between its
    neighbours is no corner of the hull; such points are taken out until none is left.
    """
    y = np.arange(len(part))
    while True:
        dx, dy = np.diff(x), np.diff(y)
        corner = np.ones(len(part), np.bool_)
        inner = (part[1:-1] == part[:-2]) & (part[1:-1] == part[2:])
        corner[1:-1] = ~inner | (dx[:-1] * dy[1:] < dx[1:] * dy[:-1])
        if corner.all():
            break
        part, x, y = part[corner], x[corner], y[corner]
    same = part[1:] == part[:-1]
    strips = np.where(same, (x[1:] + x[:-1]) * dy, 0)
    return np.bincount(part[1:], weights=strips, minlength=int(part[-1]) + 1)
