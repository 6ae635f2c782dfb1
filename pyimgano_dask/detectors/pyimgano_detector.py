"""A detector of the package pyimgano in our contract: fitted on images in memory, asked for one image at a time.

pyimgano's own command hands its detectors the paths of images, and many of them read nothing else, so images are handed
over as lossless PNG files that exist for the call; as arrays to those that cannot work on files.
"""

from __future__ import annotations

import importlib
import os
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
    faults_of_the_machine,
    fingerprint,
    image_array,
    image_files,
    loaded_torch,
    repeatable,
    single_threaded,
)
from pyimgano_dask.detectors.model_files import ModelFiles
from pyimgano_dask.detectors.pyimgano_libraries import libraries_of
from pyimgano_dask.detectors.pyimgano_registry import DEFAULTS, SEED_NAMES, PyimganoArguments, is_json, pyimgano_type
from pyimgano_dask.errors import ConfigError, InputError, RunError
from pyimgano_dask.urls import is_url

# Parts of the names of arguments, at any depth, whose texts are files or repositories that may hold code.
CODE_WORDS = ("checkpoint", "path", "repo", "url")

# The same of arguments whose texts may be files or folders that pyimgano reads.
FILE_WORDS = ("checkpoint", "file", "path", "repo")

# How texts begin that name repositories of models, whatever the argument.
REPOSITORIES = ("hf-hub:", "hf_hub:", "local-dir:")

# Ends of the names of arguments by which detectors and feature extractors of pyimgano are named.
PART_WORDS = ("name", "type", "extractor", "extractors", "detector", "detectors")

