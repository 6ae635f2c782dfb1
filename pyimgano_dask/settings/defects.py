"""Knobs of defect extraction: the `defects` block of an infer config."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from pyimgano_dask.settings.knob import Block, knob
from pyimgano_dask.settings.presets import PresetName

MEDIAN_KSIZES = (3, 5)
# Larger kernels than any map in use; beyond them OpenCV hangs or runs out of memory.
MAX_KSIZE = 4095

RoiXyxyNorm = tuple[float, float, float, float]


def clamped_roi(roi_xyxy_norm: RoiXyxyNorm) -> RoiXyxyNorm:
    """The region (x1, y1, x2, y2) cut down to fractions from 0 to 1, its corners in order.

    >>> clamped_roi((0.75, 0.25, 0.25, 2.0))
    (0.25, 0.25, 0.75, 1.0)
    """
    x1, y1, x2, y2 = (min(1.0, max(0.0, edge)) for edge in roi_xyxy_norm)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


class MapSmoothing(Block):
    """Smoothing of the anomaly map before it is thresholded."""

    method: Literal["none", "median", "gaussian", "box"] = knob(
        "none", "Smooth the anomaly map before thresholding.", flag="--defect-map-smoothing"
    )
    ksize: int = knob(
        0,
        "Smoothing kernel size in pixels; 0 lets gaussian take it from sigma and turns median and box off. "
        "Median and gaussian raise an even size by one; median allows 3 and 5.",
        flag="--defect-map-smoothing-ksize",
        ge=0,
        le=MAX_KSIZE,
    )
    sigma: float = knob(
        0.0, "Standard deviation of gaussian smoothing in pixels.", flag="--defect-map-smoothing-sigma", ge=0, le=500
    )

    @property
    def odd_ksize(self) -> int:
        """`ksize` raised to the next odd number (0 stays 0)."""
        return self.ksize if self.ksize == 0 else self.ksize | 1

    @property
    def is_on(self) -> bool:
        """Whether it changes a map at all."""
        return self.method != "none" and (self.ksize > 1 or (self.method == "gaussian" and self.ksize + self.sigma > 0))

    @model_validator(mode="after")
    def _median_kernel_is_supported(self) -> Self:
        if self.method == "median" and self.ksize > 1 and self.odd_ksize not in MEDIAN_KSIZES:
            raise ValueError(
                f"median smoothing of a float map takes ksize 3 or 5, got {self.ksize}; "
                "use 3, 5 or method gaussian or box"
            )
        return self


class Hysteresis(Block):
    """Two-level thresholding."""

    enabled: bool = knob(
        False,
        "Threshold with hysteresis: keep pixels above the low level that are connected to one above the high level.",
        flag="--defect-hysteresis",
    )
    low: float | None = knob(
        None, "Low hysteresis level (default: half of the high level).", flag="--defect-hysteresis-low"
    )
    high: float | None = knob(
        None, "High hysteresis level (default: the pixel threshold).", flag="--defect-hysteresis-high"
    )


class ShapeFilters(Block):
    """Component filters by shape; regions then carry `bbox_area`, `fill_ratio` and `aspect_ratio`."""

    min_fill_ratio: float | None = knob(
        None,
        "Drop components whose area divided by their box area is smaller.",
        flag="--defect-min-fill-ratio",
        ge=0,
        le=1,
    )
    max_aspect_ratio: float | None = knob(
        None,
        "Drop components whose box is more elongated (longer side divided by shorter side).",
        flag="--defect-max-aspect-ratio",
        ge=0,
    )
    min_solidity: float | None = knob(
        None,
        "Drop components whose contour area divided by the area of its convex hull is smaller.",
        flag="--defect-min-solidity",
        ge=0,
        le=1,
    )

    @property
    def any_on(self) -> bool:
        """Whether at least one shape filter is set."""
        return any(value is not None for value in (self.min_fill_ratio, self.max_aspect_ratio, self.min_solidity))


class MergeNearby(Block):
    """Joining of regions whose boxes lie close together; the mask stays as it is."""

    enabled: bool = knob(
        False, "Join regions that lie close together (the mask stays as it is).", flag="--defect-merge-nearby"
    )
    max_gap_px: int = knob(
        0,
        "Largest gap in pixels, in x and in y, between the boxes of regions to join; 0 is off.",
        flag="--defect-merge-nearby-max-gap-px",
        ge=0,
    )


class DefectSettings(Block):
    """Everything between an anomaly map and its mask and regions."""

    enabled: bool = knob(
        False, "Extract defects: a binary mask and its regions. Implies --include-maps.", flag="--defects"
    )
    preset: PresetName | None = knob(
        None,
        "Start from a named set of controls, --defects included; every control given beside it wins. "
        "industrial-defects-fp40 is another name of industrial-fp40.",
        flag="--defects-preset",
        metavar="NAME",
    )
    explain: Literal["none", "counts", "full"] = knob(
        "none",
        "Say why pixels and components were dropped: counts for each control (defects.suppressed), with full also "
        "each dropped component. Overlays then show the dropped ones dashed. Without a value: counts.",
        flag="--explain-defects",
        metavar="none|counts|full",
        bare="counts",
    )
    image_space: bool = knob(
        False, "Add each region's box in image pixels (bbox_xyxy_image).", flag="--defects-image-space"
    )
    mask_format: Literal["png", "npy", "npz", "zarr"] = knob("png", "File format of saved masks.", flag="--mask-format")
    pixel_threshold: float | None = knob(
        None, "Pixels whose anomaly score is at least this are defective.", flag="--pixel-threshold", metavar="T"
    )
    pixel_threshold_strategy: Literal["normal_pixel_quantile", "fixed", "infer_config"] = knob(
        "normal_pixel_quantile",
        "Where the pixel threshold comes from when --pixel-threshold is not given.",
        flag="--pixel-threshold-strategy",
    )
    pixel_normal_quantile: float = knob(
        0.999,
        "Quantile of the normal pixels of --train-dir that becomes the pixel threshold.",
        flag="--pixel-normal-quantile",
        metavar="Q",
        gt=0,
        lt=1,
    )
    roi_xyxy_norm: RoiXyxyNorm | None = knob(
        None,
        "Region of interest in fractions of the map's width and height; defects outside it are ignored.",
        flag="--roi-xyxy-norm",
        metavar="X1 Y1 X2 Y2",
    )
    border_ignore_px: int = knob(
        0, "Ignore this many pixels at each border of the map.", flag="--defect-border-ignore-px", ge=0
    )
    map_smoothing: MapSmoothing = MapSmoothing()
    hysteresis: Hysteresis = Hysteresis()
    shape_filters: ShapeFilters = ShapeFilters()
    merge_nearby: MergeNearby = MergeNearby()
    min_area: int = knob(0, "Drop components of fewer pixels.", flag="--defect-min-area", ge=0)
    min_score_max: float | None = knob(
        None, "Drop components whose largest pixel score is smaller.", flag="--defect-min-score-max"
    )
    min_score_mean: float | None = knob(
        None, "Drop components whose mean pixel score is smaller.", flag="--defect-min-score-mean"
    )
    open_ksize: int = knob(
        0,
        "Morphological opening of the mask with a square of this side; 0 is off.",
        flag="--defect-open-ksize",
        ge=0,
        le=MAX_KSIZE,
    )
    close_ksize: int = knob(
        0,
        "Morphological closing of the mask with a square of this side; 0 is off.",
        flag="--defect-close-ksize",
        ge=0,
        le=MAX_KSIZE,
    )
    fill_holes: bool = knob(False, "Fill the holes of the mask.", flag="--defect-fill-holes")
    max_regions: int | None = knob(
        None, "Report at most this many regions an image, after sorting.", flag="--defect-max-regions", ge=0
    )
    max_regions_sort_by: Literal["score_max", "score_mean", "area"] = knob(
        "score_max", "Key by which regions are sorted, largest first.", flag="--defect-max-regions-sort-by"
    )
