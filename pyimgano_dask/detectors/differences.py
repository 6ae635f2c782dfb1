"""What detectors of differences share: their arguments, and how channels become a map and a map a score."""

from __future__ import annotations

import math
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.detectors.base import Color, Detector
from pyimgano_dask.detectors.shared_knobs import contamination_knob
from pyimgano_dask.settings.knob import Block, knob


class MapScoring(Protocol):
    """Arguments that say how a map becomes a score."""

    @property
    def reduction(self) -> Literal["max", "mean", "topk_mean"]:
        """Which values of the map count."""

    @property
    def topk(self) -> float:
        """Share of the largest values that topk_mean averages."""


class DifferenceArguments(Block):
    """Arguments of every detector whose map is a difference of images."""

    contamination: float = contamination_knob()
    color: Color = knob("gray", "Compare grey values, or the three channels of RGB.")
    channel_reduce: Literal["max", "mean", "l2"] = knob(
        "max", "How the three channels become one value: max, mean, or root mean square (l2)."
    )
    reduction: Literal["max", "mean", "topk_mean"] = knob("topk_mean", "How the map becomes the score.")
    topk: float = knob(0.01, "Share of the largest map values that topk_mean averages.", gt=0, le=1)


DifferenceArgs = TypeVar("DifferenceArgs", bound=DifferenceArguments)


class DifferenceDetector(Detector[DifferenceArgs], Generic[DifferenceArgs]):
    """Base of detectors whose map is a difference of images."""

    @property
    def color(self) -> Color:
        return self.arguments.color

    @property
    def contamination(self) -> float:
        return self.arguments.contamination

    @property
    def idle_arguments(self) -> frozenset[str]:
        of_colours = frozenset({"channel_reduce"}) if self.color == "gray" else frozenset()
        return super().idle_arguments | of_colours


def score_of(anomaly_map: NDArray[np.float32], arguments: MapScoring) -> float:
    """The score of a map (H, W)."""
    if arguments.reduction == "max":
        return float(anomaly_map.max())
    if arguments.reduction == "mean":
        return float(anomaly_map.mean(dtype=np.float64))
    return topk_mean(anomaly_map, arguments.topk)


def topk_mean(values: NDArray[np.floating], topk: float) -> float:
    """Mean of the ceil(topk · n) largest values.

    The sum is exactly rounded (`math.fsum`), so that it does not depend on the order in which a processor's
    partition happens to leave the values.
    """
    flat = values.ravel()
    count = min(flat.size, max(1, math.ceil(topk * flat.size)))
    largest = np.partition(flat, flat.size - count)[flat.size - count :]
    return math.fsum(largest.tolist()) / count


def reduce_channels(values: NDArray[np.float32], mode: Literal["max", "mean", "l2"]) -> NDArray[np.float32]:
    """(h, w, 3) → (h, w)."""
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    if mode == "max":
        return np.maximum(np.maximum(red, green), blue)
    if mode == "mean":
        return (red + green + blue) / np.float32(3)
    return np.asarray(np.sqrt((red * red + green * green + blue * blue) / np.float32(3)), dtype=np.float32)
