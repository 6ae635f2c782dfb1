import hashlib
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from PIL import Image

from pyimgano_dask.storage.overlays import OverlayFormat, encode_overlay, render_overlay

sides = st.integers(1, 24)
shapes = st.tuples(sides, sides)
maps = npst.arrays(np.float32, shapes, elements=st.floats(width=32))
masks = npst.arrays(np.uint8, shapes, elements=st.sampled_from([0, 255]))
images = st.tuples(sides, sides, st.just(3)).flatmap(lambda shape: npst.arrays(np.uint8, shape))
box_lists = npst.arrays(np.int64, st.tuples(st.integers(0, 6), st.just(4)), elements=st.integers(-40, 60))

TURBO_RGB = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1].astype(float)


def grey(height: int, width: int, level: int = 100) -> NDArray[np.uint8]:
    return np.full((height, width, 3), level, np.uint8)


def plain_arithmetic(
    image: NDArray[np.uint8], anomaly_map: NDArray[np.float32], mask: NDArray[np.uint8]
) -> NDArray[np.float64]:
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    levels = np.rint((anomaly_map.astype(np.float64) - low) / max(high - low, 1e-30) * 126) / 126
    ramp = np.clip((levels - 0.1) / 0.4, 0, 1)[..., np.newaxis]
    opacity = 0.65 * (3 * ramp**2 - 2 * ramp**3)
    canvas = (1 - opacity) * 0.8 * image + opacity * TURBO_RGB[np.rint(levels * 224).astype(int)]
    canvas[mask > 0] = 0.75 * canvas[mask > 0] + 0.25 * np.array([255, 0, 0])
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), (3, 3))
    canvas[(windows.max((2, 3)) > 0) & (mask == 0)] = 255
    return canvas


@given(data=st.data(), shape=shapes)
def test_blend_is_the_formula_within_rounding(data: st.DataObject, shape: tuple[int, int]) -> None:
    image = data.draw(npst.arrays(np.uint8, (*shape, 3)))
    anomaly_map = data.draw(npst.arrays(np.float32, shape, elements=st.integers(0, 126))).astype(np.float32)
    mask = data.draw(npst.arrays(np.uint8, shape, elements=st.sampled_from([0, 255])))
    anomaly_map[0, 0], anomaly_map[-1, -1] = 0, 126
    overlay = render_overlay(image, anomaly_map, mask)
    assert np.abs(overlay - plain_arithmetic(image, anomaly_map, mask)).max() <= 2


def test_heat_goes_from_none_over_green_to_red() -> None:
    ramp = np.linspace(3, 9, 256, dtype=np.float32).reshape(1, 256)
    red, green, blue = render_overlay(grey(1, 256, 0), ramp, None)[0].T.astype(int)
    assert (red + green + blue)[:25].max() == 0
    assert green[128] > red[128] + 40 > blue[128] + 40
    assert red[-1] > 100 > green[-1] + blue[-1]


@pytest.mark.parametrize("level", [0.0, 7.5, -1e30, 1e-38])
def test_a_flat_map_shows_no_heat(level: float) -> None:
    overlay = render_overlay(grey(4, 5), np.full((2, 2), level, np.float32), None)
    assert (overlay == 80).all()


def test_equal_values_look_equal_on_a_fixed_scale_only() -> None:
    values = np.array([[1, 2, 3, 4, 5]], np.float32)
    with_peak = np.array([[1, 2, 3, 4, 5, 40]], np.float32)
    fixed, fixed_with_peak = (render_overlay(grey(1, m.size), m, None, scale=(0, 8)) for m in (values, with_peak))
    np.testing.assert_array_equal(fixed[:, :5], fixed_with_peak[:, :5])
    own, own_with_peak = (render_overlay(grey(1, m.size), m, None) for m in (values, with_peak))
    assert (own[:, 1:5] != own_with_peak[:, 1:5]).any(axis=2).all()


@given(image=images, anomaly_map=maps)
def test_values_outside_the_scale_count_as_its_ends(image: NDArray[np.uint8], anomaly_map: NDArray[np.float32]) -> None:
    clipped = np.clip(np.nan_to_num(anomaly_map, nan=-1), -1, 2)
    np.testing.assert_array_equal(
        render_overlay(image, anomaly_map, None, scale=(-1, 2)), render_overlay(image, clipped, None, scale=(-1, 2))
    )


