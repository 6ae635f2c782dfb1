"""Images at the one size that a network takes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.detectors.base import Image


def resize_square(image: Image, size: int) -> Image:
    """uint8 (size, size) or (size, size, 3): by area where the image shrinks in both directions, else bilinear."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    shrinks = height >= size and width >= size
    return np.asarray(
        cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), dtype=np.uint8
    )


def stack_squares(images: Sequence[Image], size: int) -> NDArray[np.uint8]:
    """The images resized, uint8 (n, size, size) or (n, size, size, 3); n is at least 1."""
    return np.stack([resize_square(image, size) for image in images])
