"""A convolutional autoencoder, and how far an image is from its reconstruction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from pyimgano_dask.detectors.base import Image, State
from pyimgano_dask.detectors.deep.backbones import CUDA_BATCH, chosen_device
from pyimgano_dask.detectors.deep.squares import stack_squares
from pyimgano_dask.detectors.deep.training import check_trained, train, training_device
from pyimgano_dask.detectors.deep.weights import Shapes, as_arrays, load_arrays, shapes_of, without_weights

if TYPE_CHECKING:
    from pyimgano_dask.detectors.deep.autoencoder import AutoencoderArguments

HALVINGS = 4
LEAK = 0.2

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2


class ConvolutionalAutoencoder(nn.Module):
    """The network of Bergmann et al. (arXiv 1807.02011, table 1) for squares of 16 k pixels, k at least 1.

    `forward` takes float32 (n, channels, S, S) in [0, 1] and gives the like, not clipped. An image becomes
    `latent_dim` numbers in between; `width` is the number of channels of the first layer.
    """

    def __init__(self, channels: int, size: int, width: int, latent_dim: int) -> None:
        super().__init__()
        last = size // 2**HALVINGS
        self.encoder = nn.Sequential(
            *_activated(nn.Conv2d(channels, width, 4, 2, 1)),
            *_activated(nn.Conv2d(width, width, 4, 2, 1)),
            *_activated(nn.Conv2d(width, width, 3, 1, 1)),
            *_activated(nn.Conv2d(width, 2 * width, 4, 2, 1)),
            *_activated(nn.Conv2d(2 * width, 2 * width, 3, 1, 1)),
            *_activated(nn.Conv2d(2 * width, 4 * width, 4, 2, 1)),
            *_activated(nn.Conv2d(4 * width, 2 * width, 3, 1, 1)),
            *_activated(nn.Conv2d(2 * width, width, 3, 1, 1)),
            nn.Conv2d(width, latent_dim, last, last),
        )
        self.decoder = nn.Sequential(
            *_activated(nn.ConvTranspose2d(latent_dim, width, last, last)),
            *_activated(nn.Conv2d(width, 2 * width, 3, 1, 1)),
            *_activated(nn.Conv2d(2 * width, 4 * width, 3, 1, 1)),
            *_activated(nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1)),
            *_activated(nn.Conv2d(2 * width, 2 * width, 3, 1, 1)),
            *_activated(nn.ConvTranspose2d(2 * width, width, 4, 2, 1)),
            *_activated(nn.Conv2d(width, width, 3, 1, 1)),
            *_activated(nn.ConvTranspose2d(width, width, 4, 2, 1)),
            nn.ConvTranspose2d(width, channels, 4, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.decoder(self.encoder(x - 0.5))
        return y + 0.5


def _activated(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    return layer, nn.LeakyReLU(LEAK, inplace=True)


def initialise(net: nn.Module, seed: int) -> None:
    """Normal weights that keep the variance through leaky ReLUs (He et al., ICCV 2015), biases of zero.

    The same seed gives the same weights, whatever else draws at random in the process.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            continue
        fan_in = module.in_channels * math.prod(module.kernel_size)
        if isinstance(module, nn.ConvTranspose2d):
            fan_in //= math.prod(module.stride)
        with torch.no_grad():
            module.weight.normal_(0, math.sqrt(2 / (1 + LEAK**2) / fan_in), generator=generator)
            assert module.bias is not None
            module.bias.zero_()


def structural_similarity(x: Tensor, y: Tensor) -> Tensor:
    """SSIM of each pixel and channel (Wang et al., IEEE TIP 2004): float32 (n, C, H, W) in [0, 1] to [-1, 1].

    The window is a Gaussian of 11 x 11 pixels, σ = 1.5; images are mirrored at their borders, so that H and W are at
    least 6.
    """
    n, channels = x.shape[:2]
    means = _blur(torch.cat([x, y, x * x, y * y, x * y], dim=1)).view(n, 5, channels, *x.shape[2:]).unbind(1)
    mean_x, mean_y, xx, yy, xy = means
    products, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
    similarity: Tensor = ((2 * products + SSIM_C1) * (2 * (xy - products) + SSIM_C2)) / (
        (squares + SSIM_C1) * (xx + yy - squares + SSIM_C2)
    )
    return similarity