# Detectors whose backbone is code of another repository, which torch.hub loads and runs.
HUB_REPOSITORY = "facebookresearch/dinov2"
HUB_DETECTORS = frozenset({"vision_anomalydino", "vision_softpatch", "vision_superad"})


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
    words_of_parts: ClassVar[Mapping[str, frozenset[str]]] = {}
    """The same of the feature extractors and detectors that its arguments may name."""

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
        return any(self._code_named())

    @property
    def libraries(self) -> frozenset[str]:
        named = self._texts_named
        words = self.words.union(named, *(self.words_of_parts.get(name, ()) for name in named))
        return super().libraries | libraries_of(words)

    @property
    def files_named(self) -> Mapping[str, str]:
        return {
            text: names[-1]
            for names, text in _texts(self.arguments.model_dump())
            if _has_one(names, FILE_WORDS) or self._is_file(names, text)
        }

    @property
    def idle_arguments(self) -> frozenset[str]:
        is_done = frozenset({"max_train_images"}) - self.parameter_names  # the state holds the images that were drawn
        return super().idle_arguments | is_done

    @property
    def own_score_threshold(self) -> float | None:
        value = getattr(self._fitted(), "threshold_", None)
        return float(value) if isinstance(value, int | float | np.number) and np.isfinite(value) else None

    def opened(self, files: ModelFiles) -> Self:
        for what in () if files.trusts_code else self._code_named():
            raise ConfigError(
                f"{what} may run code of its maker when {self.name} loads it; give --trust-model-file if you trust it"
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

    def _load_library(self) -> None:
        super()._load_library()
        if "torch" in self.libraries:
            load("torch")

    @property
    def _seed(self) -> int:
        values = (getattr(self.arguments, name, None) for name in SEED_NAMES)
        return next((value for value in values if isinstance(value, int)), 0)

    @property
    def _texts_named(self) -> frozenset[str]:
        """The texts among its arguments and their defaults."""
        return frozenset(text for _, text in _texts(dict(self.arguments)))

    def _code_named(self) -> Iterator[str]:
        """What may run code when it is loaded: the argument that names it, and the file or the repository."""
        for names, text in _texts(self.arguments.model_dump()):
            is_repository = text.startswith(REPOSITORIES) or is_url(text)
            if is_repository or _has_one(names, CODE_WORDS) or self._is_file(names, text):
                yield f"model_kwargs.{'.'.join(names)}: {text!r}"
        for name in sorted(HUB_DETECTORS & (self.words | self._texts_named)):
            yield f"model.name: {name} runs on the repository {HUB_REPOSITORY}, which"

    def _is_file(self, names: Sequence[str], text: str) -> bool:
        """Whether a text is a file here, and not the name of a detector or an extractor that has a file's name."""
        is_part = text in self.words_of_parts and names[-1].endswith(PART_WORDS)
        return not is_part and os.path.isfile(os.path.expanduser(text))

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
        what = f"{self.name} cannot be made with these arguments"
        try:
            with faults_of_the_machine(what), alone_and_repeatable(self._seed):
                return type(self).constructor(**{**settled, **given})
        except (MemoryError, RunError):
            raise
        except Exception as error:  # a foreign constructor may raise anything
            raise ConfigError(f"{what}: {error}") from error

    def _fitted(self) -> Any:
        """The fitted object of pyimgano; made once a process."""
        with alone_and_repeatable(self._seed):
            if self._loaded is None:
                self._loaded, self._cargo = repeatable(self._seed, self._arrived_or_fitted)
            return self._loaded

    def _arrived_or_fitted(self) -> tuple[Any, _Cargo]:
        """The fitted object, and as what it travels: the one that arrived here, or a new one."""
        cargo = self._cargo
        if cargo is None:
            return self._packed(*self._fit())
        if cargo.pickled is not None:
            return pickle.loads(cargo.pickled), cargo
        return self._fit_handing(as_array=cargo.takes_arrays)[0], cargo

    def _fit(self) -> tuple[Any, bytes | None, bool]:
        """As `_fit_handing`, and whether the object is one that works on arrays and not on files."""
        try:
            return *self._fit_handing(as_array=False), False
        except (MemoryError, RunError):
            raise
        except Exception as of_files:  # noqa: BLE001 - a foreign detector may raise anything
            try:
                return *self._fit_handing(as_array=True), True
            except (MemoryError, RunError):
                raise
            except Exception as of_arrays:  # noqa: BLE001 - the same
                faults = [f"{type(fault).__name__}: {fault}" for fault in (of_files, of_arrays)]
                raise ConfigError(
                    f"{self._cannot_be_fitted}: {faults[0]}"
                    + (f"; given as arrays: {faults[1]}" if faults[1] != faults[0] else "")
                ) from of_files

    def _fit_handing(self, *, as_array: bool) -> tuple[Any, bytes | None]:
        """A fitted object that gives a map where it is to give some, and a pickle from before it was asked for one."""
        with faults_of_the_machine(self._cannot_be_fitted):
            model = self._made()
            with (
                _handed(self._training_files(), as_array) as images,
                alone_and_repeatable(self._seed),
                single_threaded(),
            ):
                model.fit(images)
                pickled = _pickled(model)
                if self.gives_maps:
                    self._ask(model, images[:1])
        return model, pickled

    @property
    def _cannot_be_fitted(self) -> str:
        return f"{self.name} cannot be fitted on {len(self.state()['png_bytes'])} training images"

    def _packed(self, model: Any, pickled: bytes | None, takes_arrays: bool) -> tuple[Any, _Cargo]:
        """The object as it was fitted, and as what it travels.

        Raises ConfigError where its answers hang on earlier ones and it cannot be copied afresh.
        """
        changes = self._changes(model, pickled, takes_arrays)
        if changes and pickled is None:
            raise ConfigError(
                f"{self.name} answers otherwise after other images or another fit, and with these arguments it cannot "
                "be copied: scores would depend on the order of the images and on the worker; take another detector"
            )
        cargo = _Cargo(pickled, changes, takes_arrays, loaded_torch() is not None)
        return (model if pickled is None else pickle.loads(pickled)), cargo

    def _changes(self, model: Any, pickled: bytes | None, takes_arrays: bool) -> bool:
        """Whether its state or its answer depends on what it was asked before.

        It is asked for the first training image, the last one, and the first again; another one, a copy or one that is
        fitted anew, for the last and the first. What the first question alone changes, as a count, is no such state.
        """
        first, last = (self._training_files()[position] for position in (0, -1))
        states, answers = [], []
        try:
            with faults_of_the_machine(f"{self.name} cannot be tried on its training images"), single_threaded():
                if pickled is None:
                    other, _ = self._fit_handing(as_array=takes_arrays)
                else:
                    other = pickle.loads(pickled)
                for data in (first, last, first):
                    answers.append(self._answer_printed(model, data, takes_arrays))
                    if pickled is not None:
                        states.append(fingerprint(model))
                swapped = [self._answer_printed(other, data, takes_arrays) for data in (last, first)]
        except (MemoryError, RunError):
            raise
        except Exception:  # noqa: BLE001 - a foreign detector may raise anything; runs tell of the images themselves
            return pickled is not None
        return len(set(states)) > 1 or answers != [swapped[1], *swapped]

    def _answer_printed(self, model: Any, data: bytes, takes_arrays: bool) -> bytes:
        """The fingerprint of its answer for one PNG file."""
        with _handed([data], takes_arrays) as images, alone_and_repeatable(self._seed):
            return fingerprint(self._ask(model, images))

    def _answer(self, image: Image) -> tuple[float, NDArray[np.float32] | None]:
        model = self._fitted()
        cargo = self._cargo
        assert cargo is not None
        original = cargo.pickled if cargo.changes else None

        def asked() -> tuple[Any, Any]:
            return self._ask(model if original is None else pickle.loads(original), images)

        with _handed([encode_png(image)], cargo.takes_arrays) as images:
            answer, values = repeatable(self._seed, asked)
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
    images are handed to it as arrays; `may_use_torch`, that torch was loaded where it was fitted.
    """

    pickled: bytes | None
    changes: bool
    takes_arrays: bool
    may_use_torch: bool


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
        pickled = bytes(cloudpickle.dumps(model))
        pickle.loads(pickled)
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError):
        return None
    return pickled


def _rebuilt(name: str, arguments: Mapping[str, Any], cargo: _Cargo | None, state: State | None) -> PyimganoDetector:
    """The detector in another process of this run, with the images where the fitted object cannot travel."""
    if cargo is not None and cargo.may_use_torch:
        load("torch")
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


def _has_one(names: Sequence[str], words: Sequence[str]) -> bool:
    """Whether one of the names has one of the words in it."""
    return any(word in name for name in names for word in words)


def _texts(values: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each text among the arguments, at any depth, with the names that lead to it from the outside in."""
    if isinstance(values, str):
        yield names, values
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from _texts(value, (*names, str(key)))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value, names)
