"""An autoencoder trained on normal images (Bergmann et al., VISAPP 2019, arXiv 1807.02011)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import cv2
import numpy as np

from pyimgano_dask.detectors.base import Color, Image, Prediction, State
from pyimgano_dask.detectors.deep.detector import at_image_size
from pyimgano_dask.detectors.deep.learning import TrainedDetector, TrainingArguments, max_train_images_knob
from pyimgano_dask.detectors.devices import device_knob
from pyimgano_dask.detectors.differences import topk_mean
from pyimgano_dask.detectors.extras import require
from pyimgano_dask.detectors.lazy import Lazy
from pyimgano_dask.detectors.registry import register
from pyimgano_dask.detectors.shared_knobs import contamination_knob, smoothing_sigma_knob
from pyimgano_dask.settings.knob import knob

if TYPE_CHECKING:
    from pyimgano_dask.detectors.deep.reconstruction import Reconstruction

SIZE_STEP = 16


class AutoencoderArguments(TrainingArguments):
    """Arguments of `vision_autoencoder`."""

    contamination: float = contamination_knob()
    color: Color = knob("rgb", "Work on the three channels of RGB, or on grey values.")
    image_size: int = knob(
        128, "Side of the square that images are resized to, in pixels.", ge=16, le=1024, multiple_of=SIZE_STEP
    )
    loss: Literal["ssim", "mse"] = knob(
        "ssim", "Error of a pixel: 1 - SSIM + absolute difference (ssim), or the squared difference (mse)."
    )
    latent_dim: int = knob(100, "Numbers that an image is compressed to.", ge=1, le=4096)
    base_channels: int = knob(
        32, "Channels of the first layer; inner ones have up to four times as many.", ge=1, le=512
    )
    epochs: int = knob(100, "Times that training goes through the images (the paper: 200).", ge=1)
    batch_size: int = knob(16, "Most images of one step of training (the paper: 128).", ge=1)
    lr: float = knob(1e-3, "Learning rate of Adam (the paper: 2e-4).", gt=0, le=1e30)
    weight_decay: float = knob(1e-5, "Weight decay of training.", ge=0, le=1)
    max_train_images: int = max_train_images_knob(512)
    smoothing_sigma: float = smoothing_sigma_knob(2.0)
    reduction: Literal["max", "topk_mean"] = knob("topk_mean", "How the map becomes the score.")
    topk: float = knob(0.01, "Share of the largest map values that topk_mean averages.", gt=0, le=1)
    device: str | None = device_knob()


@register
class Autoencoder(TrainedDetector[AutoencoderArguments]):
    """Difference between an image and what an autoencoder that has seen normal images only makes of it.

    The map is the error that training makes small, at each pixel of the image resized to image_size: with `ssim`
    1 − SSIM + |x − y|, with `mse` |x − y|² of grey values in [0, 1], averaged over channels; smoothed there, then
    brought to the image's own size. The score is taken of the map at image_size.
    """

    name = "vision_autoencoder"
    summary = "What a small autoencoder cannot rebuild of an image; a baseline that trains on normal images."
    tags = ("vision", "deep", "autoencoder", "reconstruction", "torch", "pixel_map")
    reference = "Bergmann et al., Improving Unsupervised Defect Segmentation by SSIM to Autoencoders, VISAPP 2019."
    arguments_type = AutoencoderArguments
    extra: ClassVar[str | None] = "torch"
    free_arguments = frozenset({"contamination", "device", "smoothing_sigma", "reduction", "topk"})

    def __init__(self, arguments: AutoencoderArguments) -> None:
        super().__init__(arguments)
        self._weights: State | None = None
        self._reconstruction: Lazy[Reconstruction] | None = None

    @property
    def color(self) -> Color:
        return self.arguments.color

    @property
    def contamination(self) -> float:
        return self.arguments.contamination

    @property
    def is_fitted(self) -> bool:
        return self._weights is not None

    def finalize(self, state: State) -> Self:
        require("torch", self.name)
        from pyimgano_dask.detectors.deep.reconstruction import train_autoencoder

        return self._with_weights(train_autoencoder(self.arguments, state["images"], self.name))

    def state(self) -> State:
        if self._weights is None:
            raise RuntimeError(f"{self.name} is not fitted: call fit or with_state first")
        return self._weights

    def with_state(self, state: State) -> Self:
        require("torch", self.name)
        from pyimgano_dask.detectors.deep.reconstruction import weight_shapes
        from pyimgano_dask.detectors.deep.weights import fitting_weights

        shapes, source = weight_shapes(self.arguments), f"{self.name}: the state"
        return self._with_weights(fitting_weights(shapes, state, source, "the network of these arguments"))

    def _with_weights(self, weights: State) -> Self:
        new = copy.copy(self)
        new._weights = weights
        new._reconstruction = Lazy(partial(_reconstruction, self.arguments, weights))
        return new

    def predict(self, images: Sequence[Image], references: Sequence[Image] = ()) -> Prediction:
        if self._reconstruction is None:
            raise RuntimeError(f"{self.name} is not fitted: call fit or with_state first")
        size, sigma = self.arguments.image_size, self.arguments.smoothing_sigma
        scores, maps = np.empty(len(images)), []
        for number, errors in enumerate(self._reconstruction.get().residuals(images)):
            smooth = np.asarray(cv2.GaussianBlur(errors, (0, 0), sigma), np.float32) if sigma > 0 else errors
            height, width = images[number].shape[:2]
            anomaly_map, largest = at_image_size(smooth, size, 0, (height, width))
            scores[number] = largest if self.arguments.reduction == "max" else topk_mean(smooth, self.arguments.topk)
            maps.append(anomaly_map)
        return Prediction(scores, tuple(maps))


def _reconstruction(arguments: AutoencoderArguments, weights: State) -> Reconstruction:
    from pyimgano_dask.detectors.deep.reconstruction import Reconstruction

    return Reconstruction(arguments, weights)
