"""Defect extraction written the slow, plain way: the yardstick the real one is compared with.

Every step is a loop over pixels, components or pairs. OpenCV is used for smoothing, opening, closing,
contours and hulls only; labelling is a breadth-first search.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import cv2
import numpy as np

from pyimgano_dask.settings.defects import DefectSettings

FOUR = [(-1, 0), (0, -1), (0, 1), (1, 0)]
EIGHT = [*FOUR, (-1, -1), (-1, 1), (1, -1), (1, 1)]


def extract(anomaly_map: np.ndarray, settings: DefectSettings, pixel_threshold: float) -> dict[str, Any]:
    """Return `{"mask": uint8 (H, W), "regions": [...], "map_stats_roi": {...}}`."""
    rows, columns = roi_ranges(settings.roi_xyxy_norm, anomaly_map.shape)
    scores = blank_outside(anomaly_map, rows, columns)
    scores = blank_border(scores, settings.border_ignore_px)
    scores = smooth(scores, settings)
    mask = threshold(scores, settings, pixel_threshold)
    mask = open_and_close(mask, settings)
    mask = drop_components(mask, scores, settings)
    if settings.fill_holes:
        mask = fill_holes(mask)
    mask = blank_outside(mask, rows, columns)
    regions = measure_regions(mask, scores, settings)
    if settings.merge_nearby.enabled and settings.merge_nearby.max_gap_px > 0:
        regions = merge(regions, settings)
    regions.sort(key=lambda region: order_key(region, settings.max_regions_sort_by))
    if settings.max_regions is not None:
        regions = regions[: settings.max_regions]
    inside = [float(anomaly_map[y, x]) for y in rows for x in columns]
    stats = {
        "max": max(inside, default=0.0),
        "mean": math.fsum(inside) / len(inside) if inside else 0.0,
    }
    return {"mask": mask * np.uint8(255), "regions": regions, "map_stats_roi": stats}


def roi_ranges(roi: tuple[float, ...] | None, shape: tuple[int, ...]) -> tuple[range, range]:
    height, width = shape
    if roi is None:
        return range(height), range(width)
    x1, y1, x2, y2 = (min(1.0, max(0.0, value)) for value in roi)
    top, bottom = sorted((y1, y2))
    left, right = sorted((x1, x2))
    return (
        range(math.floor(top * height), math.ceil(bottom * height)),
        range(math.floor(left * width), math.ceil(right * width)),
    )


def blank_outside(image: np.ndarray, rows: range, columns: range) -> np.ndarray:
    out = np.zeros_like(image)
    for y in rows:
        for x in columns:
            out[y, x] = image[y, x]
    return out


def blank_border(scores: np.ndarray, n: int) -> np.ndarray:
    height, width = scores.shape
    out = scores.copy()
    for y in range(height):
        for x in range(width):
            if y < n or x < n or y >= height - n or x >= width - n:
                out[y, x] = 0
    return out


def smooth(scores: np.ndarray, settings: DefectSettings) -> np.ndarray:
    method, ksize, sigma = (
        settings.map_smoothing.method,
        settings.map_smoothing.ksize,
        settings.map_smoothing.sigma,
    )
    odd = ksize if ksize == 0 or ksize % 2 == 1 else ksize + 1
    if method == "median" and ksize > 1:
        return cv2.medianBlur(scores, odd)
    if method == "box" and ksize > 1:
        return cv2.blur(scores, (ksize, ksize))
    if method == "gaussian" and (ksize > 0 or sigma > 0):
        return cv2.GaussianBlur(scores, (odd, odd), sigma)
    return scores


def threshold(scores: np.ndarray, settings: DefectSettings, pixel_threshold: float) -> np.ndarray:
    if not settings.hysteresis.enabled:
        return (scores >= pixel_threshold).astype(np.uint8)
    high = pixel_threshold if settings.hysteresis.high is None else settings.hysteresis.high
    low = high / 2 if settings.hysteresis.low is None else settings.hysteresis.low
    low, high = sorted((low, high))
    strong = scores >= high
    out = np.zeros(scores.shape, np.uint8)
    for pixels in components((scores >= low).astype(np.uint8), EIGHT):
        if any(strong[pixel] for pixel in pixels):
            for pixel in pixels:
                out[pixel] = 1
    return out


def open_and_close(mask: np.ndarray, settings: DefectSettings) -> np.ndarray:
    for operation, ksize in ((cv2.MORPH_OPEN, settings.open_ksize), (cv2.MORPH_CLOSE, settings.close_ksize)):
        if ksize > 0:
            mask = cv2.morphologyEx(mask, operation, np.ones((ksize, ksize), np.uint8))
    return mask


def components(mask: np.ndarray, neighbours: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Connected components of the nonzero pixels, in raster order of the first 2x2 block each one enters."""
    height, width = mask.shape
    seen = np.zeros(mask.shape, bool)
    found = []
    for y in range(height):
        for x in range(width):
            if mask[y, x] and not seen[y, x]:
                seen[y, x] = True
                pixels, queue = [], deque([(y, x)])
                while queue:
                    cy, cx = queue.popleft()
                    pixels.append((cy, cx))
                    for dy, dx in neighbours:
                        ny, nx = cy + dy, cx + dx
                        if 0 <= ny < height and 0 <= nx < width and mask[ny, nx] and not seen[ny, nx]:
                            seen[ny, nx] = True
                            queue.append((ny, nx))
                found.append(sorted(pixels))
    return sorted(found, key=lambda pixels: min((y // 2, x // 2) for y, x in pixels))


def solidity(pixels: list[tuple[int, int]]) -> float | None:
    top, left = min(y for y, _ in pixels), min(x for _, x in pixels)
    bottom, right = max(y for y, _ in pixels), max(x for _, x in pixels)
    alone = np.zeros((bottom - top + 3, right - left + 3), np.uint8)
    for y, x in pixels:
        alone[y - top + 1, x - left + 1] = 1
    contours, _ = cv2.findContours(alone, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    largest = max(contours, key=cv2.contourArea)
    hull_area = cv2.contourArea(cv2.convexHull(largest))
    return None if hull_area == 0 else cv2.contourArea(largest) / hull_area


def measure(pixels: list[tuple[int, int]], scores: np.ndarray) -> dict[str, Any]:
    ys, xs = [y for y, _ in pixels], [x for _, x in pixels]
    values = [float(scores[pixel]) for pixel in pixels]
    return {
        "bbox_xyxy": [min(xs), min(ys), max(xs), max(ys)],
        "area": len(pixels),
        "centroid_xy": [sum(xs) / len(xs), sum(ys) / len(ys)],
        "score_max": max(values),
        "score_mean": math.fsum(values) / len(values),
    }


def box_shape(region: dict[str, Any]) -> dict[str, Any]:
    x1, y1, x2, y2 = region["bbox_xyxy"]
    width, height = x2 - x1 + 1, y2 - y1 + 1
    return {
        "bbox_area": width * height,
        "fill_ratio": region["area"] / (width * height),
        "aspect_ratio": max(width / height, height / width),
    }


def drop_components(mask: np.ndarray, scores: np.ndarray, settings: DefectSettings) -> np.ndarray:
    out = np.zeros_like(mask)
    for pixels in components(mask, EIGHT):
        if is_kept(pixels, scores, settings):
            for pixel in pixels:
                out[pixel] = 1
    return out


def is_kept(pixels: list[tuple[int, int]], scores: np.ndarray, settings: DefectSettings) -> bool:
    region = measure(pixels, scores)
    shape = box_shape(region)
    limits = settings.shape_filters
    if region["area"] < settings.min_area:
        return False
    if settings.min_score_max is not None and region["score_max"] < settings.min_score_max:
        return False
    if settings.min_score_mean is not None and region["score_mean"] < settings.min_score_mean:
        return False
    if limits.min_fill_ratio is not None and shape["fill_ratio"] < limits.min_fill_ratio:
        return False
    if limits.max_aspect_ratio is not None and shape["aspect_ratio"] > limits.max_aspect_ratio:
        return False
    if limits.min_solidity is not None:
        value = solidity(pixels)
        return value is not None and value >= limits.min_solidity
    return True


def fill_holes(mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    out = mask.copy()
    for pixels in components((mask == 0).astype(np.uint8), FOUR):
        if not any(y in (0, height - 1) or x in (0, width - 1) for y, x in pixels):
            for pixel in pixels:
                out[pixel] = 1
    return out


def measure_regions(mask: np.ndarray, scores: np.ndarray, settings: DefectSettings) -> list[dict[str, Any]]:
    regions = []
    for number, pixels in enumerate(components(mask, EIGHT), start=1):
        region = {"id": number, **measure(pixels, scores)}
        if settings.shape_filters.any_on:
            region |= box_shape(region)
        if settings.shape_filters.min_solidity is not None:
            region["solidity"] = solidity(pixels)
        regions.append(rounded(region))
    return regions


def rounded(region: dict[str, Any]) -> dict[str, Any]:
    names = {"score_max", "score_mean", "fill_ratio", "aspect_ratio", "solidity"}
    return {name: round(value, 6) if name in names and value is not None else value for name, value in region.items()}


def are_near(a: dict[str, Any], b: dict[str, Any], max_gap_px: int) -> bool:
    ax1, ay1, ax2, ay2 = a["bbox_xyxy"]
    bx1, by1, bx2, by2 = b["bbox_xyxy"]
    gap_x = max(bx1 - ax2 - 1, ax1 - bx2 - 1, 0)
    gap_y = max(by1 - ay2 - 1, ay1 - by2 - 1, 0)
    return gap_x <= max_gap_px and gap_y <= max_gap_px


def merge(regions: list[dict[str, Any]], settings: DefectSettings) -> list[dict[str, Any]]:
    groups: list[list[dict[str, Any]]] = []
    for region in regions:
        near = [
            group
            for group in groups
            if any(are_near(region, other, settings.merge_nearby.max_gap_px) for other in group)
        ]
        far = [group for group in groups if not any(group is other for other in near)]
        groups = [*far, [region, *(member for group in near for member in group)]]
    return [group[0] if len(group) == 1 else joined(group) for group in groups]


def joined(group: list[dict[str, Any]]) -> dict[str, Any]:
    boxes = [region["bbox_xyxy"] for region in group]
    area = sum(region["area"] for region in group)

    def weighted(values: list[float]) -> float:
        return sum(value * region["area"] for value, region in zip(values, group, strict=True)) / area

    region = {
        "id": min(region["id"] for region in group),
        "bbox_xyxy": [
            min(box[0] for box in boxes),
            min(box[1] for box in boxes),
            max(box[2] for box in boxes),
            max(box[3] for box in boxes),
        ],
        "area": area,
        "centroid_xy": [weighted([region["centroid_xy"][axis] for region in group]) for axis in (0, 1)],
        "score_max": max(region["score_max"] for region in group),
        "score_mean": weighted([region["score_mean"] for region in group]),
        "merged_from_ids": sorted(region["id"] for region in group),
    }
    return rounded(region | box_shape(region))


def order_key(region: dict[str, Any], sort_by: str) -> tuple[float, ...]:
    x1, y1, x2, y2 = region["bbox_xyxy"]
    cx, cy = region["centroid_xy"]
    descending = (region[sort_by], region["score_max"], region["score_mean"], region["area"])
    return (*(-value for value in descending), y1, x1, y2, x2, cy, cx, region["id"])
