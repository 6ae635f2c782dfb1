"""The inspected part: a brushed flange plate with a turned boss, a bore and five holes, lit from top left.

Places and lengths are fractions of the image, which runs from -1 to 1 across (u) and down (v). The part is
drawn once on a square canvas and scaled to each image size, so that it lies at the same place in all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.float32]
BoolImage = NDArray[np.bool_]

CANVAS_PX = 640
PART_STREAM = 1_000_000
PLATE_HALF = 0.87
PLATE_CORNER = 0.15
BEVEL = 0.035
BOSS_RADIUS = 0.56
FACE_LEVEL = 148.0
MAT_LEVEL = 36.0
LIGHT_XYZ = (-0.46, -0.56, 0.69)


@dataclass(frozen=True)
class Hole:
    """A round through hole at (u, v) with a chamfer of that width around it."""

    u: float
    v: float
    radius: float
    chamfer: float


HOLES = (
    Hole(0.0, 0.0, 0.25, 0.045),
    Hole(-0.62, -0.62, 0.085, 0.035),
    Hole(0.62, -0.62, 0.085, 0.035),
    Hole(-0.62, 0.62, 0.085, 0.035),
    Hole(0.62, 0.62, 0.085, 0.035),
    Hole(0.0, 0.71, 0.036, 0.012),
)


@dataclass(frozen=True)
class Part:
    """One view of the clean part.

    `surface` is float32 (H, W) in grey levels 0..255. `metal` is float32 (H, W) in 0..1, how much of a pixel
    is metal. `face` is bool (H, W), True on the flat metal away from edges and holes, where flaws may lie; it
    stays clear of the outer 8 % of the image on each side, and `surface` lies within 60..215 there.
    """

    surface: FloatImage
    metal: FloatImage
    face: BoolImage


def draw_part(seed: int) -> Part:
    """The part on the square canvas of `CANVAS_PX`. The seed picks the machining marks, not the geometry."""
    rng = np.random.default_rng([seed, PART_STREAM])
    u, v = _canvas_uv()
    plate_distance = _rounded_square_distance(u, v)
    boss_distance = np.hypot(u, v) - np.float32(BOSS_RADIUS)
    hole_distances = [np.hypot(u - hole.u, v - hole.v) - np.float32(hole.radius) for hole in HOLES]

    on_boss = _coverage(boss_distance)
    light = _relief_light(plate_distance, boss_distance, hole_distances)
    marks = (1 - on_boss) * _brushed_marks(rng) + on_boss * _turned_marks(rng, u, v)
    falloff = 1 - 0.055 * u - 0.075 * v
    metal = np.clip((FACE_LEVEL * light + marks) * falloff, 0, 215)

    surface = _mat(rng, _coverage(plate_distance))
    plate = _coverage(plate_distance)
    surface += plate * (metal - surface)
    face = plate_distance < -0.05
    for hole, distance in zip(HOLES, hole_distances, strict=True):
        opening = _coverage(distance)
        surface += opening * (_hole_inside(hole, u, v) - surface)
        plate = plate * (1 - opening)
        face &= distance > hole.chamfer + 0.015
    return Part(surface=surface, metal=plate, face=face)


def scale_part(part: Part, size_hw: tuple[int, int]) -> Part:
    """The same part in an image of another size; height and width are scaled apart, as a resize would."""
    height, width = size_hw
    surface, metal, face = (
        cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
        for plane in (part.surface, part.metal, part.face.astype(np.float32))
    )
    return Part(surface=surface, metal=metal, face=face > 0.999)


def brushed_noise(rng: np.random.Generator, size_hw: tuple[int, int], along_px: float, across_px: float) -> FloatImage:
    """Band-limited noise, stretched along the rows: float32 (H, W), mean 0, standard deviation 1."""
    white = rng.standard_normal(size_hw, dtype=np.float32)
    noise = cv2.GaussianBlur(white, (0, 0), sigmaX=along_px, sigmaY=across_px).astype(np.float32)
    noise -= noise.mean()
    noise /= noise.std()
    return noise


def _canvas_uv() -> tuple[FloatImage, FloatImage]:
    axis = ((np.arange(CANVAS_PX) + 0.5) * (2 / CANVAS_PX) - 1).astype(np.float32)
    u, v = np.meshgrid(axis, axis)
    return u, v


def _coverage(distance: FloatImage) -> FloatImage:
    """How much of each pixel lies in a shape, 0..1, from its centre's signed distance (negative inside)."""
    share: FloatImage = np.clip(0.5 - distance * (CANVAS_PX / 2), 0, 1)
    return share


