from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyimgano_dask.defects import Defects, Step, Waterfall, add_waterfalls, extract_defects, scale_to_image
from pyimgano_dask.settings.defects import DefectSettings
from tests.defects import reference
from tests.defects.reference import EIGHT
from tests.defects.strategies import anomaly_maps, defect_settings, levels

ORDER = (
    *("roi_xyxy_norm", "border_ignore_px", "map_smoothing", "hysteresis", "open_ksize", "close_ksize"),
    *("min_area", "min_score_max", "min_score_mean", "min_fill_ratio", "max_aspect_ratio", "min_solidity"),
    *("fill_holes", "roi_clip", "merge_nearby", "max_regions"),
)
EXAMPLES = settings(max_examples=200, deadline=None)


def on(controls: DefectSettings) -> list[str]:
    """The controls that are on, in order."""
    shape, smoothing = controls.shape_filters, controls.map_smoothing
    is_on = {
        "roi_xyxy_norm": controls.roi_xyxy_norm is not None,
        "border_ignore_px": controls.border_ignore_px > 0,
        "map_smoothing": smoothing.is_on,
        "hysteresis": controls.hysteresis.enabled,
        "open_ksize": controls.open_ksize > 1,
        "close_ksize": controls.close_ksize > 1,
        "min_area": controls.min_area > 1,
        "min_score_max": controls.min_score_max is not None,
        "min_score_mean": controls.min_score_mean is not None,
        "min_fill_ratio": shape.min_fill_ratio is not None,
        "max_aspect_ratio": shape.max_aspect_ratio is not None,
        "min_solidity": shape.min_solidity is not None,
        "fill_holes": controls.fill_holes,
        "roi_clip": controls.roi_xyxy_norm is not None,
        "merge_nearby": controls.merge_nearby.enabled and controls.merge_nearby.max_gap_px > 0,
        "max_regions": controls.max_regions is not None,
    }
    return [control for control in ORDER if is_on[control]]


def checked(controls: dict[str, Any]) -> DefectSettings:
    roi = controls.get("roi_xyxy_norm")
    return DefectSettings.model_validate(controls if roi is None else controls | {"roi_xyxy_norm": tuple(roi)})


def explained(anomaly_map: np.ndarray, controls: DefectSettings, level: float, explain: str = "full") -> Defects:
    return extract_defects(anomaly_map, controls.model_copy(update={"explain": explain}), pixel_threshold=level)


def suppressed(anomaly_map: np.ndarray, controls: DefectSettings, level: float) -> dict[str, Any]:
    """`suppressed` as a reader of the JSONL finds it."""
    record = json.loads(json.dumps(explained(anomaly_map, controls, level).to_record(), allow_nan=False))
    ledger: dict[str, Any] = record["suppressed"]
    return ledger


def drawn(*rows: str) -> np.ndarray:
    """A map from digits in tenths; a dot is 0."""
    return np.array([[0 if c == "." else int(c) for c in row] for row in rows], np.float32) / np.float32(10)


def counts(components: int, pixels: int, components_left: int, pixels_left: int, added: int = 0) -> dict[str, int]:
    return {
        "components": components,
        "pixels": pixels,
        "pixels_added": added,
        "components_left": components_left,
        "pixels_left": pixels_left,
    }


def dropped(control: str, value: float | None, limit: Any, box: list[int], area: int) -> dict[str, Any]:
    return {"control": control, "value": value, "limit": limit, "bbox_xyxy": box, "area": area}


