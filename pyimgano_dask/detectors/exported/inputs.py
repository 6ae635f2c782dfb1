"""From images to the input of an exported model: size, colour, range, normalisation, layout, whole batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.detectors.base import Color, Image
from pyimgano_dask.detectors.exported.arguments import LARGEST_SIDE, ExportedModelArguments, Layout
from pyimgano_dask.errors import ConfigError

Floats = NDArray[np.float32]

DEFAULT_HW = (256, 256)  # the size that anomalib's models are trained at unless told otherwise
DTYPES = ("float32", "float16", "uint8")
UNKNOWN_SHAPE = (None, None, None, None)
LARGEST_INPUT = 4 << 30  # bytes of a batch


@dataclass(frozen=True)
class ModelInput:
    """What a file says of its input: four axes, None where an axis is free or unknown, and the type of the values."""

    shape: tuple[int | None, ...] = UNKNOWN_SHAPE
    dtype: str = "float32"


@dataclass(frozen=True)
class InputPlan:
    """How `batch_size` images become one input array."""

    height: int
    width: int
    color: Color
    swaps_red_and_blue: bool
    layout: Layout
    batch_size: int
    dtype: str
    divisor: np.float32
    mean: Floats
    std: Floats

    @classmethod
    def of(cls, arguments: ExportedModelArguments, declared: ModelInput) -> Self:
        """The plan for a model, from its file and the arguments; raises ConfigError where the two disagree."""
        if len(declared.shape) != 4:
            raise ConfigError(
                f"its input has {len(declared.shape)} axes, {_shape_in_words(declared.shape)}; images need four: "
                "(batch, channels, height, width), or with the channels last"
            )
        if declared.dtype not in DTYPES:
            raise ConfigError(f"its input is of the type {declared.dtype}; it must be one of {', '.join(DTYPES)}")
        layout = arguments.layout or _layout_of(declared.shape)
        batch, *rest = declared.shape
        channels, height, width = rest if layout == "NCHW" else (rest[2], rest[0], rest[1])
        height, width = _agreed_size(arguments.input_hw, (height, width))
        color = arguments.color or ("gray" if channels == 1 else "rgb")
        n_channels = 1 if color == "gray" else 3
        if channels not in (n_channels, None):
            raise ConfigError(
                f"its input has {channels} channels in the shape {_shape_in_words(declared.shape)} read as {layout}; "
                f"color {color} has {n_channels}: declare color or layout as the model needs them"
            )
        if batch is not None and arguments.batch_size not in (batch, None):
            raise ConfigError(f"batch_size is {arguments.batch_size}, but the model takes {batch} images at a time")
        batch_size = batch or arguments.batch_size or 1
        _check_memory(batch_size, height, width, n_channels)
        is_byte = (arguments.value_range or ("byte" if declared.dtype == "uint8" else "unit")) == "byte"
        if declared.dtype == "uint8" and (not is_byte or arguments.mean or arguments.std):
            raise ConfigError(
                "its input is of the type uint8, which takes pixels as they are: leave out mean, std and value_range"
            )
        return cls(
            height,
            width,
            "gray" if color == "gray" else "rgb",
            color == "bgr",
            layout,
            batch_size,
            declared.dtype,
            np.float32(1 if is_byte else 255),
            _per_channel("mean", arguments.mean or (0.0,), n_channels),
            _per_channel("std", arguments.std or (1.0,), n_channels),
        )

    def array(self, images: Sequence[Image]) -> NDArray[np.generic]:
        """The input for 1 to `batch_size` images, whose last one fills the batch; images as `color` says."""
        shape = (self.batch_size, self.height, self.width, 1 if self.color == "gray" else 3)
        array = np.empty(shape, np.float32)
        for number, image in enumerate(images):
            array[number] = self._pixels(image)
        array[len(images) :] = array[len(images) - 1]
        if self.layout == "NCHW":
            array = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
        if self.dtype == "uint8":
            return np.rint(array).astype(np.uint8)
        return array.astype(self.dtype, copy=False)

    def _pixels(self, image: Image) -> Floats:
        """One image, (height, width, channels)."""
        pixels = resize_bilinear(image, (self.height, self.width))
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if self.swaps_red_and_blue:
            pixels = pixels[..., ::-1]
        values: Floats = (pixels / self.divisor - self.mean) / self.std
        return values


def resize_bilinear(image: Image, size_hw: tuple[int, int]) -> Floats:
    """The image at this size, float32 in [0, 255], between the four nearest pixels of each place.

    Pixel centres lie at half numbers and the edge is repeated, without averaging where it shrinks: the resize that
    anomalib puts into its exports (`torch.nn.functional.interpolate`, bilinear, no antialiasing).
    """
    if image.shape[:2] == size_hw:
        return image.astype(np.float32)
    top, bottom, down = _neighbours(image.shape[0], size_hw[0])
    left, right, across = _neighbours(image.shape[1], size_hw[1])
    tail = (1,) * (image.ndim - 2)
    down, across = down.reshape(-1, 1, *tail), across.reshape(-1, *tail)
    upper, lower = image[top], image[bottom]
    above = upper[:, left] * (1 - across) + upper[:, right] * across
    below = lower[:, left] * (1 - across) + lower[:, right] * across
    return np.asarray(above * (1 - down) + below * down, dtype=np.float32)


def _neighbours(length: int, wanted: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """For each of `wanted` places along an axis: the pixels on both sides of it, and the weight of the second."""
    places = np.maximum((np.arange(wanted) + 0.5) * (length / wanted) - 0.5, 0)
    before = np.minimum(places.astype(np.intp), length - 1)
    after = np.minimum(before + 1, length - 1)
    return before, after, (places - before).astype(np.float32)


def _layout_of(shape: tuple[int | None, ...]) -> Layout:
    return "NHWC" if shape[1] not in (1, 3, None) and shape[3] in (1, 3) else "NCHW"


def _agreed_size(declared: tuple[int, int] | None, file_hw: tuple[int | None, int | None]) -> tuple[int, int]:
    """Height and width: the file's where it is fixed, else the declared ones."""
    wanted = declared or (file_hw[0] or DEFAULT_HW[0], file_hw[1] or DEFAULT_HW[1])
    if any(fixed not in (size, None) for size, fixed in zip(wanted, file_hw, strict=True)):
        raise ConfigError(
            f"input_hw is {wanted[0]} x {wanted[1]}, but the model takes {file_hw[0] or 'any'} x {file_hw[1] or 'any'}"
        )
    return wanted


def _check_memory(batch_size: int, height: int, width: int, n_channels: int) -> None:
    """Raise ConfigError for an input too large to make."""
    n_bytes = batch_size * height * width * n_channels * np.dtype(np.float32).itemsize
    if max(height, width) > LARGEST_SIDE or n_bytes > LARGEST_INPUT:
        raise ConfigError(
            f"its input is {batch_size} image(s) of {height} x {width} pixels, {n_bytes / 2**30:.1f} GiB; a side may "
            f"have at most {LARGEST_SIDE} pixels and a batch {LARGEST_INPUT >> 30} GiB: export it for smaller images "
            "or fewer at a time, or declare a smaller input_hw or batch_size where the file leaves them free"
        )


def _per_channel(name: str, values: tuple[float, ...], n_channels: int) -> Floats:
    if len(values) not in (1, n_channels):
        raise ConfigError(f"{name} has {len(values)} numbers, but the model takes {n_channels} channels")
    return np.array(values, np.float32)


def _shape_in_words(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
