"""A detector around a model that another program exported: its bytes, its arguments, and one loaded copy a process."""

from __future__ import annotations

import hashlib
import threading
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self
from weakref import WeakValueDictionary

import cv2
import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.detectors.base import Color, Image, Prediction, State, TrainingFreeDetector
from pyimgano_dask.detectors.devices import NO_DEVICE
from pyimgano_dask.detectors.differences import score_of
from pyimgano_dask.detectors.exported.arguments import ExportedModelArguments
from pyimgano_dask.detectors.exported.inputs import InputPlan
from pyimgano_dask.detectors.exported.outputs import Answer, pick
from pyimgano_dask.detectors.exported.runner import DeviceMissingError, Runner, in_words
from pyimgano_dask.detectors.model_files import ModelFiles
from pyimgano_dask.detectors.trial_images import smooth_squares
from pyimgano_dask.errors import ConfigError, InputError

MODEL = "model"
"""Name of the model file's bytes in the state, uint8 (n,)."""

NAMED_BY = "--checkpoint-path"
TRIAL_SIDE = 64  # of the images that a model is tried with, before they are brought to the size of its input
CUDA_TOLERANCE = 1e-3  # sums on CUDA may come out otherwise each time; on the CPU they do not


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run on a device with a pool of so many `threads`, and how its input is made."""

    runner: Runner
    plan: InputPlan
    threads: int
    device: str


_loaded: WeakValueDictionary[tuple[str, str, str, int], LoadedModel] = WeakValueDictionary()
_loading = threading.Lock()


class ExportedModelDetector(TrainingFreeDetector[ExportedModelArguments]):
    """Base of detectors that run an exported model; normal images only calibrate their thresholds.

    The state is the model file itself, so it travels to workers and into checkpoints as bytes. A process loads it
    when it first predicts, once for all detectors of the same model and arguments.
    """

    arguments_type = ExportedModelArguments
    format: ClassVar[str]

    def __init__(self, arguments: ExportedModelArguments, state: State | None = None) -> None:
        super().__init__(arguments)
        self._state = state
        self._model: LoadedModel | None = None
        self._plan: InputPlan | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.arguments, self._state)

    @classmethod
    @abstractmethod
    def _read(cls, path: str, files: ModelFiles) -> State:
        """What is kept of a model file; raises ConfigError when it is no file that this detector runs."""

    @classmethod
    @abstractmethod
    def _check_state(cls, state: State) -> None:
        """Raise ConfigError unless the arrays are those of `_read`, without running any of them."""

    @classmethod
    @abstractmethod
    def _pool_threads(cls) -> int:
        """Threads of the pool that a model is loaded with, 0 where it takes those of the thread that calls it."""

    @classmethod
    @abstractmethod
    def _load(cls, state: State, device: str, threads: int) -> Runner:
        """The model, ready to run on a device.

        Raises DeviceMissingError where there is no such device, ConfigError for an unfit model, or what its library
        raises.
        """

    @property
    def color(self) -> Color:
        if self.arguments.color is not None:
            return "gray" if self.arguments.color == "gray" else "rgb"
        if self._state is None:
            return "rgb"
        return (self._plan or self._tried().plan).color

    @property
    def contamination(self) -> float | None:
        return self.arguments.contamination

    @property
    def is_fitted(self) -> bool:
        return self._state is not None

    @property
    def idle_arguments(self) -> frozenset[str]:
        has_score = self.arguments.score_output is not None
        return super().idle_arguments | (frozenset({"reduction", "topk"}) if has_score else frozenset())

    def state(self) -> State:
        if self._state is None:
            raise RuntimeError(f"{self.name} has no model: call with_model_file or with_state first")
        return self._state

    def with_state(self, state: State) -> Self:
        """A copy that runs the model in these arrays. None of it is loaded yet: that waits for trust."""
        model = state.get(MODEL)
        if model is None or any(array.dtype != np.uint8 or array.ndim != 1 for array in state.values()):
            raise ConfigError(f"{self.name}: the state must hold the bytes of a {self.model_file} file as uint8 arrays")
        self._check_state(state)
        return type(self)(self.arguments, state)

    def with_model_file(self, path: str, files: ModelFiles) -> Self:
        """A copy that runs the model in this file, tried on a few images; raises ConfigError."""
        copy = type(self)(self.arguments, self._read(path, files))
        with _named(f"{NAMED_BY}: {path!r}"):
            copy.check()
        return copy

    def check(self) -> tuple[str, ...]:
        """Load the model and run it on a few images; raises ConfigError when it does not do as declared.

        It must give the same for an image when it is asked again, and beside other images of a batch. Where this
        process lacks its device, it is tried on the CPU, since workers may have it.
        """
        model = self._tried()
        plan = model.plan
        wide, middle, narrow = smooth_squares(TRIAL_SIDE)[..., 0 if plan.color == "gray" else slice(None)]
        pairs = [[narrow, wide], [narrow, middle], [middle, wide], [narrow, wide]]
        try:
            first, *others, again = [self._ask(model, pair[: plan.batch_size]) for pair in pairs]
        except InputError as error:
            raise ConfigError(
                f"it fails on {plan.batch_size} image(s) of {plan.height} x {plan.width} pixels that it is tried with: "
                f"{error}; declare input_hw, color, layout or batch_size with --model-kwargs where the file does not "
                "say them"
            ) from None
        tolerance = 0 if model.device == "cpu" else CUDA_TOLERANCE
        if not first.is_like(again, tolerance):
            raise ConfigError(
                "it gives another answer for the same image when it is asked again, so records would depend on the "
                "order of the images; export it in evaluation mode, without a state that changes"
            )
        same_places = [slice(0, 1), slice(1, None)]  # in batches of one image nothing is left for the second
        if not all(first.is_like(other, tolerance, at) for other, at in zip(others, same_places, strict=True)):
            raise ConfigError(
                f"in a batch of {plan.batch_size} it gives another answer for the same image beside other images, so "
                "records would depend on which images meet in a batch; export it with a batch of 1, or declare "
                "batch_size 1 where the file leaves it free"
            )
        return ()

    def predict(self, images: Sequence[Image], references: Sequence[Image] = ()) -> Prediction:
        """Score a batch of images of any sizes.

        The model gets always as many images as it takes at a time; the last one fills the batch. Raises InputError
        when the model fails or gives a map that is not finite.
        """
        try:
            model = self._loaded()
        except DeviceMissingError as error:
            raise InputError(
                "infer",
                NO_DEVICE,
                f"the device is {self.arguments.device}, which is not there where this chunk runs ({error}); "
                "use workers with a GPU, or --device cpu",
            ) from None
        size = model.plan.batch_size
        scores: list[float] = []
        maps: list[NDArray[np.float32]] = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            try:
                answer = self._ask(model, part)
            except ConfigError as error:
                raise InputError("infer", "ModelError", f"the model's answer cannot be used: {error}") from error
            for number, image in enumerate(part):
                anomaly_map, score = self._one(answer, number, model.plan)
                scores.append(score)
                maps.append(_resized(anomaly_map, image.shape[:2]))
        return Prediction(np.array(scores, dtype=np.float64), tuple(maps))

    def _ask(self, model: LoadedModel, images: Sequence[Image]) -> Answer:
        """The model's answer for at most a batch of images; raises InputError when it fails."""
        try:
            outputs = model.runner.run(model.plan.array(images))
        except Exception as error:
            raise InputError("infer", "ModelError", f"the model fails: {in_words(error)}") from error
        answer = pick(outputs, self.arguments, model.plan.batch_size)
        if answer.maps is not None:
            self._check_map_size(answer.maps.shape[1:], model.plan)
        return answer

    def _check_map_size(self, map_hw: tuple[int, ...], plan: InputPlan) -> None:
        wanted = self.arguments.map_hw or (plan.height, plan.width)
        if map_hw != wanted:
            height, width = map_hw
            raise ConfigError(
                f"it gives a map of {height} x {width} for an input of {plan.height} x {plan.width}, and "
                f"{wanted[0]} x {wanted[1]} is expected; where it covers the whole input, declare map_hw "
                f"[{height}, {width}]"
            )

    def _one(self, answer: Answer, number: int, plan: InputPlan) -> tuple[NDArray[np.float32], float]:
        """Map and score of one image of a batch."""
        if answer.maps is None:
            assert answer.scores is not None
            score = float(answer.scores[number])
            return np.full((plan.height, plan.width), score, np.float32), score
        anomaly_map = answer.maps[number]
        n_bad = anomaly_map.size - np.count_nonzero(np.isfinite(anomaly_map))
        if n_bad:
            raise InputError(
                "infer",
                "NonFiniteMapError",
                f"{n_bad} of {anomaly_map.size} values of the model's anomaly map are NaN or infinite",
            )
        if answer.scores is None:
            return anomaly_map, score_of(anomaly_map, self.arguments)
        return anomaly_map, float(answer.scores[number])

    def _tried(self) -> LoadedModel:
        """The model, on the CPU where this process lacks its device."""
        try:
            return self._loaded()
        except DeviceMissingError:
            return self._load_now("cpu", self._pool_threads())

    def _loaded(self) -> LoadedModel:
        """The model of this process, loaded when it is first needed; raises DeviceMissingError as `_load` does."""
        threads = self._pool_threads()
        model = self._model
        if model is None or model.threads != threads:
            key = self._key(threads)
            with _loading:
                model = _loaded.get(key) or self._load_here(threads)
                _loaded[key] = self._model = model
                self._plan = model.plan
        return model

    def _key(self, threads: int) -> tuple[str, str, str, int]:
        digest = hashlib.sha256()
        for name, array in sorted(self.state().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).data)
        return self.name, digest.hexdigest(), self.arguments.model_dump_json(), threads

    def _load_here(self, threads: int) -> LoadedModel:
        """The model on its device; where none is declared, on CUDA if that is there."""
        if self.arguments.device is not None:
            return self._load_now(self.arguments.device, threads)
        try:
            return self._load_now("cuda", threads)
        except DeviceMissingError:
            return self._load_now("cpu", threads)

    def _load_now(self, device: str, threads: int) -> LoadedModel:
        state = self.state()
        try:
            runner = self._load(state, device, threads)
        except (ConfigError, DeviceMissingError):
            raise
        except Exception as error:
            raise ConfigError(f"it cannot be loaded as {self.format}: {in_words(error)}") from error
        self._plan = InputPlan.of(self.arguments, runner.input)
        return LoadedModel(runner, self._plan, threads, device)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Put `what` before a ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None


def _resized(anomaly_map: NDArray[np.float32], size_hw: tuple[int, ...]) -> NDArray[np.float32]:
    """The map at an image's size, bilinear; a copy, which keeps no batch alive."""
    if anomaly_map.shape == size_hw:
        return anomaly_map.copy()
    height, width = size_hw
    resized = cv2.resize(np.ascontiguousarray(anomaly_map), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.float32)