# A block of 3x3, a bar of 5x1, two pixels and an L; 22 pixels in all.
SHAPES = drawn(
    "999.........",
    "999.88888...",
    "999.........",
    "............",
    ".77....6....",
    ".......6....",
    ".......6666.",
)
BLOCK, BAR, PAIR, ELL = [0, 0, 2, 2], [4, 1, 8, 1], [1, 4, 2, 4], [7, 4, 10, 6]
UPPER_LEFT = [0.0, 0.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("controls", "expected", "gone"),
    [
        ({"min_area": 5}, counts(1, 2, 3, 20), [(2, 5, PAIR, 2)]),
        ({"min_score_max": 0.75}, counts(2, 8, 2, 14), [(0.7, 0.75, PAIR, 2), (0.6, 0.75, ELL, 6)]),
        ({"min_score_mean": 0.65}, counts(1, 6, 3, 16), [(0.6, 0.65, ELL, 6)]),
        ({"shape_filters": {"min_fill_ratio": 0.6}}, counts(1, 6, 3, 16), [(0.5, 0.6, ELL, 6)]),
        ({"shape_filters": {"max_aspect_ratio": 4.0}}, counts(1, 5, 3, 17), [(5, 4, BAR, 5)]),
        (
            {"shape_filters": {"min_solidity": 0.5}},
            counts(3, 13, 1, 9),
            [(None, 0.5, BAR, 5), (None, 0.5, PAIR, 2), (0.166667, 0.5, ELL, 6)],
        ),
        (
            {"roi_xyxy_norm": UPPER_LEFT},
            counts(2, 11, 2, 11),
            [(None, UPPER_LEFT, PAIR, 2), (None, UPPER_LEFT, ELL, 6)],
        ),
        ({"border_ignore_px": 1}, counts(0, 9, 4, 13), []),
        ({"border_ignore_px": 2}, counts(1, 19, 3, 3), [(None, 2, BAR, 5)]),
        (
            {"map_smoothing": {"method": "median", "ksize": 3}},
            counts(2, 11, 2, 13, added=2),
            [(0, 0.5, BAR, 5), (0, 0.5, PAIR, 2)],
        ),
        (
            {"open_ksize": 3},
            counts(3, 13, 1, 9),
            [(None, 3, BAR, 5), (None, 3, PAIR, 2), (None, 3, ELL, 6)],
        ),
        ({"close_ksize": 3}, counts(0, 0, 1, 36, added=14), []),
        ({"fill_holes": True}, counts(0, 0, 4, 22), []),
        ({"merge_nearby": {"enabled": True, "max_gap_px": 1}}, counts(2, 0, 2, 22), []),
        ({"max_regions": 2}, counts(2, 8, 2, 14), [(3, 2, PAIR, 2), (4, 2, ELL, 6)]),
        (
            {"hysteresis": {"enabled": True, "low": 0.5, "high": 0.75}},
            counts(2, 8, 2, 14),
            [(0.7, 0.75, PAIR, 2), (0.6, 0.75, ELL, 6)],
        ),
    ],
    ids=str,
)
def test_each_control_alone(controls: dict[str, Any], expected: dict[str, int], gone: list[Any]) -> None:
    settings_on = checked(controls)
    control, *others = on(settings_on)
    assert others in ([], ["roi_clip"])
    ledger = suppressed(SHAPES, settings_on, 0.5)
    assert ledger["thresholded"] == {"level": 0.5, "components": 4, "pixels": 22}
    assert ledger["controls"][control] == expected
    assert ledger["dropped"] == [dropped(control, *parts) for parts in gone]
    assert ledger["reported"] == {"components": expected["components_left"], "pixels": expected["pixels_left"]}


def test_nothing_on() -> None:
    assert suppressed(SHAPES, DefectSettings(), 0.65) == {
        "thresholded": {"level": 0.65, "components": 3, "pixels": 16},
        "controls": {},
        "reported": {"components": 3, "pixels": 16},
        "dropped": [],
    }


def test_hysteresis_counts_from_its_low_level() -> None:
    ledger = suppressed(SHAPES, checked({"hysteresis": {"enabled": True}}), 0.85)
    assert ledger["thresholded"] == {"level": 0.425, "components": 4, "pixels": 22}
    assert [entry["limit"] for entry in ledger["dropped"]] == [0.85] * 3


def test_filled_holes_come_in() -> None:
    ring = drawn(
        "......",
        ".888..",
        ".8.8..",
        ".888..",
    )
    ledger = suppressed(ring, checked({"fill_holes": True}), 0.5)
    assert ledger["thresholded"]["pixels"] == 8
    assert ledger["controls"]["fill_holes"] == counts(0, 0, 1, 9, added=1)


def test_what_closing_moves_out_of_the_roi_is_clipped() -> None:
    ledger = suppressed(drawn("99.99"), checked({"close_ksize": 2, "roi_xyxy_norm": [0.0, 0.0, 0.4, 1.0]}), 0.5)
    assert ledger["controls"]["close_ksize"] == counts(0, 0, 1, 3, added=1)
    assert ledger["controls"]["roi_clip"] == counts(0, 1, 1, 2)
    assert ledger["reported"] == {"components": 1, "pixels": 2}


