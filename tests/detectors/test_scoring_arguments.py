"""Which arguments the answers of a fitted detector depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyimgano_dask.detectors.registry import detector_types, find_detector_type
from pyimgano_dask.detectors.tiling import tiled
from pyimgano_dask.settings.tiling import TilingSettings
from tests.detectors.images import draw_images

MAD, ONNX = "vision_pixel_mad_map", "vision_onnx"


@pytest.mark.parametrize(
    ("model", "kwargs", "idle"),
    [
        (MAD, {}, ["channel_reduce"]),
        (MAD, {"color": "rgb"}, []),
        (MAD, {"color": "rgb", "reduction": "max"}, ["topk"]),
        ("vision_texture_padim", {"reduction": "mean"}, ["topk"]),
        ("vision_autoencoder", {"reduction": "max"}, ["topk"]),
        (ONNX, {}, ["topk"]),
        (ONNX, {"reduction": "topk_mean"}, []),
        (ONNX, {"reduction": "topk_mean", "score_output": "score"}, ["reduction", "topk"]),
    ],
    ids=str,
)
def test_an_argument_that_the_others_make_idle_is_none_of_them(
    model: str, kwargs: dict[str, Any], idle: list[str]
) -> None:
    detector = find_detector_type(model).create(**kwargs)
    assert detector.idle_arguments == set(idle)
    assert set(idle).isdisjoint(detector.scoring_arguments)
    assert {"reduction", "topk"}.difference(idle) <= set(detector.scoring_arguments)
    assert tiled(detector, TilingSettings(tile_size=64)).scoring_arguments == detector.scoring_arguments


@pytest.mark.parametrize("model", detector_types())
def test_how_it_was_fitted_is_none_of_them(model: str) -> None:
    detector = find_detector_type(model).create()
    assert not {"contamination", "max_train_images", "random_state"} & set(detector.scoring_arguments)
    assert set(detector.scoring_arguments) <= set(detector.arguments_type.model_fields)


@pytest.mark.parametrize(
    "changed", [{"channel_reduce": "l2"}, {"topk": 0.5}, {"random_state": 3, "max_train_images": 1}]
)
def test_what_is_none_of_them_changes_no_answer(changed: dict[str, Any]) -> None:
    fitted = (
        find_detector_type(MAD).create(resize_hw=(16, 16), reduction="max").fit(draw_images(1, "gray", [(16, 16)] * 4))
    )
    other = find_detector_type(MAD).create(**{**dict(fitted.arguments), **changed}).with_state(fitted.state())
    assert not changed.keys() & set(fitted.scoring_arguments)
    images = draw_images(2, "gray", [(16, 16)] * 2)
    np.testing.assert_array_equal(other.predict(images).scores, fitted.predict(images).scores)
