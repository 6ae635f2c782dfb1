"""Backbones: where the weights of a feature extractor come from, and how images go through it.

A backbone is read once, on the client, into plain arrays (`read_backbone`), which travel with the detector and lie in
its checkpoint. Each process makes the network of them (`FeatureExtractor`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from pyimgano_dask.detectors.base import Image, State
from pyimgano_dask.detectors.deep.arguments import FILES, RESNETS, BackboneArguments
from pyimgano_dask.detectors.deep.libraries import (
    library_network,
    library_shapes,
    named_as_wanted,
    pretrained_weights,
    whole_and_used,
)
from pyimgano_dask.detectors.deep.resnet import ResNet, fused, initialise
from pyimgano_dask.detectors.deep.squares import stack_squares
from pyimgano_dask.detectors.deep.weight_files import read_weights
from pyimgano_dask.detectors.deep.weights import (
    Shapes,
    as_arrays,
    check_parts,
    fitting_weights,
    load_arrays,
    shapes_of,
    without_weights,
)
from pyimgano_dask.detectors.devices import NO_DEVICE, is_here
from pyimgano_dask.detectors.exported.formats import format_of
from pyimgano_dask.detectors.exported.runner import in_words
from pyimgano_dask.detectors.model_files import ModelFiles
from pyimgano_dask.detectors.torch_files import call_torchscript, load_program, load_torchscript
from pyimgano_dask.errors import ConfigError, InputError
from pyimgano_dask.shortages import is_out_of_memory

CODE = "code"

FeatureShapes = tuple[tuple[int, ...], ...]
"""(C, h, w) of each output of a backbone."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CUDA_BATCH = 32