def test_zero_outside_the_roi_can_reach_a_negative_level() -> None:
    below = np.full((2, 4), -1, np.float32)
    ledger = suppressed(below, checked({"roi_xyxy_norm": [0.0, 0.0, 0.5, 1.0]}), -0.5)
    assert ledger["thresholded"] == {"level": -0.5, "components": 0, "pixels": 0}
    assert ledger["controls"]["roi_xyxy_norm"] == counts(0, 0, 1, 4, added=4)
    assert ledger["controls"]["roi_clip"] == counts(1, 4, 0, 0)
    assert ledger["dropped"] == [dropped("roi_clip", None, [0.0, 0.0, 0.5, 1.0], [2, 0, 3, 1], 4)]


def test_a_component_is_dropped_by_the_first_filter_it_fails() -> None:
    every = {
        "min_area": 3,
        "min_score_max": 0.65,
        "min_score_mean": 0.85,
        "shape_filters": {"min_fill_ratio": 0.6, "max_aspect_ratio": 1.5, "min_solidity": 0.99},
    }
    asked = [
        (every, {"PAIR": "min_area", "ELL": "min_score_max", "BAR": "min_score_mean"}),
        (every | {"min_area": 0}, {"PAIR": "min_score_mean", "ELL": "min_score_max", "BAR": "min_score_mean"}),
        (every | {"min_score_max": None}, {"PAIR": "min_area", "ELL": "min_score_mean", "BAR": "min_score_mean"}),
        (
            every | {"min_score_max": None, "min_score_mean": None},
            {"PAIR": "min_area", "ELL": "min_fill_ratio", "BAR": "max_aspect_ratio"},
        ),
        ({"shape_filters": every["shape_filters"]}, {"PAIR": "max_aspect_ratio", "ELL": "min_fill_ratio"}),
        (
            {"shape_filters": {"max_aspect_ratio": 9.0, "min_solidity": 0.99}},
            {"PAIR": "min_solidity", "ELL": "min_solidity", "BAR": "min_solidity"},
        ),
    ]
    boxes = {"PAIR": PAIR, "ELL": ELL, "BAR": BAR, "BLOCK": BLOCK}
    for controls, expected in asked:
        entries = suppressed(SHAPES, checked(controls), 0.5)["dropped"]
        found = {name: e["control"] for e in entries for name, box in boxes.items() if box == e["bbox_xyxy"]}
        assert found == expected | ({"BAR": "max_aspect_ratio"} if "BAR" not in expected else {})
        assert [ORDER.index(entry["control"]) for entry in entries] == sorted(
            ORDER.index(entry["control"]) for entry in entries
        )


def test_boxes_in_the_image_too() -> None:
    defects = scale_to_image(explained(SHAPES, checked({"min_area": 5}), 0.5), (14, 36))
    (entry,) = defects.to_record()["suppressed"]["dropped"]
    assert entry == dropped("min_area", 2, 5, PAIR, 2) | {"bbox_xyxy_image": [3, 8, 8, 9]}


def test_boxes_of_the_dropped_are_there_for_overlays_with_counts_as_well() -> None:
    for explain in ("counts", "full"):
        explanation = explained(SHAPES, checked({"min_area": 7}), 0.5, explain).explanation
        assert explanation is not None
        assert explanation.dropped_boxes_xyxy.tolist() == [BAR, PAIR, ELL]
    explanation = explained(SHAPES, DefectSettings(), 0.5).explanation
    assert explanation is not None
    assert explanation.dropped_boxes_xyxy.shape == (0, 4)


@EXAMPLES
@given(anomaly_maps(), defect_settings(), levels())
@example(np.zeros((1, 1), np.float32), DefectSettings(min_area=2, fill_holes=True), 0.5)
@example(np.ones((1, 1), np.float32), DefectSettings(min_area=2, fill_holes=True), 0.5)
@example(np.ones((1, 7), np.float32), DefectSettings(open_ksize=3, close_ksize=3, fill_holes=True), 0.5)
@example(np.ones((7, 1), np.float32), DefectSettings(border_ignore_px=1, max_regions=0), 0.5)
def test_explaining_changes_nothing_else(anomaly_map: np.ndarray, controls: DefectSettings, level: float) -> None:
    plain = extract_defects(anomaly_map, controls, pixel_threshold=level)
    assert plain.explanation is None
    assert plain.waterfall == ()
    full, short = (explained(anomaly_map, controls, level, explain) for explain in ("full", "counts"))
    for defects in (full, short):
        np.testing.assert_array_equal(defects.mask, plain.mask, strict=True)
        record = defects.to_record()
        del record["suppressed"]
        assert json.dumps(record) == json.dumps(plain.to_record())
    of_full, of_short = full.to_record()["suppressed"], short.to_record()["suppressed"]
    assert set(of_short) == {"thresholded", "controls", "reported"}
    assert of_full == of_short | {"dropped": of_full["dropped"]}
    assert full.waterfall == short.waterfall


