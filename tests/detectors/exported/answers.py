"""What the small models must answer, worked out with numpy and torch's own interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from pyimgano_dask.detectors.base import Detector, Image, Prediction
from pyimgano_dask.detectors.exported.inputs import resize_bilinear
from pyimgano_dask.detectors.model_files import ModelFiles
from pyimgano_dask.detectors.registry import find_detector_type

WEIGHTS = np.array([0.5, 0.3, 0.2], np.float32)
"""Of the three channels, in the order in which the model takes them."""

TRUSTING = ModelFiles(trusts_code=True)


def opened(name: str, path: object, files: ModelFiles = TRUSTING, **arguments: Any) -> Detector[Any]:
    """A detector around the model in a file."""
    return find_detector_type(name).create(**arguments).with_model_file(str(path), files)


def assert_is_brightness(prediction: Prediction, images: Sequence[Image], size_hw: tuple[int, int]) -> None:
    """Whether a prediction is that of a brightness model of this input size."""
    assert prediction.scores.shape == (len(images),)
    for image, score, anomaly_map in zip(images, prediction.scores, prediction.maps, strict=True):
        expected = (resize_bilinear(image, size_hw) / 255) @ WEIGHTS
        assert score == np.float64(score)
        np.testing.assert_allclose(score, expected.max(), atol=1e-6)
        height, width = image.shape[:2]
        np.testing.assert_allclose(anomaly_map, cv2.resize(expected, (width, height)), atol=1e-6)


def assert_same(first: Prediction, second: Prediction) -> None:
    """Whether two predictions have the same bits."""
    np.testing.assert_array_equal(first.scores, second.scores)
    for one, other in zip(first.maps, second.maps, strict=True):
        np.testing.assert_array_equal(one, other)