def _blur(values: Tensor) -> Tensor:
    """Gaussian means of each channel, one direction after the other."""
    reach = SSIM_WINDOW // 2
    offsets = torch.arange(-reach, reach + 1, dtype=values.dtype, device=values.device)
    window = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    window = (window / window.sum()).expand(values.shape[1], 1, -1)
    padded = pad(values, (reach, reach, reach, reach), mode="reflect")
    across = conv2d(padded, window[:, :, None, :], groups=values.shape[1])
    return conv2d(across, window[:, :, :, None], groups=values.shape[1])


def residuals(x: Tensor, y: Tensor, loss: str) -> Tensor:
    """The error of each pixel, float32 (n, H, W), of which the loss is the mean: squared, or 1 − SSIM + |x − y|."""
    if loss == "mse":
        return (x - y).square().mean(dim=1)
    return (1 - structural_similarity(x, y) + (x - y).abs()).mean(dim=1)


@cache
def weight_shapes(arguments: AutoencoderArguments) -> Shapes:
    """The shapes of the weights by name."""
    return shapes_of(lambda: _network(arguments))


def train_autoencoder(arguments: AutoencoderArguments, images: NDArray[np.uint8], name: str) -> State:
    """Weights of an autoencoder trained on uint8 (n, S, S) or (n, S, S, 3), by name."""
    device = training_device(arguments.device, name)
    draw = np.random.default_rng((arguments.random_state, 1))
    net = without_weights(lambda: _network(arguments))
    initialise(net, int(draw.integers(2**63)))
    net = net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss_of(indices: NDArray[np.int64]) -> Tensor:
        batch = _in_unit_range(images[indices], device)
        return residuals(batch, net(batch), arguments.loss).mean()

    train(
        torch.optim.Adam(net.parameters(), lr=arguments.lr, weight_decay=arguments.weight_decay),
        loss_of,
        len(images),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        seed=int(draw.integers(2**63)),
        detector=name,
    )
    return check_trained(as_arrays(net.state_dict()), arguments.lr, name)


class Reconstruction:
    """A trained autoencoder in this process, on its device.

    On the CPU images go through one by one, so that no answer depends on the others.
    """

    def __init__(self, arguments: AutoencoderArguments, weights: State) -> None:
        self._arguments = arguments
        self._device = chosen_device(arguments.device)
        net = without_weights(lambda: _network(arguments))
        load_arrays(net, weights)
        net.requires_grad_(False)
        self._net = net.eval().to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def residuals(self, images: Sequence[Image]) -> Iterator[NDArray[np.float32]]:
        """The error of each pixel at image_size, float32 (S, S) for each image."""
        step = 1 if self._device.type == "cpu" else CUDA_BATCH
        for start in range(0, len(images), step):
            with torch.inference_mode():
                squares = stack_squares(images[start : start + step], self._arguments.image_size)
                batch = _in_unit_range(squares, self._device)
                made = self._net(batch).float()
                # Mixed precision would round what SSIM takes differences of.
                with torch.autocast(self._device.type, enabled=False):
                    found = residuals(batch, made, self._arguments.loss).cpu().numpy()
            yield from found


def _network(arguments: AutoencoderArguments) -> ConvolutionalAutoencoder:
    channels = 3 if arguments.color == "rgb" else 1
    return ConvolutionalAutoencoder(channels, arguments.image_size, arguments.base_channels, arguments.latent_dim)


def _in_unit_range(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """float32 (n, C, S, S) in [0, 1] of uint8 (n, S, S) or (n, S, S, 3)."""
    batch = torch.from_numpy(images if images.ndim == 4 else images[..., None]).to(device)
    return batch.permute(0, 3, 1, 2).float().div_(255)
