from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyimgano_dask.defects.ordering import order_rows
from pyimgano_dask.defects.regions import RegionTable
from tests.defects import reference


@st.composite
def tables(draw: st.DrawFn) -> RegionTable:
    """Regions that tie often: every column takes few values."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, values = draw(st.integers(0, 60)), draw(st.integers(1, 4))

    def column(*width: int) -> np.ndarray:
        return rng.integers(0, values, (count, *width))

    corners = column(2)
    return RegionTable(
        ids=rng.permutation(count) + 1,
        boxes_xyxy=np.concatenate([corners, corners + column(2)], axis=1),
        areas=column() + 1,
        centroids_xy=column(2) / 2,
        score_max=column() / 4,
        score_mean=column() / 8,
        solidity=None,
        with_shape=False,
        merged_from_ids={},
    )


@pytest.mark.parametrize("sort_by", ["score_max", "score_mean", "area"])
@settings(max_examples=100, deadline=None)
@given(tables())
def test_order_is_total_and_agrees_with_the_full_key(sort_by: str, table: RegionTable) -> None:
    ordered = table.take(order_rows(table, sort_by))

    records = [region.to_record() for region in table]
    records.sort(key=lambda record: reference.order_key(record, sort_by))
    assert [region.to_record() for region in ordered] == records


@pytest.mark.parametrize("sort_by", ["score_max", "score_mean", "area"])
@given(tables(), st.integers(0, 1000))
def test_order_does_not_depend_on_where_the_regions_start(sort_by: str, table: RegionTable, seed: int) -> None:
    shuffled = table.take(np.random.default_rng(seed).permutation(len(table)))

    assert shuffled.take(order_rows(shuffled, sort_by)) == table.take(order_rows(table, sort_by))
