"""What detectors share that train a network on the normal images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from pyimgano_dask.detectors.base import Detector, Image, State, subsample
from pyimgano_dask.detectors.deep.squares import stack_squares
from pyimgano_dask.detectors.shared_knobs import random_state_knob
from pyimgano_dask.settings.knob import Block, knob


def max_train_images_knob(default: int) -> Any:
    """How many of the normal images are trained on."""
    return knob(
        default, "Training images to use; more are subsampled. Bounds the time and the memory of training.", ge=1
    )


class TrainingArguments(Block):
    """Arguments of every detector that trains a network."""

    image_size: int = knob(256, "Side of the square that images are resized to, in pixels.", ge=64, le=4096)
    max_train_images: int = max_train_images_knob(256)
    random_state: int = random_state_knob()


TrainingArgs = TypeVar("TrainingArgs", bound=TrainingArguments)


class TrainedDetector(Detector[TrainingArgs], Generic[TrainingArgs]):
    """Base of detectors that train a network.

    Gradient descent is no sum: what fitting reduces are the images themselves, resized, uint8 (n, S, S) or
    (n, S, S, 3) with n at most max_train_images, and `finalize` trains on all of them.
    """

    trains_network = True

    def select_training(self, n_images: int) -> Sequence[int]:
        return subsample(n_images, self.arguments.max_train_images, self.arguments.random_state)

    def accumulate(self, images: Sequence[Image]) -> State:
        return {"images": stack_squares(images, self.arguments.image_size)}

    @classmethod
    def merge(cls, states: Sequence[State]) -> State:
        return {"images": np.concatenate([state["images"] for state in states])}
