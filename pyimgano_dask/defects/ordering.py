"""The order in which regions are reported."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pyimgano_dask.defects.kernels import break_ties
from pyimgano_dask.defects.regions import RegionTable

SortBy = Literal["score_max", "score_mean", "area"]


def order_rows(table: RegionTable, sort_by: SortBy) -> np.ndarray:
    """Row indices in the order of report, int64 (N,).

    The chosen key descending, then score_max, score_mean and area descending, then y1, x1, y2, x2, cy, cx and
    id. Ids are unique, so no two regions tie.
    """
    key = {"score_max": table.score_max, "score_mean": table.score_mean, "area": table.areas}[sort_by]
    order = np.argsort(-key)
    falling = table.score_max, table.score_mean
    break_ties(order, key, falling, table.areas, table.boxes_xyxy, table.centroids_xy, table.ids)
    return order
