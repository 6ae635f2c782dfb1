"""Overlays for people: the image with its heat, its defects filled, outlined, boxed and numbered, as PNG or JPEG."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Rgb = NDArray[np.uint8]
Boxes = NDArray[np.int64]
OverlayFormat = Literal["png", "jpg"]

# Under a map the image is dimmed, so that heat stands out on white parts too. Heat is transparent at the low end
# and reaches its full opacity half-way up: what is normal shows the image, what is unusual shows the heat, and the
# noise of a map costs fewer bytes. The last colours of TURBO are left out: their dark red is darker than its orange.
_DIMMED = 0.8
_HEAT_OPACITY = 0.65
_TRANSPARENT_TO, _OPAQUE_FROM = 0.1, 0.5
_TURBO_END = 224

# A map whose values span less is flat; below it levels / span leaves the range of float32.
_FLAT_SPAN = 1e-30
_FLOAT32_MAX = float(np.finfo(np.float32).max)

_FILL_RED = (255, 0, 0)
_FILL_SHARE = 0.25
_OUTLINE_KERNEL = np.ones((3, 3), np.uint8)

# The paint of a pixel is one number: its level of heat, plus 128 where it is filled; 255 is the outline.
_HEAT_LEVELS = 127
_FILLED = 128

_BOX_MAGENTA = (255, 40, 190)
_DROPPED_BLUE = (60, 150, 255)
_PLATE_AND_TEXT = np.array([[96, 0, 68], [255, 255, 255]], np.uint8)

# How much of an image's side (the square root of its area) asks for one more pixel of line, one more step of font.
_SIDE_PER_LINE_PIXEL = 1000
_SIDE_PER_FONT_STEP = 800
_DASH, _GAP = 6, 4
_BAND_PIXELS = 2**20

_LABELLED = 50
_CHARACTERS = "#0123456789.e+- naif"
_GLYPH_WIDTH = 6
_GLYPH_ROWS = slice(2, 9)
_PLATE_MARGIN = 2
_BOX_PER_LABEL = 4

# Each row is stored as its difference from the row above ("up"), then entropy-coded. Plain Huffman coding is the
# fastest for noise; run-length matching wins as soon as some of the differences are runs of 0 (drawings, flat
# backgrounds), which have to be four long to be matched. Milliseconds and kB at 640x640 on one core:
#                               huffman        rle         in runs
#   colour noise, sigma 6      8.9   810    9.4   810        0 %
#   colour noise, sigma 0.5    7.9   287   11.1   304        5 %
#   enlarged photograph        8.1   321    7.8   232       31 %
#   circuit board              8.8   241    3.0    97       88 %
# No filter saves 1 ms on noise and costs 10 to 20 % there, but twice the bytes of a photograph; an explicit
# IMWRITE_PNG_COMPRESSION makes each several times slower.
_PNG = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP, cv2.IMWRITE_PNG_STRATEGY)
_RLE_FROM_SHARE = 0.1
_SAMPLED_ROWS = 8

# With halved colour (4:2:0) the thin lines of boxes and outlines smear and lose their colour.
_JPEG = (
    *(cv2.IMWRITE_JPEG_QUALITY, 90),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)


def _paints(image_share: float, heat_opacity: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Of each paint the image's share in 1/255, (256,), and the colour to add to it, (256, 1, 3)."""
    levels = np.linspace(0, 1, _HEAT_LEVELS)
    turbo_levels = np.rint(levels * _TURBO_END).astype(np.uint8).reshape(-1, 1)
    turbo_rgb = cv2.applyColorMap(turbo_levels, cv2.COLORMAP_TURBO)[:, 0, ::-1]
    ramp = np.clip((levels - _TRANSPARENT_TO) / (_OPAQUE_FROM - _TRANSPARENT_TO), 0, 1)
    opacity = heat_opacity * ramp**2 * (3 - 2 * ramp)
    shares, colours = np.zeros(256), np.full((256, 3), 255.0)
    shares[:_HEAT_LEVELS] = 255 * image_share * (1 - opacity)
    colours[:_HEAT_LEVELS] = opacity[:, np.newaxis] * turbo_rgb
    filled = slice(_FILLED, _FILLED + _HEAT_LEVELS)
    shares[filled] = (1 - _FILL_SHARE) * shares[:_HEAT_LEVELS]
    colours[filled] = (1 - _FILL_SHARE) * colours[:_HEAT_LEVELS] + _FILL_SHARE * np.array(_FILL_RED)
    return np.rint(shares).astype(np.uint8), np.rint(colours).astype(np.uint8).reshape(256, 1, 3)