def test_the_widest_map_shows_its_ends() -> None:
    widest = np.array([[-3e38, 0, 3e38]], np.float32)
    expected = render_overlay(grey(1, 3), np.array([[-1, 0, 1]], np.float32), None)
    np.testing.assert_array_equal(render_overlay(grey(1, 3), widest, None), expected)
    np.testing.assert_array_equal(render_overlay(grey(1, 3), widest, None, scale=(-3e38, 3e38)), expected)


def test_a_flat_map_on_a_fixed_scale_has_the_heat_of_its_value() -> None:
    hot, cold = (render_overlay(grey(4, 5), np.full((4, 5), level, np.float32), None, scale=(0, 1)) for level in (1, 0))
    assert (cold == 80).all()
    assert (hot[..., 0] > hot[..., 1] + 40).all()


def test_fill_within_the_mask_and_outline_around_it() -> None:
    mask = np.zeros((12, 14), np.uint8)
    mask[3:9, 4:11] = 255
    overlay = render_overlay(grey(12, 14), None, mask)
    assert (overlay[mask > 0] == [139, 75, 75]).all()
    around = ring((12, 14), (4, 3, 10, 8))
    assert (overlay[around] == 255).all()
    assert (overlay[~around & (mask == 0)] == 100).all()


@pytest.mark.parametrize("fmt", ["png", "jpg"])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_thin_scratch_shows_its_heat(fmt: OverlayFormat, width: int) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[8:50, 20 : 20 + width] = 255
    anomaly_map = np.zeros((64, 64), np.float32)
    anomaly_map[:29, 20 : 20 + width] = 5
    anomaly_map[29:, 20 : 20 + width] = 10
    with Image.open(io.BytesIO(encode_overlay(render_overlay(grey(64, 64), anomaly_map, mask), fmt))) as decoded:
        overlay = np.asarray(decoded).astype(int)
    warm, hot = overlay[9:27, 20 : 20 + width], overlay[31:49, 20 : 20 + width]
    assert (warm[..., 1] > warm[..., 2] + 60).all()
    assert (hot[..., 0] > hot[..., 1] + 60).all()
    assert (overlay[9:49, [19, 20 + width]] > 200).all()


@pytest.mark.parametrize("times", [2, 3])
def test_the_outline_of_an_enlarged_mask_is_one_pixel_of_the_image(times: int) -> None:
    mask = np.zeros((10, 12), np.uint8)
    mask[3:7, 5] = 255
    overlay = render_overlay(grey(10 * times, 12 * times), None, mask)
    enlarged = mask.repeat(times, axis=0).repeat(times, axis=1) > 0
    around = ring(enlarged.shape, (5 * times, 3 * times, 6 * times - 1, 7 * times - 1))
    assert (overlay[enlarged] == [139, 75, 75]).all()
    assert (overlay[around] == 255).all()
    assert (overlay[~around & ~enlarged] == 100).all()


def test_a_mask_up_to_the_image_edge_has_no_outline_there() -> None:
    overlay = render_overlay(grey(6, 6), None, np.full((6, 6), 255, np.uint8))
    assert (overlay == [139, 75, 75]).all()


def test_map_and_mask_of_other_sizes() -> None:
    anomaly_map = np.array([[0, 1]], np.float32)
    mask = np.array([[0, 255]], np.uint8)
    overlay = render_overlay(grey(20, 40, 0), anomaly_map, mask)
    assert overlay.shape == (20, 40, 3)
    assert (overlay[:, 19] == 255).all()
    assert (overlay[:, 20] != 255).any(axis=1).all()
    assert (overlay[:, 0] == 0).all()
    assert (overlay[:, -1, 0] > 64 + 40).all()
    ramp = render_overlay(grey(20, 40, 0), anomaly_map, None)[0].astype(int)
    assert np.abs(np.diff(ramp, axis=0)).max() <= 40


def test_no_map_and_no_mask_is_a_copy() -> None:
    image = grey(3, 4)
    for mask in (None, np.zeros((3, 4), np.uint8)):
        overlay = render_overlay(image, None, mask)
        np.testing.assert_array_equal(overlay, image)
        assert not np.shares_memory(overlay, image)


