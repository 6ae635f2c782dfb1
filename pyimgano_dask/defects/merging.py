"""Joining of regions whose boxes lie close together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pyimgano_dask.defects.kernels import joined_boxes_and_peaks, smallest_linked
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
    boxes, score_max = joined_boxes_and_peaks(table.boxes_xyxy, table.score_max, group, heads)
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
    share a pixel.
    """
    if len(boxes_xyxy) < 2:
        return np.arange(len(boxes_xyxy))
    reach = min(max_gap_px, int(boxes_xyxy[:, 2:].max())) + 1
    by_top = np.argsort(boxes_xyxy[:, 1], kind="stable")
    return smallest_linked(boxes_xyxy, by_top, reach)


def _sums(group: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(group, weights=values, minlength=count)


def _parts(ids: np.ndarray, group: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Ids of every group of more than one, by the smallest of them."""
    sizes = np.bincount(group)
    by_group = np.argsort(group, kind="stable")
    grouped = ids[by_group[sizes[group[by_group]] > 1]].tolist()
    ends = np.cumsum(sizes[sizes > 1]).tolist()
    return {grouped[start]: tuple(grouped[start:end]) for start, end in zip([0, *ends], ends, strict=False)}
