from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyimgano_dask.synthesis.flaws import (
    BORDER_SHARE,
    FLAWS,
    LEAST_STEP,
    border_seam,
    pit,
    scratch,
    stain,
    vignette,
)
from pyimgano_dask.synthesis.parts import BoolImage, draw_part, scale_part

SIZES_HW = [(64, 64), (256, 256), (240, 320), (300, 220)]
FACES = {size_hw: scale_part(draw_part(0), size_hw).face for size_hw in SIZES_HW}
seeds = st.integers(0, 2**32)
sizes = st.sampled_from(SIZES_HW)


@given(kind=st.sampled_from(list(FLAWS)), size_hw=sizes, seed=seeds)
@settings(max_examples=80, deadline=None)
def test_flaw_changes_its_mask_noticeably_and_nothing_else(kind: str, size_hw: tuple[int, int], seed: int) -> None:
    face = FACES[size_hw]
    flaw = FLAWS[kind](face, np.random.default_rng(seed))
    assert flaw.step.shape == flaw.mask.shape == size_hw
    assert flaw.step.dtype == np.float32
    assert flaw.mask.any()
    assert not (flaw.mask & ~face).any()
    assert np.abs(flaw.step[flaw.mask]).min() >= LEAST_STEP
    assert not flaw.step[~flaw.mask].any()


@pytest.mark.parametrize("kind", list(FLAWS))
def test_flaw_depends_on_its_generator_only(kind: str) -> None:
    face = FACES[(256, 256)]
    first = FLAWS[kind](face, np.random.default_rng(5))
    again = FLAWS[kind](face, np.random.default_rng(5))
    other = FLAWS[kind](face, np.random.default_rng(6))
    assert np.array_equal(first.step, again.step)
    assert not np.array_equal(first.step, other.step)


@pytest.fixture(scope="module")
def whole_face() -> BoolImage:
    """A face without holes, so that a flaw shows its whole shape."""
    face = np.zeros((256, 256), dtype=np.bool_)
    face[20:-20, 20:-20] = True
    return face


def test_scratches_are_long_thin_lines_of_both_signs(whole_face: BoolImage) -> None:
    flaws = [scratch(whole_face, np.random.default_rng(seed)) for seed in range(20)]
    for flaw in flaws:
        points = np.argwhere(flaw.mask).astype(np.float32)
        _, sides, _ = cv2.minAreaRect(points)
        assert max(sides) > 30
        assert flaw.mask.sum() / max(sides) < 5
        assert (flaw.step >= 0).all() or (flaw.step <= 0).all()
    assert {bool(flaw.step.min() < 0) for flaw in flaws} == {True, False}


def test_pits_are_small_and_mostly_dark(whole_face: BoolImage) -> None:
    for seed in range(20):
        flaw = pit(whole_face, np.random.default_rng(seed))
        count, _, boxes, _ = cv2.connectedComponentsWithStats(flaw.mask.astype(np.uint8), connectivity=8)
        assert 2 <= count <= 6
        assert boxes[1:, cv2.CC_STAT_AREA].min() < 120
        assert flaw.step.min() < -40
        assert (flaw.step[flaw.mask] < 0).mean() > 0.5


def test_stains_are_one_large_faint_dark_blob(whole_face: BoolImage) -> None:
    for seed in range(20):
        flaw = stain(whole_face, np.random.default_rng(seed))
        count, _ = cv2.connectedComponents(flaw.mask.astype(np.uint8), connectivity=8)
        assert count == 2
        assert flaw.mask.sum() > 900
        assert flaw.step.max() == 0
        assert flaw.step.min() > -45


@given(size_hw=sizes, seed=seeds)
@settings(max_examples=40, deadline=None)
def test_border_artefacts_stay_at_the_border(size_hw: tuple[int, int], seed: int) -> None:
    height, width = size_hw
    band_h, band_w = int(np.ceil(BORDER_SHARE * height)), int(np.ceil(BORDER_SHARE * width))
    for artefact in (vignette, border_seam):
        levels = artefact(size_hw, np.random.default_rng(seed))
        assert levels.shape == size_hw
        assert levels.dtype == np.float32
        assert not levels[band_h : height - band_h, band_w : width - band_w].any()
    assert np.abs(border_seam(size_hw, np.random.default_rng(seed))).max() > 20
    assert -20 < vignette(size_hw, np.random.default_rng(seed)).min() < 0


def test_seams_reach_every_border_and_are_bright_or_dark() -> None:
    seams = [border_seam((256, 256), np.random.default_rng(seed)) for seed in range(60)]
    inner = slice(20, -20)
    touched = [
        {
            name
            for name, strip in (
                ("top", seam[0, inner]),
                ("bottom", seam[-1, inner]),
                ("left", seam[inner, 0]),
                ("right", seam[inner, -1]),
            )
            if strip.any()
        }
        for seam in seams
    ]
    assert set().union(*touched) == {"top", "bottom", "left", "right"}
    assert {len(sides) for sides in touched} == {1, 2}
    assert any(seam.min() < 0 for seam in seams)
    assert any(seam.max() > 0 for seam in seams)
