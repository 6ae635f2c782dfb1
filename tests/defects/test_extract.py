from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyimgano_dask.defects import MapStats, extract_defects, scale_to_image
from pyimgano_dask.errors import ConfigError, InputError
from pyimgano_dask.settings.defects import DefectSettings, Hysteresis, MapSmoothing, MergeNearby, ShapeFilters
from pyimgano_dask.settings.presets import DEFECT_PRESETS
from tests.defects import reference
from tests.defects.strategies import anomaly_maps, defect_settings, levels

PLAIN = DefectSettings()


def approx(value: Any) -> Any:
    """Floats within 2e-6, the last of the 6 decimals included; anything else equal."""
    if isinstance(value, dict):
        return {key: approx(part) for key, part in value.items()}
    if isinstance(value, list):
        return [approx(part) for part in value]
    return pytest.approx(value, abs=2e-6, rel=0) if isinstance(value, float) else value


@settings(max_examples=300, deadline=None)
@given(anomaly_maps(), defect_settings(), levels())
def test_agrees_with_the_plain_implementation(
    anomaly_map: np.ndarray, controls: DefectSettings, pixel_threshold: float
) -> None:
    before = anomaly_map.copy()

    found = extract_defects(anomaly_map, controls, pixel_threshold=pixel_threshold)

    expected = reference.extract(anomaly_map, controls, pixel_threshold)
    np.testing.assert_array_equal(found.mask, expected.pop("mask"), strict=True)
    assert found.to_record() == approx(expected)
    np.testing.assert_array_equal(anomaly_map, before)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (1, 2)])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_the_smallest_maps_agree_with_the_plain_implementation(shape: tuple[int, int], data: st.DataObject) -> None:
    anomaly_map = np.random.default_rng(data.draw(st.integers(0, 99))).random(shape, dtype=np.float32)
    controls, pixel_threshold = data.draw(defect_settings()), data.draw(levels())

    found = extract_defects(anomaly_map, controls, pixel_threshold=pixel_threshold)

    expected = reference.extract(anomaly_map, controls, pixel_threshold)
    np.testing.assert_array_equal(found.mask, expected.pop("mask"), strict=True)
    assert found.to_record() == approx(expected)


@settings(max_examples=60, deadline=None)
@given(anomaly_maps(), defect_settings(), levels())
def test_regions_partition_the_mask(anomaly_map: np.ndarray, controls: DefectSettings, pixel_threshold: float) -> None:
    controls = controls.model_copy(update={"max_regions": None})

    found = extract_defects(anomaly_map, controls, pixel_threshold=pixel_threshold)

    assert sum(region.area for region in found.regions) == np.count_nonzero(found.mask)
    covered = np.zeros(found.mask.shape, bool)
    for region in found.regions:
        x1, y1, x2, y2 = region.bbox_xyxy
        covered[y1 : y2 + 1, x1 : x2 + 1] = True
    assert covered[found.mask > 0].all()
    assert len({region.id for region in found.regions}) == len(found.regions)


@settings(max_examples=60, deadline=None)
@given(anomaly_maps(), defect_settings(), levels())
def test_regions_that_are_not_joined_are_the_components_of_the_mask(
    anomaly_map: np.ndarray, controls: DefectSettings, pixel_threshold: float
) -> None:
    controls = controls.model_copy(update={"max_regions": None, "merge_nearby": MergeNearby()})

    found = extract_defects(anomaly_map, controls, pixel_threshold=pixel_threshold)

    boxes_and_areas = []
    for pixels in reference.components(found.mask, reference.EIGHT):
        ys, xs = zip(*pixels, strict=True)
        boxes_and_areas.append(((min(xs), min(ys), max(xs), max(ys)), len(pixels)))
    by_id = sorted(found.regions, key=lambda region: region.id)
    assert [(region.bbox_xyxy, region.area) for region in by_id] == boxes_and_areas


