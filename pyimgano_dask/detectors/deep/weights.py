"""Weights of networks as arrays by name, and whether they fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch

from pyimgano_dask.detectors.base import State
from pyimgano_dask.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]
Network = TypeVar("Network", bound=torch.nn.Module)


def without_weights(make: Callable[[], Network]) -> Network:
    """The network that `make` makes, on the CPU, with weights that are yet to be set.

    Constructors of layers draw from torch's global generator; here nothing is drawn.
    """
    with torch.device("meta"):
        net = make()
    return net.to_empty(device="cpu")


def shapes_of(make: Callable[[], torch.nn.Module]) -> Shapes:
    """The shape of every array that the network computes with, by name."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in parameters(make()).items()}


def parameters(net: torch.nn.Module) -> Mapping[str, torch.Tensor]:
    """What a network computes with, by name."""
    return {key: value for key, value in net.state_dict().items() if not _is_counter(key)}


def as_arrays(tensors: Mapping[str, Any]) -> State:
    """float32 copies in the order of dimensions that the tensors have."""
    return {
        key: np.array(value.detach().cpu().float().numpy(), order="C")
        for key, value in tensors.items()
        if not _is_counter(key)
    }


def load_arrays(net: torch.nn.Module, weights: State) -> None:
    """Set the weights of a network."""
    net.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in weights.items()}, strict=False)


def check_fit(shapes: Shapes, found: Mapping[str, Any], source: str, network: str) -> None:
    """Raise ConfigError naming `source` unless every array of the network is there in its shape, as plain fractions."""
    strange = [key for key in shapes if key in found and not _is_plain(found[key])]
    if strange:
        raise ConfigError(f"{source}: {strange[0]} must be a dense array of floating-point numbers")
    missing = [key for key in shapes if key not in found]
    odd = [
        f"{key} is {tuple(found[key].shape)}, expected {shape}"
        for key, shape in shapes.items()
        if key in found and tuple(found[key].shape) != shape
    ]
    if missing or odd:
        faults = [f"it lacks {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}"] if missing else []
        raise ConfigError(f"{source} does not fit {network}: {'; '.join(faults + odd[:3])}")


def _is_plain(values: Any) -> bool:
    if isinstance(values, torch.Tensor):
        is_dense = values.layout == torch.strided and not values.is_nested and not values.is_quantized
        return is_dense and values.is_floating_point() and values.device.type != "meta"
    return bool(values.dtype.kind == "f")


def check_finite(weights: State, source: str) -> None:
    """Raise ConfigError naming `source` unless all numbers are finite, and variances at least 0."""
    negative = next((key for key, value in weights.items() if key.endswith("running_var") and (value < 0).any()), None)
    if negative is not None:
        raise ConfigError(f"{source}: {negative} holds variances below 0; the file is damaged")
    broken = next((key for key, value in weights.items() if not np.isfinite(value).all()), None)
    if broken is not None:
        raise ConfigError(f"{source}: {broken} must hold finite numbers only; the file is damaged")


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")
