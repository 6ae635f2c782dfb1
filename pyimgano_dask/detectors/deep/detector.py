"""What detectors on the features of a backbone share: the backbone itself, state, and maps of the image's own size."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.detectors.base import Color, Detector, Image, State
from pyimgano_dask.detectors.deep.arguments import FILES, RESNETS, BackboneArguments
from pyimgano_dask.detectors.extras import require
from pyimgano_dask.detectors.lazy import Lazy
from pyimgano_dask.detectors.model_files import ModelFiles
from pyimgano_dask.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from pyimgano_dask.detectors.deep.backbones import FeatureExtractor, FeatureShapes

Floats = NDArray[np.float32]
BACKBONE = "backbone/"

BackboneArgs = TypeVar("BackboneArgs", bound=BackboneArguments)


class BackboneDetector(Detector[BackboneArgs], Generic[BackboneArgs]):
    """Base of detectors on the features of a backbone.

    The weights are part of the state: a checkpoint needs no other file. `fitted_names` are the arrays of the state
    that fitting makes.
    """

    extra: ClassVar[str | None] = "torch"
    free_arguments = frozenset({"contamination", "device", "smoothing_sigma", "n_neighbors"})
    default_layers: ClassVar[tuple[str, ...]]
    fitted_names: ClassVar[tuple[str, ...]]

    def __init__(self, arguments: BackboneArgs) -> None:
        super().__init__(arguments)
        self._fitted: State | None = None
        self._shapes: FeatureShapes | None = None
        self._use(Lazy(partial(_read_backbone, arguments, self.layers, ModelFiles())))

    def _use(self, weights: Lazy[State]) -> None:
        self._weights = weights
        self.extractor = Lazy(partial(_extractor, self.arguments, self.layers, weights))

    @property
    def color(self) -> Color:
        return "rgb"

    @property
    def contamination(self) -> float:
        return self.arguments.contamination

    @property
    def is_fitted(self) -> bool:
        return self._fitted is not None

    def advice(self) -> tuple[str, ...]:
        arguments = self.arguments
        if arguments.architecture not in RESNETS or arguments.weights_path is not None or arguments.pretrained:
            return ()
        remedy = f"fit {self.name} anew with weights" if self.is_fitted else "give weights"
        return (
            f"{self.name} works with random weights, which see only what is plain to see; {remedy} learned from "
            "photographs: weights_path in --model-kwargs, or --pretrained (docs/DETECTORS.md)",
        )

    @property
    def runs_code(self) -> bool:
        return self.arguments.architecture in FILES

    @property
    def libraries(self) -> frozenset[str]:
        """torch, and the library that has the network; whoever it had its weights from, they are part of the state."""
        library, colon, _ = self.arguments.architecture.partition(":")
        return super().libraries | (frozenset({library}) if colon else frozenset())

    @property
    def layers(self) -> tuple[str, ...]:
        """The outputs of the backbone that are used; empty for all."""
        if self.arguments.layers is not None:
            return self.arguments.layers
        return self.default_layers if self.arguments.architecture in RESNETS else ()

    def opened(self, files: ModelFiles) -> Self:
        opened = self._with_weights(_read_backbone(self.arguments, self.layers, files))
        path, backbone = self.arguments.weights_path, self.arguments.backbone
        shapes = opened._try_backbone(f"backbone {backbone}" if path is None else f"weights_path: {path!r}")
        if self.arguments.architecture not in RESNETS:  # those were tried at another size
            opened._shapes = shapes
        return opened

    def check(self) -> tuple[str, ...]:
        self._try_backbone(f"{self.name}: the backbone in the state")
        return ()

    def _try_backbone(self, source: str) -> FeatureShapes:
        from pyimgano_dask.detectors.deep.trial import check_backbone

        return check_backbone(self.arguments, self.layers, self._weights.get(), source)

    def features_to_learn(self, images: Sequence[Image]) -> Iterator[list[Tensor]]:
        """Features of normal images, as `FeatureExtractor.sound_batches` gives them."""
        return self.extractor.get().sound_batches(images, self._shapes)

    def select_training(self, n_images: int) -> Sequence[int]:
        return range(n_images)

    def state(self) -> State:
        if self._fitted is None:
            raise self.not_fitted()
        weights = {BACKBONE + key: value for key, value in self._weights.get().items()}
        return {**weights, **{key: self._fitted[key] for key in self.fitted_names}}

    def with_state(self, state: State) -> Self:
        weights = {key.removeprefix(BACKBONE): state[key] for key in state if key.startswith(BACKBONE)}
        missing = [key for key in self.fitted_names if key not in state]
        if missing:
            raise ConfigError(f"{self.name}: the state has no array {', '.join(missing)}")
        odd = next((key for key in self.fitted_names if not _is_finite(state[key])), None)
        if odd is not None:
            raise ConfigError(f"{self.name}: the state's {odd} must hold finite numbers only")
        fitted = {key: _in_native_form(state[key]) for key in self.fitted_names}
        self.check_fitted(fitted)
        require("torch", self.name)
        from pyimgano_dask.detectors.deep.backbones import checked_weights

        source = f"{self.name}: the backbone in the state"
        return self._with_weights(checked_weights(self.arguments, self.layers, weights, source)).with_fitted(fitted)

    def check_fitted(self, fitted: State) -> None:
        """Raise ConfigError unless the arrays fit the arguments and each other."""

    def _with_weights(self, weights: State) -> Self:
        new = copy.copy(self)
        new._use(Lazy(partial(_itself, weights)))
        new._shapes = None
        return new

    def with_fitted(self, fitted: State) -> Self:
        """A copy with the arrays that fitting made."""
        new = copy.copy(self)
        new._fitted = fitted
        return new

    def not_fitted(self) -> RuntimeError:
        """What to raise where a fitted detector is needed."""
        return RuntimeError(f"{self.name} is not fitted: call fit or with_state first")


def _read_backbone(arguments: BackboneArguments, layers: tuple[str, ...], files: ModelFiles) -> State:
    require("torch", "a backbone")
    from pyimgano_dask.detectors.deep.backbones import read_backbone

    return read_backbone(arguments, layers, files)


def _itself(weights: State) -> State:
    return weights


def _extractor(arguments: BackboneArguments, layers: tuple[str, ...], weights: Lazy[State]) -> FeatureExtractor:
    from pyimgano_dask.detectors.deep.backbones import FeatureExtractor

    return FeatureExtractor(arguments, layers, weights.get())


def at_image_size(values: Floats, size: int, sigma: float, image_hw: tuple[int, int]) -> tuple[Floats, float]:
    """A grid of anomalies (h, w) as a map of the image's size (H, W), and its largest value before that last step.

    The grid is enlarged to (size, size), smoothed with a Gaussian of `sigma` pixels there, then resized; all
    bilinear.
    """
    enlarged = cv2.resize(values, (size, size), interpolation=cv2.INTER_LINEAR)
    if sigma > 0:
        enlarged = cv2.GaussianBlur(enlarged, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    largest = float(enlarged.max())
    height, width = image_hw
    if enlarged.shape != (height, width):
        enlarged = cv2.resize(enlarged, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(enlarged, dtype=np.float32), largest


def _in_native_form(values: NDArray[Any]) -> NDArray[Any]:
    """Fractions as float32, whole numbers as int64, in this machine's order of bytes."""
    return np.ascontiguousarray(values, dtype=np.float32 if values.dtype.kind == "f" else np.int64)


def _is_finite(values: NDArray[Any]) -> bool:
    return values.dtype.kind in "fiu" and bool(np.isfinite(values).all())
