"""What a detector is: a batch of images in, scores and anomaly maps out of one pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pyimgano_dask.detectors.extras import DISTRIBUTIONS, load
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.knob import Block

if TYPE_CHECKING:
    from pyimgano_dask.detectors.model_files import ModelFiles

Color = Literal["gray", "rgb"]
State = Mapping[str, NDArray[Any]]
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Prediction:
    """Answer of a detector for a batch of N images.

    `scores` is float64 (N,), higher is more anomalous; `maps` are N float32 arrays (H, W), each of its image's
    own size, or None for each image where the detector gives no maps.
    """

    scores: NDArray[np.float64]
    maps: tuple[NDArray[np.float32] | None, ...]


Arguments = TypeVar("Arguments", bound=Block)


class Detector(ABC, Generic[Arguments]):
    """Base of all detectors.

    Images are uint8, (H, W, 3) RGB or (H, W) grey as `color` says; sizes within a batch may differ. An instance
    is never changed by `predict`, so that threads share it. Fitting is a reduction over batches of images:
    `accumulate` summarises some, `merge` joins summaries in the order of the images, `finalize` takes the last one.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    tags: ClassVar[tuple[str, ...]]
    reference: ClassVar[str]
    arguments_type: ClassVar[type[Block]]
    needs_reference: ClassVar[bool] = False
    """Whether each image is compared with a defect-free image of its own (`--reference-dir`)."""
    is_position_bound: ClassVar[bool] = False
    """Whether it learns what is normal at each place of a whole image, so that it can say little of a part of one."""
    gives_maps: ClassVar[bool] = True
    """Whether it gives an anomaly map beside each score; without, nothing can be located in an image."""
    fits_closely: ClassVar[bool] = False
    """Whether it scores the images that it was fitted on so far below others that they make poor thresholds."""
    trains_network: ClassVar[bool] = False
    """Whether fitting trains a network by gradient descent, in `finalize`, instead of summing up statistics."""
    free_arguments: ClassVar[frozenset[str] | None] = None
    """Arguments that may have other values than those a state was learned with; None where that is any."""
    fitting_arguments: ClassVar[frozenset[str]] = frozenset({"contamination", "max_train_images", "random_state"})
    """Arguments that say how it is fitted or its threshold is made: a fitted one answers the same whatever they are."""
    carries_code: ClassVar[bool] = True
    """Whether code that it runs is part of its state, so that the checksum of a checkpoint covers it."""
    extra: ClassVar[str | None] = None
    """The optional dependencies it needs, as `pip install pyimgano-dask[EXTRA]` names them."""
    model_file: ClassVar[str | None] = None
    """The kind of file that `--checkpoint-path` names for a detector that runs other programs' models (`.onnx`)."""
    foreign_checkpoint: ClassVar[str | None] = None
    """Why files of another program that configs name as its checkpoint are not read, in words."""

    def __init__(self, arguments: Arguments) -> None:
        self.arguments: Arguments = arguments
        self._load_library()

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._load_library()

    def _load_library(self) -> None:
        if self.extra is not None:
            load(self.extra)

    @classmethod
    def create(cls, **kwargs: Any) -> Self:
        """Make an unfitted detector; raises ConfigError naming every faulty argument."""
        return cls(parse_arguments(cls, kwargs))

    @property
    @abstractmethod
    def color(self) -> Color:
        """The colour this detector reads images in."""

    @property
    @abstractmethod
    def contamination(self) -> float | None:
        """Expected share of anomalies among the training images, None when the detector has no such notion."""

    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """Whether `predict` can be called."""

    @property
    def own_score_threshold(self) -> float | None:
        """The score threshold that fitting settled, for detectors whose scores of their own training images say little.

        None where the threshold is a quantile of the scores of the training images, as for most.
        """
        return None

    @classmethod
    def preset_arguments(cls, preset: str) -> Mapping[str, Any]:
        """The arguments that the named preset of a config stands for; raises ConfigError where there is no such."""
        return {}

    @property
    def libraries(self) -> frozenset[str]:
        """Distributions that it computes with beyond numpy and OpenCV; those that are not installed do not count.

        Their versions are facts of a run, and are compared with those of a cluster.
        """
        return frozenset() if self.extra is None else frozenset({DISTRIBUTIONS[self.extra]})

    @property
    def files_named(self) -> Mapping[str, str]:
        """Paths that its library may read by itself whenever it needs them, each with the argument that names it."""
        return {}

    @property
    def idle_arguments(self) -> frozenset[str]:
        """Arguments that do nothing beside the values of the others, as `topk` where the score is no `topk_mean`."""
        takes_topk = getattr(self.arguments, "reduction", "topk_mean") == "topk_mean"
        return frozenset() if takes_topk else frozenset({"topk"})

    @property
    def scoring_arguments(self) -> tuple[str, ...]:
        """Names of the arguments that answers of the fitted detector depend on."""
        without_effect = self.fitting_arguments | self.idle_arguments
        return tuple(name for name, _ in self.arguments if name not in without_effect)

    def advice(self) -> tuple[str, ...]:
        """What the user should know of these arguments before a run."""
        return ()

    @property
    def learned_with(self) -> frozenset[str]:
        """Arguments that must stay as they are on a saved state, because what was learned depends on them."""
        if self.free_arguments is None:
            return frozenset()
        return frozenset(self.arguments_type.model_fields) - self.free_arguments

    @property
    def runs_code(self) -> bool:
        """Whether its state holds code of a model file that would run, so that a checkpoint needs trust."""
        return False

    def opened(self, files: ModelFiles) -> Self:
        """A copy that holds what the files named by its arguments say, such as weights; raises ConfigError.

        Called once, before fitting, where the files are; the copy carries what it read, also into its `state`.
        """
        return self

    def with_model_file(self, path: str, files: ModelFiles) -> Self:
        """A copy that runs the model in this file, where the detector has a `model_file`; raises ConfigError."""
        raise ConfigError(f"{self.name} runs no model files; give a saved state (.npz) with --checkpoint-path")

    def check(self) -> tuple[str, ...]:
        """Raise ConfigError when the model file or the saved state it holds cannot run as its arguments say.

        Called where a run begins, once the file is trusted. Returns sentences on what the user should know. Most have
        nothing to check and nothing to say.
        """
        return ()

    @abstractmethod
    def select_training(self, n_images: int) -> Sequence[int]:
        """Indices, ascending, of the training images to fit on."""

    @abstractmethod
    def accumulate(self, images: Sequence[Image]) -> State:
        """Summarise a batch of training images."""

    @classmethod
    @abstractmethod
    def merge(cls, states: Sequence[State]) -> State:
        """Join summaries that stand in the order of their images.

        Where grouping can change the result, the detector's documentation says how much; a run groups by chunks alone.
        """

    @abstractmethod
    def finalize(self, state: State) -> Self:
        """A fitted copy of this detector."""

    @abstractmethod
    def predict(self, images: Sequence[Image], references: Sequence[Image] = ()) -> Prediction:
        """Score a batch of images. Raises RuntimeError before fitting.

        `references` holds one defect-free image for each of `images`, in the same colour and of any size, when
        the detector `needs_reference`, and nothing otherwise.
        """

    @abstractmethod
    def state(self) -> State:
        """The fitted arrays, as `with_state` takes them. Raises RuntimeError before fitting."""

    @abstractmethod
    def with_state(self, state: State) -> Self:
        """A fitted copy with these arrays; raises ConfigError when they do not fit the arguments."""

    def fit(self, images: Sequence[Image]) -> Self:
        """A copy fitted on images held in memory."""
        chosen = [images[index] for index in self.select_training(len(images))]
        return self.finalize(self.accumulate(chosen))


