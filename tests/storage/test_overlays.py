import hashlib
import io
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from PIL import Image

from pyimgano_dask.storage.overlays import encode_png, render_overlay

sides = st.integers(1, 24)
shapes = st.tuples(sides, sides)
maps = npst.arrays(np.float32, shapes, elements=st.floats(width=32))
masks = npst.arrays(np.uint8, shapes, elements=st.sampled_from([0, 255]))
images = st.tuples(sides, sides, st.just(3)).flatmap(lambda shape: npst.arrays(np.uint8, shape))


JET_RGB = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_JET)[:, 0, ::-1].astype(float)


def grey(height: int, width: int, level: int = 100) -> NDArray[np.uint8]:
    return np.full((height, width, 3), level, np.uint8)


def plain_arithmetic(
    image: NDArray[np.uint8], anomaly_map: NDArray[np.float32], mask: NDArray[np.uint8]
) -> NDArray[np.float64]:
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    levels = np.rint((anomaly_map.astype(np.float64) - low) / max(high - low, 1e-30) * 255).astype(np.uint8)
    canvas = 0.55 * image + 0.45 * JET_RGB[levels]
    canvas[mask > 0] = 0.75 * canvas[mask > 0] + 0.25 * np.array([255, 0, 0])
    padded = np.pad(mask, 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    canvas[windows.max((2, 3)) != windows.min((2, 3))] = 255
    return canvas


@given(data=st.data(), shape=shapes)
def test_blend_is_the_formula_within_rounding(data: st.DataObject, shape: tuple[int, int]) -> None:
    levels = st.integers(0, 255)
    image = data.draw(npst.arrays(np.uint8, (*shape, 3)))
    anomaly_map = data.draw(npst.arrays(np.float32, shape, elements=levels)).astype(np.float32)
    mask = data.draw(npst.arrays(np.uint8, shape, elements=st.sampled_from([0, 255])))
    anomaly_map[0, 0], anomaly_map[-1, -1] = 0, 255
    overlay = render_overlay(image, anomaly_map, mask)
    assert np.abs(overlay - plain_arithmetic(image, anomaly_map, mask)).max() <= 2


def test_heat_goes_from_blue_to_red() -> None:
    ramp = np.linspace(3, 9, 256, dtype=np.float32).reshape(1, 256)
    overlay = render_overlay(grey(1, 256, 0), ramp, None)
    red, green, blue = overlay[0].T.astype(int)
    assert blue[0] > 40 > red[0] + green[0]
    assert red[-1] > 40 > blue[-1] + green[-1]
    assert green[128] > 100


def test_a_flat_map_has_the_lowest_colour() -> None:
    for level in (0.0, 7.5, -1e30, 1e-38):
        overlay = render_overlay(grey(4, 5), np.full((2, 2), level, np.float32), None)
        expected = 0.55 * 100 + 0.45 * JET_RGB[0]
        assert np.abs(overlay - expected).max() <= 1


def test_fill_and_outline() -> None:
    mask = np.zeros((12, 14), np.uint8)
    mask[3:9, 4:11] = 255
    overlay = render_overlay(grey(12, 14), None, mask)
    outline = np.zeros((12, 14), bool)
    outline[2:10, 3:12] = True
    outline[4:8, 5:10] = False
    assert (overlay[outline] == 255).all()
    assert (overlay[4:8, 5:10] == [139, 75, 75]).all()
    outside = np.ones((12, 14), bool)
    outside[2:10, 3:12] = False
    assert (overlay[outside] == 100).all()


def test_a_mask_up_to_the_image_edge_has_no_outline_there() -> None:
    overlay = render_overlay(grey(6, 6), None, np.full((6, 6), 255, np.uint8))
    assert (overlay == [139, 75, 75]).all()


def test_map_and_mask_of_other_sizes() -> None:
    anomaly_map = np.array([[0, 1]], np.float32)
    mask = np.array([[0, 255]], np.uint8)
    overlay = render_overlay(grey(20, 40, 0), anomaly_map, mask)
    assert overlay.shape == (20, 40, 3)
    assert (overlay[:, 19:21] == 255).all()
    assert (overlay[:, 19] == 255).all()
    assert (overlay[:, 0, 2] > overlay[:, 0, 0]).all()
    assert (overlay[:, -1, 0] > 64 + 40).all()
    steps = np.diff(render_overlay(grey(20, 40, 0), anomaly_map, None)[0, :, 0].astype(int))
    assert (steps >= 0).all()
    assert steps.max() <= 5


def test_no_map_and_no_mask_is_a_copy() -> None:
    image = grey(3, 4)
    for mask in (None, np.zeros((3, 4), np.uint8)):
        overlay = render_overlay(image, None, mask)
        np.testing.assert_array_equal(overlay, image)
        assert not np.shares_memory(overlay, image)


@given(image=images, anomaly_map=st.none() | maps, mask=st.none() | masks)
def test_any_sizes_and_values_give_an_image(
    image: NDArray[np.uint8], anomaly_map: NDArray[np.float32] | None, mask: NDArray[np.uint8] | None
) -> None:
    before = [None if array is None else array.copy() for array in (image, anomaly_map, mask)]
    overlay = render_overlay(image, anomaly_map, mask)
    assert overlay.shape == image.shape
    assert overlay.dtype == np.uint8
    for array, copy in zip((image, anomaly_map, mask), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("shape", [(4, 1), (1, 4), (1, 1), (4, 4)])
def test_sizes_that_opencv_could_take_for_a_scalar(shape: tuple[int, int]) -> None:
    anomaly_map = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
    mask = np.full(shape, 255, np.uint8)
    overlay = render_overlay(grey(*shape), anomaly_map, mask)
    assert np.abs(overlay - plain_arithmetic(grey(*shape), anomaly_map, mask)).max() <= 2


def test_non_finite_pixels_do_not_hide_the_rest() -> None:
    clean = np.array([[0, 1, 2, 0, 2, 0]], np.float32)
    spoilt = np.array([[0, 1, 2, -np.inf, np.inf, np.nan]], np.float32)
    image = grey(1, 6)
    np.testing.assert_array_equal(render_overlay(image, spoilt, None), render_overlay(image, clean, None))
    render_overlay(image, np.full((2, 2), np.nan, np.float32), None)


def photograph() -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).integers(0, 256, (96, 64, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)  # type: ignore[return-value]


def drawing() -> NDArray[np.uint8]:
    image = grey(96, 64, 200)
    image[20:60, 10:50] = [10, 20, 90]
    return image


@pytest.mark.parametrize("image", [photograph(), drawing(), grey(1, 1), grey(7, 3)])
def test_png_holds_the_exact_rgb(image: NDArray[np.uint8]) -> None:
    with Image.open(io.BytesIO(encode_png(image))) as decoded:
        assert decoded.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(decoded), image)


@pytest.mark.parametrize("image", [photograph(), drawing()])
def test_png_is_no_larger_than_opencv_makes_it(image: NDArray[np.uint8]) -> None:
    assert len(encode_png(image)) <= 1.05 * cv2.imencode(".png", image)[1].size


HASH = """
import hashlib
import sys
sys.path.insert(0, sys.argv[1])
from tests.storage.test_overlays import everything
print(everything())
"""


def everything() -> str:
    rng = np.random.default_rng(1)
    anomaly_map = rng.random((37, 41), dtype=np.float32)
    mask = (anomaly_map > 0.9).astype(np.uint8) * 255
    return hashlib.sha256(encode_png(render_overlay(photograph(), anomaly_map, mask))).hexdigest()


def test_the_same_bytes_in_every_process(request: Any) -> None:
    there = subprocess.run(
        [sys.executable, "-c", HASH, str(request.config.rootpath)], capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == everything()
