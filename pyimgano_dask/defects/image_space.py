"""Boxes of map pixels in the pixels of the image the map belongs to."""

from __future__ import annotations

import numpy as np


def boxes_to_image(boxes_xyxy: np.ndarray, map_hw: tuple[int, int], image_hw: tuple[int, int]) -> np.ndarray:
    """Scale inclusive boxes (N, 4) from a map of `map_hw` to an image of `image_hw` pixels; int64 (N, 4).

    The outer edges of the box's pixels are scaled. The left and top edges go down to a whole pixel, the
    right and bottom ones go up, and the result is clamped to the image: every image pixel that the box touches is in.

    >>> boxes_to_image(np.array([[1, 0, 1, 1]]), (2, 4), (5, 10)).tolist()
    [[2, 0, 4, 4]]
    """
    (map_height, map_width), (height, width) = map_hw, image_hw
    x1, y1, x2, y2 = boxes_xyxy.T
    edges = [
        x1 * width // map_width,
        y1 * height // map_height,
        -((x2 + 1) * -width // map_width) - 1,
        -((y2 + 1) * -height // map_height) - 1,
    ]
    return np.stack(edges, axis=1).clip(0, [width - 1, height - 1, width - 1, height - 1])
