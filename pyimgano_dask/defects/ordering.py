"""The order in which regions are reported."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pyimgano_dask.defects.regions import RegionTable

SortBy = Literal["score_max", "score_mean", "area"]


def order_rows(table: RegionTable, sort_by: SortBy) -> np.ndarray:
    """Row indices in the order of report, int64 (N,).

    The chosen key descending, then score_max, score_mean and area descending, then y1, x1, y2, x2, cy, cx
    and id. Ids are unique, so no two regions tie. The long key is looked at only where the chosen one ties.
    """
    keys = {"score_max": table.score_max, "score_mean": table.score_mean, "area": table.areas}
    chosen = -keys[sort_by]
    order = np.argsort(chosen)
    same_as_next = chosen[order[1:]] == chosen[order[:-1]]
    if same_as_next.any():
        places = np.flatnonzero(np.append(same_as_next, False) | np.insert(same_as_next, 0, False))
        rows = order[places]
        order[places] = rows[_full_order(table, rows, chosen)]
    return order


def _full_order(table: RegionTable, rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    x1, y1, x2, y2 = table.boxes_xyxy[rows].T
    cx, cy = table.centroids_xy[rows].T
    descending = (-table.areas[rows], -table.score_mean[rows], -table.score_max[rows], chosen[rows])
    return np.lexsort((table.ids[rows], cx, cy, x2, y2, x1, y1, *descending))
