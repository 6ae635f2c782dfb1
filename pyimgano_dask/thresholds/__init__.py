"""Thresholds from normal images: exact quantiles in bounded memory, and where each threshold came from.

This folder knows nothing of the dataflow. One task per chunk of images makes partial results, which merge in
any order to the same answer.
"""

from pyimgano_dask.thresholds.provenance import (
    Provenance,
    calibrated_pixel_provenance,
    fixed_pixel_provenance,
    own_score_threshold_provenance,
    score_threshold_provenance,
    with_value_and_origin,
)
from pyimgano_dask.thresholds.quantiles import (
    BucketHistogram,
    NeedsRefinement,
    PixelHistogram,
    refined_quantile,
    score_quantile,
)

__all__ = [
    "BucketHistogram",
    "NeedsRefinement",
    "PixelHistogram",
    "Provenance",
    "calibrated_pixel_provenance",
    "fixed_pixel_provenance",
    "own_score_threshold_provenance",
    "refined_quantile",
    "score_quantile",
    "score_threshold_provenance",
    "with_value_and_origin",
]
