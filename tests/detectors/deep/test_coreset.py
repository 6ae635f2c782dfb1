"""Greedy coresets: what they cover, and that nothing but the points and the seed decides."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pyimgano_dask.detectors.deep.coreset import LEVELS, coreset, grouped, thinned


def points_of(seed: int, n: int, d: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def radius(points: NDArray[np.float32], chosen: NDArray[np.int64]) -> float:
    """Distance of the point that lies farthest from all chosen ones."""
    apart = np.linalg.norm(points[:, None] - points[None, chosen], axis=2)
    return float(apart.min(axis=1).max())


@given(seed=st.integers(0, 99), n=st.integers(2, 9), count=st.integers(1, 4))
def test_it_covers_at_most_twice_as_badly_as_the_best(seed: int, n: int, count: int) -> None:
    points = points_of(seed, n, 3)
    chosen = coreset(points, count, 0)
    assert len(chosen) == min(count, n)
    assert (np.diff(chosen) > 0).all()
    best = min(radius(points, np.array(some)) for some in combinations(range(n), min(count, n)))
    assert radius(points, chosen) <= 2.05 * best + 1e-6


def test_projected_points_are_covered_as_well_as_by_other_centres() -> None:
    points = points_of(1, 600, 300)
    points[:5] += 40 * np.eye(300, dtype=np.float32)[:5]
    chosen = coreset(points, 20, 0)
    assert set(range(5)) <= set(chosen.tolist())
    at_random = np.random.default_rng(0).choice(600, 20, replace=False)
    assert radius(points, chosen) < radius(points, at_random)


def test_points_that_repeat_are_chosen_once() -> None:
    points = np.repeat(points_of(2, 4, 6), 5, axis=0)
    assert len(coreset(points, 10, 0)) == 4
    assert len(coreset(np.zeros((7, 3), np.float32), 3, 0)) == 1


def test_all_points_are_kept_where_as_many_are_asked_for() -> None:
    assert coreset(points_of(3, 5, 2), 5, 0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("d", [64, 384])
def test_the_choice_is_the_same_for_any_number_of_threads(d: int) -> None:
    points = points_of(4, 3000, d)
    with threadpool_limits(1):
        alone = coreset(points, 100, 7)
    with threadpool_limits(2):
        together = coreset(points, 100, 7)
    assert np.array_equal(alone, together)


def plainly_chosen(points: NDArray[np.float32], count: int) -> list[int]:
    """The greedy choice one by one, in whole numbers; of points that are as far the first."""
    whole = points.astype(np.int64)
    centre = np.rint(whole.mean(axis=0)).astype(np.int64)
    chosen = [int(np.argmax((whole**2).sum(axis=1) - 2 * whole @ centre))]
    nearest = ((whole - whole[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < count and nearest.max() > 0:
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, ((whole - whole[chosen[-1]]) ** 2).sum(axis=1))
    return sorted(chosen)


@pytest.mark.parametrize(("n", "d", "values", "count"), [(5000, 12, 255, 300), (5000, 3, 4, 60), (3000, 4, 20, 400)])
def test_the_choice_is_that_of_the_plain_algorithm(n: int, d: int, values: int, count: int) -> None:
    points = np.random.default_rng(n + d).integers(-values, values + 1, (n, d)).astype(np.float32)
    points[0, 0] = LEVELS
    assert coreset(points, count, 0).tolist() == plainly_chosen(points, count)


@pytest.mark.parametrize("d", [5, 200])
def test_points_of_several_arrays_are_thinned_as_those_of_one(d: int) -> None:
    points = points_of(6, 400, d)
    parts = [points[:7], points[7:250], points[250:]]
    assert np.array_equal(thinned(parts, 50, 3), points[coreset(points, 50, 3)])
    assert np.array_equal(thinned(parts, 400, 3), points)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), most=st.integers(1, 12))
def test_groups_hold_all_points_in_order_and_no_more_than_they_may(sizes: list[int], most: int) -> None:
    points = points_of(0, sum(sizes), 3)
    arrays = np.split(points, np.cumsum(sizes)[:-1])
    groups = [np.concatenate(parts) for parts in grouped(arrays, most * points[0].nbytes)]
    assert np.array_equal(np.concatenate(groups), points)
    assert max(map(len, groups)) <= most
