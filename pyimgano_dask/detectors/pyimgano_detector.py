"""A detector of the package pyimgano in our contract: fitted on images in memory, asked for one image at a time.

pyimgano's own command hands its detectors the paths of images, and many of them read nothing else, so images are handed
over as lossless PNG files that exist for the call; as arrays to those that cannot work on files.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.detectors.base import Color, Detector, Image, Prediction, State, parse_arguments, subsample
from pyimgano_dask.detectors.extras import load
from pyimgano_dask.detectors.foreign_calls import (
    PNG_SIGNATURE,
    alone_and_repeatable,
    encode_png,
    fingerprint,
    image_array,
    image_files,
    single_threaded,
)
from pyimgano_dask.detectors.model_files import ModelFiles
from pyimgano_dask.detectors.pyimgano_libraries import libraries_of
from pyimgano_dask.detectors.pyimgano_registry import DEFAULTS, SEED_NAMES, PyimganoArguments, is_json, pyimgano_type
from pyimgano_dask.errors import ConfigError, InputError

# Parts of the names of arguments, at any depth, whose texts are files or repositories that may hold code.
CODE_WORDS = ("checkpoint", "path", "repo", "url")

# The same of arguments whose texts may be files or folders that pyimgano reads.
FILE_WORDS = ("checkpoint", "file", "path", "repo")


class PyimganoDetector(Detector[PyimganoArguments]):
    """Base of the types that `pyimgano_type` makes.

    Its state are the training images themselves, as PNG files: fitted objects of pyimgano can be kept only as pickles,
    and a pickle that somebody hands in is never loaded. A detector with a state is fitted when it is first needed;
    workers are sent the fitted object where it can be pickled, else they fit it for themselves.
    """

    extra: ClassVar[str | None] = "pyimgano"
    foreign_checkpoint: ClassVar[str | None] = (
        "the files that pyimgano leaves are pickles, which can run code of their maker when they are loaded"
    )
    fitting_arguments = frozenset({"contamination"})
    """Not the seed: a saved state is fitted anew, with these arguments."""
    carries_code = False
    constructor: ClassVar[Callable[..., Any]]
    parameter_names: ClassVar[frozenset[str]]
    words: ClassVar[frozenset[str]]
    """Its name and tags in pyimgano, which say what it computes with."""
    words_of_extractors: ClassVar[Mapping[str, frozenset[str]]] = {}
    """The tags of feature extractors that its arguments may name."""

    def __init__(self, arguments: PyimganoArguments) -> None:
        super().__init__(arguments)
        self._state: State | None = None
        self._cargo: _Cargo | None = None
        self._loaded: Any = None

    @classmethod
    def create(cls, **kwargs: Any) -> Self:
        """Make an unfitted detector; raises ConfigError naming arguments that its constructor does not take."""
        faults = [
            f"model_kwargs.{name}: {value!r} cannot be written as JSON; give values a config file can hold"
            for name, value in kwargs.items()
            if not is_json(value)
        ]
        if faults:
            raise ConfigError("\n".join(faults))
        arguments_type: Any = cls.arguments_type
        named = {name: value for name, value in kwargs.items() if name in arguments_type.model_fields}
        if not arguments_type.is_open:
            return cls(parse_arguments(cls, kwargs))
        parse_arguments(cls, named)
        return cls(arguments_type.model_validate(kwargs, strict=False))

    @classmethod
    def preset_arguments(cls, preset: str) -> Mapping[str, Any]:
        options = importlib.import_module("pyimgano.services.model_options")
        try:
            values: Mapping[str, Any] = options.resolve_preset_kwargs(preset, cls.name.partition(":")[2])
        except ValueError as error:
            raise ConfigError(f"model.preset: {error}") from None
        return {name: value for name, value in values.items() if name in cls.arguments_type.model_fields}

    @property
    def color(self) -> Color:
        return "rgb"

    @property
    def contamination(self) -> float | None:
        value = getattr(self.arguments, "contamination", None)
        return float(value) if isinstance(value, int | float) else None

    @property
    def is_fitted(self) -> bool:
        return self._state is not None or self._cargo is not None

    @property
    def runs_code(self) -> bool:
        return any(_code_arguments(self.arguments.model_dump()))

    @property
    def libraries(self) -> frozenset[str]:
        named = {text for _, text in _texts(dict(self.arguments))}
        words = self.words.union(named, *(self.words_of_extractors.get(name, ()) for name in named))
        return super().libraries | libraries_of(words)

    @property
    def files_named(self) -> Mapping[str, str]:
        return {text: name for name, text in _texts(self.arguments.model_dump()) if _has_one(name, FILE_WORDS)}

    @property
    def idle_arguments(self) -> frozenset[str]:
        is_done = frozenset({"max_train_images"}) - self.parameter_names  # the state holds the images that were drawn
        return super().idle_arguments | is_done

    @property
    def own_score_threshold(self) -> float | None:
        value = getattr(self._fitted(), "threshold_", None)
        return float(value) if isinstance(value, int | float | np.number) and np.isfinite(value) else None

    def opened(self, files: ModelFiles) -> Self:
        named = sorted(_code_arguments(self.arguments.model_dump()))
        if named and not files.trusts_code:
            raise ConfigError(
                f"model_kwargs.{named[0]}: what it names may run code of its maker when {self.name} loads it; give "
                "--trust-model-file if you trust it"
            )
        self._made()
        return self

    def check(self) -> tuple[str, ...]:
        self._fitted()
        n_images = len(self.state()["png_bytes"])
        return (f"{self.name} was fitted anew on the {n_images} images in its saved state (docs/PYIMGANO.md)",)

    def select_training(self, n_images: int) -> Sequence[int]:
        return subsample(n_images, self.arguments.max_train_images, self._seed)

    def accumulate(self, images: Sequence[Image]) -> State:
        encoded = [encode_png(image) for image in images]
        return {
            "png": np.frombuffer(b"".join(encoded), dtype=np.uint8),
            "png_bytes": np.array([len(data) for data in encoded], dtype=np.int64),
        }

    @classmethod
    def merge(cls, states: Sequence[State]) -> State:
        return {key: np.concatenate([state[key] for state in states]) for key in ("png", "png_bytes")}

    def finalize(self, state: State) -> Self:
        copy = self.with_state(state)
        copy._fitted()
        return copy

    def state(self) -> State:
        if self._state is None:
            where = "fitted: call fit or with_state first" if self._cargo is None else "where it was fitted"
            raise RuntimeError(f"{self.name} is not {where}")
        return self._state

    def with_state(self, state: State) -> Self:
        _check_state(state, self.name)
        copy = type(self)(self.arguments)
        copy._state = state
        return copy

    def predict(self, images: Sequence[Image], references: Sequence[Image] = ()) -> Prediction:
        """Score images one by one, so that no score depends on the images beside it.

        Maps have the size that the detector gives them. Raises RuntimeError before fitting.
        """
        answers = [self._answer(image) for image in images]
        return Prediction(
            np.array([score for score, _ in answers], dtype=np.float64), tuple(values for _, values in answers)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        if self._state is not None:
            self._fitted()
        can_travel = self._cargo is not None and self._cargo.pickled is not None
        return _rebuilt, (self.name, self.arguments.model_dump(), self._cargo, None if can_travel else self._state)

    @property
    def _seed(self) -> int:
        values = (getattr(self.arguments, name, None) for name in SEED_NAMES)
        return next((value for value in values if isinstance(value, int)), 0)

    def _made(self) -> Any:
        """An unfitted object of pyimgano; raises ConfigError with what its constructor says."""
        given = self.arguments.model_dump()
        if "max_train_images" not in self.parameter_names:
            given.pop("max_train_images", None)
        settled = {
            name: getattr(self.arguments, name)
            for name in DEFAULTS
            if name in self.parameter_names and getattr(self.arguments, name) is not None
        }
        if "torch" in self.libraries:  # it must be there before random numbers are settled
            load("torch")
        try:
            with alone_and_repeatable(self._seed):
                return type(self).constructor(**{**settled, **given})
        except Exception as error:  # a foreign constructor may raise anything
            raise ConfigError(f"{self.name} cannot be made with these arguments: {error}") from error

    def _fitted(self) -> Any:
        """The fitted object of pyimgano; made once a process."""
        with alone_and_repeatable(self._seed):
            if self._loaded is None and self._cargo is not None and self._cargo.pickled is not None:
                self._loaded = pickle.loads(self._cargo.pickled)
            elif self._loaded is None:
                self._loaded, takes_arrays = self._fit()
                self._cargo = self._packed(self._loaded, takes_arrays)
            return self._loaded

    def _fit(self) -> tuple[Any, bool]:
        """A fitted object of pyimgano, and whether it is one that works on arrays and not on files."""
        try:
            return self._fit_handing(as_array=False), False
        except Exception as of_files:  # noqa: BLE001 - a foreign detector may raise anything
            try:
                return self._fit_handing(as_array=True), True
            except Exception as of_arrays:  # noqa: BLE001 - the same
                faults = [f"{type(fault).__name__}: {fault}" for fault in (of_files, of_arrays)]
                n_images = len(self.state()["png_bytes"])
                raise ConfigError(
                    f"{self.name} cannot be fitted on {n_images} training images: {faults[0]}"
                    + (f"; given as arrays: {faults[1]}" if faults[1] != faults[0] else "")
                ) from of_files

    def _fit_handing(self, *, as_array: bool) -> Any:
        """An object that has been fitted, and has given a map where it is to give some."""
        model = self._made()
        with (
            _handed(self._training_files(), as_array) as images,
            alone_and_repeatable(self._seed),
            single_threaded(),
        ):
            model.fit(images)
            if self.gives_maps:
                self._ask(model, images[:1])
        return model

    def _packed(self, model: Any, takes_arrays: bool) -> _Cargo:
        """The object as it was fitted, and whether predictions make another one of it."""
        pickled = _pickled(model)
        changes = pickled is not None and self._changes(model, takes_arrays)
        return _Cargo(pickled, changes, takes_arrays)

    def _changes(self, model: Any, takes_arrays: bool) -> bool:
        """Whether its state or its answer depends on what it was asked before.

        It is asked for the first training image, the last one, and the first again. What the first question alone
        changes, such as a count, is no such state.
        """
        files = self._training_files()
        states, answers = [], []
        try:
            for data in (files[0], files[-1], files[0]):
                with _handed([data], takes_arrays) as images, alone_and_repeatable(self._seed):
                    answers.append(fingerprint(self._ask(model, images)))
                states.append(fingerprint(model))
        except Exception:  # noqa: BLE001 - a foreign detector may raise anything; runs tell of the images themselves
            return True
        return len(set(states)) > 1 or answers[0] != answers[-1]

    def _answer(self, image: Image) -> tuple[float, NDArray[np.float32] | None]:
        model = self._fitted()
        cargo = self._cargo
        takes_arrays = cargo is not None and cargo.takes_arrays
        with _handed([encode_png(image)], takes_arrays) as images, alone_and_repeatable(self._seed):
            if cargo is not None and cargo.changes and cargo.pickled is not None:
                model = pickle.loads(cargo.pickled)
            answer, values = self._ask(model, images)
        scores = np.asarray(answer, dtype=np.float64).reshape(-1)
        if scores.size != 1:
            raise InputError("infer", "PredictionError", f"{self.name} gave {scores.size} scores for one image")
        return float(scores[0]), _as_map(values, self.name) if self.gives_maps else None

    def _ask(self, model: Any, images: Any) -> tuple[Any, Any]:
        """Its answers for the one image that it is handed: the score and the map, as it gives them."""
        answer = model.decision_function(images)
        if isinstance(answer, tuple | list) and len(answer) == 2:
            answer = answer[0]
        if not self.gives_maps:
            return answer, None
        if hasattr(model, "predict_anomaly_map"):
            return answer, model.predict_anomaly_map(images)
        return answer, model.get_anomaly_map(images if isinstance(images, np.ndarray) else images[0])

    def _training_files(self) -> list[bytes]:
        """The PNG files in the state."""
        state = self.state()
        return [data.tobytes() for data in np.split(state["png"], np.cumsum(state["png_bytes"])[:-1])]


@dataclass(frozen=True)
class _Cargo:
    """A fitted object as it travels: `pickled` by this run itself, None where that is impossible.

    `changes` says that a prediction changes the object, so that each one needs a fresh copy; `takes_arrays`, that
    images are handed to it as arrays.
    """

    pickled: bytes | None
    changes: bool
    takes_arrays: bool


@contextmanager
def _handed(encoded: Sequence[bytes], as_array: bool) -> Iterator[Any]:
    """PNG files as pyimgano is handed them: as paths, or as one array (N, H, W, 3)."""
    if as_array:
        yield image_array(encoded)
    else:
        with image_files(encoded) as paths:
            yield paths


def _pickled(model: Any) -> bytes | None:
    """A fitted object as bytes; cloudpickle takes the modules and local functions that many of them hold."""
    try:
        return bytes(cloudpickle.dumps(model))
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError):
        return None


def _rebuilt(name: str, arguments: Mapping[str, Any], cargo: _Cargo | None, state: State | None) -> PyimganoDetector:
    """The detector in another process of this run, with the images where the fitted object cannot travel."""
    detector: Any = pyimgano_type(name).create(**arguments)
    detector._state = state
    detector._cargo = cargo
    return detector  # type: ignore[no-any-return]


def _check_state(state: State, name: str) -> None:
    """Raise ConfigError unless this is a row of PNG files."""
    missing = [key for key in ("png", "png_bytes") if key not in state]
    if missing:
        raise ConfigError(f"{name}: the state's {missing[0]} must hold the training images, got no such array")
    data, sizes = state["png"], state["png_bytes"]
    is_row = data.dtype == np.uint8 and data.ndim == 1 and sizes.dtype == np.int64 and sizes.ndim == 1
    if not is_row or not sizes.size or sizes.min() < len(PNG_SIGNATURE) or sizes.sum() != data.size:
        raise ConfigError(f"{name}: the state's png and png_bytes must be PNG files and their sizes, and are not")
    signature = np.frombuffer(PNG_SIGNATURE, dtype=np.uint8)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    if not (data[starts[:, None] + np.arange(signature.size)] == signature).all():
        raise ConfigError(f"{name}: the state's png must hold PNG files, and holds something else")


def _as_map(values: Any, name: str) -> NDArray[np.float32]:
    """A map (H, W) from what pyimgano gives for one image: (H, W), (1, H, W) or a list of one."""
    anomaly_map = np.asarray(values, dtype=np.float32)
    while anomaly_map.ndim > 2 and anomaly_map.shape[0] == 1:
        anomaly_map = anomaly_map[0]
    if anomaly_map.ndim != 2 or 0 in anomaly_map.shape:
        raise InputError(
            "infer", "PredictionError", f"{name} gave a map of the shape {anomaly_map.shape} for one image"
        )
    return np.ascontiguousarray(anomaly_map)


def _code_arguments(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Names, at any depth of the arguments, of texts that may name a file with code."""
    return (name for name, _ in _texts(arguments) if _has_one(name, CODE_WORDS))


def _has_one(name: str, words: Sequence[str]) -> bool:
    return any(word in name for word in words)


def _texts(values: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Each text among the arguments, at any depth, with the name it goes by."""
    if isinstance(values, str):
        yield name, values
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from _texts(value, key)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value, name)
