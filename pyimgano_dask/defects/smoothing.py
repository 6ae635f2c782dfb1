"""Smoothing of an anomaly map before it is thresholded."""

from __future__ import annotations

import cv2
import numpy as np

from pyimgano_dask.settings.defects import MapSmoothing


def smooth(scores: np.ndarray, smoothing: MapSmoothing) -> np.ndarray:
    """Smooth `scores`, float32 (H, W); the same array when the settings ask for nothing.

    `median` and `box` do nothing for a ksize of 0 or 1. `gaussian` with ksize 0 takes its size from sigma
    and does nothing when both are 0. `median` and `gaussian` raise an even ksize by one. Outside the map,
    `median` repeats the edge pixel; `gaussian` and `box` mirror the map about it. Kernels may be larger
    than the map.
    """
    ksize, odd = smoothing.ksize, smoothing.odd_ksize
    if not smoothing.is_on:
        return scores
    if smoothing.method == "median":
        return cv2.medianBlur(scores, odd)
    if smoothing.method == "box":
        return cv2.blur(scores, (ksize, ksize))
    return cv2.GaussianBlur(scores, (odd, odd), smoothing.sigma)
