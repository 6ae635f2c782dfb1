"""Solidity of components: the area of the outer contour divided by the area of its convex hull.

Both areas are those of polygons through pixel centres. All components are worked out together: contours from counts
of sides and corners, hulls from the leftmost and rightmost pixel of each row.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pyimgano_dask.defects.components import Components

# A 2x2 window is coded as 1 * top left + 2 * top right + 4 * bottom left + 8 * bottom right. Corners are those with one
# or three pixels, or two on a diagonal.
FULL = 15
PIXELS_IN_WINDOW = np.array([code.bit_count() for code in range(16)])
IS_DIAGONAL = np.isin(np.arange(16), [1 + 8, 2 + 4])
FIRST_PIXEL = np.array([(code & -code).bit_length() - 1 for code in range(16)])
LAST_PIXEL = np.array([code.bit_length() - 1 for code in range(16)])
# What a corner gives back of the pixels that straight sides take off the area, and what it adds to the number of
# components less the number of holes, both times four (Gray 1971, https://doi.org/10.1109/T-C.1971.223289).
AREA_GIVEN = np.where(IS_DIAGONAL, 2.0, np.array([0.0, 1.0, 0.0, 1.0, 0.0])[PIXELS_IN_WINDOW])
EULER_ADDED = np.where(IS_DIAGONAL, -2.0, np.array([0.0, 1.0, 0.0, -1.0, 0.0])[PIXELS_IN_WINDOW])
# Maps of more pixels are faster looked at along each side by itself than within the box around all sides.
PIXELS_WORTH_SPLITTING = 1 << 17


@dataclass(frozen=True, eq=False)
class Border:
    """Where components meet the background.

    Places are flat indices into a label image, int64, in raster order, each with the label of its component, int32.
    corners: top left pixels of the 2x2 windows that are corners; codes: uint8, what each holds.
    lefts, rights, tops: pixels with background on that side.
    """

    corners: np.ndarray
    corner_labels: np.ndarray
    codes: np.ndarray
    lefts: np.ndarray
    left_labels: np.ndarray
    rights: np.ndarray
    right_labels: np.ndarray
    tops: np.ndarray
    top_labels: np.ndarray

    def only(self, wanted: np.ndarray) -> Border:
        """The part that belongs to wanted labels, bool (labels,)."""
        corner, left = wanted[self.corner_labels], wanted[self.left_labels]
        right, top = wanted[self.right_labels], wanted[self.top_labels]
        return Border(
            self.corners[corner],
            self.corner_labels[corner],
            self.codes[corner],
            self.lefts[left],
            self.left_labels[left],
            self.rights[right],
            self.right_labels[right],
            self.tops[top],
            self.top_labels[top],
        )


def solidities(components: Components) -> np.ndarray:
    """Solidity of each component, float64 (N,) in [0, 1]; NaN where the hull has no area.

    Holes do not count against it. A component of one row, one column or one diagonal has a hull without area.
    """
    values = np.full(len(components), np.nan)
    if len(components) == 0:
        return values
    left, top = components.boxes_xyxy[:, :2].min(axis=0).tolist()
    right, bottom = components.boxes_xyxy[:, 2:].max(axis=0).tolist()
    cut_out = components.labels[top : bottom + 1, left : right + 1]
    labels = cv2.copyMakeBorder(cut_out, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    pixel = (labels != 0).view(np.uint8)
    border = _border(labels, pixel)
    count = int(border.left_labels.max()) + 1
    if count > len(components) + 1:
        ours = np.zeros(count, np.bool_)
        ours[components.numbers] = True
        border = border.only(ours)
    hull_areas = _hull_areas(components, border, count, labels.shape[1], top - 1)
    np.divide(_contour_areas(components, border, count, pixel), hull_areas, out=values, where=hull_areas > 0)
    return values


def solidities_after(
    components: Components, before: Components, known: np.ndarray, roi: tuple[slice, slice]
) -> np.ndarray:
    """Solidity of each component, float64 (N,), of what is left of others when holes are filled and `roi` cut out.

    Filling leaves outer contours as they are. So a component that the cut does not touch has the solidity of the one
    that had the same box `before`, and `known` holds those; two components that reach all sides of one box would meet,
    so there is just one.
    """
    rows, columns = roi
    height, width = components.labels.shape
    x1, y1, x2, y2 = components.boxes_xyxy.T
    cut_by = np.zeros(len(components), np.int64)
    for side, (side_is_cut, touches) in enumerate(
        (
            (rows.start > 0, y1 == rows.start),
            (columns.start > 0, x1 == columns.start),
            (rows.stop < height, y2 == rows.stop - 1),
            (columns.stop < width, x2 == columns.stop - 1),
        ),
        start=1,
    ):
        if side_is_cut:
            cut_by[touches] = side
    strides = np.array([1, width, width * height, width * width * height])
    boxes, boxes_before = components.boxes_xyxy @ strides, before.boxes_xyxy @ strides
    by_box = np.argsort(boxes_before)
    whole = cut_by == 0
    values = np.empty(len(components))
    values[whole] = known[by_box[np.searchsorted(boxes_before, boxes[whole], sorter=by_box)]]
    sides = [cut_by == side for side in (1, 2, 3, 4)] if height * width > PIXELS_WORTH_SPLITTING else [~whole]
    for part in map(np.flatnonzero, sides):
        values[part] = solidities(components.take(part))
    return values


def _border(labels: np.ndarray, pixel: np.ndarray) -> Border:
    """The border of all components in `labels`, int32 (h, w), and their mask `pixel`, both walled with zeros.

    Thanks to the wall, windows which run over the end of a row are empty.
    """
    width, flat_labels, flat = labels.shape[1], labels.ravel(), pixel.ravel()
    beside = flat[1:] != flat[:-1]
    below = flat[width:] != flat[:-width]
    changes = np.flatnonzero(beside)
    lefts, rights = changes[::2] + 1, changes[1::2]
    tops = np.flatnonzero(below & flat[width:].view(np.bool_)) + width
    upper, lower = beside[:-width], beside[width:]
    corners = np.flatnonzero((upper ^ lower) | (upper & lower & below[:-1]))
    bits = (flat[corners + offset] << bit for bit, offset in enumerate(_offsets(width)))
    codes: np.ndarray = sum(bits, start=np.zeros(len(corners), np.uint8))
    return Border(
        corners=corners,
        corner_labels=flat_labels[corners + _offsets(width)[FIRST_PIXEL][codes]],
        codes=codes,
        lefts=lefts,
        left_labels=flat_labels[lefts],
        rights=rights,
        right_labels=flat_labels[rights],
        tops=tops,
        top_labels=flat_labels[tops],
    )


def _offsets(width: int) -> np.ndarray:
    """From the top left pixel of a window to each of its pixels."""
    return np.array([0, 1, width, width + 1])


def _contour_areas(components: Components, border: Border, count: int, pixel: np.ndarray) -> np.ndarray:
    """Area inside the outer contour of each component, float64 (N,); there are `count` labels.

    It is the number of pixels less half the length of their border, but for what the corners give back.
    """
    sides = np.bincount(border.left_labels, minlength=count) + np.bincount(border.top_labels, minlength=count)
    given = np.bincount(border.corner_labels, AREA_GIVEN[border.codes], count)
    euler = np.bincount(border.corner_labels, EULER_ADDED[border.codes], count)
    areas: np.ndarray = components.areas - (sides - given / 4)[components.numbers]
    with_holes = euler[components.numbers] != 4
    if with_holes.any():
        enclosed = _enclosed_areas(border.only(euler != 4), count, pixel)
        areas[with_holes] = enclosed[components.numbers[with_holes]]
    return areas


def _enclosed_areas(border: Border, count: int, pixel: np.ndarray) -> np.ndarray:
    """Area inside the outer contour of each label with holes, float64 (count,).

    One flood from the wall tells the holes of all components that lie in no hole themselves; for the others all parts
    of the background are told apart.
    """
    flooded = pixel.copy()
    cv2.floodFill(flooded, None, (0, 0), 2, flags=4)
    areas, outside = _areas_within(border, count, flooded)
    in_a_hole = outside == 0
    if in_a_hole[border.left_labels].any():
        background = 1 - pixel
        _, parts = cv2.connectedComponentsWithAlgorithm(background, 4, cv2.CV_32S, cv2.CCL_SAUF)
        areas[in_a_hole] = _areas_within(border.only(in_a_hole), count, parts)[0][in_a_hole]
    return areas


def _areas_within(border: Border, count: int, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area inside the outer contour of each label, and the background outside it, (count,) each.

    `parts` (h, w) tells the background around a component from its holes. Outside is what lies to the left of the
    first pixel. Only the outer border counts.
    """
    width, flat_parts = parts.shape[1], parts.ravel()
    outside = np.zeros(count, parts.dtype)
    outside[border.left_labels[::-1]] = flat_parts[border.lefts - 1][::-1]

    def is_outer(places: np.ndarray, labels: np.ndarray) -> np.ndarray:
        outer: np.ndarray = flat_parts[places] == outside[labels]
        return outer.astype(np.float64)

    left, right = is_outer(border.lefts - 1, border.left_labels), is_outer(border.rights + 1, border.right_labels)
    top = is_outer(border.tops - width, border.top_labels)
    gaps, offsets = FULL - border.codes, _offsets(width)
    first, last = (
        is_outer(border.corners + offsets[end][gaps], border.corner_labels) for end in (FIRST_PIXEL, LAST_PIXEL)
    )
    areas: np.ndarray = (
        np.bincount(border.right_labels, right * (border.rights % width + 1), count)
        - np.bincount(border.left_labels, left * (border.lefts % width + 1), count)
        - np.bincount(border.top_labels, top, count)
        + np.bincount(border.corner_labels, AREA_GIVEN[border.codes] * (first + last), count) / 8
    )
    return areas, outside


def _hull_areas(components: Components, border: Border, count: int, width: int, top: int) -> np.ndarray:
    """Area of the convex hull of each component, float64 (N,); borders in rows of `width`, the first one `top`."""
    tops = components.boxes_xyxy[:, 1]
    heights = components.boxes_xyxy[:, 3] - tops + 1
    ends = np.cumsum(heights)
    rows = int(ends[-1])
    row_zero = np.zeros(count, np.int64)
    row_zero[components.numbers] = ends - heights - (tops - top)
    x = np.empty(2 * rows, np.int64)
    leftmost, rightmost = x[:rows], x[rows:]
    y = border.lefts // width
    leftmost[(row_zero[border.left_labels] + y)[::-1]] = (border.lefts - y * width)[::-1]
    y = border.rights // width
    rightmost[row_zero[border.right_labels] + y] = y * width - border.rights
    part = np.repeat(np.arange(2 * len(components)), np.concatenate((heights, heights)))
    under = _under_hull(part, x)
    areas: np.ndarray = (under[: len(components)] + under[len(components) :]) / -2
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
