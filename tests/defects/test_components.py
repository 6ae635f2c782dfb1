from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from pyimgano_dask.defects.components import components_touching, keep_labels, measure_components
from tests.defects import reference
from tests.defects.strategies import masks


def scores_for(mask: np.ndarray) -> np.ndarray:
    return np.random.default_rng(mask.size).standard_normal(mask.shape).astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(masks(30))
def test_numbers_and_measurements_agree_with_a_search(mask: np.ndarray) -> None:
    scores = scores_for(mask)

    found = measure_components(mask, scores)

    expected = reference.components(mask, reference.EIGHT)
    assert len(found) == len(expected)
    for row, pixels in enumerate(expected):
        assert all(found.labels[pixel] == row + 1 for pixel in pixels)
        measured = reference.measure(pixels, scores)
        assert found.boxes_xyxy[row].tolist() == measured["bbox_xyxy"]
        assert found.areas[row] == measured["area"]
        assert found.centroids_xy[row] == pytest.approx(measured["centroid_xy"])
        assert found.score_max[row] == measured["score_max"]
        assert found.score_mean[row] == pytest.approx(measured["score_mean"], abs=1e-9)


def test_a_component_that_begins_in_an_earlier_block_comes_first() -> None:
    mask = np.zeros((2, 4), np.uint8)
    mask[0, 3] = mask[1, 0] = 1

    assert measure_components(mask, scores_for(mask)).labels.tolist() == [[0, 0, 0, 2], [1, 0, 0, 0]]


@pytest.mark.parametrize("density", [0.02, 0.3, 0.7, 1.0])
def test_a_large_map_is_numbered_and_measured_alike(density: float) -> None:
    """Large enough for several bands of pixels and for a labelling on several threads."""
    rng = np.random.default_rng(11)
    mask = (rng.random((1201, 907)) < density).astype(np.uint8)
    scores = scores_for(mask)

    found = measure_components(mask, scores)

    ys, xs = np.nonzero(mask)
    owner = found.labels[ys, xs] - 1
    blocks = np.full(len(found), mask.size)
    np.minimum.at(blocks, owner, (ys // 2) * 907 + xs // 2)
    assert (np.diff(blocks) > 0).all()
    order = np.argsort(owner, kind="stable")
    starts = np.flatnonzero(np.diff(owner[order], prepend=-1))
    values = scores[ys, xs][order].astype(np.float64)
    np.testing.assert_array_equal(found.score_max, np.maximum.reduceat(values, starts))
    sums = np.add.reduceat(values, starts)
    np.testing.assert_allclose(found.score_mean, sums / found.areas, rtol=0, atol=1e-12)


def test_an_empty_mask_has_no_component() -> None:
    mask = np.zeros((3, 4), np.uint8)

    assert len(measure_components(mask, scores_for(mask))) == 0


@given(masks())
def test_keeping_labels_removes_the_others_only(mask: np.ndarray) -> None:
    found = measure_components(mask, scores_for(mask))
    keep = np.arange(len(found) + 1) % 2 == 1

    kept = keep_labels(mask, found.labels, keep)

    np.testing.assert_array_equal(kept, found.labels % 2)


def test_seeds_select_whole_components() -> None:
    mask = np.array([[1, 1, 0, 1], [0, 0, 0, 1]], np.uint8)
    seeds = np.array([[0, 0, 0, 0], [0, 0, 0, 1]], np.uint8)

    assert components_touching(mask, seeds).tolist() == [[0, 0, 0, 1], [0, 0, 0, 1]]