class TrainingFreeDetector(Detector[Arguments], Generic[Arguments]):
    """Base of detectors that learn nothing: normal images only calibrate their thresholds."""

    @property
    def is_fitted(self) -> bool:
        return True

    def select_training(self, n_images: int) -> Sequence[int]:
        return ()

    def accumulate(self, images: Sequence[Image]) -> State:
        return {}

    @classmethod
    def merge(cls, states: Sequence[State]) -> State:
        return {}

    def finalize(self, state: State) -> Self:
        return self

    def state(self) -> State:
        return {}

    def with_state(self, state: State) -> Self:
        return self


def subsample(n_images: int, limit: int, seed: int) -> Sequence[int]:
    """Indices, ascending, of all images, or of `limit` drawn ones where there are more."""
    if n_images <= limit:
        return range(n_images)
    drawn = np.random.default_rng(seed).choice(n_images, limit, replace=False)
    return [int(index) for index in np.sort(drawn)]


def parse_arguments(detector_type: type[Detector[Any]], kwargs: Mapping[str, Any]) -> Any:
    """Validate constructor arguments; raises ConfigError naming every fault at once."""
    fields = detector_type.arguments_type.model_fields
    faults = [
        f"model_kwargs.{name}: unknown argument of {detector_type.name}; it takes {', '.join(fields)}"
        for name in kwargs
        if name not in fields
    ]
    try:
        arguments = detector_type.arguments_type.model_validate(dict(kwargs), strict=False)
    except ValidationError as error:
        faults += [_fault_in_words(fault) for fault in error.errors(include_url=False)]
    if faults:
        raise ConfigError("\n".join(faults))
    return arguments


def _fault_in_words(fault: Any) -> str:
    """One fault of pydantic's; what a block says of itself names its argument already."""
    if not fault["loc"]:
        return f"model_kwargs: {fault['ctx']['error']}" if fault["type"] == "value_error" else str(fault["msg"])
    return f"model_kwargs.{'.'.join(str(part) for part in fault['loc'])}: {fault['input']!r}: {fault['msg']}"
