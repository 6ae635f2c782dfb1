"""Weights of networks as arrays by name, and whether they fit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

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
    """The shape of every array that the network has learned, by name."""
    with torch.device("meta"):
        return learned_shapes(make())


def learned_shapes(net: torch.nn.Module) -> Shapes:
    """The shape of every array that a network has learned, by name.

    These are its fractions. Whole numbers in a network, such as tables of positions and counters, are of its making.
    """
    return {key: tuple(value.shape) for key, value in net.state_dict().items() if value.is_floating_point()}


def as_arrays(tensors: Mapping[str, torch.Tensor]) -> State:
    """float32 copies of what was learned, in the order of dimensions that the tensors have."""
    return {key: _as_float32(value) for key, value in tensors.items() if value.is_floating_point()}


def load_arrays(net: torch.nn.Module, weights: State) -> None:
    """Set the weights of a network; `weights` are float32 in this machine's order of bytes."""
    net.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in weights.items()}, strict=False)


def fitting_weights(shapes: Shapes, found: Mapping[str, Any], source: str, network: str) -> State:
    """Those of the tensors or arrays `found` that the network has a place for: float32, as this machine orders bytes.

    Raises ConfigError naming `source` unless every place is filled, by finite fractions of its shape; `network` names
    the network in words.
    """
    _check_fit(shapes, found, source, network)
    weights = {key: _as_float32(found[key]) for key in shapes}
    _check_finite(weights, source)
    return weights


def check_parts(
    known: Collection[str], used: Collection[str], found: Mapping[str, torch.Tensor], source: str, network: str
) -> None:
    """Raise ConfigError naming `source` where a part of the network that is used has more in `found` than its own.

    Such weights fit and yet are of another network, as the further blocks of ResNet-34 are beside those of ResNet-18.
    `known` are the names of the network, `used` those of what is used of it. Parts that are not used, and those that
    the network has not, such as other heads, may have anything; counters and other whole numbers are harmless.
    """
    parts, used_parts = _parts(known), _parts(used)
    strange = [
        key
        for key, value in found.items()
        if _is_learned(key, value) and key not in known and _part_of(key, parts) in used_parts
    ]
    if strange:
        raise ConfigError(
            f"{source} is of another network than {network}, which has no place for {', '.join(strange[:3])}"
            f"{' …' if len(strange) > 3 else ''}; name the network that the file is of with backbone in --model-kwargs "
            "(timm:NAME and torchvision:NAME have more of them), or give a file of this one"
        )


def _is_learned(key: str, value: torch.Tensor) -> bool:
    """Whether it is no counter or table; some tools make fractions of the counters of batch normalisations."""
    return value.is_floating_point() and not key.endswith("num_batches_tracked")


def _parts(names: Collection[str]) -> frozenset[str]:
    """The modules that arrays of these names lie in, by name; not the network itself."""
    return frozenset(part for name in names for part in modules_around(name))


def _part_of(name: str, parts: Collection[str]) -> str | None:
    """The innermost of these modules that an array of this name lies in."""
    return next((part for part in reversed(modules_around(name)) if part in parts), None)


def modules_around(name: str) -> list[str]:
    """The modules that an array lies in, the outermost first: a, a.b of a.b.weight."""
    return [name[:at] for at, letter in enumerate(name) if letter == "."]


def _as_float32(values: torch.Tensor | NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """In the order of its dimensions; what float32 cannot hold becomes infinite."""
    if isinstance(values, torch.Tensor):
        return np.array(values.detach().resolve_conj().resolve_neg().cpu().float().numpy(), order="C")
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=np.float32, order="C")


def _check_fit(shapes: Shapes, found: Mapping[str, Any], source: str, network: str) -> None:
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


def _check_finite(weights: State, source: str) -> None:
    """Raise ConfigError naming `source` unless all numbers are finite, and variances at least 0."""
    negative = next((key for key, value in weights.items() if key.endswith("running_var") and (value < 0).any()), None)
    if negative is not None:
        raise ConfigError(f"{source}: {negative} holds variances below 0; the file is damaged")
    broken = next((key for key, value in weights.items() if not np.isfinite(value).all()), None)
    if broken is not None:
        raise ConfigError(f"{source}: {broken} must hold finite numbers only; the file is damaged")