TIGHTER = {
    "min_area": lambda low, high: ({"min_area": int(low * 9)}, {"min_area": int(high * 9)}),
    "min_score_max": lambda low, high: ({"min_score_max": low}, {"min_score_max": high}),
    "min_score_mean": lambda low, high: ({"min_score_mean": low}, {"min_score_mean": high}),
    "min_fill_ratio": lambda low, high: (
        {"shape_filters": ShapeFilters(min_fill_ratio=low)},
        {"shape_filters": ShapeFilters(min_fill_ratio=high)},
    ),
    "max_aspect_ratio": lambda low, high: (
        {"shape_filters": ShapeFilters(max_aspect_ratio=1 + 9 * high)},
        {"shape_filters": ShapeFilters(max_aspect_ratio=1 + 9 * low)},
    ),
    "min_solidity": lambda low, high: (
        {"shape_filters": ShapeFilters(min_solidity=low)},
        {"shape_filters": ShapeFilters(min_solidity=high)},
    ),
    "border_ignore_px": lambda low, high: (
        {"border_ignore_px": int(low * 9)},
        {"border_ignore_px": int(high * 9)},
    ),
    "roi_xyxy_norm": lambda low, high: (
        {"roi_xyxy_norm": (low / 2, low / 2, 1.0, 1.0)},
        {"roi_xyxy_norm": (high / 2, high / 2, 1.0, 1.0)},
    ),
    "open_ksize": lambda low, high: ({"open_ksize": 1}, {"open_ksize": 3}),
    "close_ksize": lambda low, high: ({"close_ksize": 3}, {"close_ksize": 1}),
}


@pytest.mark.parametrize("control", TIGHTER)
@settings(max_examples=25, deadline=None)
@given(anomaly_maps(), st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 1))
def test_the_mask_never_grows_when_a_control_is_tightened(
    control: str, anomaly_map: np.ndarray, one: float, other: float, pixel_threshold: float
) -> None:
    loose, tight = TIGHTER[control](*sorted((one, other)))

    wide = extract_defects(anomaly_map, PLAIN.model_copy(update=loose), pixel_threshold=pixel_threshold)
    narrow = extract_defects(anomaly_map, PLAIN.model_copy(update=tight), pixel_threshold=pixel_threshold)

    assert not np.any(narrow.mask > wide.mask)


@settings(max_examples=50, deadline=None)
@given(anomaly_maps(), levels(), levels(), st.booleans())
def test_the_mask_never_grows_when_the_threshold_is_raised(
    anomaly_map: np.ndarray, one: float, other: float, hysteresis: bool
) -> None:
    controls = DefectSettings(hysteresis=Hysteresis(enabled=hysteresis, low=-2.0))
    low, high = sorted((one, other))

    wide = extract_defects(anomaly_map, controls, pixel_threshold=low)
    narrow = extract_defects(anomaly_map, controls, pixel_threshold=high)

    assert not np.any(narrow.mask > wide.mask)


@settings(max_examples=50, deadline=None)
@given(anomaly_maps(), levels(), levels(), st.sampled_from((0, 2, 3)), st.sampled_from((0, 2, 3)), st.booleans())
def test_morphology_keeps_the_order_of_thresholds(
    anomaly_map: np.ndarray, one: float, other: float, open_ksize: int, close_ksize: int, fill_holes: bool
) -> None:
    controls = DefectSettings(open_ksize=open_ksize, close_ksize=close_ksize, fill_holes=fill_holes)
    low, high = sorted((one, other))

    wide = extract_defects(anomaly_map, controls, pixel_threshold=low)
    narrow = extract_defects(anomaly_map, controls, pixel_threshold=high)

    assert not np.any(narrow.mask > wide.mask)


@pytest.mark.parametrize(
    "filters",
    [
        DefectSettings(min_score_mean=0.85),
        DefectSettings(shape_filters=ShapeFilters(max_aspect_ratio=1.0)),
        DefectSettings(shape_filters=ShapeFilters(min_fill_ratio=1.0)),
    ],
)
def test_a_higher_threshold_may_let_a_region_pass_a_filter_that_its_wider_form_failed(filters: DefectSettings) -> None:
    anomaly_map = np.array([[0.9, 0.9, 0.5], [0.9, 0.9, 0.0]], np.float32)

    assert not extract_defects(anomaly_map, filters, pixel_threshold=0.4).mask.any()
    assert extract_defects(anomaly_map, filters, pixel_threshold=0.8).mask.sum() == 4 * 255


def test_a_wider_border_may_raise_scores_below_zero_over_a_threshold_below_zero() -> None:
    anomaly_map = np.full((5, 5), -1.0, np.float32)

    assert not extract_defects(anomaly_map, PLAIN, pixel_threshold=-0.5).mask.any()
    assert extract_defects(anomaly_map, DefectSettings(border_ignore_px=1), pixel_threshold=-0.5).mask.sum() == 16 * 255


