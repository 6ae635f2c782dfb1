"""What goes wrong on a part (scratch, pit, stain) and what only looks wrong (vignette and seam at a border).

A flaw is drawn from its own random generator and knows nothing of the image but where the part's face is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.synthesis.parts import BoolImage, FloatImage

LEAST_STEP = 8.0
"""The smallest change, in grey levels, that a flaw makes to any pixel of its mask."""

BORDER_SHARE = 0.05
"""Border artefacts stay within this share of the height or width on each side of the image."""


@dataclass(frozen=True)
class Flaw:
    """`step` is float32 (H, W), the grey levels to add; `mask` is bool (H, W).

    `abs(step) >= LEAST_STEP` where the mask is True, and step is 0 everywhere else.
    """

    step: FloatImage
    mask: BoolImage


def scratch(face: BoolImage, rng: np.random.Generator) -> Flaw:
    """One thin, slightly curved line, dark or bright, fading towards its ends. `face` is bool (H, W)."""
    unit = _unit_px(face)
    x, y = _offsets_from_place(face, rng, room_px=50 * unit)
    polarity = 1 if rng.random() < 0.5 else -1
    angle = rng.uniform(0, math.pi)
    half_length = rng.uniform(32, 62) * unit
    bow = rng.uniform(-0.14, 0.14) * half_length
    half_width = rng.uniform(0.55, 1.0) * unit
    contrast = polarity * rng.uniform(52, 78)

    along = (x * math.cos(angle) + y * math.sin(angle)) / half_length
    across = y * math.cos(angle) - x * math.sin(angle)
    slope = 2 * bow / half_length * along
    off_line = np.abs(across - bow * (1 - along**2)) / np.sqrt(1 + slope**2)
    line = np.clip(half_width + 0.5 - off_line, 0, 1)
    fade = np.clip(1 - along**2, 0, 1) ** 0.7
    return _keep_visible(contrast * line * fade, face)


def pit(face: BoolImage, rng: np.random.Generator) -> Flaw:
    """Two to five small dark round spots close together, lit at the lower right rim. `face`: bool (H, W)."""
    unit = _unit_px(face)
    x, y = _offsets_from_place(face, rng, room_px=40 * unit)
    dark, lit = np.zeros_like(x), np.zeros_like(x)
    for spot in range(int(rng.integers(2, 6))):
        spread = 0.0 if spot == 0 else 15 * unit
        dx, dy = x - rng.normal(0, 1) * spread, y - rng.normal(0, 1) * spread
        radius = rng.uniform(1.8, 4.2) * unit
        depth = rng.uniform(55, 85)
        distance = np.hypot(dx, dy)
        dark = np.maximum(dark, depth * np.clip((radius + 0.5 - distance) / 1.6, 0, 1))
        rim = np.clip(1.2 - np.abs(distance - radius - 0.7) / unit, 0, 1)
        facing = np.maximum(dx + dy, 0) / (math.sqrt(2) * np.maximum(distance, 1))
        lit = np.maximum(lit, 34 * rim * facing**3)
    return _keep_visible(np.where(dark >= LEAST_STEP, -dark, lit), face)


def stain(face: BoolImage, rng: np.random.Generator) -> Flaw:
    """One large, soft, uneven dark blob of low contrast with a faint tide line. `face` is bool (H, W)."""
    radius = rng.uniform(25, 38) * _unit_px(face)
    x, y = _offsets_from_place(face, rng, room_px=1.6 * radius)
    angle = np.arctan2(y, x)
    outline = np.ones_like(x)
    for waves in (2, 3, 5):
        outline += rng.uniform(0.06, 0.3) / waves * np.cos(waves * angle + rng.uniform(0, 2 * math.pi))
    depth = np.clip(1 - np.hypot(x, y) / (radius * outline), 0, 1)
    body = rng.uniform(24, 36) * np.minimum(depth * 1.6, 1)
    tide = 5 * np.exp(-(((depth - 0.3) / 0.07) ** 2))
    return _keep_visible(-(body + tide), face)


FLAWS: Mapping[str, Callable[[BoolImage, np.random.Generator], Flaw]] = MappingProxyType(
    {"scratch": scratch, "pit": pit, "stain": stain}
)


def vignette(size_hw: tuple[int, int], rng: np.random.Generator) -> FloatImage:
    """A mild darkening towards one to four borders: grey levels <= 0 to add, float32 (H, W)."""
    sides = rng.random(4) < 0.5
    sides[rng.integers(4)] = True
    strength = rng.uniform(3, 9)
    out = np.zeros(size_hw, dtype=np.float32)
    for side in np.flatnonzero(sides).tolist():
        out -= (strength * np.clip(1 - _share_from_side(size_hw, side) / BORDER_SHARE, 0, 1) ** 2).astype(np.float32)
    return out


def border_seam(size_hw: tuple[int, int], rng: np.random.Generator) -> FloatImage:
    """A bright or dark strip along one or two borders, as a light leak or a frame edge leaves it.

    Grey levels to add, float32 (H, W).
    """
    out = np.zeros(size_hw, dtype=np.float32)
    for side in rng.permutation(4)[: rng.integers(1, 3)].tolist():
        width = rng.uniform(0.6, 0.9) * BORDER_SHARE
        contrast = rng.uniform(80, 130) if rng.random() < 0.75 else rng.uniform(-34, -26)
        inwards = _share_from_side(size_hw, side) / width
        out += contrast * (1 - 0.5 * inwards) * np.clip((1 - inwards) * 4, 0, 1)
    return out


def _keep_visible(step: NDArray[np.floating[Any]], face: BoolImage) -> Flaw:
    mask = (np.abs(step) >= LEAST_STEP) & face
    return Flaw(step=np.where(mask, step, 0).astype(np.float32), mask=mask)


def _unit_px(face: BoolImage) -> float:
    """Flaw sizes are given in 1/256 of the short side of the image; this is that length in pixels."""
    short_side: int = min(face.shape)
    return short_side / 256


def _offsets_from_place(face: BoolImage, rng: np.random.Generator, room_px: float) -> tuple[FloatImage, FloatImage]:
    """Pixel offsets (x right, y down), each (H, W), from a face pixel with much face around it."""
    side = 2 * int(room_px / 2) + 1
    room = cv2.blur(face.astype(np.float32), (side, side), borderType=cv2.BORDER_CONSTANT)
    places = np.flatnonzero(face & (room >= 0.85 * room.max()))
    row, column = divmod(int(places[rng.integers(places.size)]), face.shape[1])
    y, x = np.indices(face.shape, dtype=np.float32)
    return x - column, y - row


def _share_from_side(size_hw: tuple[int, int], side: int) -> FloatImage:
    """How far each pixel lies from side 0 top, 1 bottom, 2 left or 3 right, as a share of the image."""
    length = size_hw[side // 2]
    share = ((np.arange(length) + 0.5) / length).astype(np.float32)
    if side % 2:
        share = share[::-1]
    return np.broadcast_to(share[:, None] if side < 2 else share, size_hw)
