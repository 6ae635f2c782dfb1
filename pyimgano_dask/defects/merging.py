"""Joining of regions whose boxes lie close together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pyimgano_dask.defects.regions import RegionTable, round6


def merge_nearby(table: RegionTable, max_gap_px: int) -> RegionTable:
    """Join, transitively, regions whose boxes are at most `max_gap_px` pixels apart in x and in y.

    The gap is the number of pixel columns (rows) between two boxes: 0 when they touch or overlap. Gaps are
    those between the boxes of the regions that come in, not of the joined ones. A joined region has the
    smallest id of its parts, the box around all of them, the sum of their areas, the largest score_max, the
    mean of centroid_xy and score_mean weighted by area, and no solidity. `table` has its ids in rising
    order, and so has the result.
    """
    first = nearby_groups(table.boxes_xyxy, max_gap_px)
    is_head = first == np.arange(len(table))
    heads = np.flatnonzero(is_head)
    if len(heads) == len(table):
        return table
    group = (np.cumsum(is_head) - 1)[first]
    count = len(heads)
    areas = _sums(group, table.areas, count).astype(np.int64)
    centroids = [_sums(group, table.areas * table.centroids_xy[:, axis], count) / areas for axis in (0, 1)]
    boxes = table.boxes_xyxy[heads]
    np.minimum.at(boxes[:, :2], group, table.boxes_xyxy[:, :2])
    np.maximum.at(boxes[:, 2:], group, table.boxes_xyxy[:, 2:])
    score_max = table.score_max[heads]
    np.maximum.at(score_max, group, table.score_max)
    joined = replace(
        table.take(heads),
        boxes_xyxy=boxes,
        areas=areas,
        score_max=score_max,
        score_mean=round6(_sums(group, table.areas * table.score_mean, count) / areas),
        centroids_xy=np.stack(centroids, axis=1),
        merged_from_ids=_parts(table.ids, group),
    )
    alone = np.bincount(group) == 1
    joined.centroids_xy[alone] = table.centroids_xy[heads[alone]]
    joined.score_mean[alone] = table.score_mean[heads[alone]]
    return joined


def nearby_groups(boxes_xyxy: np.ndarray, max_gap_px: int) -> np.ndarray:
    """For each box the smallest index in its group, int64 (N,); groups join by steps of at most the gap.

    Each box reaches `max_gap_px + 1` further to the right and down, so that boxes are close exactly when their reaches
    share a pixel. Reaches are cut into rows, and a row is looked at only where a reach begins: there every pair that
    shares a pixel shows for the first time. Work and memory grow with the number of such rows, which is at most that
    of the pixels of the map when the boxes are those of components.
    """
    count = len(boxes_xyxy)
    if count < 2:
        return np.arange(count)
    reach = min(max_gap_px, int(boxes_xyxy[:, 2:].max()) + 1) + 1
    reaches = boxes_xyxy.copy()
    reaches[:, 2:] += reach
    member, pieces, links = _stacks(reaches, reach + 1)
    one, other = _first_meetings(pieces)
    return _smallest_linked(count, np.concatenate((links[0], member[one])), np.concatenate((links[1], member[other])))


def _stacks(reaches: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The area that reaches (N, 4) cover, in few pieces: (member (M,), pieces (M, 4), links).

    Reaches are at least `side` wide and high, so that all that begin in the same square of a grid of this side cover
    the last pixel of that square. They are linked, and each row of what they cover together is in one piece: above
    that pixel the pieces widen from top to bottom, below it from bottom to top. `member` is one reach of the square of
    each piece; `links` are pairs of reaches of one square.
    """
    left, top, right, bottom = reaches.T
    across = int(right.max()) // side + 1
    square = top // side * across + left // side
    by_top = np.argsort(square * (int(bottom.max()) + 1) + top)
    square = square[by_top]
    begins = np.flatnonzero(np.diff(square, prepend=-1))
    if len(begins) == len(square):
        nothing = np.zeros(0, np.int64)
        return np.arange(len(reaches)), reaches, (nothing, nothing)
    heads = np.repeat(by_top[begins], np.diff(begins, append=len(square)))
    last_row = square // across * side + side - 1
    by_bottom = np.lexsort((-bottom[by_top], square))
    below = by_top[by_bottom]
    upper = _widening(square, left[by_top], right[by_top])
    lower = _widening(square, left[below], right[below])
    ends = np.append(square[1:] != square[:-1], True)
    upper_end = np.where(ends, last_row, np.append(top[by_top][1:], 0) - 1)
    lower_top = np.where(ends, last_row, np.append(bottom[below][1:], 0)) + 1
    pieces = np.concatenate(
        (
            np.stack((upper[0], top[by_top], upper[1], upper_end), axis=1),
            np.stack((lower[0], lower_top, lower[1], bottom[below]), axis=1),
        )
    )
    filled = pieces[:, 1] <= pieces[:, 3]
    return np.concatenate((heads, heads))[filled], pieces[filled], (heads, by_top)