_WITH_MAP = _paints(_DIMMED, _HEAT_OPACITY)
_WITHOUT_MAP = _paints(1, 0)


def render_overlay(
    image_rgb: Rgb,
    anomaly_map: NDArray[np.float32] | None,
    mask: NDArray[np.uint8] | None,
    *,
    scale: tuple[float, float] | None = None,
    boxes_xyxy: Boxes | None = None,
    scores: NDArray[np.float64] | None = None,
    dropped_boxes_xyxy: Boxes | None = None,
) -> Rgb:
    """Draw a map, a mask and boxes over an image.

    `image_rgb` is uint8 (H, W, 3).

    `anomaly_map` is float32 of any size, resized bilinearly. Its values are clipped into `scale`, (low, high) with
    low < high; without one, its own minimum and maximum. Colours go from blue (low) over green to red (high) and
    from transparent (low) to an opacity of 0.65 (from half-way up), over the image dimmed to 0.8. A flat map without
    a scale is transparent everywhere. NaN and -inf count as low, +inf as high.

    `mask` is uint8 0/255 of any size: resized to the nearest pixel, filled with a quarter of red, and outlined in white
    by the pixels around it: those outside the mask that touch it, by a side or a corner. What is in the mask keeps its
    heat and fill, however thin it is.

    `boxes_xyxy` is int64 (N, 4), the inclusive boxes of the regions in pixels of the image: each is drawn in magenta
    just outside the region, at the edge of the image where there is no outside. `scores` is float64 (N,).
    The first 50 boxes get a label, such as `#2 31.4`: their number from 1, and their score with three significant
    digits: above the box, else below it, where it hides neither the mask nor another label, else within the box when
    that is at least four times as large; without such a place there is no label, only the box. Images too narrow for
    such a label get the number only. `dropped_boxes_xyxy` is int64 (M, 4): boxes of what a control dropped, dashed in
    blue, without label. Lines and labels grow with the square root of the image's area: lines of 1 pixel up to 1500²,
    of 4 at 4096².

    Returns a new uint8 (H, W, 3) array in RGB, the same on every processor: each share is rounded to whole numbers
    before it is added, so a blend is within one level of exact arithmetic, and nothing is anti-aliased.
    """
    height, width = image_rgb.shape[:2]
    paint = np.zeros((height, width), np.uint8) if anomaly_map is None else _levels(anomaly_map, scale)
    if paint.shape != (height, width):
        paint = cv2.resize(paint, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)  # type: ignore[assignment]
    if mask is not None:
        if mask.shape != (height, width):
            mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)  # type: ignore[assignment]
        paint |= mask & _FILLED
        outline = cv2.bitwise_xor(cv2.dilate(mask, _OUTLINE_KERNEL), mask)
        cv2.bitwise_or(paint, outline, dst=paint)
    canvas = _painted(image_rgb, paint, *(_WITHOUT_MAP if anomaly_map is None else _WITH_MAP))
    if dropped_boxes_xyxy is not None and len(dropped_boxes_xyxy):
        _draw_dashed_boxes(canvas, dropped_boxes_xyxy)
    if boxes_xyxy is not None and len(boxes_xyxy):
        _draw_boxes(canvas, boxes_xyxy, _BOX_MAGENTA)
        _draw_labels(canvas, boxes_xyxy[:_LABELLED], None if scores is None else scores[:_LABELLED], mask)
    return canvas


