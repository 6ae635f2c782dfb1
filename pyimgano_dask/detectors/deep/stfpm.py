"""STFPM: student-teacher feature pyramid matching (Wang et al., BMVC 2021, arXiv 2103.04257)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import cv2
import numpy as np

from pyimgano_dask.detectors.base import Image, Prediction, State
from pyimgano_dask.detectors.deep.arguments import RESNETS, BackboneArguments
from pyimgano_dask.detectors.deep.detector import BackboneDetector, Floats, at_image_size
from pyimgano_dask.detectors.deep.learning import TrainedDetector, TrainingArguments
from pyimgano_dask.detectors.lazy import Lazy
from pyimgano_dask.detectors.registry import register
from pyimgano_dask.detectors.shared_knobs import smoothing_sigma_knob
from pyimgano_dask.settings.knob import knob

if TYPE_CHECKING:
    from pyimgano_dask.detectors.deep.pyramid import StudentAndTeacher

STUDENT = "student/"


class StfpmArguments(TrainingArguments, BackboneArguments):
    """Arguments of `vision_stfpm`."""

    epochs: int = knob(30, "Times that training goes through the images (the paper: 100).", ge=1)
    batch_size: int = knob(8, "Most images of one step of training (the paper: 32).", ge=1)
    lr: float = knob(0.4, "Learning rate of stochastic gradient descent with momentum 0.9.", gt=0, le=1e30)
    weight_decay: float = knob(1e-4, "Weight decay of training.", ge=0, le=1)
    smoothing_sigma: float = smoothing_sigma_knob(0.0)

    def model_post_init(self, context: Any, /) -> None:
        """Check what the types cannot say."""
        if self.architecture not in RESNETS:
            raise ValueError(
                f"backbone {self.backbone!r} cannot be trained, and the student is one of the same kind; take one of "
                f"{', '.join(RESNETS)}"
            )
        super().model_post_init(context)


@register
class Stfpm(TrainedDetector[StfpmArguments], BackboneDetector[StfpmArguments]):
    """Distance between the features of a teacher and of a student that learned them on normal images.

    At each place of a layer: ½ ‖t − s‖² of the features t and s, each brought to length 1. The map is the geometric
    mean of the layers' distances, each enlarged to image_size; the paper takes their product, which orders the pixels
    in the same way. The score is the largest value of the map at image_size.
    """

    name = "vision_stfpm"
    summary = "Features that a student network did not learn from its teacher on normal images (STFPM); it trains."
    tags = ("vision", "deep", "student-teacher", "pyramid", "torch", "pixel_map")
    reference = "Wang et al., Student-Teacher Feature Pyramid Matching for Anomaly Detection, BMVC 2021."
    arguments_type = StfpmArguments
    default_layers = ("layer1", "layer2", "layer3")
    fitted_names = ()

    def __init__(self, arguments: StfpmArguments) -> None:
        super().__init__(arguments)
        self._pair: Lazy[StudentAndTeacher] | None = None

    def finalize(self, state: State) -> Self:
        from pyimgano_dask.detectors.deep.pyramid import train_student

        weights = self._weights.get()
        return self.with_fitted(train_student(self.arguments, self.layers, weights, state["images"], self.name))

    def state(self) -> State:
        weights = super().state()
        assert self._fitted is not None
        return {**weights, **{STUDENT + key: value for key, value in self._fitted.items()}}

    def with_state(self, state: State) -> Self:
        opened = super().with_state(state)
        from pyimgano_dask.detectors.deep.backbones import checked_weights

        student = {key.removeprefix(STUDENT): state[key] for key in state if key.startswith(STUDENT)}
        source = f"{self.name}: the student in the state"
        return opened.with_fitted(checked_weights(self.arguments, self.layers, student, source))

    def with_fitted(self, fitted: State) -> Self:
        new = super().with_fitted(fitted)
        new._pair = Lazy(partial(_pair, self.arguments, self.layers, self._weights, fitted))
        return new

    def predict(self, images: Sequence[Image], references: Sequence[Image] = ()) -> Prediction:
        if self._pair is None:
            raise self.not_fitted()
        size, sigma = self.arguments.image_size, self.arguments.smoothing_sigma
        scores, maps = np.empty(len(images)), []
        for number, layers in enumerate(self._pair.get().distances(images)):
            height, width = images[number].shape[:2]
            anomaly_map, scores[number] = at_image_size(geometric_mean(layers, size), size, sigma, (height, width))
            maps.append(anomaly_map)
        return Prediction(scores, tuple(maps))


def _pair(
    arguments: StfpmArguments, layers: tuple[str, ...], teacher: Lazy[State], student: State
) -> StudentAndTeacher:
    from pyimgano_dask.detectors.deep.backbones import FeatureExtractor
    from pyimgano_dask.detectors.deep.pyramid import StudentAndTeacher

    return StudentAndTeacher(
        FeatureExtractor(arguments, layers, teacher.get()), FeatureExtractor(arguments, layers, student)
    )


def geometric_mean(layers: Sequence[Floats], size: int) -> Floats:
    """Of the layers' distances (h, w), each enlarged to (size, size) bilinearly: float32 (size, size)."""
    product = np.ones((size, size), np.float32)
    for layer in layers:
        product *= cv2.resize(layer, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.asarray(product ** np.float32(1 / len(layers)), dtype=np.float32)