def _widening(square: np.ndarray, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least left and greatest right so far within each square, for rows in the order of their squares."""
    span = int(right.max()) + 1
    base = square * span
    return base + span - 1 - np.maximum.accumulate(base + span - 1 - left), np.maximum.accumulate(base + right) - base


def _first_meetings(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of boxes (N, 4) that share a pixel, enough of them to link all that do in steps: indices (M,) twice.

    On one row, in the order of their left ends, a box meets one before it exactly when it meets the one that goes
    furthest to the right. On rows below the first that both are on, the pair is found again and left out.
    """
    rows_to = np.cumsum(np.bincount(boxes[:, 1], minlength=int(boxes[:, 3].max()) + 1) > 0)
    by_left = np.argsort(boxes[:, 0])
    first = rows_to[boxes[by_left, 1]] - 1
    heights = rows_to[boxes[by_left, 3]] - first
    begins = np.cumsum(heights) - heights
    row = np.arange(int(heights.sum())) - np.repeat(begins - first, heights)
    place = np.repeat(np.arange(len(boxes)), heights)
    by_row = np.argsort(row.astype(np.min_scalar_type(rows_to[-1])), kind="stable")
    row, place = row[by_row], place[by_row]
    span = int(boxes[:, 2].max()) + 1
    end = row * span + boxes[by_left, 2][place]
    furthest = np.maximum.accumulate(end)
    goes_furthest = np.flatnonzero(np.append(True, end[1:] > furthest[:-1]))
    holder = place[goes_furthest[np.cumsum(np.bincount(goes_furthest, minlength=len(end))) - 1]]
    meets = row[1:] * span + boxes[by_left, 0][place[1:]] <= furthest[:-1]
    one, other = holder[:-1], place[1:]
    meets &= np.maximum(first[one], first[other]) == row[1:]
    return by_left[one[meets]], by_left[other[meets]]


def _smallest_linked(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """For each of `count` indices the smallest it is linked to in steps; `one` and `other` (M,) are the links."""
    smallest = np.arange(count)
    while one.size:
        low, high = np.minimum(one, other), np.maximum(one, other)
        np.minimum.at(smallest, high, low)
        while not np.array_equal(smallest, further := smallest[smallest]):
            smallest = further
        one, other = smallest[low], smallest[high]
        apart = one != other
        one, other = one[apart], other[apart]
    return smallest


def _sums(group: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(group, weights=values, minlength=count)


def _parts(ids: np.ndarray, group: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Ids of every group of more than one, by the smallest of them."""
    sizes = np.bincount(group)
    by_group = np.argsort(group, kind="stable")
    grouped = ids[by_group[sizes[group[by_group]] > 1]].tolist()
    ends = np.cumsum(sizes[sizes > 1]).tolist()
    return {grouped[start]: tuple(grouped[start:end]) for start, end in zip([0, *ends], ends, strict=False)}
