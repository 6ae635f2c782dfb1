"""STFPM against its formula in plain numpy."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="vision_stfpm needs torch")

from pyimgano_dask.detectors.deep.backbones import FeatureExtractor  # noqa: E402
from pyimgano_dask.detectors.deep.stfpm import Stfpm  # noqa: E402
from pyimgano_dask.errors import ConfigError  # noqa: E402
from tests.detectors.images import draw_images  # noqa: E402

SIDE = 64
LAYERS = ("layer1", "layer3")
SIZES_HW = ((SIDE, SIDE), (40, 90), (SIDE, SIDE))


@pytest.fixture(scope="module")
def detector() -> Stfpm:
    made = Stfpm.create(image_size=SIDE, layers=LAYERS, epochs=1, batch_size=2)
    return made.fit(draw_images(1, "rgb", SIZES_HW))


def unit_features(detector: Stfpm, prefix: str, image: Any) -> list[Any]:
    """float64 (C, h, w) for each layer, of length 1 at each place."""
    weights = {key.removeprefix(prefix): value for key, value in detector.state().items() if key.startswith(prefix)}
    (layers,) = FeatureExtractor(detector.arguments, LAYERS, weights).batches([image])
    features = [layer[0].numpy().astype(np.float64) for layer in layers]
    return [values / np.linalg.norm(values, axis=0) for values in features]


def test_the_map_is_the_geometric_mean_of_half_squared_distances(detector: Stfpm) -> None:
    images = draw_images(2, "rgb", SIZES_HW)
    prediction = detector.predict(images)
    for image, score, anomaly_map in zip(images, prediction.scores, prediction.maps, strict=True):
        product = np.ones((SIDE, SIDE))
        pairs = zip(
            unit_features(detector, "backbone/", image), unit_features(detector, "student/", image), strict=True
        )
        for teacher, student in pairs:
            distance = np.square(teacher - student).sum(axis=0) / 2
            product *= cv2.resize(distance, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        mean = np.sqrt(product)
        height, width = image.shape[:2]
        expected = cv2.resize(mean, (width, height), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(anomaly_map, expected, rtol=1e-3, atol=1e-5)
        assert score == pytest.approx(mean.max(), rel=1e-3)


def test_the_student_is_another_network_than_the_teacher(detector: Stfpm) -> None:
    state = detector.state()
    taught = {key.removeprefix("student/") for key in state if key.startswith("student/")}
    assert taught == {key.removeprefix("backbone/") for key in state if key.startswith("backbone/")}
    assert not np.allclose(state["student/conv1.weight"], state["backbone/conv1.weight"], atol=0.05)
    assert (state["student/layer3.1.bn2.running_var"] > 0).all()
    assert all(values.dtype == np.float32 for values in state.values())


def test_the_teacher_may_come_from_a_file_and_is_not_trained(detector: Stfpm, tmp_path: Any) -> None:
    weights = {
        key.removeprefix("backbone/"): torch.from_numpy(2 * value)
        for key, value in detector.state().items()
        if key.startswith("backbone/")
    }
    torch.save(weights, tmp_path / "teacher.pth")
    made = Stfpm.create(
        image_size=SIDE, layers=LAYERS, epochs=1, batch_size=2, weights_path=str(tmp_path / "teacher.pth")
    )
    state = made.fit(draw_images(1, "rgb", SIZES_HW)).state()
    for key, value in weights.items():
        np.testing.assert_array_equal(state[f"backbone/{key}"], value.numpy())


def student(**arguments: Any) -> dict[str, Any]:
    """float64 arrays of a student that saw all images in each step."""
    made = Stfpm.create(image_size=SIDE, layers=("layer1",), batch_size=len(SIZES_HW), **arguments)
    state = made.fit(draw_images(1, "rgb", SIZES_HW)).state()
    return {key.removeprefix("student/"): np.float64(value) for key, value in state.items() if "student/" in key}


STANDING = {"epochs": 1, "lr": 1e-30}  # no weight changes by a step of this length


def test_weight_decay_shortens_each_step_by_a_share_of_the_weights() -> None:
    first = student(**STANDING)
    without, with_decay = (student(epochs=1, lr=0.1, weight_decay=decay) for decay in (0.0, 0.5))
    for key in ("conv1.weight", "layer1.1.conv2.weight", "bn1.weight"):
        np.testing.assert_allclose(without[key] - with_decay[key], 0.1 * 0.5 * first[key], rtol=1e-3, atol=1e-6)


def test_the_second_step_keeps_nine_tenths_of_the_first() -> None:
    """Along the same gradient that is 1 + (1 + 0.9) steps; a small rate leaves the gradient as it was."""
    first = student(**STANDING)
    one, two = (student(epochs=epochs, lr=1e-4, weight_decay=0.0) for epochs in (1, 2))
    for key in ("bn1.bias", "layer1.0.bn1.bias"):
        steps = (one[key] - first[key]), (two[key] - first[key])
        assert np.abs(steps[0]).max() > 0
        assert (steps[0] @ steps[1]) / (steps[0] @ steps[0]) == pytest.approx(2.9, rel=0.005)


def test_the_statistics_of_the_student_are_those_of_all_images_under_its_last_weights() -> None:
    made = Stfpm.create(image_size=SIDE, layers=("layer1",), batch_size=2, epochs=2, lr=0.4)
    images = draw_images(1, "rgb", [(SIDE, SIDE)] * 4)
    fitted = made.fit(images)
    state = fitted.state()
    seen = torch.nn.functional.conv2d(
        fitted.extractor.get().normalised(images), torch.from_numpy(state["student/conv1.weight"]), stride=2, padding=3
    )
    mean, variance = seen.mean(dim=(0, 2, 3)).numpy(), seen.var(dim=(0, 2, 3)).numpy()
    np.testing.assert_allclose(state["student/bn1.running_mean"], mean, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(state["student/bn1.running_var"], variance, rtol=0.05)


@pytest.mark.parametrize("other", [{"backbone": "resnet50"}, {"layers": ("layer1", "layer4")}])
def test_a_checkpoint_of_other_arguments_is_refused(detector: Stfpm, other: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="vision_stfpm: the backbone in the state does not fit"):
        Stfpm.create(**{"image_size": SIDE, "layers": LAYERS, **other}).with_state(detector.state())
    mixed = {key: value for key, value in detector.state().items() if "student/layer3.1" not in key}
    with pytest.raises(ConfigError, match=r"the student in the state does not fit .*lacks layer3\.1"):
        Stfpm.create(image_size=SIDE, layers=LAYERS).with_state(mixed)


@pytest.mark.parametrize("backbone", ["timm:resnet18", "torchvision:resnet18"])
def test_only_residual_networks_can_be_students(backbone: str) -> None:
    with pytest.raises(ConfigError, match=f"'{backbone}' cannot be trained.*resnet18"):
        Stfpm.create(backbone=backbone)
