from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyimgano_dask.defects.merging import merge_nearby, nearby_groups
from pyimgano_dask.defects.regions import Region, RegionTable
from tests.defects import reference


def table(*boxes: tuple[int, int, int, int], areas: list[int] | None = None) -> RegionTable:
    count = len(boxes)
    corners = np.array(boxes, np.int64).reshape(-1, 4)
    return RegionTable(
        ids=np.arange(1, count + 1),
        boxes_xyxy=corners,
        areas=np.array(areas or [1] * count, np.int64),
        centroids_xy=(corners[:, :2] + corners[:, 2:]) / 2,
        score_max=np.linspace(0.1, 0.2, count),
        score_mean=np.linspace(0.05, 0.15, count),
        solidity=np.full(count, 0.5),
        with_shape=False,
        merged_from_ids={},
    )


@st.composite
def boxes(draw: st.DrawFn) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, extent = draw(st.integers(0, 40)), draw(st.integers(1, 40))
    first = rng.integers(0, 60, (count, 2))
    return np.concatenate([first, first + rng.integers(0, extent, (count, 2))], axis=1)


def groups_by_pairs(corners: np.ndarray, gap: int) -> list[int]:
    regions = [{"bbox_xyxy": box} for box in corners.tolist()]
    first = list(range(len(regions)))
    for a, b in combinations(range(len(regions)), 2):
        if reference.are_near(regions[a], regions[b], gap):
            low, high = sorted((first[a], first[b]))
            first = [low if head == high else head for head in first]
    return first


@settings(max_examples=300, deadline=None)
@given(boxes(), st.sampled_from([0, 1, 2, 7, 1000, 10**30]))
def test_groups_agree_with_all_pairs(corners: np.ndarray, gap: int) -> None:
    assert nearby_groups(corners, gap).tolist() == groups_by_pairs(corners, gap)


@settings(max_examples=100, deadline=None)
@given(boxes(), st.integers(0, 5))
def test_groups_do_not_depend_on_the_order_of_the_boxes(corners: np.ndarray, gap: int) -> None:
    order = np.random.default_rng(len(corners)).permutation(len(corners))

    straight = nearby_groups(corners, gap)
    shuffled = nearby_groups(corners[order], gap)

    def partition(first: np.ndarray, names: np.ndarray) -> set[frozenset[int]]:
        return {frozenset(names[first == head].tolist()) for head in set(first.tolist())}

    assert partition(straight, np.arange(len(corners))) == partition(shuffled, order)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 3), st.integers(0, 60))
def test_groups_of_many_and_of_nested_boxes_agree_with_all_pairs(seed: int, extent: int, tall: int, gap: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 400, (60, 2))
    corners = np.concatenate([first, first + rng.integers(0, [extent, extent * tall], (60, 2))], axis=1)

    assert nearby_groups(corners, gap).tolist() == groups_by_pairs(corners, gap)


@pytest.mark.parametrize("gap", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "corners",
    [
        [(0, 2 * i, 99, 2 * i) for i in range(40)],
        [(3 * i, 0, 3 * i, 99) for i in range(40)],
        [(2 * i, 2 * i, 99 - 2 * i, 99 - 2 * i) for i in range(25)],
        [(2 * (i % 10), 2 * (i // 10), 2 * (i % 10), 2 * (i // 10)) for i in range(100)],
        [(4 * i, 4 * i, 4 * i + 1, 4 * i + 1) for i in range(40)],
    ],
    ids=["rows", "columns", "nested", "checkerboard", "diagonal"],
)
def test_groups_of_regular_boxes_agree_with_all_pairs(corners: list[tuple[int, int, int, int]], gap: int) -> None:
    boxes_xyxy = np.array(corners)

    assert nearby_groups(boxes_xyxy, gap).tolist() == groups_by_pairs(boxes_xyxy, gap)


@settings(max_examples=100, deadline=None)
@given(boxes(), st.integers(0, 5), st.integers(0, 5))
def test_a_wider_gap_joins_whole_groups(corners: np.ndarray, one: int, other: int) -> None:
    narrow, wide = (nearby_groups(corners, gap) for gap in sorted((one, other)))

    np.testing.assert_array_equal(wide, wide[narrow])
    np.testing.assert_array_equal(narrow, narrow[narrow])


@settings(max_examples=100, deadline=None)
@given(boxes(), st.integers(1, 5))
def test_joining_again_only_goes_on_and_ends_where_no_box_is_near(corners: np.ndarray, gap: int) -> None:
    """Once is not always enough for that: the box around a group may come near others that its parts were not."""
    merged = table(*map(tuple, corners.tolist()))
    while len(again := merge_nearby(merged, gap)) < len(merged):
        assert set(again.ids.tolist()) < set(merged.ids.tolist())
        assert again.areas.sum() == len(corners)
        merged = again

    assert again is merged
    assert nearby_groups(merged.boxes_xyxy, gap).tolist() == list(range(len(merged)))


@pytest.mark.parametrize(
    ("box", "gap", "count"),
    [
        ((4, 0, 5, 1), 1, 2),
        ((4, 0, 5, 1), 2, 1),
        ((0, 3, 1, 4), 0, 2),
        ((0, 3, 1, 4), 1, 1),
        ((2, 2, 3, 3), 0, 1),
        ((4, 4, 5, 5), 1, 2),
        ((4, 4, 5, 5), 2, 1),
        ((1, 1, 1, 1), 0, 1),
    ],
)
def test_the_gap_is_counted_in_pixels_between_boxes(box: tuple[int, int, int, int], gap: int, count: int) -> None:
    assert len(merge_nearby(table((0, 0, 1, 1), box), gap)) == count


def test_regions_join_in_steps_but_not_over_the_joined_box() -> None:
    """The first two boxes are near each other; the box around them covers the third, the boxes do not."""
    merged = merge_nearby(table((0, 0, 9, 0), (9, 2, 9, 9), (0, 6, 1, 7), (9, 11, 9, 11)), 1)

    assert [region.merged_from_ids for region in merged] == [(1, 2, 4), None]


def test_a_joined_region_sums_up_its_parts() -> None:
    merged = merge_nearby(table((0, 0, 1, 1), (9, 9, 9, 9), (3, 0, 6, 0), areas=[1, 1, 3]), 1)

    assert list(merged) == [
        Region(
            id=1,
            bbox_xyxy=(0, 0, 6, 1),
            area=4,
            centroid_xy=(3.5, 0.125),
            score_max=0.2,
            score_mean=0.125,
            bbox_area=14,
            fill_ratio=0.285714,
            aspect_ratio=3.5,
            merged_from_ids=(1, 3),
        ),
        Region(
            id=2,
            bbox_xyxy=(9, 9, 9, 9),
            area=1,
            centroid_xy=(9.0, 9.0),
            score_max=pytest.approx(0.15),
            score_mean=pytest.approx(0.1),
            solidity=0.5,
        ),
    ]


def test_many_regions_in_a_row_become_one() -> None:
    merged = merge_nearby(table(*[(3 * i, 0, 3 * i + 1, 0) for i in range(5000)]), 1)

    assert [region.bbox_xyxy for region in merged] == [(0, 0, 14998, 0)]
