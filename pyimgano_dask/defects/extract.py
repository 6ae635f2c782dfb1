"""From an anomaly map to its mask and regions: every step in order."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pyimgano_dask.defects.components import Components, keep_labels, measure_components
from pyimgano_dask.defects.explanation import ROI_CLIP, Explanation, Ledger, Waterfall, open_ledger
from pyimgano_dask.defects.filters import any_filter_on, passing
from pyimgano_dask.defects.image_space import boxes_to_image
from pyimgano_dask.defects.masking import threshold
from pyimgano_dask.defects.merging import merge_nearby
from pyimgano_dask.defects.morphology import closed, fill_holes, opened
from pyimgano_dask.defects.ordering import order_rows
from pyimgano_dask.defects.regions import RegionTable, round6
from pyimgano_dask.defects.roi import Part, roi_slices, without_border, zero_outside
from pyimgano_dask.defects.smoothing import smooth
from pyimgano_dask.defects.solidity import solidities
from pyimgano_dask.errors import ConfigError, InputError
from pyimgano_dask.settings.defects import DefectSettings
from pyimgano_dask.settings.infer_config import unknown_keys
from pyimgano_dask.settings.resolve import with_presets


@dataclass(frozen=True)
class MapStats:
    """Largest and mean score of the raw map inside the region of interest; 0 and 0 when that is empty."""

    max: float
    mean: float

    def to_record(self) -> dict[str, float]:
        """`map_stats_roi` of a JSONL record."""
        return {"max": self.max, "mean": self.mean}


@dataclass(frozen=True, eq=False)
class Defects:
    """What is found on one map.

    mask: uint8 (H, W), 255 where defective and 0 elsewhere. regions: a sequence of `Region`, in the order
    of report. explanation: what each control dropped, where the settings ask for it.
    """

    mask: np.ndarray
    regions: RegionTable
    map_stats_roi: MapStats
    explanation: Explanation | None = None

    @property
    def waterfall(self) -> Waterfall:
        """What each control dropped in numbers; empty without an explanation."""
        return () if self.explanation is None else self.explanation.waterfall

    def to_record(self) -> dict[str, Any]:
        """The regions and map statistics as they stand in a JSONL record, `suppressed` with them when explained."""
        record: dict[str, Any] = {
            "regions": self.regions.to_records(),
            "map_stats_roi": self.map_stats_roi.to_record(),
        }
        if self.explanation is not None:
            record["suppressed"] = self.explanation.to_record()
        return record


def extract_defects(
    anomaly_map: np.ndarray, settings: DefectSettings | Mapping[str, Any], *, pixel_threshold: float
) -> Defects:
    """Find the defects of one anomaly map.

    `anomaly_map` is float32 (H, W), higher is more anomalous; it is left as it is. `settings` may be a
    mapping with the keys of the `defects` block of an infer config. Pixels of at least `pixel_threshold`
    are defective; where the threshold comes from is the caller's choice, so `settings.pixel_threshold` is
    not looked at here.

    Raises InputError (stage `extract`) for a map that is not float32 (H, W), is empty or holds a value that
    is not finite, ConfigError for unusable settings or threshold.
    """
    settings = _checked_settings(settings)
    level = _checked_threshold(pixel_threshold)
    check_map(anomaly_map)
    raw = np.ascontiguousarray(anomaly_map)
    roi = roi_slices(settings.roi_xyxy_norm, raw.shape)

    ledger = open_ledger(raw, level, settings)

    part = roi
    ledger.scores("roi_xyxy_norm", raw, part, on=settings.roi_xyxy_norm is not None)
    part = without_border(part, raw.shape, settings.border_ignore_px)
    ledger.scores("border_ignore_px", raw, part, on=settings.border_ignore_px > 0)
    scores = raw
    if settings.map_smoothing.is_on:
        scores, part = smooth(zero_outside(raw, part), settings.map_smoothing), roi_slices(None, raw.shape)
        _check_smoothed(scores)
    ledger.scores("map_smoothing", scores, part, on=settings.map_smoothing.is_on)
    counted = None if scores[part].shape == scores.shape else part
    mask = threshold(scores, level, settings.hysteresis, counted)
    ledger.mask("hysteresis", mask, on=settings.hysteresis.enabled)
    mask = opened(mask, settings.open_ksize)
    ledger.mask("open_ksize", mask, on=settings.open_ksize > 1)
    mask = closed(mask, settings.close_ksize)
    ledger.mask("close_ksize", mask, on=settings.close_ksize > 1)
    mask, components = _final_mask(mask, scores, counted, roi, settings, ledger)
    table = _region_table(components, settings)
    del components
    merges = settings.merge_nearby.enabled and settings.merge_nearby.max_gap_px > 0
    if merges:
        table = merge_nearby(table, settings.merge_nearby.max_gap_px)
    ledger.regions("merge_nearby", table, on=merges)
    order = order_rows(table, settings.max_regions_sort_by)
    ledger.cut(table, order, on=settings.max_regions is not None)
    reported = table.take(order[: settings.max_regions])
    np.multiply(mask, 255, out=mask)
    return Defects(mask, reported, map_stats(raw[roi]), ledger.close())


def _check_smoothed(scores: np.ndarray) -> None:
    if not np.isfinite(scores).all():
        raise InputError(
            "extract", "NonFiniteMapError", "smoothing takes the values of the anomaly map beyond the range of float32"
        )


def scale_to_image(defects: Defects, image_hw: tuple[int, int]) -> Defects:
    """The same defects with `bbox_xyxy_image` on each region; `image_hw` is the image's height and width."""
    map_hw = defects.mask.shape
    boxes = boxes_to_image(defects.regions.boxes_xyxy, map_hw, image_hw)
    explanation = None if defects.explanation is None else defects.explanation.scaled_to_image(map_hw, image_hw)
    return replace(defects, regions=replace(defects.regions, boxes_xyxy_image=boxes), explanation=explanation)