@settings(max_examples=60, deadline=None)
@given(anomaly_maps(), st.integers(1, 5), levels())
@example(np.eye(4, dtype=np.float32), 1, 0.5)
def test_joining_leaves_the_mask_and_accounts_for_every_region(
    anomaly_map: np.ndarray, gap: int, pixel_threshold: float
) -> None:
    joining = DefectSettings(merge_nearby=MergeNearby(enabled=True, max_gap_px=gap))

    apart = extract_defects(anomaly_map, PLAIN, pixel_threshold=pixel_threshold)
    joined = extract_defects(anomaly_map, joining, pixel_threshold=pixel_threshold)

    np.testing.assert_array_equal(joined.mask, apart.mask)
    parts = [part for region in joined.regions for part in region.merged_from_ids or (region.id,)]
    assert sorted(parts) == sorted(region.id for region in apart.regions)


def test_an_area_outside_the_region_of_interest_counts_as_zero_and_is_cut_from_the_mask() -> None:
    anomaly_map = np.full((4, 4), 0.2, np.float32)
    controls = DefectSettings(roi_xyxy_norm=(0.5, 0.0, 1.0, 0.5))

    found = extract_defects(anomaly_map, controls, pixel_threshold=0.0)

    assert np.argwhere(found.mask).tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]


def test_a_region_of_interest_without_area_holds_nothing() -> None:
    controls = DefectSettings(roi_xyxy_norm=(0.5, 0.0, 0.5, 1.0))

    found = extract_defects(np.ones((4, 4), np.float32), controls, pixel_threshold=-1.0)

    assert not found.mask.any()
    assert found.to_record() == {"regions": [], "map_stats_roi": {"max": 0.0, "mean": 0.0}}


def test_a_hole_that_the_region_of_interest_cuts_open_is_not_filled() -> None:
    anomaly_map = np.ones((5, 10), np.float32)
    anomaly_map[2, 5] = 0
    cut = DefectSettings(roi_xyxy_norm=(0.0, 0.0, 0.6, 1.0), fill_holes=True)

    assert extract_defects(anomaly_map, cut, pixel_threshold=0.5).mask[2, 5] == 0
    assert extract_defects(anomaly_map, DefectSettings(fill_holes=True), pixel_threshold=0.5).mask.all()


def test_a_region_cut_down_to_a_line_has_a_null_solidity() -> None:
    """Outside the region of interest the score is 0, which reaches the threshold, until the mask is clipped."""
    controls = DefectSettings(roi_xyxy_norm=(0.0, 0.0, 0.25, 1.0), shape_filters=ShapeFilters(min_solidity=0.5))

    found = extract_defects(np.ones((4, 4), np.float32), controls, pixel_threshold=0.0)

    [record] = found.to_record()["regions"]
    assert record["bbox_xyxy"] == [0, 0, 0, 3]
    assert record["solidity"] is None


def test_scores_are_read_from_the_smoothed_map_and_the_statistics_from_the_raw_one() -> None:
    anomaly_map = np.zeros((5, 5), np.float32)
    anomaly_map[2, 2] = 9
    controls = DefectSettings(map_smoothing=MapSmoothing(method="box", ksize=3), min_score_max=0.5)

    found = extract_defects(anomaly_map, controls, pixel_threshold=0.5)

    assert (found.regions[0].area, found.regions[0].score_max) == (9, 1.0)
    assert found.map_stats_roi == MapStats(max=9.0, mean=0.36)


def test_the_threshold_is_compared_as_float32() -> None:
    anomaly_map = np.full((1, 1), 0.1, np.float32)

    for level in (0.1, np.float64(0.1), 0.10000000149):
        assert extract_defects(anomaly_map, PLAIN, pixel_threshold=level).mask[0, 0] == 255
    assert extract_defects(anomaly_map, PLAIN, pixel_threshold=0.10000001).mask[0, 0] == 0


def test_any_memory_layout_gives_the_same_answer() -> None:
    anomaly_map = np.random.default_rng(3).random((30, 41), dtype=np.float32)
    controls = DefectSettings(min_area=2, fill_holes=True, open_ksize=2)
    expected = extract_defects(anomaly_map, controls, pixel_threshold=0.4)

    for layout in (np.asfortranarray(anomaly_map), np.repeat(anomaly_map, 2, axis=1)[:, ::2]):
        found = extract_defects(layout, controls, pixel_threshold=0.4)
        np.testing.assert_array_equal(found.mask, expected.mask)
        assert found.to_record() == expected.to_record()


def test_settings_may_be_the_block_of_a_config() -> None:
    anomaly_map = np.random.default_rng(5).random((12, 12), dtype=np.float32)
    block = {"roi_xyxy_norm": [0.0, 0.0, 0.5, 1], "min_area": 2, "shape_filters": {"max_aspect_ratio": 3}}

    from_block = extract_defects(anomaly_map, block, pixel_threshold=0.5)

    controls = DefectSettings.model_validate_json(json.dumps(block))
    assert from_block.regions == extract_defects(anomaly_map, controls, pixel_threshold=0.5).regions