def encode_overlay(image_rgb: Rgb, fmt: OverlayFormat) -> bytes:
    """Encode uint8 (H, W, 3) RGB for speed first; the same image always gives the same bytes.

    "png" is lossless. "jpg" has quality 90 and full colour resolution (4:4:4).
    """
    image_bgr = cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR)
    if fmt == "jpg":
        return cv2.imencode(".jpg", image_bgr, _JPEG)[1].tobytes()
    strategy = cv2.IMWRITE_PNG_STRATEGY_RLE if _repeats_rows(image_rgb) else cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY
    return cv2.imencode(".png", image_bgr, (*_PNG, strategy))[1].tobytes()


def _repeats_rows(image_rgb: Rgb) -> bool:
    """Whether some of the values equal the one above them in runs of at least four, judged on every eighth row."""
    values = image_rgb.reshape(len(image_rgb), -1)
    same = values[_SAMPLED_ROWS::_SAMPLED_ROWS] == values[_SAMPLED_ROWS - 1 : -1 : _SAMPLED_ROWS]
    in_runs = same[:, :-3] & same[:, 1:-2] & same[:, 2:-1] & same[:, 3:]
    return bool(np.count_nonzero(in_runs) >= _RLE_FROM_SHARE * same.size)


def _levels(anomaly_map: NDArray[np.float32], scale: tuple[float, float] | None) -> NDArray[np.uint8]:
    """The levels of heat, 0..126 of the scale or of the map's own finite values."""
    low, high = scale or (float(anomaly_map.min()), float(anomaly_map.max()))
    within = scale is None and math.isfinite(high - low)
    if scale is None and not within:
        finite = anomaly_map[np.isfinite(anomaly_map)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if high - low < _FLAT_SPAN:
        return np.zeros(anomaly_map.shape, np.uint8)
    levels = np.empty(anomaly_map.shape, np.uint8)
    for rows in _bands(anomaly_map.shape):
        values = anomaly_map[rows].astype(np.float64) if high - low > _FLOAT32_MAX else anomaly_map[rows]
        above_low = (values if within else np.fmin(np.fmax(values, low), high)) - low
        cv2.convertScaleAbs(above_low, alpha=(_HEAT_LEVELS - 1) / (high - low), dst=levels[rows])
    return levels


def _painted(image_rgb: Rgb, paint: NDArray[np.uint8], shares: NDArray[np.uint8], colours: NDArray[np.uint8]) -> Rgb:
    canvas = np.empty_like(image_rgb, order="C")
    for rows in _bands(image_rgb.shape):
        share = cv2.cvtColor(cv2.LUT(paint[rows], shares), cv2.COLOR_GRAY2RGB)
        # No quotient by 255 ends in one half: rounding is the same however a processor multiplies.
        cv2.multiply(image_rgb[rows], share, dst=canvas[rows], scale=1 / 255)
        cv2.add(canvas[rows], cv2.applyColorMap(paint[rows], colours), dst=canvas[rows])
    return canvas


def _bands(shape: tuple[int, ...]) -> Iterator[slice]:
    """Rows of an image in bands of about `_BAND_PIXELS`, so that only one of them stands in memory in between.

    In multiples of 64 rows, so that a processor's vectors lie in a band as they do in the whole.
    """
    height, width = shape[:2]
    step = max(64, _BAND_PIXELS // width // 64 * 64)
    return (slice(top, top + step) for top in range(0, height, step))


def _steps(shape: tuple[int, ...], side_per_step: int) -> int:
    """How wide a line, or how large a font, an image of this shape needs: at least 1."""
    return max(round(math.sqrt(shape[0] * shape[1]) / side_per_step), 1)


def _draw_boxes(canvas: NDArray[np.uint8], boxes_xyxy: Boxes, colour: tuple[int, ...]) -> None:
    """Draw boxes just outside their pixels, as far as the canvas reaches."""
    height, width = canvas.shape[:2]
    for grown in range(1, _steps(canvas.shape, _SIDE_PER_LINE_PIXEL) + 1):
        outer = np.clip(boxes_xyxy + np.array([-grown, -grown, grown, grown]), 0, (width - 1, height - 1) * 2)
        for x0, y0, x1, y1 in outer.tolist():
            cv2.rectangle(canvas, (x0, y0), (x1, y1), colour, 1, cv2.LINE_8)


def _draw_dashed_boxes(canvas: Rgb, boxes_xyxy: Boxes) -> None:
    """Draw boxes as `_draw_boxes` does, with gaps: on stripes of x + y."""
    width = canvas.shape[1]
    line_width = _steps(canvas.shape, _SIDE_PER_LINE_PIXEL)
    lines = np.zeros(canvas.shape[:2], np.bool_)
    _draw_boxes(lines.view(np.uint8), boxes_xyxy, (1,))
    pixels = np.flatnonzero(lines)
    along = pixels // width + pixels % width
    pixels = pixels[along % ((_DASH + _GAP) * line_width) < _DASH * line_width]
    canvas.reshape(-1, 3)[pixels] = _DROPPED_BLUE


def _draw_labels(
    canvas: Rgb, boxes_xyxy: Boxes, scores: NDArray[np.float64] | None, mask: NDArray[np.uint8] | None
) -> None:
    font_step = _steps(canvas.shape, _SIDE_PER_FONT_STEP)
    line_width = _steps(canvas.shape, _SIDE_PER_LINE_PIXEL)
    labelled = np.zeros(canvas.shape[:2], np.uint8)
    covered = labelled.copy() if mask is None else mask.copy()
    texts = [""] * len(boxes_xyxy) if scores is None else [f" {score:.3g}" for score in scores.tolist()]
    for number, (box, text) in enumerate(zip(boxes_xyxy.tolist(), texts, strict=True), start=1):
        label = _label(str(number), text, font_step, canvas.shape[1])
        place = _free_place(label.shape, box, line_width, covered, labelled)
        if place is not None:
            canvas[place] = label
            covered[place] = labelled[place] = 1


def _label(number: str, score: str, font_step: int, image_width: int) -> Rgb:
    """The plate of a label: without the score where it would take more than half of the image's width."""
    trimmed = (_GLYPH_WIDTH - _PLATE_MARGIN) * font_step
    for text in (f" #{number}{score} ", f" #{number} "):
        if 2 * (len(text) * _GLYPH_WIDTH * font_step - 2 * trimmed) <= image_width:
            break
    glyphs = _glyphs(font_step).take([_CHARACTERS.index(character) for character in text], axis=1)
    plate: Rgb = glyphs.reshape(len(glyphs), -1, 3)
    return plate[:, trimmed:-trimmed]


@functools.cache
def _glyphs(font_step: int) -> NDArray[np.uint8]:
    """The characters of labels, from Pillow's bitmap font: RGB, (rows, characters, columns, 3)."""
    drawn = Image.new("L", (_GLYPH_WIDTH * len(_CHARACTERS), _GLYPH_ROWS.stop))
    ImageDraw.Draw(drawn).text((0, 0), _CHARACTERS, font=ImageFont.load_default_imagefont(), fill=1)
    ink = np.pad(np.asarray(drawn)[_GLYPH_ROWS], ((_PLATE_MARGIN, _PLATE_MARGIN), (0, 0)))
    enlarged = ink.repeat(font_step, 0).repeat(font_step, 1)
    coloured: NDArray[np.uint8] = _PLATE_AND_TEXT[enlarged.reshape(len(enlarged), len(_CHARACTERS), -1)]
    return coloured


def _free_place(
    label_shape: tuple[int, ...],
    box: list[int],
    line_width: int,
    covered: NDArray[np.uint8],
    labelled: NDArray[np.uint8],
) -> tuple[slice, slice] | None:
    """Where the label of a box goes: above, below or within it; None where it would hide what it must not."""
    (label_height, label_width), (height, width) = label_shape[:2], covered.shape
    x0, y0, x1, y1 = box
    x = max(min(x0 - line_width, width - label_width), 0)
    places = [(y0 - line_width - label_height, x, covered), (y1 + 1 + line_width, x, covered)]
    if _BOX_PER_LABEL * label_height * label_width <= (y1 - y0 + 1) * (x1 - x0 + 1):
        places.append((max(y0, 0), max(x0, 0), labelled))
    for top, left, hidden in places:
        place = slice(top, top + label_height), slice(left, left + label_width)
        fits = top >= 0 and top + label_height <= height and left + label_width <= width
        if fits and not hidden[place].any():
            return place
    return None
