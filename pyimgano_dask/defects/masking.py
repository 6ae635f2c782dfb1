"""From scores to a mask, uint8 (H, W) with values 0 and 1."""

from __future__ import annotations

import numpy as np

from pyimgano_dask.defects.components import components_touching
from pyimgano_dask.defects.roi import Part
from pyimgano_dask.settings.defects import Hysteresis


def threshold(
    scores: np.ndarray, pixel_threshold: float, hysteresis: Hysteresis, part: Part | None = None
) -> np.ndarray:
    """1 where `scores`, float32 (H, W), reach `pixel_threshold`, or pass the hysteresis where it is on.

    Scores outside `part` count as 0.
    """
    if not hysteresis.enabled:
        return at_least(scores, pixel_threshold, part)
    low, high = hysteresis_levels(hysteresis, pixel_threshold)
    return components_touching(at_least(scores, low, part), at_least(scores, high, part))


def at_least(scores: np.ndarray, level: float, part: Part | None = None) -> np.ndarray:
    """1 where a score is at least `level`, which is rounded to float32 first as the scores are.

    Scores outside `part` count as 0.
    """
    with np.errstate(over="ignore"):
        if part is None:
            return (scores >= level).view(np.uint8)
        mask = np.full(scores.shape, np.float32(0) >= level)
        np.greater_equal(scores[part], level, out=mask[part])
        return mask.view(np.uint8)


def hysteresis_levels(hysteresis: Hysteresis, pixel_threshold: float) -> tuple[float, float]:
    """(low, high), with `high` from the pixel threshold and `low` half of `high` unless given, in order."""
    high = pixel_threshold if hysteresis.high is None else hysteresis.high
    low = high / 2 if hysteresis.low is None else hysteresis.low
    return min(low, high), max(low, high)
