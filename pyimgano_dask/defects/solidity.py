"""Solidity of components: the area of the outer contour divided by the area of its convex hull."""

from __future__ import annotations

import cv2
import numpy as np

from pyimgano_dask.defects.components import Components


def solidities(components: Components) -> np.ndarray:
    """Solidity of each component, float64 (N,) in [0, 1]; NaN where the hull has no area.

    Both areas are those of polygons through pixel centres (Suzuki and Abe 1985 for the contour), so a
    component of one row, one column or one diagonal has a hull without area. Only components that do not
    fill their box are traced, each within its box.
    """
    x1, y1, x2, y2 = components.boxes_xyxy.T
    thin = (x1 == x2) | (y1 == y2)
    full = components.areas == (x2 - x1 + 1) * (y2 - y1 + 1)
    values = np.where(thin, np.nan, 1.0)
    traced = np.flatnonzero(~thin & ~full)
    labels, boxes, numbers = components.labels, components.boxes_xyxy[traced], components.numbers[traced]
    for row, (left, top, right, bottom), number in zip(
        traced.tolist(), boxes.tolist(), numbers.tolist(), strict=True
    ):
        values[row] = _solidity((labels[top : bottom + 1, left : right + 1] == number).view(np.uint8))
    return values


def _solidity(component: np.ndarray) -> float:
    """Solidity of the one component in a mask, uint8 (h, w) with values 0 and 1."""
    (contour, *_), _ = cv2.findContours(component, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    hull_area = cv2.contourArea(cv2.convexHull(contour))
    return cv2.contourArea(contour) / hull_area if hull_area > 0 else np.nan
