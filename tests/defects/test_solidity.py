from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyimgano_dask.defects.components import Components, measure_components
from pyimgano_dask.defects.solidity import solidities
from tests.defects import reference
from tests.defects.strategies import masks


def measured(mask: np.ndarray) -> Components:
    return measure_components(mask, np.zeros(mask.shape, np.float32))


def expected_solidities(mask: np.ndarray) -> list[float]:
    values = [reference.solidity(pixels) for pixels in reference.components(mask, reference.EIGHT)]
    return [np.nan if value is None else value for value in values]


@settings(max_examples=200, deadline=None)
@given(masks(30))
def test_agrees_with_tracing_each_component(mask: np.ndarray) -> None:
    np.testing.assert_allclose(solidities(measured(mask)), expected_solidities(mask), rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(1, 4))
def test_agrees_on_rounded_shapes(seed: int, sigma: float) -> None:
    noise = np.random.default_rng(seed).random((40, 40), dtype=np.float32)
    mask = (cv2.GaussianBlur(noise, (0, 0), sigma) > 0.5).astype(np.uint8)

    np.testing.assert_allclose(solidities(measured(mask)), expected_solidities(mask), rtol=1e-12)


def rings(size: int, step: int) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    for margin in range(0, size // 2, step):
        cv2.rectangle(mask, (margin, margin), (size - 1 - margin, size - 1 - margin), 1)
    return mask


def snake(size: int) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[::2] = 1
    mask[1::4, -1] = mask[3::4, 0] = 1
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        rings(41, 2),
        rings(41, 3) | np.eye(41, dtype=np.uint8),
        snake(33),
        np.indices((16, 16)).sum(axis=0).astype(np.uint8) % 2,
        np.kron(np.eye(9, dtype=np.uint8), np.pad(np.zeros((3, 3), np.uint8), 1, constant_values=1)),
        np.pad(np.zeros((9, 9), np.uint8), 1, constant_values=1) | np.pad(rings(5, 2), 3),
    ],
    ids=["rings", "crossed rings", "snake", "checkerboard", "chained rings", "ring in a ring"],
)
def test_agrees_on_pathological_shapes(mask: np.ndarray) -> None:
    np.testing.assert_allclose(solidities(measured(mask)), expected_solidities(mask), rtol=1e-12)


@given(masks(), st.integers(0, 100))
def test_a_selection_of_components_has_the_same_values(mask: np.ndarray, seed: int) -> None:
    components = measured(mask)
    rows = np.flatnonzero(np.random.default_rng(seed).random(len(components)) < 0.5)

    np.testing.assert_array_equal(solidities(components.take(rows)), solidities(components)[rows])


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (np.ones((1, 1)), np.nan),
        (np.ones((1, 5)), np.nan),
        (np.ones((5, 1)), np.nan),
        (np.eye(4), np.nan),
        (np.ones((2, 2)), 1.0),
        (np.tri(5), 1.0),
        (np.pad(np.zeros((3, 3)), 1, constant_values=1), 1.0),
        (np.array([[1, 0], [1, 0], [1, 1]]), 0.5),
        (np.array([[1, 0, 0], [1, 0, 0], [1, 1, 1]]), 0.25),
    ],
)
def test_known_shapes(mask: np.ndarray, expected: float) -> None:
    np.testing.assert_allclose(solidities(measured(mask.astype(np.uint8))), [expected])