def chosen_device(device: str | None) -> torch.device:
    """The device asked for; without one CUDA where this process has it, else the CPU."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not is_here(device, "torch"):
        raise InputError(
            "infer",
            NO_DEVICE,
            f"the device is {device}, which is not there where this chunk runs; use workers with a GPU, or "
            "--device cpu",
        )
    return torch.device(device)


def read_backbone(arguments: BackboneArguments, layers: tuple[str, ...], files: ModelFiles) -> State:
    """The weights of a backbone as arrays by name, or the bytes of an extractor's file under `code`.

    Raises ConfigError when a file cannot be read, is of another network, is not trusted, or a library is missing.
    """
    name, path = arguments.architecture, arguments.weights_path
    if name in FILES:
        assert path is not None
        data = files.read_code(path, "weights_path", FILES[name])
        if (found := format_of(data)) != FILES[name]:
            raise ConfigError(f"weights_path: {path!r} is {found}; the backbone {name} is {FILES[name]}")
        return {CODE: np.frombuffer(data, np.uint8)}
    if path is not None:
        whole, source = read_weights(files.read(path, "weights_path"), path), f"weights_path {path!r}"
    elif arguments.pretrained or name not in RESNETS:
        if not arguments.pretrained:
            raise ConfigError(
                f"backbone {arguments.backbone} needs weights: give a file of them with weights_path in "
                "--model-kwargs, or --pretrained for those that the library has or fetches"
            )
        _shapes(name, layers)  # a network or layers that there are not are told before anything is fetched
        whole, source = pretrained_weights(name), "the library's weights"
    else:
        net = without_weights(lambda: ResNet(name, layers))
        initialise(net, arguments.random_state)
        return as_arrays(net.state_dict())
    shapes = _shapes(name, layers)
    named = named_as_wanted(whole, shapes) if name.startswith("timm:") else whole
    fitting = fitting_weights(shapes, named, source, f"the backbone {arguments.backbone}")
    if path is not None:
        known, used = (shapes, shapes) if name in RESNETS else whole_and_used(name, shapes)
        check_parts(known, used, whole, source, f"the backbone {arguments.backbone}")
    return fitting


def checked_weights(arguments: BackboneArguments, layers: tuple[str, ...], weights: State, source: str) -> State:
    """The weights of the backbone, as they come out of a checkpoint, in float32 and this machine's order of bytes.

    The bytes of an extractor's file stay as they are, and unread. Raises ConfigError naming `source` unless these
    arrays are the weights of the backbone.
    """
    if arguments.architecture in FILES:
        if CODE not in weights or weights[CODE].dtype != np.uint8 or weights[CODE].ndim != 1:
            raise ConfigError(f"{source} holds no bytes of a model file")
        return weights
    shapes = _shapes(arguments.architecture, layers)
    fitting = fitting_weights(shapes, weights, source, f"the backbone {arguments.backbone}")
    if unknown := sorted(weights.keys() - shapes.keys()):
        raise ConfigError(f"{source} holds {unknown[0]}, which the backbone {arguments.backbone} has no place for")
    return fitting


class FeatureExtractor:
    """A backbone in this process, in evaluation mode on its device.

    On the CPU images go through one by one: that is as fast as batches there, and no answer depends on the others.
    """

    def __init__(self, arguments: BackboneArguments, layers: tuple[str, ...], weights: State) -> None:
        self.device = chosen_device(arguments.device)
        self._layers = layers
        self._names = _output_names(arguments.architecture, layers)
        self._size = arguments.image_size
        self.net = _network(arguments.architecture, layers, weights, self.device)
        self._mean = 255 * torch.tensor(IMAGENET_MEAN, device=self.device).view(1, 3, 1, 1)
        self._std = 255 * torch.tensor(IMAGENET_STD, device=self.device).view(1, 3, 1, 1)

    @property
    def batch_size(self) -> int:
        """How many images go through at a time, at most."""
        return 1 if self.device.type == "cpu" else CUDA_BATCH

    def batches(self, images: Sequence[Image]) -> Iterator[list[torch.Tensor]]:
        """Features of some images at a time, in their order: float32 (n, C, h, w) for each layer, n at least 1.

        `images` are uint8 (H, W, 3) RGB of any sizes; they are resized to the square and brought to the mean and the
        standard deviation of ImageNet. No gradients are kept. Raises InputError as `features` does.
        """
        for start in range(0, len(images), self.batch_size):
            yield self.features(self.normalised(images[start : start + self.batch_size]))

    def features(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """float32 (n, C, h, w) for each layer, of images as `scaled` gives them.

        Raises InputError when the network fails, or gives anything else for a layer, MemoryError where memory is short.
        """
        with torch.inference_mode():
            try:
                outputs = self.net(batch)
            except Exception as error:  # code of somebody else's, which can raise anything
                if is_out_of_memory(error):  # the machine's fault, and not the image's
                    raise MemoryError(f"the backbone fails: {in_words(error)}") from error
                raise _unusable(f"the backbone fails: {in_words(error)}") from error
            picked = _picked(outputs, self._names, self._layers)
            shapes = [tuple(layer.shape) for layer in picked]
            if any(len(shape) != 4 or shape[0] != len(batch) or 0 in shape for shape in shapes):
                raise _unusable(
                    f"the outputs of a backbone must be (N, C, h, w) with N = {len(batch)} here, got the shapes "
                    f"{', '.join(map(str, shapes))}"
                )
            return [layer.float() for layer in picked]

    def sound_batches(self, images: Sequence[Image], shapes: FeatureShapes | None) -> Iterator[list[torch.Tensor]]:
        """The same of images to learn from: raises InputError also for features that are not finite.

        And for those that are not of the `shapes` (C, h, w) by layer, where these are known.
        """
        for features in self.batches(images):
            found = tuple(tuple(layer.shape[1:]) for layer in features)
            if shapes is not None and found != shapes:
                raise _unusable(f"the backbone gives features of the shapes {found}, and {shapes} for other images")
            if not all(bool(torch.isfinite(layer).all()) for layer in features):
                raise _unusable("the backbone gives features that are not finite")
            yield features

    def normalised(self, images: Sequence[Image]) -> torch.Tensor:
        """float32 (n, 3, S, S) in channels-last order on the device."""
        return self.scaled(stack_squares(images, self._size))

    def scaled(self, squares: Image) -> torch.Tensor:
        """uint8 (n, S, S, 3) RGB as float32 (n, 3, S, S), in channels-last order on the device, by ImageNet's scale."""
        batch = torch.from_numpy(squares).to(self.device).permute(0, 3, 1, 2)
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
        named = dict(zip(names or map(str, range(len(outputs))), outputs, strict=False))
    missing = [layer for layer in layers if layer not in named]
    if missing:
        raise _unusable(f"the backbone has no output {', '.join(missing)}; it has {', '.join(named) or 'none'}")
    if not named:
        raise _unusable("the backbone gives no outputs")
    picked = [named[layer] for layer in layers or named]
    for value in picked:
        if not isinstance(value, torch.Tensor):
            raise _unusable(f"the outputs of a backbone must be tensors, got a {type(value).__name__}")
        if not value.is_floating_point() or value.layout != torch.strided:
            raise _unusable(
                "the outputs of a backbone must be dense tensors of floating-point numbers, got a tensor of "
                f"{value.dtype}, {value.layout}"
            )
    return picked


def _unusable(message: str) -> InputError:
    return InputError("infer", "BackboneError", message)


def _network(name: str, layers: tuple[str, ...], weights: State, device: torch.device) -> torch.nn.Module:
    if name in FILES:
        return _load_file(name, weights[CODE].tobytes(), device)
    if name in RESNETS:
        own = without_weights(lambda: ResNet(name, layers))
        load_arrays(own, weights)
        net = fused(own)
    else:
        net = library_network(name, layers, weights)
    net.requires_grad_(False)
    # torch's annotations know of no call with memory_format alone.
    return net.eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


@cache
def _shapes(name: str, layers: tuple[str, ...]) -> Shapes:
    return shapes_of(lambda: ResNet(name, layers)) if name in RESNETS else library_shapes(name, layers)


def _load_file(kind: str, data: bytes, device: torch.device) -> torch.nn.Module:
    """The module in a trusted file, loaded onto its device, because moving it later would leave its constants behind.

    TorchScript runs as it is written, because its optimiser rewrites it as it goes.
    """
    try:
        if kind == "torchscript":
            return Unoptimised(load_torchscript(data, device))
        return load_program(data, device).module()
    except Exception as error:  # damaged files make torch raise anything
        if is_out_of_memory(error):  # the device's fault, and not the file's
            raise MemoryError(f"the extractor cannot be loaded: {in_words(error)}") from error
        raise ConfigError(f"the extractor cannot be loaded as {FILES[kind]}: {in_words(error)}") from error


class Unoptimised(torch.nn.Module):
    """A TorchScript module that computes the same at each call."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> Any:
        return call_torchscript(self.module, x)
