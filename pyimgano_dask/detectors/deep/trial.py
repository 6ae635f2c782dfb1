"""Trying a backbone where a run begins, so that one that cannot be used ends the run there, in words."""

from __future__ import annotations

import torch

from pyimgano_dask.detectors.base import Image, State
from pyimgano_dask.detectors.deep.arguments import RESNETS, BackboneArguments
from pyimgano_dask.detectors.deep.backbones import FeatureExtractor, FeatureShapes
from pyimgano_dask.detectors.exported.runner import in_words
from pyimgano_dask.detectors.trial_images import smooth_squares
from pyimgano_dask.errors import ConfigError, InputError

# Own networks take squares of any size, so that their weights are tried on a small one.
OWN_SIZE = 64

# On CUDA features are the same when they differ by less than this share of the largest one: it rounds by the batch.
TOLERANCE = 1e-3

Layers = list[torch.Tensor]


def check_backbone(
    arguments: BackboneArguments,
    layers: tuple[str, ...],
    weights: State,
    source: str,
) -> FeatureShapes:
    """Let a backbone look at two images, and give the shapes of its features.

    Raises ConfigError naming `source` when it cannot be used.

    It must take squares of `image_size`, give finite features (N, C, h, w) for each layer, tell the images apart, and
    give the same when it is asked again. Where this process lacks its device it is tried on the CPU, since workers
    may have it. The network that is made for it is let go.
    """
    size, is_foreign = arguments.image_size, arguments.architecture not in RESNETS
    squares = smooth_squares(size if is_foreign else min(size, OWN_SIZE))[:2]
    try:
        tried = _made(arguments, layers, weights)
        first, second = _features(tried, squares)
        again = tried.features(tried.scaled(squares[:1])) if is_foreign else first
    except InputError as error:
        raise ConfigError(
            f"{source}: it cannot be used with images of {size} x {size} pixels: {error}; change image_size or layers "
            "in --model-kwargs, or take another backbone"
        ) from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    fault = _fault(first, second, again)
    if fault is not None:
        raise ConfigError(f"{source}: {fault}")
    return tuple(tuple(layer.shape[1:]) for layer in first)


def _made(arguments: BackboneArguments, layers: tuple[str, ...], weights: State) -> FeatureExtractor:
    try:
        return FeatureExtractor(arguments, layers, weights)
    except InputError:  # the device is not in this process
        return FeatureExtractor(arguments.model_copy(update={"device": "cpu"}), layers, weights)
    except RuntimeError as error:  # what devices and the code of files raise
        raise ConfigError(f"it cannot be loaded: {in_words(error)}") from error


def _features(extractor: FeatureExtractor, squares: Image) -> tuple[Layers, Layers]:
    """Those of both images, in one batch where images go through in batches."""
    step = min(extractor.batch_size, len(squares))
    batches = [extractor.features(extractor.scaled(squares[at : at + step])) for at in range(0, len(squares), step)]
    return [layer[:1] for layer in batches[0]], [layer[-1:] for layer in batches[-1]]


def _fault(first: Layers, second: Layers, again: Layers) -> str | None:
    """What is wrong with the features of two images, and of the first one when it is seen again."""
    shapes = [tuple(layer.shape) for layer in first]
    said = ", ".join(map(str, shapes))
    if any(h != w and c == h for _, c, h, w in shapes):
        return (
            f"its outputs have the shapes {said}, with the channels last; they must be (N, C, h, w), so let the "
            "extractor permute them"
        )
    if any([tuple(layer.shape) for layer in other] != shapes for other in (second, again)):
        return f"its outputs have the shapes {said} for one image and others for the next; they must stay the same"
    if not all(bool(torch.isfinite(layer).all()) for layer in first + second):
        return "its features of a plain image are not finite; the weights are damaged, take another file of them"
    if all(bool(torch.equal(one, other)) for one, other in zip(first, second, strict=True)):
        return (
            "it gives the same features for two different images, as weights of nothing but zeros do; take another "
            "file of weights"
        )
    tolerance = 0 if first[0].device.type == "cpu" else TOLERANCE
    if not all(_are_alike(one, other, tolerance) for one, other in zip(first, again, strict=True)):
        return (
            "it gives other features for the same image when it is asked again, so records would depend on the order "
            "of the images; export it in evaluation mode, without a state that changes"
        )
    return None


def _are_alike(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    return float((one - other).abs().max()) <= tolerance * float(one.abs().max())
