"""Solidity of components: the area of the outer contour divided by the area of its convex hull."""

from __future__ import annotations

import numpy as np

from pyimgano_dask.defects.components import Components
from pyimgano_dask.defects.kernels import twice_contour_and_hull_areas


def solidities(components: Components) -> np.ndarray:
    """Solidity of each component, float64 (N,) in [0, 1]; NaN where the hull has no area.

    Both areas are those of polygons through pixel centres. Holes do not count against a component. One of a single
    row, column or diagonal has a hull without area.
    """
    contours, hulls = twice_contour_and_hull_areas(components.labels, components.numbers, components.boxes_xyxy)
    values = np.full(len(components), np.nan)
    np.divide(contours, hulls, out=values, where=hulls > 0)
    return values
