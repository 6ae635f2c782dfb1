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
    heads, group = np.unique(first, return_inverse=True)
    if len(heads) == len(table):
        return table
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

    Each box reaches `max_gap_px + 1` further to the right and down, so that boxes are close exactly when
    their reaches share a pixel. A sweep from the top keeps, for every column, how far down the deepest
    reach goes and one box of its group. A reach that starts above that depth meets this deepest one; any
    other reach it meets in the column has met the deepest one, too, and is of its group already.
    """
    width = int(boxes_xyxy[:, 2].max(initial=-1)) + 1
    height = int(boxes_xyxy[:, 3].max(initial=-1)) + 1
    reach = min(max_gap_px, max(width, height)) + 1
    depth = np.full(width, -1)
    owner = np.zeros(width, np.int64)
    parent = list(range(len(boxes_xyxy)))
    from_the_top = np.argsort(boxes_xyxy[:, 1], kind="stable")
    for index, (left, top, right, bottom) in zip(from_the_top.tolist(), boxes_xyxy[from_the_top].tolist(), strict=True):
        columns = slice(left, right + reach + 1)
        met = depth[columns] >= top
        owners = owner[columns][met]
        if owners.size:
            runs = owners[np.flatnonzero(owners[1:] != owners[:-1])].tolist()
            for other in {*runs, int(owners[-1])}:
                _unite(parent, index, other)
        owner[columns] = index
        np.maximum(depth[columns], bottom + reach, out=depth[columns])
    return np.array([_root(parent, index) for index in range(len(parent))], np.int64)


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


def _unite(parent: list[int], one: int, other: int) -> None:
    """Join two sets under the smaller of their roots."""
    low, high = sorted((_root(parent, one), _root(parent, other)))
    parent[high] = low


def _sums(group: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(group, weights=values, minlength=count)


def _parts(ids: np.ndarray, group: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Ids of every group of more than one, by the smallest of them."""
    by_group = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group)).tolist()
    grouped = ids[by_group].tolist()
    parts = (tuple(grouped[start:end]) for start, end in zip([0, *ends], ends, strict=False))
    return {part[0]: part for part in parts if len(part) > 1}
