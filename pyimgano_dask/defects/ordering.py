"""The order in which regions are reported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from pyimgano_dask.defects.regions import RegionTable

SortBy = Literal["score_max", "score_mean", "area"]


def order_rows(table: RegionTable, sort_by: SortBy) -> np.ndarray:
    """Row indices in the order of report, int64 (N,).

    The chosen key descending, then score_max, score_mean and area descending, then y1, x1, y2, x2, cy, cx and
    id. Ids are unique, so no two regions tie. Each key is looked at only where all keys before it tie.
    """
    order = np.arange(len(table))
    places: np.ndarray = np.arange(len(table))
    ties: np.ndarray = np.zeros(len(table), np.int64)
    for key in _keys(table, sort_by):
        if not places.size:
            break
        rows = order[places]
        values = key[rows]
        if not ((values[1:] != values[:-1]) & (ties[1:] == ties[:-1])).any():
            continue
        ranks = _ranks(values, ties)
        order[places] = rows[ranks]
        values, ties = values[ranks], ties[ranks]
        differs = np.ones(len(places) + 1, np.bool_)
        differs[1:-1] = (values[1:] != values[:-1]) | (ties[1:] != ties[:-1])
        tied = ~(differs[1:] & differs[:-1])
        places, ties = places[tied], np.cumsum(differs[:-1])[tied]
    return order


def _ranks(values: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Indices that sort by `ties`, then by `values`."""
    by_value = np.argsort(values)
    if not ties.any():
        return by_value
    rising = values[by_value]
    level = np.zeros(len(values), np.int64)
    level[by_value[1:]] = np.cumsum(rising[1:] != rising[:-1])
    return np.argsort(ties * len(values) + level)


def _keys(table: RegionTable, sort_by: SortBy) -> Iterator[np.ndarray]:
    """Columns to sort by, rising, the most significant first."""
    descending = {"score_max": table.score_max, "score_mean": table.score_mean, "area": table.areas}
    yield -descending.pop(sort_by)
    for column in descending.values():
        yield -column
    for axis in (1, 0, 3, 2):
        yield table.boxes_xyxy[:, axis]
    for axis in (1, 0):
        yield table.centroids_xy[:, axis]
    yield table.ids
