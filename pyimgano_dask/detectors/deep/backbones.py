"""Backbones: where the weights of a feature extractor come from, and how images go through it.

A backbone is read once, on the client, into plain arrays (`read_backbone`), which travel with the detector and lie in
its checkpoint. Each process makes the network of them (`FeatureExtractor`).
"""

from __future__ import annotations

import importlib
import io
import pickle
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.jit._fuser import optimized_execution

from pyimgano_dask.detectors.base import Image, State
from pyimgano_dask.detectors.deep.arguments import FILES, LIBRARIES, RESNETS, BackboneArguments
from pyimgano_dask.detectors.deep.resnet import ResNet, fused, initialise
from pyimgano_dask.detectors.deep.squares import stack_squares
from pyimgano_dask.detectors.deep.weights import (
    Shapes,
    as_arrays,
    check_finite,
    check_fit,
    load_arrays,
    parameters,
    shapes_of,
    without_weights,
)
from pyimgano_dask.detectors.devices import is_here
from pyimgano_dask.detectors.exported.formats import format_of
from pyimgano_dask.detectors.exported.runner import in_words
from pyimgano_dask.detectors.model_files import ModelFiles
from pyimgano_dask.detectors.torch_files import load_program, load_torchscript
from pyimgano_dask.errors import ConfigError, InputError

CODE = "code"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CUDA_BATCH = 32

# What torch.load raises on files that are no state dict, or a damaged one; pickles that it refuses are among them.
_DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    RuntimeError,
    AttributeError,
    ImportError,
    AssertionError,
)


