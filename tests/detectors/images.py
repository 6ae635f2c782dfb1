"""Images for detectors: small, of mixed sizes, grey or RGB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pyimgano_dask.detectors.base import Detector, Prediction
from pyimgano_dask.detectors.extras import EXTRAS
from pyimgano_dask.detectors.registry import find_detector_type

Image = NDArray[np.uint8]

SIZES_HW = ((24, 31), (16, 16), (40, 18), (1, 1), (16, 16), (7, 50))
RESIZE_HW = (16, 20)
COLORS = ("gray", "rgb")

# Arguments that make any detector that has them small and quick.
SMALL: Mapping[str, Any] = {
    "resize_hw": RESIZE_HW,
    "image_size": 64,
    "d_reduced": 12,
    "smoothing_sigma": 1.0,
    "levels": (0, 1),
    "stride": 4,
    "window_px": 4.0,
    "smoothing_px": 4.0,
    "grid_hw": (3, 4),
    "coreset_sampling_ratio": 0.5,
}

# Those of detectors that train: as few steps as let them learn something.
SMALL_TRAINING: Mapping[str, Mapping[str, Any]] = {
    "vision_autoencoder": {
        "image_size": 32,
        "base_channels": 8,
        "latent_dim": 8,
        "loss": "mse",
        "epochs": 15,
        "lr": 0.01,
    },
    "vision_stfpm": {"layers": ("layer1", "layer2"), "epochs": 2},
}


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


def colors_of(name: str) -> tuple[str, ...]:
    """The colours a detector can be told to read, or the one that it reads."""
    detector_type = find_detector_type(name)
    return COLORS if "color" in detector_type.arguments_type.model_fields else ("rgb",)


def make(name: str, color: str = "rgb", **arguments: Any) -> Detector[Any]:
    """An unfitted detector that works at a small size; skips the test where its extra is not installed."""
    detector_type = find_detector_type(name)
    if detector_type.extra is not None:
        pytest.importorskip(EXTRAS[detector_type.extra], reason=f"{name} needs the extra [{detector_type.extra}]")
    fields = detector_type.arguments_type.model_fields
    small = {key: value for key, value in SMALL.items() if key in fields} | dict(SMALL_TRAINING.get(name, {}))
    chosen = {"color": color} if "color" in fields else {}
    return detector_type.create(**{**small, **chosen, **arguments})


def predict(detector: Detector[Any], images: Sequence[Image]) -> Prediction:
    """The answer for `images`, each beside a drawn reference of its size where the detector needs one."""
    if not detector.needs_reference:
        return detector.predict(images)
    references = [draw_images(1, detector.color, [image.shape[:2]])[0] for image in images]
    return detector.predict(images, references)
