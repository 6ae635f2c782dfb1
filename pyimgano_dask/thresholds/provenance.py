"""Where a threshold came from: the dictionaries that records and configs carry beside the number.

Every value is plain JSON data (no numpy scalars).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.settings.defects import clamped_roi

Provenance = dict[str, object]


def score_threshold_provenance(scores: NDArray[np.floating], q: float, source: str) -> Provenance:
    """A score threshold that is the quantile `q` of `scores` (N >= 1, finite, in the order of the images)."""
    exact = scores.astype(np.float64)
    return {
        "method": "quantile",
        "source": source,
        "quantile": q,
        "count": exact.size,
        "score_min": float(exact.min()),
        "score_mean": float(exact.mean()),
        "score_max": float(exact.max()),
    }


def own_score_threshold_provenance(
    scores: NDArray[np.floating], contamination: float | None, source: str
) -> Provenance:
    """A score threshold that the detector settled while it was fitted, at its own quantile 1 - contamination.

    `scores` are those it gives its training images afterwards, which need not be those it settled the threshold on.
    """
    quantile = None if contamination is None else 1 - contamination
    return {**score_threshold_provenance(scores, 0.0, source), "method": "detector", "quantile": quantile}


def calibrated_pixel_provenance(
    q: float,
    *,
    map_count: int,
    pixel_count: int,
    roi_xyxy_norm: tuple[float, float, float, float] | None = None,
    roi_pixel_counts: Collection[int] = (),
) -> Provenance:
    """A pixel threshold that is the quantile `q` of `pixel_count` pixels of `map_count` normal maps.

    `roi_xyxy_norm` is the region of interest as given, in fractions of width and height, and
    `roi_pixel_counts` the numbers of pixels that it holds in the maps (each number once is enough). It counts
    as used when it holds a pixel in any map; otherwise the pixels are those of the whole maps and the reason
    is `roi_empty`. `roi_pixel_count` is the number per map, or None when the maps differ.

    >>> calibrated_pixel_provenance(
    ...     0.999, map_count=2, pixel_count=8, roi_xyxy_norm=(0.75, 0.25, 0.25, 2.0), roi_pixel_counts={4}
    ... )["roi_xyxy_norm"]
    [0.25, 0.25, 0.75, 1.0]
    """
    per_map = set(roi_pixel_counts)
    roi_used = roi_xyxy_norm is not None and any(per_map)
    return {
        "method": "normal_pixel_quantile",
        "source": "train_dir",
        "q": q,
        "calibration_map_count": map_count,
        "calibration_pixel_count": pixel_count,
        "exact": True,
        "roi_used": roi_used,
        "roi_xyxy_norm": None if roi_xyxy_norm is None else list(clamped_roi(roi_xyxy_norm)),
        "roi_pixel_count": per_map.pop() if roi_xyxy_norm is not None and len(per_map) == 1 else None,
        "roi_reason": "roi_empty" if roi_xyxy_norm is not None and not roi_used else None,
    }


def with_value_and_origin(
    provenance: Mapping[str, Any] | None, value: float | None, configured: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """What the config of a run says of its threshold: the provenance, the `value` it is of, and its `origin`.

    The value tells a later reader whether the number was changed since. The origin is where the run's own config had
    the threshold from; `configured` is what that one says of it. Through any number of configs it stays the first
    one. It is left out where the run had its threshold elsewhere, and where the config says nothing of this value.

    >>> of_run = {"source": "train_dir", "q": 0.999, "value": 2.5}
    >>> with_value_and_origin(fixed_pixel_provenance(2.5, "infer_config"), 2.5, of_run)["origin"]
    {'source': 'train_dir', 'q': 0.999, 'value': 2.5}
    """
    if provenance is None:
        return None
    told = {**provenance, "value": value}
    if configured is None or told["source"] != "infer_config" or configured.get("value") != value:
        return told
    origin = configured.get("origin") if configured.get("source") == "infer_config" else configured
    return told if origin is None else {**told, "origin": origin}


def fixed_pixel_provenance(value: float, source: Literal["explicit", "infer_config"]) -> Provenance:
    """A pixel threshold that is a given number: by a flag (`explicit`) or by the config (`infer_config`)."""
    return {"method": "fixed", "source": source, "value": value}
