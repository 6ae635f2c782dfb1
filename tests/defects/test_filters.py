from __future__ import annotations

import numpy as np
import pytest

from pyimgano_dask.defects.components import measure_components
from pyimgano_dask.defects.filters import any_filter_on, passing
from pyimgano_dask.settings.defects import DefectSettings, ShapeFilters

# A 2x2 square of 0.5, a 1x4 line of 0.25 with one 1.0, and an L of three pixels of 0.75.
SCORES = np.zeros((6, 8), np.float32)
SCORES[0:2, 0:2] = 0.5
SCORES[0, 4:8] = (0.25, 0.25, 1.0, 0.25)
SCORES[4:6, 2] = SCORES[5, 3] = 0.75
COMPONENTS = measure_components((SCORES > 0).astype(np.uint8), SCORES)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (DefectSettings(), [1, 2, 3]),
        (DefectSettings(min_area=4), [1, 2]),
        (DefectSettings(min_area=5), []),
        (DefectSettings(min_score_max=0.75), [2, 3]),
        (DefectSettings(min_score_mean=0.5), [1, 3]),
        (DefectSettings(min_score_mean=0.4376), [1, 3]),
        (DefectSettings(min_score_mean=0.4375), [1, 2, 3]),
        (DefectSettings(shape_filters=ShapeFilters(min_fill_ratio=0.8)), [1, 2]),
        (DefectSettings(shape_filters=ShapeFilters(min_fill_ratio=0.75)), [1, 2, 3]),
        (DefectSettings(shape_filters=ShapeFilters(max_aspect_ratio=3.9)), [1, 3]),
        (DefectSettings(shape_filters=ShapeFilters(max_aspect_ratio=4.0)), [1, 2, 3]),
        (DefectSettings(shape_filters=ShapeFilters(min_solidity=0.0)), [1, 3]),
        (DefectSettings(min_area=4, min_score_max=0.75), [2]),
    ],
)
def test_what_is_at_the_limit_stays(settings: DefectSettings, kept: list[int]) -> None:
    assert passing(COMPONENTS, settings).numbers.tolist() == kept


@pytest.mark.parametrize(
    ("settings", "on"),
    [
        (DefectSettings(), False),
        (DefectSettings(min_area=1), False),
        (DefectSettings(min_area=2), True),
        (DefectSettings(min_score_max=-9.0), True),
        (DefectSettings(min_score_mean=-9.0), True),
        (DefectSettings(shape_filters=ShapeFilters(min_solidity=0.0)), True),
    ],
)
def test_settings_that_cannot_drop_anything_count_as_off(settings: DefectSettings, on: bool) -> None:
    assert any_filter_on(settings) is on