@EXAMPLES
@given(anomaly_maps(), defect_settings(), levels())
def test_the_numbers_add_up(anomaly_map: np.ndarray, controls: DefectSettings, level: float) -> None:
    defects = explained(anomaly_map, controls, level)
    ledger = json.loads(json.dumps(defects.to_record()["suppressed"], allow_nan=False))
    assert [step.control for step in defects.waterfall] == ["thresholded", *on(controls), "reported"]
    assert set(ledger["controls"]) == set(on(controls))
    areas = [region.area for region in defects.regions]
    assert ledger["reported"] == {"components": len(areas), "pixels": sum(areas)}
    left = ledger["thresholded"]["pixels"]
    for control in on(controls):
        step = ledger["controls"][control]
        left += step["pixels_added"] - step["pixels"]
        assert step["pixels_left"] == left
        assert min(step.values()) >= 0
        entries = [entry for entry in ledger["dropped"] if entry["control"] == control]
        assert len(entries) == (0 if control == "merge_nearby" else step["components"])
        assert sum(entry["area"] for entry in entries) <= step["pixels"]
    assert ledger["reported"]["pixels"] == left


def components_of(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    return reference.components(mask, EIGHT)


def plain_ledger(anomaly_map: np.ndarray, controls: DefectSettings, threshold: float) -> dict[str, Any]:
    """The ledger the slow way, control by control, component by component."""
    hysteresis, shape = controls.hysteresis, controls.shape_filters
    low = high = threshold
    if hysteresis.enabled:
        high = threshold if hysteresis.high is None else hysteresis.high
        low, high = sorted((high / 2 if hysteresis.low is None else hysteresis.low, high))
    rows, columns = reference.roi_ranges(controls.roi_xyxy_norm, anomaly_map.shape)
    roi = None if controls.roi_xyxy_norm is None else list(controls.roi_xyxy_norm)
    in_roi = reference.blank_outside(anomaly_map, rows, columns)
    in_border = reference.blank_border(in_roi, controls.border_ignore_px)
    scores = reference.smooth(in_border, controls)
    passed = reference.threshold(scores, controls, threshold)
    opened = reference.open_and_close(passed, controls.model_copy(update={"close_ksize": 0}))
    closed = reference.open_and_close(opened, controls.model_copy(update={"open_ksize": 0}))
    kept = reference.drop_components(closed, scores, controls)
    filled = reference.fill_holes(kept) if controls.fill_holes else kept
    clipped = reference.blank_outside(filled, rows, columns)
    active, steps, entries = on(controls), {}, []
    mask = reached = (anomaly_map >= np.float32(low)).astype(np.uint8)

    def step(control: str, after: np.ndarray, limit: Any, measured: np.ndarray | None = None) -> None:
        nonlocal mask
        if control not in active:
            assert np.array_equal(mask, after)
            return
        n_gone = 0
        for pixels in components_of(mask):
            if not any(after[pixel] for pixel in pixels):
                n_gone += 1
                value = None if measured is None else max(float(measured[pixel]) for pixel in pixels)
                entries.append(entry(control, value, limit, pixels))
        removed, added = int((mask > after).sum()), int((mask < after).sum())
        steps[control] = counts(n_gone, removed, len(components_of(after)), int(after.sum()), added)
        mask = after

    def entry(control: str, value: float | None, limit: Any, pixels: list[tuple[int, int]]) -> dict[str, Any]:
        region = reference.measure(pixels, scores)
        return dropped(control, value, limit, region["bbox_xyxy"], region["area"])

    step("roi_xyxy_norm", (in_roi >= np.float32(low)).astype(np.uint8), roi)
    step("border_ignore_px", (in_border >= np.float32(low)).astype(np.uint8), controls.border_ignore_px)
    step("map_smoothing", (scores >= np.float32(low)).astype(np.uint8), low, scores)
    step("hysteresis", passed, high, scores)
    step("open_ksize", opened, controls.open_ksize)
    step("close_ksize", closed, controls.close_ksize)
    left = components_of(closed)
    for control, limit, key in (
        ("min_area", controls.min_area, "area"),
        ("min_score_max", controls.min_score_max, "score_max"),
        ("min_score_mean", controls.min_score_mean, "score_mean"),
        ("min_fill_ratio", shape.min_fill_ratio, "fill_ratio"),
        ("max_aspect_ratio", shape.max_aspect_ratio, "aspect_ratio"),
        ("min_solidity", shape.min_solidity, "solidity"),
    ):
        if control not in active:
            continue
        still, n_gone, removed = [], 0, 0
        for pixels in left:
            region = reference.measure(pixels, scores)
            region |= reference.box_shape(region) | {"solidity": reference.solidity(pixels)}
            value = region[key]
            fails = value is None or (value > limit if control.startswith("max") else value < limit)
            if fails:
                entries.append(entry(control, value, limit, pixels))
                n_gone, removed = n_gone + 1, removed + len(pixels)
            else:
                still.append(pixels)
        left = still
        steps[control] = counts(n_gone, removed, len(left), sum(map(len, left)))
    mask = kept
    step("fill_holes", filled, controls.fill_holes)
    step("roi_clip", clipped, roi)
    regions = reference.measure_regions(clipped, scores, controls)
    if "merge_nearby" in active:
        joined = reference.merge(regions, controls)
        steps["merge_nearby"] = counts(len(regions) - len(joined), 0, len(joined), int(clipped.sum()))
        regions = joined
    regions.sort(key=lambda region: reference.order_key(region, controls.max_regions_sort_by))
    limit = controls.max_regions
    if limit is not None:
        over = regions[limit:]
        regions = regions[:limit]
        for rank, region in enumerate(over, start=limit + 1):
            entries.append(dropped("max_regions", rank, limit, region["bbox_xyxy"], region["area"]))
        areas = [sum(region["area"] for region in part) for part in (over, regions)]
        steps["max_regions"] = counts(len(over), areas[0], len(regions), areas[1])
    return {
        "thresholded": {"level": low, "components": len(components_of(reached)), "pixels": int(reached.sum())},
        "controls": steps,
        "reported": {"components": len(regions), "pixels": sum(region["area"] for region in regions)},
        "dropped": entries,
    }


@settings(max_examples=300, deadline=None)
@given(anomaly_maps(max_side=16), defect_settings(), levels())
@example(SHAPES, DefectSettings(), 0.5)
def test_agrees_with_the_plain_ledger(anomaly_map: np.ndarray, controls: DefectSettings, level: float) -> None:
    found, expected = suppressed(anomaly_map, controls, level), plain_ledger(anomaly_map, controls, level)
    values = [[entry.pop("value") for entry in ledger["dropped"]] for ledger in (found, expected)]
    assert found == expected
    assert values[0] == [value if value is None else pytest.approx(value, abs=2e-6) for value in values[1]]


steps = st.tuples(*[st.integers(0, 10**6)] * 5)


@given(st.integers(1, 6).flatmap(lambda n: st.tuples(*[st.lists(steps, min_size=n, max_size=n)] * 3)))
def test_waterfalls_add_in_any_order_and_grouping(numbers: tuple[list[tuple[int, ...]], ...]) -> None:
    a, b, c = (tuple(Step(f"control {i}", *row) for i, row in enumerate(rows)) for rows in numbers)  # type: ignore[arg-type]
    assert add_waterfalls(a, b) == add_waterfalls(b, a)
    assert add_waterfalls(add_waterfalls(a, b), c) == add_waterfalls(a, add_waterfalls(b, c))
    assert add_waterfalls(a, ()) == a == add_waterfalls((), a)
    assert add_waterfalls((), ()) == ()


@given(anomaly_maps(max_side=12), anomaly_maps(max_side=12), defect_settings(), levels())
@settings(max_examples=50, deadline=None)
def test_maps_of_any_size_add_up(one: np.ndarray, other: np.ndarray, controls: DefectSettings, level: float) -> None:
    waterfalls = [explained(values, controls, level).waterfall for values in (one, other)]
    total: Waterfall = ()
    for waterfall in waterfalls:
        total = add_waterfalls(total, waterfall)
    for step, mine, theirs in zip(total, *waterfalls, strict=True):
        assert step.control == mine.control == theirs.control
        assert step.pixels_left == mine.pixels_left + theirs.pixels_left
        assert step.to_record() == {k: v + theirs.to_record()[k] for k, v in mine.to_record().items()}