def map_stats(inside: np.ndarray) -> MapStats:
    """Largest and mean value of the float32 pixels inside the region of interest (h, w)."""
    if inside.size == 0:
        return MapStats(0.0, 0.0)
    return MapStats(float(inside.max()), float(inside.mean(dtype=np.float64)))


def _final_mask(
    mask: np.ndarray, scores: np.ndarray, counted: Part | None, roi: Part, settings: DefectSettings, ledger: Ledger
) -> tuple[np.ndarray, Components]:
    """Filter, fill and clip `mask`; label it anew only if filling or clipping changed it."""
    components = None
    if any_filter_on(settings):
        every = measure_components(mask, scores, counted)
        components = passing(every, settings)
        keep = np.zeros(len(every) + 1, np.bool_)
        keep[components.numbers] = True
        mask = keep_labels(mask, every.labels, keep)
        ledger.filtered(every, mask)
        del every
    filled = fill_holes(mask) if settings.fill_holes else mask
    ledger.mask("fill_holes", filled, on=settings.fill_holes)
    clipped = zero_outside(filled, roi)
    ledger.mask(ROI_CLIP, clipped, on=settings.roi_xyxy_norm is not None)
    if components is None or not (clipped is mask or np.array_equal(clipped, mask)):
        components = None  # its label image is as large as the map
        components = measure_components(clipped, scores, counted)
    return clipped, components


def _region_table(components: Components, settings: DefectSettings) -> RegionTable:
    solidity = components.solidity
    if solidity is None and settings.shape_filters.min_solidity is not None:
        solidity = solidities(components)
    return RegionTable(
        ids=np.arange(1, len(components) + 1),
        boxes_xyxy=components.boxes_xyxy,
        areas=components.areas,
        centroids_xy=components.centroids_xy,
        score_max=round6(components.score_max),
        score_mean=round6(components.score_mean),
        solidity=None if solidity is None else round6(solidity),
        with_shape=settings.shape_filters.any_on,
        merged_from_ids={},
    )


def _checked_settings(settings: DefectSettings | Mapping[str, Any]) -> DefectSettings:
    if isinstance(settings, DefectSettings):
        return settings
    for key in unknown_keys(settings, DefectSettings):
        warnings.warn(f"defects.{key} is no setting of defects and is ignored", stacklevel=3)
    values = dict(with_presets({"defects": dict(settings)})["defects"])
    if isinstance(values.get("roi_xyxy_norm"), list):
        values["roi_xyxy_norm"] = tuple(values["roi_xyxy_norm"])
    try:
        return DefectSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explained(fault) for fault in error.errors())) from None


def _explained(fault: ErrorDetails) -> str:
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in fault["loc"])
    if fault["type"] == "value_error":
        return f"defects{path}: {fault['ctx']['error']}"
    return f"defects{path}: {fault['msg']}, got {fault['input']!r}"


def _checked_threshold(pixel_threshold: float) -> float:
    """A Python float, which numpy rounds to float32 when it is compared with the map."""
    if not math.isfinite(pixel_threshold):
        raise ConfigError(f"pixel_threshold: must be a finite number, got {pixel_threshold}")
    return float(pixel_threshold)


def check_map(anomaly_map: np.ndarray) -> None:
    """Raise InputError (stage `extract`) unless a map is float32 (H, W), not empty and finite throughout."""
    kind = anomaly_map.dtype if isinstance(anomaly_map, np.ndarray) else f"a {type(anomaly_map).__name__}"
    if kind != np.float32:
        raise InputError(
            "extract",
            "MapTypeError",
            f"the anomaly map is {kind}; it must be a float32 array: convert it with np.asarray(map, 'float32')",
        )
    if anomaly_map.ndim != 2 or anomaly_map.size == 0:
        raise InputError(
            "extract",
            "MapShapeError",
            f"the anomaly map has shape {anomaly_map.shape}; it must be (height, width), both at least 1",
        )
    finite = np.isfinite(anomaly_map)
    if not finite.all():
        bad = finite.size - np.count_nonzero(finite)
        raise InputError(
            "extract",
            "NonFiniteMapError",
            f"{bad} of {finite.size} values of the anomaly map are NaN or infinite; "
            "all must be finite numbers: check the detector that made the map",
        )
