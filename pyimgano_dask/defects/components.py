"""Connected components of a mask and their measurements, each in one pass over the pixels.

Masks are uint8 (H, W) with values 0 and 1. Components are 8-connected. Component `i` of the arrays has
label `i + 1` in the label image; label 0 is the background.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pyimgano_dask.defects.kernels import boxes_and_areas, labels_under, only_labels, score_max_and_sum
from pyimgano_dask.defects.roi import Part


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
    return keep_labels(mask, labels, labels_under(labels, seeds, count))


def measure_components(mask: np.ndarray, scores: np.ndarray, part: Part | None = None) -> Components:
    """Label `mask` and measure every component on `scores`, float32 (H, W); those outside `part` count as 0.

    Labels count up in raster order of the 2x2 blocks of pixels (the first block at the top left corner of
    the map) in which components begin. This is the order of block-based labelling (Grana, Borghesani,
    Cucchiara 2010, https://doi.org/10.1109/TIP.2010.2044963), which is asked for by name so that the
    numbers depend neither on what OpenCV takes by default nor on its number of threads.
    """
    count, labels, stats, centroids = cv2.connectedComponentsWithStatsWithAlgorithm(mask, 8, cv2.CV_32S, cv2.CCL_GRANA)
    boxes, areas = boxes_and_areas(stats[1:])
    rows, columns = part or (slice(0, mask.shape[0]), slice(0, mask.shape[1]))
    edges_yyxx = rows.start, rows.stop, columns.start, columns.stop
    score_max, score_sum = score_max_and_sum(labels, scores, edges_yyxx, count)
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
    return mask if keep[1:].all() else only_labels(mask, labels, keep)