@given(
    image=images,
    anomaly_map=st.none() | maps,
    mask=st.none() | masks,
    scale=st.none() | st.just((0.0, 1.5)),
    boxes=box_lists,
    with_scores=st.booleans(),
    dropped=box_lists,
)
def test_any_sizes_and_values_give_an_image(
    image: NDArray[np.uint8],
    anomaly_map: NDArray[np.float32] | None,
    mask: NDArray[np.uint8] | None,
    scale: tuple[float, float] | None,
    boxes: NDArray[np.int64],
    with_scores: bool,
    dropped: NDArray[np.int64],
) -> None:
    scores = np.linspace(-1e9, 2, len(boxes)) if with_scores else None
    arrays = (image, anomaly_map, mask, boxes, scores, dropped)
    before = [None if array is None else array.copy() for array in arrays]
    overlay = render_overlay(
        image, anomaly_map, mask, scale=scale, boxes_xyxy=boxes, scores=scores, dropped_boxes_xyxy=dropped
    )
    assert overlay.shape == image.shape
    assert overlay.dtype == np.uint8
    for array, copy in zip(arrays, before, strict=True):
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


def boxed(*boxes: tuple[int, int, int, int]) -> NDArray[np.int64]:
    return np.array(boxes, np.int64).reshape(-1, 4)


def changed(overlay: NDArray[np.uint8], level: int = 100) -> NDArray[np.bool_]:
    return (overlay != level).any(axis=2)


def ring(shape: tuple[int, int], box: tuple[int, int, int, int], line_width: int = 1) -> NDArray[np.bool_]:
    """The pixels around a box that lies far enough inside the image."""
    x0, y0, x1, y1 = box
    pixels = np.zeros(shape, bool)
    pixels[y0 - line_width : y1 + 1 + line_width, x0 - line_width : x1 + 1 + line_width] = True
    pixels[y0 : y1 + 1, x0 : x1 + 1] = False
    return pixels


@pytest.mark.parametrize("boxes", [None, boxed()])
def test_no_boxes_change_nothing(boxes: NDArray[np.int64] | None) -> None:
    anomaly_map = np.arange(30, dtype=np.float32).reshape(5, 6)
    mask = np.zeros((5, 6), np.uint8)
    mask[2, 3] = 255
    overlay = render_overlay(grey(5, 6), anomaly_map, mask, boxes_xyxy=boxes, scores=None, dropped_boxes_xyxy=boxes)
    np.testing.assert_array_equal(overlay, render_overlay(grey(5, 6), anomaly_map, mask))


def test_a_box_is_drawn_around_its_pixels_with_the_label_above() -> None:
    box = (30, 40, 50, 44)
    overlay = render_overlay(grey(120, 160), None, None, boxes_xyxy=boxed(box), scores=np.array([0.5]))
    around = ring((120, 160), box)
    assert len(np.unique(overlay[around], axis=0)) == 1
    assert changed(overlay)[around].all()
    rest = changed(overlay) & ~around
    rows, columns = np.nonzero(rest)
    assert rows.max() == 38
    assert rows.min() >= 20
    assert columns.min() == 29
    assert columns.max() < 80
    assert rest[rows.min() : 39, 29 : columns.max() + 1].all()
    assert (overlay[rest] == 255).all(axis=1).any()


def test_lines_grow_with_the_image() -> None:
    box = (1200, 1300, 1500, 1700)
    overlay = render_overlay(grey(3000, 3000), None, None, dropped_boxes_xyxy=boxed(box))
    assert (changed(overlay) <= ring((3000, 3000), box, 3)).all()
    assert changed(overlay)[1297:1300, 1300:1400].all(axis=0).any()


def test_a_label_without_room_above_goes_below_and_stays_in_the_image() -> None:
    overlay = render_overlay(grey(120, 160), None, None, boxes_xyxy=boxed((150, 3, 158, 8)), scores=np.array([0.5]))
    labelled = changed(overlay)[10:]
    assert labelled[0].any()
    assert labelled[0, -1]
    assert not labelled[30:].any()


