"""Connected components of a mask and their measurements, each in one pass over the pixels.

Masks are uint8 (H, W) with values 0 and 1. Components are 8-connected. Component `i` of the arrays has
label `i + 1` in the label image; label 0 is the background.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

BAND_PIXELS = 1 << 15
PIXELS_PER_SEGMENT = 12


@dataclass(frozen=True, eq=False)
class Components:
    """Measured components in label order; every array has one row a component.

    labels: int32 (H, W), which the other arrays need not cover once components are dropped.
    numbers: int64 (N,), the label of each component in `labels`.
    boxes_xyxy: int64 (N, 4), inclusive pixel boxes. areas: int64 (N,), pixels.
    centroids_xy: float64 (N, 2), mean pixel position.
    score_max, score_mean: float64 (N,), over the component's pixels.
    solidity: float64 (N,), once it is worked out.
    """

    labels: np.ndarray
    numbers: np.ndarray
    boxes_xyxy: np.ndarray
    areas: np.ndarray
    centroids_xy: np.ndarray
    score_max: np.ndarray
    score_mean: np.ndarray
    solidity: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.areas)

    def take(self, rows: np.ndarray) -> Components:
        """The components at these rows, indices (M,); the label image stays whole."""
        return Components(
            self.labels,
            self.numbers[rows],
            self.boxes_xyxy.take(rows, axis=0),
            self.areas[rows],
            self.centroids_xy.take(rows, axis=0),
            self.score_max[rows],
            self.score_mean[rows],
            None if self.solidity is None else self.solidity[rows],
        )


def components_touching(mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The components of `mask` that hold a pixel of `seeds`; both are masks, and seeds lie inside the mask."""
    count, labels = cv2.connectedComponentsWithAlgorithm(mask, 8, cv2.CV_32S, cv2.CCL_GRANA)
    keep = np.zeros(count, np.bool_)
    first_of_run = seeds.copy()
    np.greater(seeds[:, 1:], seeds[:, :-1], out=first_of_run[:, 1:].view(np.bool_))
    flat_labels = labels.ravel()
    for band, pixels in _foreground_bands(first_of_run):
        keep[flat_labels[band][pixels]] = True
    return keep_labels(mask, labels, keep)


def measure_components(mask: np.ndarray, scores: np.ndarray) -> Components:
    """Label `mask` and measure every component on `scores`, float32 (H, W).

    Labels count up in raster order of the 2x2 blocks of pixels (the first block at the top left corner of
    the map) in which components begin. This is the order of block-based labelling (Grana, Borghesani,
    Cucchiara 2010, https://doi.org/10.1109/TIP.2010.2044963), which is asked for by name so that the
    numbers depend neither on what OpenCV takes by default nor on its number of threads.
    """
    count, labels, stats, centroids = cv2.connectedComponentsWithStatsWithAlgorithm(mask, 8, cv2.CV_32S, cv2.CCL_GRANA)
    areas = stats[1:, cv2.CC_STAT_AREA].astype(np.int64)
    boxes = stats[1:, : cv2.CC_STAT_AREA].astype(np.int64)
    for near, far in ((0, 2), (1, 3)):
        boxes[:, far] += boxes[:, near]
        boxes[:, far] -= 1
    score_max, score_sum = _score_max_and_sum(mask, labels, scores, count)
    return Components(
        labels=labels,
        numbers=np.arange(1, count),
        boxes_xyxy=boxes,
        areas=areas,
        centroids_xy=centroids[1:],
        score_max=score_max[1:],
        score_mean=score_sum[1:] / areas,
    )


def keep_labels(mask: np.ndarray, labels: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """`mask` without the components that are not kept; `keep` is bool, one value a label with the background's."""
    if keep[1:].all():
        return mask
    out = mask.copy()
    flat_out, flat_labels = out.ravel(), labels.ravel()
    for band, pixels in _foreground_bands(mask):
        dropped = ~keep[flat_labels[band][pixels]]
        flat_out[band][pixels[dropped]] = 0
    return out


def _score_max_and_sum(
    mask: np.ndarray, labels: np.ndarray, scores: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Largest score and sum of scores of each label, float64 (count,) each."""
    largest = np.full(count, -np.inf)
    total = np.zeros(count, np.float64)
    flat_labels, flat_scores = labels.ravel(), scores.ravel()
    for band, pixels in _foreground_bands(mask):
        owner = flat_labels[band].take(pixels)
        value = flat_scores[band].take(pixels).astype(np.float64)
        starts = np.flatnonzero(owner[1:] != owner[:-1])
        if PIXELS_PER_SEGMENT * len(starts) < len(owner):
            starts = np.concatenate(([0], starts + 1))
            owner = owner[starts]
            np.maximum.at(largest, owner, np.maximum.reduceat(value, starts))
            np.add.at(total, owner, np.add.reduceat(value, starts))
        else:
            np.maximum.at(largest, owner, value)
            np.add.at(total, owner, value)
    return largest, total


def _foreground_bands(mask: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Bands of the flat mask, short enough to stay in the cache, with the foreground pixels inside each."""
    flat = mask.view(np.bool_).ravel()
    for start in range(0, flat.size, BAND_PIXELS):
        band = slice(start, start + BAND_PIXELS)
        pixels = np.flatnonzero(flat[band])
        if pixels.size:
            yield band, pixels
