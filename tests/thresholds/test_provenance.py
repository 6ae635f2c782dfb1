import json

import numpy as np
import pytest

from pyimgano_dask.thresholds import (
    calibrated_pixel_provenance,
    fixed_pixel_provenance,
    score_threshold_provenance,
    with_value_and_origin,
)


def test_score_provenance_sums_up_the_scores():
    provenance = score_threshold_provenance(np.array([1, 2, 6], np.float32), 0.995, "train_dir")

    assert json.loads(json.dumps(provenance)) == {
        "method": "quantile",
        "source": "train_dir",
        "quantile": 0.995,
        "count": 3,
        "score_min": 1.0,
        "score_mean": 3.0,
        "score_max": 6.0,
    }


def test_calibrated_provenance_without_a_region():
    provenance = calibrated_pixel_provenance(0.999, map_count=3, pixel_count=48)

    assert json.loads(json.dumps(provenance)) == {
        "method": "normal_pixel_quantile",
        "source": "train_dir",
        "q": 0.999,
        "calibration_map_count": 3,
        "calibration_pixel_count": 48,
        "exact": True,
        "roi_used": False,
        "roi_xyxy_norm": None,
        "roi_pixel_count": None,
        "roi_reason": None,
    }


@pytest.mark.parametrize(
    ("roi", "counts", "used", "count", "reason"),
    [
        ((0.25, 0.25, 0.75, 0.75), [4, 4], True, 4, None),
        ((0.25, 0.25, 0.75, 0.75), [4, 9], True, None, None),
        ((0.5, 0.5, 0.5, 0.5), [0, 1], True, None, None),
        ((0.5, 0.5, 0.5, 0.5), [0, 0], False, 0, "roi_empty"),
    ],
)
def test_the_region_counts_as_used_when_it_holds_a_pixel(roi, counts, used, count, reason):
    provenance = calibrated_pixel_provenance(
        0.5, map_count=2, pixel_count=8, roi_xyxy_norm=roi, roi_pixel_counts=counts
    )

    assert provenance["roi_xyxy_norm"] == list(roi)
    assert (provenance["roi_used"], provenance["roi_pixel_count"]) == (used, count)
    assert provenance["roi_reason"] == reason


def test_the_region_is_clamped_and_put_in_order():
    provenance = calibrated_pixel_provenance(
        0.5, map_count=1, pixel_count=4, roi_xyxy_norm=(1.5, 0.75, -0.5, 0.25), roi_pixel_counts=[4]
    )

    assert provenance["roi_xyxy_norm"] == [0.0, 0.25, 1.0, 0.75]


@pytest.mark.parametrize("source", ["explicit", "infer_config"])
def test_fixed_provenance_carries_the_value(source):
    assert fixed_pixel_provenance(0.5, source) == {"method": "fixed", "source": source, "value": 0.5}


CALIBRATED = {"method": "normal_pixel_quantile", "source": "train_dir", "q": 0.999, "value": 0.5}
UNVALUED = {name: value for name, value in CALIBRATED.items() if name != "value"}


def test_a_threshold_of_a_config_keeps_its_first_origin_through_any_number_of_configs():
    of_config = fixed_pixel_provenance(0.5, "infer_config")
    once = with_value_and_origin(of_config, 0.5, CALIBRATED)
    assert once == {**of_config, "origin": CALIBRATED}
    assert with_value_and_origin(of_config, 0.5, once) == once


@pytest.mark.parametrize(
    ("provenance", "configured"),
    [
        (CALIBRATED, fixed_pixel_provenance(0.5, "explicit")),
        (fixed_pixel_provenance(0.5, "explicit"), CALIBRATED),
        (fixed_pixel_provenance(0.5, "infer_config"), None),
        (fixed_pixel_provenance(0.5, "infer_config"), fixed_pixel_provenance(0.5, "infer_config")),
        (fixed_pixel_provenance(0.5, "infer_config"), fixed_pixel_provenance(0.7, "explicit")),
        (fixed_pixel_provenance(0.5, "infer_config"), {**CALIBRATED, "value": 0.7}),
        (fixed_pixel_provenance(0.5, "infer_config"), UNVALUED),
    ],
)
def test_no_origin_is_told_where_there_is_none(provenance, configured):
    assert with_value_and_origin(provenance, 0.5, configured) == provenance


def test_the_value_is_told_beside_a_calibration_and_nothing_without_a_threshold():
    assert with_value_and_origin(UNVALUED, 0.5, None) == CALIBRATED
    assert with_value_and_origin(None, None, CALIBRATED) is None


def test_a_value_of_a_flag_is_an_origin():
    given = fixed_pixel_provenance(0.5, "explicit")
    assert with_value_and_origin(fixed_pixel_provenance(0.5, "infer_config"), 0.5, given)["origin"] == given