def test_a_label_of_a_region_as_large_as_the_image_lies_in_it() -> None:
    mask = np.full((120, 160), 255, np.uint8)
    overlay = render_overlay(grey(120, 160), None, mask, boxes_xyxy=boxed((0, 0, 159, 119)), scores=np.array([0.5]))
    assert (overlay[1:30, 1:80] == 255).all(axis=2).any()
    assert (overlay[40:119, 1:159] == [139, 75, 75]).all()


def test_labels_hide_neither_defects_nor_each_other() -> None:
    mask = np.zeros((100, 200), np.uint8)
    mask[50:56, 20:40] = 255
    mask[30:47, 20:60] = 255
    boxes = boxed((20, 50, 39, 55), (20, 30, 59, 46))
    boxless = render_overlay(grey(100, 200), None, mask)
    overlay = render_overlay(grey(100, 200), None, mask, boxes_xyxy=boxes, scores=np.array([0.9, 0.8]))
    np.testing.assert_array_equal(overlay[mask > 0], boxless[mask > 0])
    twice = render_overlay(grey(100, 200), None, mask, boxes_xyxy=boxes[[0] * 20], scores=np.full(20, 0.9))
    once = render_overlay(grey(100, 200), None, mask, boxes_xyxy=boxes[:1], scores=np.full(1, 0.9))
    np.testing.assert_array_equal(twice, once)


def test_labels_tell_order_and_score() -> None:
    boxes, scores = boxed((20, 40, 30, 50), (100, 40, 110, 50)), np.array([0.9, 0.2])

    def overlay(boxes: NDArray[np.int64], scores: NDArray[np.float64] | None) -> bytes:
        return render_overlay(grey(120, 200), None, None, boxes_xyxy=boxes, scores=scores).tobytes()

    looks = {
        overlay(boxes, scores),
        overlay(boxes[::-1], scores[::-1]),
        overlay(boxes, scores[::-1]),
        overlay(boxes, None),
        overlay(boxes[::-1], None),
    }
    assert len(looks) == 5
    assert overlay(boxes, scores + 0.0001) == overlay(boxes, scores)


def test_only_the_first_fifty_boxes_get_a_label() -> None:
    boxes = np.array([(x, y, x + 1, y + 1) for y in range(20, 400, 30) for x in range(10, 400, 50)], np.int64)
    overlay = render_overlay(grey(420, 420), None, None, boxes_xyxy=boxes)
    texts = (overlay == 255).all(axis=2)
    n_labelled = sum(bool(texts[y - 15 : y, x - 5 : x + 30].any()) for x, y, _, _ in boxes.tolist())
    assert len(boxes) > 60
    assert n_labelled == 50
    assert all(changed(overlay)[y - 1, x - 1] for x, y, _, _ in boxes.tolist())


def test_a_narrow_image_shows_the_number_only() -> None:
    def overlay(score: float) -> NDArray[np.uint8]:
        return render_overlay(grey(64, 64), None, None, boxes_xyxy=boxed((20, 30, 40, 40)), scores=np.array([score]))

    np.testing.assert_array_equal(overlay(0.123), overlay(0.456))
    assert (overlay(0.5) == 255).all(axis=2).any()


def test_dropped_boxes_are_dashed_in_another_colour_without_label() -> None:
    box = (30, 40, 90, 70)
    dropped = render_overlay(grey(120, 160), None, None, dropped_boxes_xyxy=boxed(box))
    around = ring((120, 160), box)
    assert (changed(dropped) <= around).all()
    assert 0.4 < changed(dropped)[around].mean() < 0.8
    for edge in (dropped[39, 29:92], dropped[71, 29:92], dropped[39:72, 29], dropped[39:72, 91]):
        dashes = (edge != 100).any(axis=1)
        assert np.count_nonzero(np.diff(dashes.astype(int))) >= 4
    kept = render_overlay(grey(120, 160), None, None, boxes_xyxy=boxed(box))
    assert not (kept[changed(dropped)] == dropped[changed(dropped)]).all(axis=1).any()


@given(x=st.integers(1, 60), y=st.integers(1, 60))
def test_the_smallest_dropped_box_is_seen(x: int, y: int) -> None:
    assert changed(render_overlay(grey(64, 64), None, None, dropped_boxes_xyxy=boxed((x, y, x, y)))).any()


