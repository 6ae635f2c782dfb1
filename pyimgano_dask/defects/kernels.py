"""Loops over pixels and boxes, compiled to machine code.

Compiled code is kept on disk, in the package's folder or the user's cache, and made anew for another processor. Sums
run in the order of the pixels and without fused operations, so that every processor gives the same bits. The loops
do not hold the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.core.caching import FunctionCache

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


class _Cache(FunctionCache):
    """Compiled code on disk. A file that cannot be read or written costs a compilation, never a result."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # noqa: BLE001 - a damaged file raises whatever reading it happens to raise
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(Exception):
            super().save_overload(sig, data)


def compiled(function: Kernel) -> Kernel:
    """Compile when first called; without a folder for the cache, in every process anew."""
    kernel: Any = numba.njit(nogil=True)(function)
    with suppress(RuntimeError):
        kernel._cache = _Cache(function)
    return cast(Kernel, kernel)


@compiled
def score_max_and_sum(
    labels: np.ndarray, scores: np.ndarray, edges_yyxx: tuple[int, int, int, int], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Largest score and sum of scores of each label, float64 (count,) each; label 0 is left out.

    `labels` int32 and `scores` float32 are (H, W). Scores outside `edges_yyxx` (first row, row after the last, the same
    of columns) count as 0.
    """
    top, bottom, first, stop = edges_yyxx
    largest = np.full(count, -np.inf)
    total = np.zeros(count)
    height, width = labels.shape
    for y in range(height):
        left, right = (first, stop) if top <= y < bottom else (0, 0)
        x = 0
        while x < width:
            label = labels[y, x]
            if label == 0:
                x += 1
                continue
            most, run = largest[label], 0.0
            while x < width and labels[y, x] == label:
                score = np.float64(scores[y, x]) if left <= x < right else 0.0
                most = max(most, score)
                run += score
                x += 1
            largest[label] = most
            total[label] += run
    return largest, total


@compiled
def boxes_and_areas(stats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inclusive boxes, int64 (N, 4), and areas, int64 (N,), of OpenCV's statistics, int32 (N, 5)."""
    count = len(stats)
    boxes, areas = np.empty((count, 4), np.int64), np.empty(count, np.int64)
    for n in range(count):
        x, y = np.int64(stats[n, 0]), np.int64(stats[n, 1])
        boxes[n, 0], boxes[n, 1] = x, y
        boxes[n, 2], boxes[n, 3] = x + stats[n, 2] - 1, y + stats[n, 3] - 1
        areas[n] = stats[n, 4]
    return boxes, areas


@compiled
def labels_under(labels: np.ndarray, seeds: np.ndarray, count: int) -> np.ndarray:
    """Whether a label, bool (count,), has a pixel where `seeds`, uint8 (H, W), is not 0; `labels` is int32 (H, W)."""
    under = np.zeros(count, np.bool_)
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            if seeds[y, x]:
                under[labels[y, x]] = True
    return under


@compiled
def only_labels(mask: np.ndarray, labels: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """`mask`, uint8 (H, W), with 0 where the label is not kept; `keep` is bool (labels,)."""
    out = mask.copy()
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            if out[y, x] and not keep[labels[y, x]]:
                out[y, x] = 0
    return out


# The eight neighbours of a pixel in the order of a clock that runs from the west over the north.
DX = np.array([-1, -1, 0, 1, 1, 1, 0, -1])
DY = np.array([0, -1, -1, -1, 0, 1, 1, 1])


@compiled
def twice_contour_and_hull_areas(
    labels: np.ndarray, numbers: np.ndarray, boxes_xyxy: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Twice the area inside the outer contour, and twice that of the convex hull, of components; int64 (N,) each.

    Both polygons go through pixel centres. The outer border is followed from the first pixel in raster order (Suzuki
    and Abe 1985, https://doi.org/10.1016/0734-189X(85)90016-7). The hull is that of the leftmost and rightmost border
    pixel of each row (Andrew's monotone chain, https://doi.org/10.1016/0020-0190(79)90072-3). `labels` is int32 (H, W),
    `numbers` (N,) are the labels of the components in the inclusive `boxes_xyxy` (N, 4).
    """
    count = len(numbers)
    contours, hulls = np.zeros(count, np.int64), np.zeros(count, np.int64)
    rows = labels.shape[0]
    left, right = np.empty(rows, np.int64), np.empty(rows, np.int64)
    chain = np.empty(rows, np.int64)
    for n in range(count):
        number = numbers[n]
        x1, y1, x2, y2 = boxes_xyxy[n, 0], boxes_xyxy[n, 1], boxes_xyxy[n, 2], boxes_xyxy[n, 3]
        height = y2 - y1 + 1
        left[:height] = x2
        right[:height] = x1
        start = x1
        while labels[y1, start] != number:
            start += 1
        contours[n] = abs(_follow(labels, number, boxes_xyxy[n], start, left, right))
        hulls[n] = _under_chain(right, height, chain, 1) - _under_chain(left, height, chain, -1)
    return contours, hulls


@compiled
def _follow(
    labels: np.ndarray, number: int, box_xyxy: np.ndarray, start: int, left: np.ndarray, right: np.ndarray
) -> int:
    """Follow the outer border of a label from its first pixel; returns twice the signed area inside it.

    `left` and `right` take the extremes of each row of the box.
    """
    x1, y1, x2, y2 = box_xyxy[0], box_xyxy[1], box_xyxy[2], box_xyxy[3]
    first = -1
    for turn in range(1, 8):
        x, y = start + DX[turn], y1 + DY[turn]
        if x1 <= x <= x2 and y1 <= y <= y2 and labels[y, x] == number:
            first = turn
            break
    left[0] = right[0] = start
    if first < 0:
        return 0
    end_x, end_y = start + DX[first], y1 + DY[first]
    x, y, back, area = start, y1, first, 0
    while True:
        turn = back
        while True:
            turn = (turn + 7) % 8
            next_x, next_y = x + DX[turn], y + DY[turn]
            if x1 <= next_x <= x2 and y1 <= next_y <= y2 and labels[next_y, next_x] == number:
                break
        area += x * next_y - next_x * y
        row = next_y - y1
        left[row] = min(left[row], next_x)
        right[row] = max(right[row], next_x)
        if next_x == start and next_y == y1 and x == end_x and y == end_y:
            return area
        x, y, back = next_x, next_y, (turn + 4) % 8


@compiled
def _under_chain(extremes: np.ndarray, height: int, chain: np.ndarray, side: int) -> int:
    """Twice the area between the y axis and the hull of an extreme a row; `side`: 1 for the right, -1 for the left."""
    size = 0
    for y in range(height):
        x = side * extremes[y]
        while size >= 2:
            y0, y1 = chain[size - 2], chain[size - 1]
            x0, x1 = side * extremes[y0], side * extremes[y1]
            if (x1 - x0) * (y - y0) > (x - x0) * (y1 - y0):
                break
            size -= 1
        chain[size] = y
        size += 1
    area = 0
    for k in range(1, size):
        area += (extremes[chain[k]] + extremes[chain[k - 1]]) * (chain[k] - chain[k - 1])
    return area


@compiled
def smallest_linked(boxes_xyxy: np.ndarray, by_top: np.ndarray, reach: int) -> np.ndarray:
    """For each inclusive box (N, 4) the smallest index it is linked to in steps, int64 (N,).

    Two boxes are linked when they share a pixel after each has grown by `reach` to the right and down. A sweep in the
    order `by_top` (rising top) keeps, for every column, how far down the deepest box goes and one of its group. A box
    that begins above that depth meets the deepest one there; any other that it meets in the column has met the
    deepest one, too, and is of its group already.
    """
    width = boxes_xyxy[:, 2].max() + 1
    depth, owner = np.full(width, -1, np.int64), np.zeros(width, np.int64)
    parent = np.arange(len(boxes_xyxy))
    for index in by_top:
        left, top, right = boxes_xyxy[index, 0], boxes_xyxy[index, 1], boxes_xyxy[index, 2]
        lowest = boxes_xyxy[index, 3] + reach
        last = -1
        for x in range(left, min(right + reach + 1, width)):
            if depth[x] >= top and owner[x] != last:
                last = owner[x]
                one, other = _root(parent, index), _root(parent, last)
                parent[max(one, other)] = min(one, other)
            owner[x] = index
            depth[x] = max(depth[x], lowest)
    for index in range(len(parent)):
        parent[index] = _root(parent, index)
    return parent


@compiled
def joined_boxes_and_peaks(
    boxes_xyxy: np.ndarray, peaks: np.ndarray, group: np.ndarray, heads: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The box around the boxes (N, 4) of each group, (M, 4), and the largest of its `peaks`, (M,).

    `group` (N,) is the group of each box, `heads` (M,) is one member of each group.
    """
    boxes, largest = boxes_xyxy[heads], peaks[heads]
    for n in range(len(group)):
        g = group[n]
        for near, far in ((0, 2), (1, 3)):
            boxes[g, near] = min(boxes[g, near], boxes_xyxy[n, near])
            boxes[g, far] = max(boxes[g, far], boxes_xyxy[n, far])
        largest[g] = max(largest[g], peaks[n])
    return boxes, largest


@compiled
def _root(parent: np.ndarray, index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


@compiled
def break_ties(
    order: np.ndarray,
    key: np.ndarray,
    falling: tuple[np.ndarray, np.ndarray],
    areas: np.ndarray,
    boxes_xyxy: np.ndarray,
    centroids_xy: np.ndarray,
    ids: np.ndarray,
) -> None:
    """Put rows of equal `key` that follow one another in `order` into the order of report, in place.

    It looks at `falling`, two columns of scores, and `areas`, the greatest first, then at y1, x1, y2, x2, cy, cx and
    the id. Merge sort, so that many equal rows cost no more than others.
    """
    count = len(order)
    spare = np.empty(count, order.dtype)
    start = 0
    while start < count:
        stop = start + 1
        while stop < count and key[order[stop]] == key[order[start]]:
            stop += 1
        size = 1
        while size < stop - start:
            for low in range(start, stop, 2 * size):
                middle, high = min(low + size, stop), min(low + 2 * size, stop)
                one, other = low, middle
                for place in range(low, high):
                    takes_one = other >= high or (
                        one < middle
                        and _comes_first(order[one], order[other], falling, areas, boxes_xyxy, centroids_xy, ids)
                    )
                    if takes_one:
                        spare[place] = order[one]
                        one += 1
                    else:
                        spare[place] = order[other]
                        other += 1
            order[start:stop] = spare[start:stop]
            size *= 2
        start = stop


@compiled
def _comes_first(
    one: int,
    other: int,
    falling: tuple[np.ndarray, np.ndarray],
    areas: np.ndarray,
    boxes_xyxy: np.ndarray,
    centroids_xy: np.ndarray,
    ids: np.ndarray,
) -> bool:
    """Whether a row is reported before another of equal key."""
    for column in falling:
        if column[one] != column[other]:
            return column[one] > column[other]
    if areas[one] != areas[other]:
        return areas[one] > areas[other]
    for axis in (1, 0, 3, 2):
        if boxes_xyxy[one, axis] != boxes_xyxy[other, axis]:
            return boxes_xyxy[one, axis] < boxes_xyxy[other, axis]
    for axis in (1, 0):
        if centroids_xy[one, axis] != centroids_xy[other, axis]:
            return centroids_xy[one, axis] < centroids_xy[other, axis]
    return ids[one] < ids[other]
