"""Training of networks by stochastic gradient descent, the same for the same images and seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from pyimgano_dask.detectors.base import State
from pyimgano_dask.detectors.deep.backbones import chosen_device
from pyimgano_dask.detectors.devices import is_here
from pyimgano_dask.detectors.epochs import tell_epoch
from pyimgano_dask.errors import ConfigError

Indices = NDArray[np.int64]


def training_device(device: str | None, detector: str) -> torch.device:
    """The device to train on in this process; raises ConfigError where it has none such."""
    if device is not None and not is_here(device, "torch"):
        raise ConfigError(
            f"--device {device}: {detector} trains in the process that starts the run, which has no such device; "
            "start the run where there is one, or leave the flag out"
        )
    return chosen_device(device)


def shuffled_batches(n_images: int, batch_size: int, rng: np.random.Generator) -> Iterator[Indices]:
    """One epoch: every image once, in an order drawn anew, in as few batches as can be and of sizes as equal."""
    yield from np.array_split(rng.permutation(n_images), math.ceil(n_images / batch_size))


@torch.enable_grad()
def train(
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Indices], torch.Tensor],
    n_images: int,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    detector: str,
) -> list[float]:
    """Take a step for each batch of each epoch; returns the mean loss of each epoch.

    `loss_of` gives the loss of the images at these indices, a scalar with a gradient. Raises ConfigError naming the
    `detector` when the loss or the weights are no finite numbers any more.
    """
    rng = np.random.default_rng(seed)
    losses = []
    for epoch in range(epochs):
        total = 0.0
        for indices in shuffled_batches(n_images, batch_size, rng):
            loss = loss_of(indices)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += len(indices) * float(loss.detach())
        losses.append(total / n_images)
        if not (math.isfinite(total) and _has_finite_weights(optimizer)):
            group = optimizer.param_groups[0]
            raise ConfigError(
                f"{detector}: training diverged in epoch {epoch + 1} of {epochs}: the loss or the weights are not "
                f"finite; {_too_high(group['lr'])}"
            )
        tell_epoch(epoch + 1, epochs)
    return losses


def check_trained(weights: State, lr: float, detector: str) -> State:
    """These weights; ConfigError naming the `detector` where some are no finite numbers."""
    if not all(np.isfinite(values).all() for values in weights.values()):
        raise ConfigError(f"{detector}: training diverged: the weights are not finite; {_too_high(lr)}")
    return weights


def _too_high(lr: float) -> str:
    return f"lr {lr:g} is too high for these images, take a lower one (--model-kwargs, lr)"


def _has_finite_weights(optimizer: torch.optim.Optimizer) -> bool:
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    return all(bool(torch.isfinite(weight).all()) for weight in weights)
