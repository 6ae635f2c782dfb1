"""Aligned-pixel detectors: each pixel is compared with its own statistics over the normal images.

For parts that stand at the same place in every photograph. Images are resized to a common size by area
interpolation, compared pixel by pixel, and the map is brought back to the image's own size (bilinear).
The answers are those of the detectors of the same names in the package pyimgano 0.9.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.detectors.base import Image, Prediction, State, subsample
from pyimgano_dask.detectors.differences import DifferenceArguments, DifferenceDetector, reduce_channels, score_of
from pyimgano_dask.detectors.registry import register
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.knob import knob

MAD_TO_SIGMA = 0.6745  # 0.75 quantile of the standard normal: scales a MAD to a standard deviation
STATISTICS_BLOCK_ROWS = 64


class PixelArguments(DifferenceArguments):
    """Arguments all aligned-pixel detectors share."""

    resize_hw: tuple[int, int] = knob((256, 256), "Height and width images are compared at.")

    def model_post_init(self, context: Any, /) -> None:
        """Check what the types cannot say."""
        if min(self.resize_hw) < 1:
            raise ValueError(f"resize_hw must be two sizes of at least 1, got {self.resize_hw}")


class MeanAbsdiffArguments(PixelArguments):
    """Arguments of `vision_pixel_mean_absdiff_map`."""

    channel_reduce: Literal["max", "mean", "l2"] = knob(
        "mean", "How the three channels become one value: max, mean, or root mean square (l2)."
    )


class GaussianArguments(PixelArguments):
    """Arguments of `vision_pixel_gaussian_map`."""

    std_floor: float = knob(1.0, "Smallest standard deviation, in grey levels.", ge=0)
    eps: float = knob(1e-6, "Added to the standard deviation before dividing.", gt=0)


class MadArguments(PixelArguments):
    """Arguments of `vision_pixel_mad_map`."""

    mad_floor: float = knob(1.0, "Smallest median absolute deviation, in grey levels.", ge=0)
    eps: float = knob(1e-6, "Added to the median absolute deviation before dividing.", gt=0)
    max_train_images: int = knob(
        128, "Training images to take the medians over; more are subsampled. Bounds the memory of fitting.", ge=1
    )
    random_state: int = knob(0, "Seed of the subsample.", ge=0)
    consistency_correction: bool = knob(True, "Scale by 0.6745, so that the map reads as standard deviations.")


PixelArgs = TypeVar("PixelArgs", bound=PixelArguments)


class AlignedPixelDetector(DifferenceDetector[PixelArgs], Generic[PixelArgs]):
    """Resizing, comparing at a common size, and scoring; subclasses hold the statistics.

    A fitted instance has `center` and `scale`, float32 (h, w) or (h, w, 3): the map is |x − center| · scale.
    """

    is_position_bound: ClassVar[bool] = True
    state_names: ClassVar[tuple[str, ...]]

    def __init__(self, arguments: PixelArgs) -> None:
        super().__init__(arguments)
        self._state: State | None = None
        self._center: NDArray[np.float32] | None = None
        self._gain: NDArray[np.float32] | np.float32 | None = None

    @property
    def is_fitted(self) -> bool:
        return self._state is not None

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.arguments.resize_hw if self.color == "gray" else (*self.arguments.resize_hw, 3)

    def select_training(self, n_images: int) -> Sequence[int]:
        return range(n_images)

    def state(self) -> State:
        if self._state is None:
            raise RuntimeError(f"{self.name} is not fitted: call fit or with_state first")
        return self._state

    def with_state(self, state: State) -> Self:
        for key in self.state_names:
            if key not in state or state[key].shape != self._shape:
                found = state[key].shape if key in state else "no such array"
                raise ConfigError(f"{self.name}: the state's {key} must have shape {self._shape}, got {found}")
            if state[key].dtype.kind not in "fiu" or not np.isfinite(state[key]).all():
                raise ConfigError(f"{self.name}: the state's {key} must hold finite numbers only")
        copy = type(self)(self.arguments)
        copy._state = {key: np.ascontiguousarray(state[key], dtype=np.float32) for key in self.state_names}
        copy._center = copy._state[self.state_names[0]]
        copy._gain = copy._gain_of(copy._state)
        return copy

    def _gain_of(self, state: State) -> NDArray[np.float32] | np.float32:
        """Factor that turns a difference in grey levels into the anomaly of a pixel."""
        raise NotImplementedError

    def _clip(self, anomaly_map: NDArray[np.float32]) -> NDArray[np.float32]:
        return anomaly_map

    def resize(self, image: Image) -> Image:
        """The image at the size images are compared at (area interpolation)."""
        height, width = self.arguments.resize_hw
        if image.shape[:2] == (height, width):
            return image
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return np.asarray(resized, dtype=np.uint8)

    def predict(self, images: Sequence[Image], references: Sequence[Image] = ()) -> Prediction:
        maps = tuple(self._map(image) for image in images)
        scores = np.array([score_of(anomaly_map, self.arguments) for anomaly_map in maps], dtype=np.float64)
        return Prediction(scores, maps)

    def _map(self, image: Image) -> NDArray[np.float32]:
        if self._center is None or self._gain is None:
            raise RuntimeError(f"{self.name} is not fitted: call fit or with_state first")
        anomaly = np.subtract(self.resize(image), self._center, dtype=np.float32)
        np.abs(anomaly, out=anomaly)
        anomaly *= self._gain
        if anomaly.ndim == 3:
            anomaly = reduce_channels(anomaly, self.arguments.channel_reduce)
        anomaly = self._clip(anomaly)
        height, width = image.shape[:2]
        if anomaly.shape != (height, width):
            anomaly = cv2.resize(anomaly, (width, height), interpolation=cv2.INTER_LINEAR)
            anomaly = self._clip(np.asarray(anomaly, dtype=np.float32))
        return anomaly


class _MomentDetector(AlignedPixelDetector[PixelArgs], Generic[PixelArgs]):
    """Fitting by exact integer sums, so that any grouping of the images gives the same bits."""

    with_squares: bool = False

    def accumulate(self, images: Sequence[Image]) -> State:
        total = np.zeros(self._shape, dtype=np.int64)
        squares = np.zeros(self._shape, dtype=np.int64)
        for image in images:
            resized = self.resize(image)
            total += resized
            if self.with_squares:
                squares += np.square(resized, dtype=np.uint16)
        state = {"count": np.array(len(images), dtype=np.int64), "total": total}
        return {**state, "squares": squares} if self.with_squares else state

    @classmethod
    def merge(cls, states: Sequence[State]) -> State:
        return {key: np.sum([state[key] for state in states], axis=0) for key in states[0]}


@register
class PixelMeanAbsdiffMap(_MomentDetector[MeanAbsdiffArguments]):
    """|x − mean| / 255, clipped to [0, 1]."""

    name = "vision_pixel_mean_absdiff_map"
    summary = "Difference from the mean normal image, in [0, 1]."
    tags = ("vision", "classical", "template", "pixel_stats", "numpy", "pixel_map")
    reference = "Template comparison: |x - mean| / 255."
    arguments_type = MeanAbsdiffArguments
    state_names = ("mean",)

    def finalize(self, state: State) -> Self:
        return self.with_state({"mean": state["total"] / state["count"]})

    def _gain_of(self, state: State) -> np.float32:
        return np.float32(1 / 255)

    def _clip(self, anomaly_map: NDArray[np.float32]) -> NDArray[np.float32]:
        np.clip(anomaly_map, 0, 1, out=anomaly_map)
        return anomaly_map


@register
class PixelGaussianMap(_MomentDetector[GaussianArguments]):
    """|x − mean| / (std + eps), the standard deviation with n − 1 and floored."""

    name = "vision_pixel_gaussian_map"
    summary = "Distance from the mean normal image in standard deviations of each pixel."
    tags = ("vision", "classical", "template", "pixel_stats", "gaussian", "numpy", "pixel_map")
    reference = "Per-pixel Gaussian: |x - mean| / (std + 1e-6)."
    arguments_type = GaussianArguments
    state_names = ("mean", "std")
    with_squares = True

    def finalize(self, state: State) -> Self:
        count = int(state["count"])
        total, squares = state["total"].astype(np.float64), state["squares"].astype(np.float64)
        spread = squares - total * total / count
        std = np.sqrt(np.maximum(spread / max(count - 1, 1), 0))
        floor = max(self.arguments.std_floor, self.arguments.eps)
        return self.with_state({"mean": total / count, "std": np.maximum(std, floor)})

    def _gain_of(self, state: State) -> NDArray[np.float32]:
        return (1 / (state["std"] + self.arguments.eps)).astype(np.float32)


@register
class PixelMadMap(AlignedPixelDetector[MadArguments]):
    """0.6745 |x − median| / (MAD + eps), the median absolute deviation floored."""

    name = "vision_pixel_mad_map"
    summary = "Distance from the median normal image in robust standard deviations of each pixel."
    tags = ("vision", "classical", "template", "pixel_stats", "robust", "numpy", "pixel_map")
    reference = "Robust z-score: 0.6745 |x - median| / (MAD + 1e-6)."
    arguments_type = MadArguments
    state_names = ("median", "mad")

    def select_training(self, n_images: int) -> Sequence[int]:
        return subsample(n_images, self.arguments.max_train_images, self.arguments.random_state)

    def accumulate(self, images: Sequence[Image]) -> State:
        stack = np.empty((len(images), *self._shape), dtype=np.uint8)
        for slot, image in zip(stack, images, strict=True):
            slot[...] = self.resize(image)
        return {"stack": stack}

    @classmethod
    def merge(cls, states: Sequence[State]) -> State:
        return {"stack": np.concatenate([state["stack"] for state in states])}

    def finalize(self, state: State) -> Self:
        stack = state["stack"]
        median = np.empty(self._shape, dtype=np.float32)
        mad = np.empty(self._shape, dtype=np.float32)
        for start in range(0, self._shape[0], STATISTICS_BLOCK_ROWS):
            rows = slice(start, start + STATISTICS_BLOCK_ROWS)
            median[rows], mad[rows] = _median_and_mad(stack[:, rows])
        floor = max(self.arguments.mad_floor, self.arguments.eps)
        return self.with_state({"median": median, "mad": np.maximum(mad, floor)})

    def _gain_of(self, state: State) -> NDArray[np.float32]:
        factor = MAD_TO_SIGMA if self.arguments.consistency_correction else 1.0
        return (factor / (state["mad"] + self.arguments.eps)).astype(np.float32)


def _median_and_mad(stack: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Median and median absolute deviation over axis 0 of uint8 (n, ...), exact: in halves and quarters of a level."""
    twice_median = _twice_median(stack.astype(np.int16))
    deviations = np.abs(2 * stack.astype(np.int16) - twice_median)
    quadruple_mad = _twice_median(deviations)
    return (twice_median / 2).astype(np.float32), (quadruple_mad / 4).astype(np.float32)


def _twice_median(values: NDArray[np.int16]) -> NDArray[np.int16]:
    """Sum of the two middle values (twice the middle one) over axis 0."""
    ordered = np.sort(values, axis=0)
    n = len(ordered)
    return np.asarray(ordered[(n - 1) // 2] + ordered[n // 2])
