"""Random anomaly maps and settings."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import strategies as st

from pyimgano_dask.settings.defects import DefectSettings, Hysteresis, MapSmoothing, MergeNearby, ShapeFilters

KINDS = ("smooth", "speckle", "ties", "flat", "negative")


@st.composite
def anomaly_maps(draw: st.DrawFn, max_side: int = 24) -> np.ndarray:
    """A float32 map of one of the kinds that detectors make, down to 1x1."""
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = rng.random((height, width), dtype=np.float32)
    kind = draw(st.sampled_from(KINDS))
    if kind == "smooth":
        return cv2.GaussianBlur(noise, (0, 0), 1.5)
    if kind == "ties":
        return np.round(noise * 4) / np.float32(4)
    if kind == "flat":
        return np.full((height, width), noise[0, 0])
    if kind == "negative":
        return noise - np.float32(1.2)
    return noise


def maybe(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | strategy


def levels() -> st.SearchStrategy[float]:
    return st.floats(-1.2, 1.0).map(lambda value: round(value, 3))


@st.composite
def map_smoothings(draw: st.DrawFn) -> MapSmoothing:
    method = draw(st.sampled_from(("none", "median", "gaussian", "box")))
    ksizes = (0, 1, 2, 3, 4, 5) if method == "median" else (0, 1, 2, 3, 6, 31)
    return MapSmoothing(
        method=method, ksize=draw(st.sampled_from(ksizes)), sigma=draw(st.sampled_from((0.0, 0.8, 3.0)))
    )


@st.composite
def defect_settings(draw: st.DrawFn) -> DefectSettings:
    """Settings with any of the controls on."""
    return DefectSettings(
        roi_xyxy_norm=draw(maybe(st.tuples(*[st.floats(-0.2, 1.2)] * 4))),
        border_ignore_px=draw(st.sampled_from((0, 0, 1, 3, 30))),
        map_smoothing=draw(map_smoothings()),
        hysteresis=Hysteresis(enabled=draw(st.booleans()), low=draw(maybe(levels())), high=draw(maybe(levels()))),
        shape_filters=ShapeFilters(
            min_fill_ratio=draw(maybe(st.floats(0, 1))),
            max_aspect_ratio=draw(maybe(st.floats(1, 6))),
            min_solidity=draw(maybe(st.floats(0, 1))),
        ),
        merge_nearby=MergeNearby(enabled=draw(st.booleans()), max_gap_px=draw(st.sampled_from((0, 1, 2, 5)))),
        min_area=draw(st.sampled_from((0, 0, 1, 2, 5))),
        min_score_max=draw(maybe(levels())),
        min_score_mean=draw(maybe(levels())),
        open_ksize=draw(st.sampled_from((0, 0, 0, 1, 2, 3, 40))),
        close_ksize=draw(st.sampled_from((0, 0, 1, 2, 3, 40))),
        fill_holes=draw(st.booleans()),
        max_regions=draw(maybe(st.integers(0, 5))),
        max_regions_sort_by=draw(st.sampled_from(("score_max", "score_mean", "area"))),
    )


def masks(max_side: int = 20) -> st.SearchStrategy[np.ndarray]:
    """uint8 masks of 0 and 1, from empty to full."""

    @st.composite
    def build(draw: st.DrawFn) -> np.ndarray:
        shape = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        return (rng.random(shape) < draw(st.floats(0, 1))).astype(np.uint8)

    return build()