def chosen_device(device: str | None) -> torch.device:
    """The device asked for; without one CUDA where this process has it, else the CPU."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not is_here(device, "torch"):
        raise InputError(
            "infer",
            "DeviceError",
            f"the device is {device}, which is not there where this chunk runs; use workers with a GPU, or "
            "--device cpu",
        )
    return torch.device(device)


def read_backbone(arguments: BackboneArguments, layers: tuple[str, ...], files: ModelFiles) -> State:
    """The weights of a backbone as arrays by name, or the bytes of an extractor's file under `code`.

    Raises ConfigError when a file cannot be read, is of another network, is not trusted, or a library is missing.
    """
    name = arguments.architecture
    if name in FILES:
        assert arguments.weights_path is not None
        data = files.read_code(arguments.weights_path, "weights_path", FILES[name])
        _load_file(name, data, arguments.weights_path)
        return {CODE: np.frombuffer(data, np.uint8)}
    net = _new_network(name, layers)
    if arguments.weights_path is not None:
        path = arguments.weights_path
        found = _read_state_dict(files.read(path, "weights_path"), path)
        return _fitting_weights(net, found, f"weights_path {path!r}", arguments.backbone)
    if arguments.pretrained or name not in RESNETS:
        return _fitting_weights(net, _library_weights(name), "the library's weights", arguments.backbone)
    initialise(net, arguments.random_state)
    return as_arrays(net.state_dict())


def check_weights(arguments: BackboneArguments, layers: tuple[str, ...], weights: State, source: str) -> None:
    """Raise ConfigError naming `source` unless these arrays are the weights of the backbone."""
    if arguments.architecture in FILES:
        if CODE not in weights or weights[CODE].dtype != np.uint8 or weights[CODE].ndim != 1:
            raise ConfigError(f"{source} holds no bytes of a model file")
        return
    shapes = _shapes(arguments.architecture, layers)
    check_fit(shapes, weights, source, f"the backbone {arguments.backbone}")
    if unknown := sorted(weights.keys() - shapes.keys()):
        raise ConfigError(f"{source} holds {unknown[0]}, which the backbone {arguments.backbone} has no place for")
    check_finite(weights, source)


class FeatureExtractor:
    """A backbone in this process, in evaluation mode on its device.

    On the CPU images go through one by one: that is as fast as batches there, and no answer depends on the others.
    """

    def __init__(self, arguments: BackboneArguments, layers: tuple[str, ...], weights: State) -> None:
        self.device = chosen_device(arguments.device)
        self._layers = layers
        self._names = _output_names(arguments.architecture, layers)
        self._size = arguments.image_size
        self.net = _network(arguments.architecture, layers, weights).to(self.device)
        self._mean = 255 * torch.tensor(IMAGENET_MEAN, device=self.device).view(1, 3, 1, 1)
        self._std = 255 * torch.tensor(IMAGENET_STD, device=self.device).view(1, 3, 1, 1)

    def batches(self, images: Sequence[Image]) -> Iterator[list[torch.Tensor]]:
        """Features of some images at a time, in their order: float32 (n, C, h, w) for each layer, n at least 1.

        `images` are uint8 (H, W, 3) RGB of any sizes; they are resized to the square and brought to the mean and the
        standard deviation of ImageNet. No gradients are kept.
        """
        step = 1 if self.device.type == "cpu" else CUDA_BATCH
        for start in range(0, len(images), step):
            with torch.inference_mode():
                features = self.net(self.normalised(images[start : start + step]))
                picked = [layer.float() for layer in _picked(features, self._names, self._layers)]
            yield picked

    def normalised(self, images: Sequence[Image]) -> torch.Tensor:
        """float32 (n, 3, S, S) in channels-last order on the device."""
        batch = torch.from_numpy(stack_squares(images, self._size)).to(self.device).permute(0, 3, 1, 2)
        return batch.float().sub_(self._mean).div_(self._std)


def _output_names(architecture: str, layers: tuple[str, ...]) -> tuple[str, ...]:
    """What the outputs of a network stand for that gives them in a row; none where their number is their name."""
    if architecture in FILES:
        return ()
    return tuple(sorted(layers, key=int)) if architecture.startswith("timm:") else layers


def _picked(features: Any, names: tuple[str, ...], layers: tuple[str, ...]) -> list[torch.Tensor]:
    """The outputs named by `layers`, all where none is named, of what a network gave; `names` are those of a row."""
    if isinstance(features, Mapping):
        named = {str(key): value for key, value in features.items()}
    else:
        outputs = features if isinstance(features, list | tuple) else [features]
        named = dict(zip(names or map(str, range(len(outputs))), outputs, strict=True))
    missing = [layer for layer in layers if layer not in named]
    if missing:
        raise InputError(
            "infer", "BackboneError", f"the backbone has no output {', '.join(missing)}; it has {', '.join(named)}"
        )
    picked = [named[layer] for layer in layers or named]
    shapes = [getattr(feature, "shape", None) for feature in picked]
    if any(shape is None or len(shape) != 4 for shape in shapes):
        raise InputError(
            "infer", "BackboneError", f"the outputs of a backbone must be (N, C, H, W), got the shapes {shapes}"
        )
    return picked


def _network(name: str, layers: tuple[str, ...], weights: State) -> torch.nn.Module:
    if name in FILES:
        module: torch.nn.Module = _load_file(name, weights[CODE].tobytes(), "the extractor in the checkpoint")
        return module
    net = _new_network(name, layers)
    load_arrays(net, weights)
    if name in RESNETS:
        net = fused(net)
    net.requires_grad_(False)
    # torch's annotations know of no call with memory_format alone.
    return net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _new_network(name: str, layers: tuple[str, ...]) -> torch.nn.Module:
    """The network, its weights yet to be set."""
    library, _, model = name.partition(":")
    if library == "timm":
        timm = _library("timm")
        indices = {"out_indices": [int(layer) for layer in layers]} if layers else {}
        try:
            net: torch.nn.Module = timm.create_model(model, pretrained=False, features_only=True, **indices)
        except (RuntimeError, ValueError, AttributeError, IndexError, AssertionError) as error:
            raise ConfigError(f"backbone {name!r} with layers {list(layers)}: {error}") from None
        return net
    if library == "torchvision":
        models = _library("torchvision.models")
        extraction = _library("torchvision.models.feature_extraction")
        try:
            whole = models.get_model(model, weights=None)
            extractor: torch.nn.Module = extraction.create_feature_extractor(whole, list(layers))
        except ValueError as error:
            raise ConfigError(f"backbone {name!r} with layers {list(layers)}: {error}") from None
        return extractor
    return without_weights(lambda: ResNet(name, layers))


@cache
def _shapes(name: str, layers: tuple[str, ...]) -> Shapes:
    return shapes_of(lambda: _new_network(name, layers))


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"backbone {name}:NAME needs {name}, which cannot be loaded here ({error}); install it"
        ) from None


def _library_weights(name: str) -> Mapping[str, Any]:
    """The pretrained state dict that an installed library has, or fetches, for this network."""
    library, _, model = name.partition(":")
    tried = [library] if library in LIBRARIES else list(LIBRARIES)
    model = model or name
    faults = []
    for candidate in tried:
        try:
            if candidate == "timm":
                found: Mapping[str, Any] = _library("timm").create_model(model, pretrained=True).state_dict()
            else:
                found = _library("torchvision.models").get_model(model, weights="DEFAULT").state_dict()
        except (ConfigError, RuntimeError, ValueError, OSError) as error:
            faults.append(f"{candidate}: {error}")
        else:
            return found
    raise ConfigError(
        f"pretrained weights of {name} are not at hand ({'; '.join(faults)}); give a file of them with weights_path in "
        "--model-kwargs, or --no-pretrained"
    )


def _read_state_dict(data: bytes, path: str) -> Mapping[str, Any]:
    """The tensors in a file of weights, also those under `state_dict` or `model`, without the prefix `module.`."""
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, *_DAMAGE) as error:
        raise ConfigError(
            f"weights_path: {path!r} is not a file of weights that can be read safely: it is {format_of(data)}. It "
            "must hold a state dict of tensors only, as torch.save(model.state_dict(), FILE) writes it; pickled "
            "modules are never loaded"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ConfigError(f"weights_path: {path!r} holds no state dict (a mapping of names to tensors)")
    return {str(key).removeprefix("module."): value for key, value in loaded.items()}


def _fitting_weights(net: torch.nn.Module, found: Mapping[str, Any], source: str, backbone: str) -> State:
    """Those of the tensors that the network has a place for; ConfigError unless every place is filled."""
    wanted = parameters(net)
    check_fit({key: tuple(value.shape) for key, value in wanted.items()}, found, source, f"the backbone {backbone}")
    weights = as_arrays({key: found[key] for key in wanted})
    check_finite(weights, source)
    return weights


def _load_file(kind: str, data: bytes, path: str) -> Any:
    """The module in a trusted file; TorchScript runs as it is written, because its optimiser rewrites it as it goes."""
    found = format_of(data)
    if found != FILES[kind]:
        raise ConfigError(f"weights_path: {path!r} is {found}; the backbone {kind} is {FILES[kind]}")
    try:
        if kind == "torchscript":
            return Unoptimised(load_torchscript(data, torch.device("cpu")))
        return load_program(data).module()
    except _DAMAGE as error:
        raise ConfigError(f"weights_path: {path!r} cannot be loaded as {FILES[kind]}: {in_words(error)}") from None


class Unoptimised(torch.nn.Module):
    """A TorchScript module that computes the same at each call."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> Any:
        with optimized_execution(False):
            return self.module(x)
