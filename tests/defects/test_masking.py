from __future__ import annotations

import numpy as np
import pytest

from pyimgano_dask.defects.masking import hysteresis_levels, threshold
from pyimgano_dask.settings.defects import Hysteresis

ROW = np.array([[0.4, 0.6, 0.4, 0.0, 0.4, 0.5, 0.0, 0.2]], np.float32)


def test_pixels_at_the_threshold_are_in() -> None:
    assert threshold(ROW, 0.5, Hysteresis(low=0.1)).tolist() == [[0, 1, 0, 0, 0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (None, None, (0.3, 0.6)),
        (None, 0.8, (0.4, 0.8)),
        (0.2, None, (0.2, 0.6)),
        (0.9, None, (0.6, 0.9)),
        (0.5, 0.1, (0.1, 0.5)),
        (None, -0.4, (-0.4, -0.2)),
        (None, 0.0, (0.0, 0.0)),
    ],
)
def test_hysteresis_levels_are_filled_in_and_put_in_order(
    low: float | None, high: float | None, expected: tuple[float, float]
) -> None:
    assert hysteresis_levels(Hysteresis(low=low, high=high), 0.6) == expected


def test_hysteresis_keeps_what_is_connected_to_a_strong_pixel() -> None:
    kept = threshold(ROW, 0.6, Hysteresis(enabled=True, low=0.3))

    assert kept.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]


def test_hysteresis_connects_over_corners() -> None:
    diagonal = np.diag(np.array([0.9, 0.4, 0.4], np.float32))

    assert threshold(diagonal, 0.8, Hysteresis(enabled=True)).tolist() == np.eye(3).tolist()


def test_hysteresis_without_a_strong_pixel_keeps_nothing() -> None:
    assert not threshold(ROW, 0.9, Hysteresis(enabled=True, low=0.1)).any()
