"""Named starting points for the `defects` block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

PresetName = Literal["industrial-fp40", "industrial-defects-fp40"]

_FP40: Mapping[str, Any] = {
    "enabled": True,
    "pixel_threshold_strategy": "normal_pixel_quantile",
    "pixel_normal_quantile": 0.999,
    "mask_format": "png",
    "roi_xyxy_norm": (0.1, 0.1, 0.9, 0.9),
    "border_ignore_px": 2,
    "map_smoothing": {"method": "median", "ksize": 3, "sigma": 0.0},
    "hysteresis": {"enabled": True},
    "shape_filters": {"min_fill_ratio": 0.15, "max_aspect_ratio": 6.0, "min_solidity": 0.8},
    "merge_nearby": {"enabled": True, "max_gap_px": 1},
    "min_area": 16,
    "min_score_max": 0.6,
    "max_regions": 20,
    "max_regions_sort_by": "score_max",
}

DEFECT_PRESETS: Mapping[PresetName, Mapping[str, Any]] = {"industrial-fp40": _FP40, "industrial-defects-fp40": _FP40}
"""Values by preset, as they stand in a config. The second name is the one the predecessor package uses."""
