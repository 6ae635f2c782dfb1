"""Images for detectors: small, of mixed sizes, grey or RGB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.detectors.base import Detector, Prediction
from pyimgano_dask.detectors.registry import find_detector_type

Image = NDArray[np.uint8]

SIZES_HW = ((24, 31), (16, 16), (40, 18), (1, 1), (16, 16), (7, 50))
RESIZE_HW = (16, 20)


def draw_images(seed: int, color: str, sizes_hw: Sequence[tuple[int, int]] = SIZES_HW) -> list[Image]:
    """Noise around a fixed gradient, so that normal images look alike and none is flat."""
    rng = np.random.default_rng(seed)
    images = []
    for height, width in sizes_hw:
        ramp = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 100, width))
        shape = (height, width) if color == "gray" else (height, width, 3)
        base = ramp if color == "gray" else ramp[..., None]
        images.append((base + rng.integers(0, 36, shape)).astype(np.uint8))
    return images


def make(name: str, color: str, **arguments: Any) -> Detector[Any]:
    """An unfitted detector; one that compares at a common size does so at a small one."""
    detector_type = find_detector_type(name)
    if "resize_hw" in detector_type.arguments_type.model_fields:
        arguments = {"resize_hw": RESIZE_HW, **arguments}
    return detector_type.create(color=color, **arguments)


def predict(detector: Detector[Any], images: Sequence[Image]) -> Prediction:
    """The answer for `images`, each beside a drawn reference of its size where the detector needs one."""
    if not detector.needs_reference:
        return detector.predict(images)
    references = [draw_images(1, detector.color, [image.shape[:2]])[0] for image in images]
    return detector.predict(images, references)
