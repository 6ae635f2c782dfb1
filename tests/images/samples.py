"""One small file of every format and pixel mode, with the pixels that went in."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 21, 35


def encode(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def encode_cv2(suffix: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def smooth_noise(seed: int, *shape: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


RGB = smooth_noise(0, HEIGHT, WIDTH, 3)
GREY = smooth_noise(1, HEIGHT, WIDTH)
ALPHA = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
GREY16 = np.random.default_rng(3).integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
COLOR16 = np.random.default_rng(4).integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)

GREY_IMAGE = Image.fromarray(GREY)
RGB_IMAGE = Image.fromarray(RGB)
IMAGES = {
    "1": GREY_IMAGE.convert("1"),
    "L": GREY_IMAGE,
    "LA": Image.fromarray(np.dstack([GREY, ALPHA])),
    "I;16": Image.fromarray(GREY16),
    "P": RGB_IMAGE.quantize(16),
    "RGB": RGB_IMAGE,
    "RGBA": Image.fromarray(np.dstack([RGB, ALPHA])),
    "CMYK": RGB_IMAGE.convert("CMYK"),
}

# Files that hold the modes of IMAGES exactly, by name: mode and bytes.
LOSSLESS: dict[str, tuple[str, bytes]] = {}
for _format, _modes in {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "CMYK"),
}.items():
    for _mode in _modes:
        LOSSLESS[f"{_format} {_mode}"] = (_mode, encode(IMAGES[_mode], _format))
for _compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
    for _mode in ("1", "L", "P", "RGB"):
        LOSSLESS[f"TIFF {_mode} {_compression}"] = (_mode, encode(IMAGES[_mode], "TIFF", compression=_compression))
LOSSLESS["TIFF 1 group4"] = ("1", encode(IMAGES["1"], "TIFF", compression="group4"))
LOSSLESS["PNG P transparency"] = ("P", encode(IMAGES["P"], "PNG", transparency=3))
LOSSLESS["PNG RGB transparency"] = ("RGB", encode(IMAGES["RGB"], "PNG", transparency=(9, 9, 9)))
LOSSLESS["WebP RGB"] = ("RGB", encode(IMAGES["RGB"], "WEBP", lossless=True))
LOSSLESS["WebP RGBA"] = ("RGBA", encode(IMAGES["RGBA"], "WEBP", lossless=True, exact=True))

LOSSY = {
    "JPEG L": encode(IMAGES["L"], "JPEG"),
    "JPEG RGB": encode(IMAGES["RGB"], "JPEG"),
    "JPEG RGB restarts": encode(IMAGES["RGB"], "JPEG", restart_marker_rows=1),
    "JPEG RGB progressive": encode(IMAGES["RGB"], "JPEG", progressive=True),
    "JPEG CMYK": encode(IMAGES["CMYK"], "JPEG"),
    "TIFF RGB in JPEG": encode(IMAGES["RGB"], "TIFF", compression="jpeg"),
    "WebP RGB lossy": encode(IMAGES["RGB"], "WEBP"),
}

DEEP = {
    "PNG I;16": encode(IMAGES["I;16"], "PNG"),
    "PNG RGB16": encode_cv2(".png", COLOR16),
    "TIFF I;16": encode(IMAGES["I;16"], "TIFF"),
    "TIFF RGB16": encode_cv2(".tiff", COLOR16),
}

EVERY_FILE: dict[str, bytes] = {name: data for name, (_, data) in LOSSLESS.items()} | LOSSY | DEEP