def _rounded_square_distance(u: FloatImage, v: FloatImage) -> FloatImage:
    inner = PLATE_HALF - PLATE_CORNER
    du, dv = np.abs(u) - inner, np.abs(v) - inner
    outside = np.hypot(np.maximum(du, 0), np.maximum(dv, 0))
    distance = outside + np.minimum(np.maximum(du, dv), 0) - PLATE_CORNER
    return distance.astype(np.float32)


def _relief_light(
    plate_distance: FloatImage, boss_distance: FloatImage, hole_distances: list[FloatImage]
) -> FloatImage:
    """Lambert's cosine law on the height map of bevels and chamfers: 1 on flat metal, more towards light."""
    height = BEVEL * np.clip(-plate_distance / BEVEL, 0, 1)
    height += 0.02 * np.clip(-boss_distance / 0.025, 0, 1)
    for hole, distance in zip(HOLES, hole_distances, strict=True):
        height -= 0.8 * hole.chamfer * np.clip(1 - distance / hole.chamfer, 0, 1)
    height = cv2.GaussianBlur(height, (0, 0), 1.5).astype(np.float32)
    slope_v, slope_u = np.gradient(height, 2 / CANVAS_PX)
    light_u, light_v, light_z = LIGHT_XYZ
    cosine = (light_z - slope_u * light_u - slope_v * light_v) / np.sqrt(1 + slope_u**2 + slope_v**2)
    light: FloatImage = (0.3 + (0.7 / light_z) * np.maximum(cosine, 0)).astype(np.float32)
    return light


def _brushed_marks(rng: np.random.Generator) -> FloatImage:
    size_hw = (CANVAS_PX, CANVAS_PX)
    long_strokes = brushed_noise(rng, size_hw, along_px=60, across_px=1.1)
    short_strokes = brushed_noise(rng, size_hw, along_px=14, across_px=1.0)
    coarse = brushed_noise(rng, (CANVAS_PX // 16, CANVAS_PX // 16), along_px=3, across_px=1.5)
    clouds = cv2.resize(coarse, size_hw, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    marks: FloatImage = 6.5 * long_strokes + 4.5 * short_strokes + 3.0 * clouds
    return marks


def _turned_marks(rng: np.random.Generator, u: FloatImage, v: FloatImage) -> FloatImage:
    """Lathe grooves around the bore and the bow-tie shine that they give under one lamp."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    grooves = brushed_noise(rng, (1, CANVAS_PX), along_px=1.3, across_px=0.1)[0]
    rings = np.interp(radius, np.linspace(0, 1, CANVAS_PX), grooves).astype(np.float32)
    lamp = math.atan2(LIGHT_XYZ[1], LIGHT_XYZ[0])
    shine = 46 * np.cos(angle - lamp) ** 10 + 20 * np.cos(angle - lamp - 1.9) ** 14 - 8
    grain = brushed_noise(rng, radius.shape, along_px=1.5, across_px=1.5)
    marks: FloatImage = shine * (1 + 0.12 * rings) + 6.0 * rings + 2.5 * grain
    return marks


def _mat(rng: np.random.Generator, plate: FloatImage) -> FloatImage:
    """The dark mat under the part, with the part's soft shadow to the lower right."""
    grain = brushed_noise(rng, plate.shape, along_px=1.3, across_px=1.3)
    shift = np.array([[1, 0, CANVAS_PX * 0.014], [0, 1, CANVAS_PX * 0.018]], dtype=np.float32)
    shadow = cv2.GaussianBlur(cv2.warpAffine(plate, shift, (CANVAS_PX, CANVAS_PX)), (0, 0), 9)
    return ((MAT_LEVEL + 3.0 * grain) * (1 - 0.65 * shadow)).astype(np.float32)


def _hole_inside(hole: Hole, u: FloatImage, v: FloatImage) -> FloatImage:
    """The wall of a hole, lit on the side that faces the lamp, around the dark it opens into."""
    du, dv = u - hole.u, v - hole.v
    distance = np.hypot(du, dv)
    light_u, light_v, _ = LIGHT_XYZ
    facing = np.maximum(-(du * light_u + dv * light_v) / np.maximum(distance, 1e-3), 0)
    wall = 24 + 105 * facing**2
    deep = 14 + 8 * (distance / hole.radius)
    inside: FloatImage = wall + _coverage(distance - 0.9 * hole.radius) * (deep - wall)
    return inside
