from __future__ import annotations

import cv2
import numpy as np
import pytest

from pyimgano_dask.synthesis.parts import Part, brushed_noise, draw_part, scale_part


@pytest.fixture(scope="module")
def canvas() -> Part:
    return draw_part(0)


@pytest.mark.parametrize("size_hw", [(256, 256), (240, 320), (300, 220), (700, 900)])
def test_part_fills_the_asked_size(canvas: Part, size_hw: tuple[int, int]) -> None:
    part = scale_part(canvas, size_hw)
    assert part.surface.shape == part.metal.shape == part.face.shape == size_hw
    assert part.surface.dtype == part.metal.dtype == np.float32
    assert part.face.dtype == np.bool_
    assert part.metal.min() >= 0
    assert part.metal.max() <= 1


@pytest.mark.parametrize("size_hw", [(64, 64), (256, 256), (240, 320), (300, 220)])
def test_face_has_room_for_brighter_and_darker_flaws_away_from_the_borders(
    canvas: Part, size_hw: tuple[int, int]
) -> None:
    part = scale_part(canvas, size_hw)
    on_face = part.surface[part.face]
    assert on_face.min() >= 60
    assert on_face.max() <= 215
    rows, columns = np.nonzero(part.face)
    height, width = size_hw
    assert rows.min() >= 0.08 * height
    assert rows.max() < 0.92 * height
    assert columns.min() >= 0.08 * width
    assert columns.max() < 0.92 * width
    assert part.face.mean() > 0.4


def test_part_lies_at_the_same_place_in_every_size(canvas: Part) -> None:
    square = scale_part(canvas, (256, 256))
    for size_hw in [(240, 320), (300, 220)]:
        resized = cv2.resize(scale_part(canvas, size_hw).metal, (256, 256), interpolation=cv2.INTER_AREA)
        assert np.mean(np.abs(resized - square.metal) > 0.5) < 0.002


def test_seed_changes_the_marks_but_not_the_geometry(canvas: Part) -> None:
    other = draw_part(1)
    assert np.array_equal(other.metal, canvas.metal)
    assert np.array_equal(other.face, canvas.face)
    assert not np.array_equal(other.surface, canvas.surface)
    assert np.array_equal(draw_part(1).surface, other.surface)


def test_brushed_noise_is_standardised_and_stretched_along_the_rows() -> None:
    noise = brushed_noise(np.random.default_rng(0), (128, 128), along_px=10, across_px=0.7)
    assert noise.dtype == np.float32
    assert abs(float(noise.mean())) < 1e-4
    assert float(noise.std()) == pytest.approx(1, abs=1e-3)
    assert np.abs(np.diff(noise, axis=1)).mean() < 0.25 * np.abs(np.diff(noise, axis=0)).mean()
