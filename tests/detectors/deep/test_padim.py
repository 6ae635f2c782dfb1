"""PaDiM against its formulas in plain numpy."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="vision_padim needs torch")

from pyimgano_dask.detectors.deep.gaussians import embed  # noqa: E402
from pyimgano_dask.detectors.deep.padim import Padim  # noqa: E402
from pyimgano_dask.detectors.deep.sums import LARGEST_SUMS, sums_bytes  # noqa: E402
from pyimgano_dask.detectors.model_files import ModelFiles  # noqa: E402
from pyimgano_dask.errors import ConfigError  # noqa: E402
from tests.detectors.images import draw_images  # noqa: E402

SIDE = 48
SIZES_HW = ((SIDE, SIDE),) * 20


def embedded(detector: Padim, images: Any, channels: Any) -> Any:
    """float64 (n, h, w, d): all channels of all layers on the grid of the first layer, by nearest neighbour."""
    rows = []
    for image in images:
        (layers,) = detector.extractor.get().batches([image])
        height, width = layers[0].shape[2:]
        columns = []
        for layer in layers:
            values = layer[0].numpy()
            y = np.arange(height) * values.shape[1] // height
            x = np.arange(width) * values.shape[2] // width
            columns.append(values[:, y][:, :, x])
        rows.append(np.concatenate(columns)[channels].transpose(1, 2, 0))
    return np.array(rows, np.float64)


@pytest.mark.parametrize(("d", "n_train"), [(10, 20), (10, 6), (50, 3)])
def test_distances_are_those_of_a_gaussian_at_each_place(d: int, n_train: int) -> None:
    train = draw_images(1, "rgb", SIZES_HW[:n_train])
    test = draw_images(2, "rgb", SIZES_HW[:2])
    detector = Padim.create(image_size=SIDE, d_reduced=d, smoothing_sigma=0, covariance_eps=0.05).fit(train)
    channels = detector.state()["channels"]
    assert len(channels) == d

    normal = embedded(detector, train, channels)
    prediction = detector.predict(test)
    for values, score, anomaly_map in zip(
        embedded(detector, test, channels), prediction.scores, prediction.maps, strict=True
    ):
        grid = np.empty(values.shape[:2], np.float32)
        for y, x in np.ndindex(grid.shape):
            covariance = np.atleast_2d(np.cov(normal[:, y, x], rowvar=False)) + 0.05 * np.eye(len(channels))
            offset = values[y, x] - normal[:, y, x].mean(axis=0)
            grid[y, x] = np.sqrt(offset @ np.linalg.solve(covariance, offset))
        expected = cv2.resize(grid, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(anomaly_map, expected, rtol=2e-3, atol=2e-3)
        assert score == anomaly_map.max()


def test_the_map_is_smoothed_before_it_is_resized_and_the_score_is_its_peak_there() -> None:
    train = draw_images(1, "rgb", SIZES_HW[:8])
    image = draw_images(3, "rgb", [(100, 30)])
    rough = Padim.create(image_size=SIDE, d_reduced=10, smoothing_sigma=0).fit(train)
    smooth = Padim.create(image_size=SIDE, d_reduced=10, smoothing_sigma=3).with_state(rough.state())
    square = [cv2.resize(image[0], (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)]
    blurred = cv2.GaussianBlur(rough.predict(square).maps[0], (0, 0), 3)

    prediction = smooth.predict(square)
    np.testing.assert_allclose(prediction.maps[0], blurred, rtol=1e-5)
    assert prediction.scores[0] == pytest.approx(blurred.max())
    tall = smooth.predict(image)
    assert tall.maps[0].shape == (100, 30)


def test_channels_are_drawn_by_the_seed() -> None:
    images = draw_images(1, "rgb", SIZES_HW[:2])
    first, same, other = (
        Padim.create(image_size=SIDE, d_reduced=10, random_state=seed).fit(images).state()["channels"]
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert (np.diff(first) > 0).all()


def test_all_channels_are_taken_where_fewer_are_there() -> None:
    detector = Padim.create(image_size=SIDE, d_reduced=1000, layers=["layer1"])
    assert detector.fit(draw_images(1, "rgb", SIZES_HW[:2])).state()["channels"].tolist() == list(range(64))


def test_the_summary_of_many_images_is_no_larger_than_that_of_some() -> None:
    detector = Padim.create(image_size=SIDE, d_reduced=6)
    images = draw_images(1, "rgb", SIZES_HW[:12])
    states = [detector.accumulate(images[start : start + 3]) for start in range(0, 12, 3)]
    few, many = Padim.merge(states[:2]), Padim.merge(states * 20)
    size = {len(some): sum(values.nbytes for values in some.values()) for some in (few, many)}
    assert "rows" in few
    assert "rows" not in many
    assert max(size.values()) <= 12 * 12 * (6 * 4 + 21 * 8 + 6 * 8) + 1000


def test_other_arrays_are_refused() -> None:
    state = Padim.create(image_size=SIDE, d_reduced=6).fit(draw_images(1, "rgb", SIZES_HW[:2])).state()
    detector = Padim.create(image_size=SIDE, d_reduced=6)
    with pytest.raises(ConfigError, match="do not fit each other"):
        detector.with_state({**state, "grid_hw": np.array([3, 4])})
    with pytest.raises(ConfigError, match="do not fit each other"):
        detector.with_state({**state, "whitening": state["whitening"][:, :-1]})
    for odd in (state["channels"][::-1], state["channels"] - 100, state["channels"] * 0, state["channels"] * 1.0):
        with pytest.raises(ConfigError, match=r"do not fit each other|whole numbers"):
            detector.with_state({**state, "channels": odd})
    with pytest.raises(ConfigError, match="do not fit each other"):
        detector.with_state({**state, "grid_hw": -state["grid_hw"]})
    double = detector.with_state({**state, "mean": state["mean"].astype(">f8")})
    assert np.isfinite(double.predict(draw_images(2, "rgb", SIZES_HW[:1])).scores).all()
    key = "backbone/layer1.0.conv1.weight"
    with pytest.raises(ConfigError, match=r"layer1.0.conv1.weight is \(64, 64, 3\)"):
        detector.with_state({**state, key: state[key][..., 0]})


def test_features_without_a_covariance_are_told() -> None:
    detector = Padim.create(image_size=SIDE, d_reduced=6)
    state = detector.accumulate(draw_images(1, "rgb", SIZES_HW[:3]))
    with pytest.raises(ConfigError, match=r"no covariance that can be inverted.*weights"):
        detector.finalize({**state, "rows": state["rows"] * np.float32(1e30)})


def test_a_batch_of_many_images_is_summed_up_at_once() -> None:
    images = draw_images(1, "rgb", SIZES_HW[:15])
    detector = Padim.create(image_size=SIDE, d_reduced=6)
    summed = detector.accumulate(images)
    size = summed["total"].nbytes + summed["products"].nbytes
    assert size == sums_bytes((SIDE // 4) ** 2, 6)
    parts = Padim.merge([detector.accumulate(images[start : start + 3]) for start in range(0, 15, 3)])
    assert summed.keys() == parts.keys()
    for key, values in summed.items():
        np.testing.assert_allclose(values, parts[key], rtol=1e-12)


@pytest.mark.parametrize("step", ["opened", "accumulate"])
def test_sums_that_no_machine_holds_are_refused_before_the_network_runs(step: str) -> None:
    detector = Padim.create(image_size=4096, d_reduced=400)
    words = r"629\.7 GiB, and 4 GiB are allowed: 400 channels at 1024 x 1024 places .*lower image_size \(4096\)"
    with pytest.raises(ConfigError, match=words):
        detector.opened(ModelFiles()) if step == "opened" else detector.accumulate(draw_images(1, "rgb", SIZES_HW[:1]))


def test_the_papers_largest_network_is_allowed() -> None:
    assert sums_bytes(56 * 56, 550) <= LARGEST_SUMS < sums_bytes(256 * 256, 200)


def test_a_state_of_another_backbone_or_size_is_refused() -> None:
    detector = Padim.create(image_size=SIDE, d_reduced=6)
    state = detector.fit(draw_images(1, "rgb", SIZES_HW[:2])).state()
    beyond = np.concatenate([state["channels"][:-1], [448]])
    with pytest.raises(ConfigError, match=r"channel 448, and layer1, layer2, layer3 of resnet18 have 448 \(0 to 447\)"):
        detector.with_state({**state, "channels": beyond})
    with pytest.raises(ConfigError, match=r"grid of \(12, 12\) places, and layer1 of resnet18 has \(16, 16\)"):
        Padim.create(image_size=64, d_reduced=6).with_state(state)


@pytest.mark.parametrize("scale", [2, 1.5])
def test_a_coarser_layer_is_brought_to_the_grid_by_nearest_neighbour(scale: float) -> None:
    fine = torch.arange(144.0).reshape(1, 12, 12)
    coarse = torch.arange((12 / scale) ** 2).reshape(1, int(12 / scale), -1)
    out = torch.empty(144, 2)
    embed([fine, coarse], np.arange(2), out)
    rows = (np.arange(12) / scale).astype(int)
    assert np.array_equal(out[:, 0].numpy(), fine.flatten().numpy())
    assert np.array_equal(out[:, 1].numpy(), coarse[0].numpy()[np.ix_(rows, rows)].ravel())