def test_kept_boxes_lie_over_dropped_ones() -> None:
    box = boxed((30, 40, 90, 70))
    both = render_overlay(grey(120, 160), None, None, boxes_xyxy=box, dropped_boxes_xyxy=box)
    np.testing.assert_array_equal(both, render_overlay(grey(120, 160), None, None, boxes_xyxy=box))


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (0, 0, 79, 59), (-30, -30, 500, 500), (79, 59, 79, 59)])
def test_boxes_at_the_edge_of_the_image_are_drawn_on_it(box: tuple[int, int, int, int]) -> None:
    drawn = changed(render_overlay(grey(60, 80), None, None, boxes_xyxy=boxed(box)))
    x0, y0, x1, y1 = np.clip(np.array(box) + (-1, -1, 1, 1), 0, [79, 59, 79, 59])  # noqa: RUF005
    assert drawn[y0, x0 : x1 + 1].all()
    assert drawn[y1, x0 : x1 + 1].all()
    assert drawn[y0 : y1 + 1, x0].all()
    assert drawn[y0 : y1 + 1, x1].all()


def photograph() -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).integers(0, 256, (96, 64, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)  # type: ignore[return-value]


def drawing() -> NDArray[np.uint8]:
    image = grey(96, 64, 200)
    image[20:60, 10:50] = [10, 20, 90]
    return image


@pytest.mark.parametrize("image", [photograph(), drawing(), grey(1, 1), grey(7, 3)])
def test_png_holds_the_exact_rgb(image: NDArray[np.uint8]) -> None:
    with Image.open(io.BytesIO(encode_overlay(image, "png"))) as decoded:
        assert decoded.format == "PNG"
        assert decoded.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(decoded), image)


@given(image=images)
def test_any_image_comes_back_from_png(image: NDArray[np.uint8]) -> None:
    with Image.open(io.BytesIO(encode_overlay(image, "png"))) as decoded:
        np.testing.assert_array_equal(np.asarray(decoded), image)


@pytest.mark.parametrize("image", [photograph(), drawing()])
def test_png_is_no_larger_than_opencv_makes_it(image: NDArray[np.uint8]) -> None:
    assert len(encode_overlay(image, "png")) <= 1.05 * cv2.imencode(".png", image)[1].size


@pytest.mark.parametrize("image", [photograph(), drawing(), grey(1, 1), grey(7, 3)])
def test_jpeg_is_close(image: NDArray[np.uint8]) -> None:
    with Image.open(io.BytesIO(encode_overlay(image, "jpg"))) as decoded:
        assert decoded.format == "JPEG"
        assert decoded.mode == "RGB"
        assert np.abs(np.asarray(decoded).astype(int) - image).mean() <= 3


def test_a_thin_red_line_stays_red_in_jpeg() -> None:
    image = grey(64, 64)
    image[33, :] = [255, 0, 0]
    with Image.open(io.BytesIO(encode_overlay(image, "jpg"))) as decoded:
        assert np.abs(np.asarray(decoded)[33].astype(int) - [255, 0, 0]).max() <= 40


HASH = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.storage.test_overlays import everything
print(everything())
"""


def everything(fmt: OverlayFormat = "png") -> str:
    rng = np.random.default_rng(1)
    anomaly_map = rng.random((37, 41), dtype=np.float32)
    mask = (anomaly_map > 0.9).astype(np.uint8) * 255
    corners = rng.integers(0, 60, (9, 2))
    boxes = np.hstack([corners, corners + 7])
    overlay = render_overlay(
        photograph(),
        anomaly_map,
        mask,
        scale=(0.1, 0.8),
        boxes_xyxy=boxes[:4],
        scores=rng.random(4),
        dropped_boxes_xyxy=boxes[4:],
    )
    return hashlib.sha256(encode_overlay(overlay, fmt)).hexdigest()


def test_the_same_bytes_in_every_process(request: Any) -> None:
    there = subprocess.run(
        [sys.executable, "-c", HASH, str(request.config.rootpath)], capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == everything()


def test_the_same_bytes_on_every_thread() -> None:
    formats: list[OverlayFormat] = ["png", "jpg"] * 20
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(everything, formats)) == [everything("png"), everything("jpg")] * 20
