"""PatchCore against its formulas in plain numpy."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="vision_patchcore needs torch")

from pyimgano_dask.detectors.deep import patches as patch_module  # noqa: E402
from pyimgano_dask.detectors.deep.patchcore import LARGEST_BANK, Patchcore  # noqa: E402
from pyimgano_dask.detectors.deep.patches import MemoryBank, patch_features  # noqa: E402
from pyimgano_dask.errors import ConfigError  # noqa: E402
from tests.detectors.images import draw_images  # noqa: E402

SIDE = 64


def score_of(patches: Any, bank: Any, b: int) -> tuple[float, Any]:
    """Equations 6 and 7 of the paper."""
    apart = np.linalg.norm(patches[:, None].astype(np.float64) - bank[None], axis=2)
    distances = apart.min(axis=1)
    worst = int(distances.argmax())
    nearest = int(apart[worst].argmin())
    around = np.argsort(np.linalg.norm(bank - bank[nearest], axis=1), kind="stable")[:b]
    weight = 1 - np.exp(distances[worst]) / np.exp(apart[worst][around]).sum() if len(around) > 1 else 1
    return float(weight * distances[worst]), distances


@pytest.mark.parametrize("n_neighbors", [1, 3, 9, 100])
def test_score_and_distances_are_those_of_the_paper(n_neighbors: int) -> None:
    rng = np.random.default_rng(n_neighbors)
    bank = rng.normal(size=(40, 12)).astype(np.float32)
    patches = rng.normal(size=(30, 12)).astype(np.float32)
    score, distances = MemoryBank("cpu", bank).score(torch.from_numpy(patches), n_neighbors)
    expected_score, expected = score_of(patches, bank, n_neighbors)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
    assert score == pytest.approx(expected_score, rel=1e-4)


def test_a_bank_of_several_blocks_is_searched_whole() -> None:
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(patch_module.BANK_ROWS_AT_ONCE + 50, 4)).astype(np.float32)
    patches = bank[[3, -1]] + np.float32(1e-3)
    _, distances = MemoryBank("cpu", bank).score(torch.from_numpy(patches), 1)
    np.testing.assert_allclose(distances, 2e-3, rtol=1e-2)


def test_far_patches_have_a_finite_score() -> None:
    bank = np.zeros((20, 3), np.float32)
    bank[:, 0] = np.arange(20)
    score, _ = MemoryBank("cpu", bank).score(torch.full((2, 3), 1e4), 9)
    assert np.isfinite(score)


def test_features_are_averaged_over_neighbours_and_joined_on_the_finest_grid() -> None:
    rng = np.random.default_rng(0)
    fine, coarse = (torch.from_numpy(rng.normal(size=(1, c, s, s)).astype(np.float32)) for c, s in ((2, 6), (3, 3)))
    (joined,) = patch_features([fine, coarse]).numpy()
    kernel = np.full((3, 3), 1 / 9)
    expected = []
    for layer in (fine, coarse):
        for channel in layer[0].numpy():
            pooled = cv2.filter2D(channel, -1, kernel, borderType=cv2.BORDER_CONSTANT)
            expected.append(cv2.resize(pooled, (6, 6), interpolation=cv2.INTER_LINEAR))
    np.testing.assert_allclose(joined, np.array(expected).reshape(5, 36).T, rtol=1e-4, atol=1e-5)


def test_the_bank_is_a_share_of_all_patches() -> None:
    images = draw_images(1, "rgb", [(SIDE, SIDE)] * 6)
    detector = Patchcore.create(image_size=SIDE, coreset_sampling_ratio=0.1)
    states = [detector.accumulate(images[:3]), detector.accumulate(images[3:])]
    bank = detector.finalize(Patchcore.merge(states)).state()["memory_bank"]
    patches = 6 * (SIDE // 8) ** 2
    assert bank.shape == (-(-patches // 10), 128 + 256)
    assert [len(state["patches"]) for state in states] == [-(-4 * patches // 20)] * 2


def test_a_normal_image_is_near_and_a_defect_far() -> None:
    images = draw_images(1, "rgb", [(SIDE, SIDE)] * 6)
    detector = Patchcore.create(image_size=SIDE, coreset_sampling_ratio=1.0, n_neighbors=1).fit(images)
    spoiled = images[0].copy()
    spoiled[16:32, 16:32] = 255
    prediction = detector.predict([images[0], spoiled])
    assert prediction.scores[0] < 1e-2 * prediction.scores[1]
    y, x = np.unravel_index(prediction.maps[1].argmax(), (SIDE, SIDE))
    assert 12 <= y < 36
    assert 12 <= x < 36


def test_a_summary_never_holds_more_than_the_largest_bank() -> None:
    grid = np.stack(np.meshgrid(*[np.arange(5, dtype=np.float32)] * 3), axis=-1).reshape(-1, 3)
    state = {"count": np.array(400_000), "patches": np.repeat(grid, 300, axis=0), "random_state": np.array(7)}
    assert len(Patchcore.merge([state])["patches"]) == 37_500
    both = Patchcore.merge([state, state])
    assert np.array_equal(np.unique(both["patches"], axis=0), np.unique(grid, axis=0))
    assert len(both["patches"]) <= LARGEST_BANK
    assert (int(both["count"]), int(both["random_state"])) == (800_000, 7)


def test_a_bank_of_other_channels_is_refused() -> None:
    detector = Patchcore.create(image_size=SIDE)
    state = detector.fit(draw_images(1, "rgb", [(SIDE, SIDE)] * 2)).state()
    with pytest.raises(ConfigError, match=r"383 channels, and layer2, layer3 of resnet18 have 384.*fit it anew"):
        detector.with_state({**state, "memory_bank": state["memory_bank"][:, :-1]})