def test_unusable_settings_are_all_named_by_their_path() -> None:
    block = {"min_area": -1, "shape_filters": {"min_solidity": 2}, "roi_xyxy_norm": [0, 0, "a", 1]}

    with pytest.raises(ConfigError) as caught:
        extract_defects(np.ones((2, 2), np.float32), block, pixel_threshold=0.5)

    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "defects.roi_xyxy_norm[2]",
        "defects.shape_filters.min_solidity",
        "defects.min_area",
    ]
    assert lines[2].endswith("got -1")


def test_a_median_kernel_for_which_there_is_no_float_median_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^defects\.map_smoothing: .*3 or 5, got 7"):
        extract_defects(
            np.ones((2, 2), np.float32),
            {"map_smoothing": {"method": "median", "ksize": 7}},
            pixel_threshold=0.5,
        )


@pytest.mark.parametrize("level", [float("nan"), float("inf")])
def test_a_threshold_that_is_no_number_is_refused(level: float) -> None:
    with pytest.raises(ConfigError, match=r"pixel_threshold: must be a finite number, got (nan|inf)"):
        extract_defects(np.ones((2, 2), np.float32), PLAIN, pixel_threshold=level)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_an_error_even_outside_the_region_of_interest(value: float) -> None:
    anomaly_map = np.ones((3, 4), np.float32)
    anomaly_map[2, 2:] = value
    controls = DefectSettings(roi_xyxy_norm=(0.0, 0.0, 0.5, 0.5))

    with pytest.raises(InputError, match="2 of 12 values") as caught:
        extract_defects(anomaly_map, controls, pixel_threshold=0.5)

    assert (caught.value.stage, caught.value.kind) == ("extract", "NonFiniteMapError")


@pytest.mark.parametrize("shape", [(3,), (2, 3, 1), (0, 4), (4, 0)])
def test_a_map_that_is_no_image_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="shape") as caught:
        extract_defects(np.ones(shape, np.float32), PLAIN, pixel_threshold=0.5)

    assert (caught.value.stage, caught.value.kind) == ("extract", "MapShapeError")


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8])
def test_a_map_of_another_type_is_an_error(dtype: type) -> None:
    with pytest.raises(InputError, match=np.dtype(dtype).name) as caught:
        extract_defects(np.ones((2, 2), dtype), PLAIN, pixel_threshold=0.5)

    assert caught.value.kind == "MapTypeError"


def test_defects_survive_pickling() -> None:
    anomaly_map = np.random.default_rng(7).random((16, 16), dtype=np.float32)
    controls = DefectSettings(merge_nearby=MergeNearby(enabled=True, max_gap_px=1), min_area=3)
    found = scale_to_image(extract_defects(anomaly_map, controls, pixel_threshold=0.7), (64, 48))

    copy = pickle.loads(pickle.dumps(found))

    assert copy.to_record() == found.to_record()
    np.testing.assert_array_equal(copy.mask, found.mask)


def test_scaling_to_the_image_adds_the_box_in_image_pixels() -> None:
    anomaly_map = np.zeros((2, 4), np.float32)
    anomaly_map[0:2, 1] = 1
    found = extract_defects(anomaly_map, PLAIN, pixel_threshold=0.5)

    scaled = scale_to_image(found, (5, 10))

    assert "bbox_xyxy_image" not in found.to_record()["regions"][0]
    assert scaled.to_record()["regions"][0]["bbox_xyxy_image"] == [2, 0, 4, 4]
    assert scaled.mask is found.mask


def test_a_preset_in_a_mapping_lies_below_the_values_beside_it() -> None:
    scores = np.random.default_rng(0).random((40, 40), np.float32)
    settings = {"preset": "industrial-fp40", "min_area": 2}
    spelled_out = {**DEFECT_PRESETS["industrial-fp40"], **settings}
    expected = extract_defects(scores, spelled_out, pixel_threshold=0.5)
    assert expected.to_record() == extract_defects(scores, settings, pixel_threshold=0.5).to_record()
    assert expected.to_record() != extract_defects(scores, {"min_area": 2}, pixel_threshold=0.5).to_record()


def test_a_key_that_is_no_setting_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"defects\.min_aera"):
        extract_defects(np.ones((3, 3), np.float32), {"min_aera": 5}, pixel_threshold=0.5)


def test_a_map_that_is_no_array_is_refused_in_words() -> None:
    with pytest.raises(InputError, match="a list"):
        extract_defects([[1.0]], {}, pixel_threshold=0.5)  # type: ignore[arg-type]
