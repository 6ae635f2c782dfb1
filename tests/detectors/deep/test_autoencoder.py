"""The autoencoder's map against its formulas in plain numpy, and its network."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="vision_autoencoder needs torch")

from pyimgano_dask.detectors.deep.autoencoder import Autoencoder  # noqa: E402
from pyimgano_dask.detectors.deep.reconstruction import ConvolutionalAutoencoder, initialise  # noqa: E402
from pyimgano_dask.errors import ConfigError  # noqa: E402
from tests.detectors.images import draw_images  # noqa: E402

SIDE = 32
SIZES_HW = ((SIDE, SIDE), (50, 40), (SIDE, SIDE))
SMALL: dict[str, Any] = {"image_size": SIDE, "base_channels": 4, "latent_dim": 6, "epochs": 2}


def rebuilt(detector: Autoencoder, square: Any) -> Any:
    """float64 (S, S, C): what the network makes of an image in [0, 1]."""
    net = ConvolutionalAutoencoder(square.shape[2], SIDE, SMALL["base_channels"], SMALL["latent_dim"])
    net.load_state_dict({key: torch.from_numpy(value) for key, value in detector.state().items()})
    with torch.no_grad():
        made = net(torch.from_numpy(square.transpose(2, 0, 1)[None].astype(np.float32)))
    return made[0].numpy().transpose(1, 2, 0).astype(np.float64)


def dissimilarity(x: Any, y: Any) -> Any:
    """1 − SSIM of each pixel of one channel, float64 (S, S)."""

    def mean(values: Any) -> Any:
        return cv2.GaussianBlur(values, (11, 11), 1.5, borderType=cv2.BORDER_REFLECT_101)

    var_x, var_y = mean(x * x) - mean(x) ** 2, mean(y * y) - mean(y) ** 2
    covariance = mean(x * y) - mean(x) * mean(y)
    luminance = (2 * mean(x) * mean(y) + 0.01**2) / (mean(x) ** 2 + mean(y) ** 2 + 0.01**2)
    return 1 - luminance * (2 * covariance + 0.03**2) / (var_x + var_y + 0.03**2)


@pytest.mark.parametrize("color", ["gray", "rgb"])
@pytest.mark.parametrize("loss", ["ssim", "mse"])
@pytest.mark.parametrize(("reduction", "sigma"), [("max", 0.0), ("topk_mean", 1.5)])
def test_the_map_is_the_error_of_each_pixel(color: str, loss: str, reduction: str, sigma: float) -> None:
    kwargs = {**SMALL, "color": color, "loss": loss, "reduction": reduction, "topk": 0.1, "smoothing_sigma": sigma}
    detector = Autoencoder.create(**kwargs).fit(draw_images(1, color, SIZES_HW))
    (image,) = draw_images(2, color, [(SIDE, SIDE)])

    x = image.reshape(SIDE, SIDE, -1) / 255
    y = rebuilt(detector, x)
    if loss == "mse":
        expected = np.square(x - y).mean(axis=2)
    else:
        channels = range(x.shape[2])
        expected = np.mean([dissimilarity(x[..., c], y[..., c]) + abs(x[..., c] - y[..., c]) for c in channels], axis=0)
    if sigma:
        expected = cv2.GaussianBlur(expected, (0, 0), sigma)
    largest = np.sort(expected.ravel())[-1 if reduction == "max" else -103 :]

    prediction = detector.predict([image])
    np.testing.assert_allclose(prediction.maps[0], expected, rtol=1e-3, atol=1e-4)
    assert prediction.scores[0] == pytest.approx(largest.mean(), rel=1e-3)


def test_the_score_does_not_depend_on_the_size_that_the_map_is_brought_to() -> None:
    detector = Autoencoder.create(**SMALL).fit(draw_images(1, "rgb", SIZES_HW))
    (small,) = draw_images(2, "rgb", [(SIDE, SIDE)])
    large = cv2.resize(small, (4 * SIDE, 4 * SIDE), interpolation=cv2.INTER_NEAREST)  # areas of it are `small` again
    scores = detector.predict([small, np.asarray(large, np.uint8)]).scores
    assert scores[0] == scores[1]


def test_weight_decay_pulls_weights_towards_zero() -> None:
    """Adam's first step is of one length for all weights, and a decay far above the gradient gives its direction."""

    def trained(lr: float, decay: float) -> Any:
        arguments = {**SMALL, "epochs": 1, "lr": lr, "weight_decay": decay, "batch_size": len(SIZES_HW)}
        return Autoencoder.create(**arguments).fit(draw_images(1, "rgb", SIZES_HW)).state()["encoder.2.weight"]

    first = trained(1e-30, 0.0)  # no weight changes by a step of this length
    large = np.abs(first) > 0.1

    def share_pulled(decay: float) -> float:
        return float((np.sign(trained(1e-3, decay) - first) == -np.sign(first))[large].mean())

    assert large.sum() > 100
    assert share_pulled(1.0) == 1
    assert share_pulled(0.0) < 0.9


@pytest.mark.parametrize(("channels", "size", "latent_dim"), [(1, 64, 3), (3, 128, 100), (3, 80, 7)])
def test_images_go_through_few_numbers_and_come_back_at_their_size(channels: int, size: int, latent_dim: int) -> None:
    net = ConvolutionalAutoencoder(channels, size, 8, latent_dim)
    initialise(net, 0)
    image = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert net.encoder(image).shape == (2, latent_dim, 1, 1)
        made = net(image)
    assert made.shape == image.shape
    assert 0.02 < float((made - 0.5).std()) < 2  # signals neither die nor explode on the way


@pytest.mark.parametrize("other", [{"color": "gray"}, {"image_size": 48}, {"latent_dim": 7}, {"base_channels": 5}])
def test_a_checkpoint_of_other_arguments_is_refused(other: dict[str, Any]) -> None:
    state = Autoencoder.create(**SMALL).fit(draw_images(1, "rgb", SIZES_HW)).state()
    with pytest.raises(ConfigError, match="vision_autoencoder: the state does not fit the network of these arguments"):
        Autoencoder.create(**{**SMALL, **other}).with_state(state)


def test_sizes_that_cannot_be_halved_four_times_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"image_size: 100: .*multiple of 16"):
        Autoencoder.create(image_size=100)
