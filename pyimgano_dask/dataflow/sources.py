"""Where the scored maps of a chunk come from: a detector that looks at images, or maps stored by an earlier run."""

from __future__ import annotations

import posixpath
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.dataflow.faults import faults_are_the_inputs
from pyimgano_dask.dataflow.plan import Chunk
from pyimgano_dask.dataflow.reading import Failed, Loaded, Reader
from pyimgano_dask.detectors.amp import device_of, missing_for_amp, mixed_precision
from pyimgano_dask.detectors.base import Detector, Image, Prediction
from pyimgano_dask.errors import InputError, Stage
from pyimgano_dask.storage.files import resolve
from pyimgano_dask.storage.maps import read_npy

STAGES = ("read", "infer", "extract", "write")

_INDEX_IN_NAME = re.compile(r"\d{6,}_(?=.)")


@dataclass
class Clock:
    """Seconds a chunk spends in each stage."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Count the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


@dataclass(frozen=True)
class Scored:
    """One input with its map, as the extract and write stages take it.

    `score` is None where only a map is known. `map_if_any` is float32 (H, W), None of a detector that gives no maps.
    `display` is the image in RGB and `image_hw` its size, where they are needed. `name` is what artifacts are named
    after. `location` says where the map was stored before this run, as records put it.
    """

    index: int
    path: str
    name: str
    score: float | None
    map_if_any: NDArray[np.float32] | None
    image_hw: tuple[int, int] | None
    display: Image | None
    location: Mapping[str, Any] = field(default_factory=dict)

    @property
    def anomaly_map(self) -> NDArray[np.float32]:
        """The map, for runs that need maps: they begin with detectors that give them alone."""
        assert self.map_if_any is not None
        return self.map_if_any


class Source(ABC):
    """What a chunk's task asks for maps; sent to each worker once."""

    @abstractmethod
    def outcomes(self, chunk: Chunk[Any], clock: Clock) -> Iterator[Scored | Failed]:
        """The inputs of a chunk, in any order, with their maps or with what went wrong."""

    def warnings(self) -> tuple[str, ...]:
        """What the user should know about this process, which has worked on a chunk."""
        return ()


@dataclass(frozen=True)
class DetectorSource(Source):
    """Images, read and scored. Chunks hold their paths; `amp` is that of `infer`, and `amp_named` who asked for it."""

    reader: Reader
    detector: Detector[Any]
    amp: bool = False
    amp_named: str = "--amp"

    def outcomes(self, chunk: Chunk[str], clock: Clock) -> Iterator[Scored | Failed]:
        groups = self.reader.groups(chunk.rows())
        while True:
            with clock.stage("read"):
                group = next(groups, None)
            if group is None:
                return
            loaded, unread = group
            del group
            yield from unread
            with clock.stage("infer"):
                answers = infer(self.detector, loaded, amp=self.amp)
            # A large image is let go before the defects of its map are looked for, unless it is drawn on.
            while loaded:
                yield _outcome(loaded.pop(0), answers.pop(0))

    def warnings(self) -> tuple[str, ...]:
        missing = missing_for_amp(device_of(self.detector)) if self.amp else None
        return () if missing is None else (f"{self.amp_named}: {missing}",)


def predict(detector: Detector[Any], loaded: Sequence[Loaded]) -> Prediction:
    """The detector's answer for images, with their references where it needs them."""
    images = [item.image for item in loaded]
    if not detector.needs_reference:
        return detector.predict(images)
    return detector.predict(images, [item.reference for item in loaded if item.reference is not None])


Answer = tuple[float, NDArray[np.float32] | None]


def _outcome(item: Loaded, answer: Answer | InputError) -> Scored | Failed:
    if isinstance(answer, InputError):
        return Failed(item.index, item.path, answer)
    height, width = item.image.shape[:2]
    return Scored(item.index, item.path, item.path, *answer, (height, width), item.display)


def infer(detector: Detector[Any], loaded: Sequence[Loaded], *, amp: bool = False) -> list[Answer | InputError]:
    """Scores and maps of a group; when the batch fails, each image on its own, so that only the culprit fails.

    `amp` asks for torch's inference mode and mixed precision, as far as this process has them.
    """
    try:
        return _predict(detector, loaded, amp)
    except InputError as error:
        if len(loaded) == 1:
            return [error]
        return [answer for item in loaded for answer in infer(detector, [item], amp=amp)]


def _predict(detector: Detector[Any], loaded: Sequence[Loaded], amp: bool) -> list[Answer | InputError]:
    if not loaded:
        return []
    torch_mode = mixed_precision(device_of(detector)) if amp else nullcontext()
    with torch_mode, faults_are_the_inputs("infer", "the detector failed on this image"):
        prediction = predict(detector, loaded)
        pairs = list(zip(prediction.scores.tolist(), prediction.maps, strict=True))
        kind = np.ndarray if detector.gives_maps else type(None)
        if len(pairs) != len(loaded) or not all(isinstance(values, kind) for _, values in pairs):
            what = "a score and an array" if detector.gives_maps else "a score and no map"
            raise InputError("infer", "PredictionError", f"{detector.name} must give {what} for each of its images")
    answers: list[Answer | InputError] = []
    for score, anomaly_map in pairs:
        if np.isfinite(score):
            answers.append((score, anomaly_map))
        else:
            answers.append(InputError("infer", "NonFiniteScoreError", f"the detector's score is {score}"))
    return answers


@dataclass(frozen=True)
class StoredMap:
    """A map that is there already, and what is known of its input.

    `path` is what the record calls the input, `image` the path of its image where that is known. `location` is where
    the map lies, as a record puts it: `path` of an .npy file or a zarr store, then with the `row`, and the `array`
    where that is known. It is None for an input that failed, which `failure` says (stage, type, message).
    """

    path: str
    location: Mapping[str, Any] | None
    image: str | None = None
    score: float | None = None
    failure: tuple[Stage, str, str] | None = None

    @property
    def name(self) -> str:
        """What artifacts are named after; an index that the map's own name begins with is left out."""
        if self.image is not None:
            return self.path
        folder, name = posixpath.split(self.path)
        return posixpath.join(folder, _INDEX_IN_NAME.sub("", name, count=1) if _INDEX_IN_NAME.match(name) else name)


def path_of(item: str | StoredMap) -> str:
    """What records call an input of a chunk."""
    return item if isinstance(item, str) else item.path


@dataclass(frozen=True)
class StoredSource(Source):
    """Maps of an earlier run. Chunks hold `StoredMap` items.

    Relative paths start at `base_dir`. `reader` reads the images where their size or look is needed, else it is None.
    """

    base_dir: str
    max_pixels: int
    reader: Reader | None

    def outcomes(self, chunk: Chunk[StoredMap], clock: Clock) -> Iterator[Scored | Failed]:
        for index, item in chunk.rows():
            try:
                with clock.stage("read"), faults_are_the_inputs("read", "its stored map cannot be read"):
                    outcome: Scored | Failed = self._read(index, item)
            except InputError as error:
                outcome = Failed(index, item.path, error)
            yield outcome

    def _read(self, index: int, item: StoredMap) -> Scored:
        if item.failure is not None:
            raise InputError(*item.failure)
        assert item.location is not None
        anomaly_map, location = self._map(item.location)
        image = None
        if self.reader is not None and item.image is not None:
            image = self.reader.read(index, item.image)
        return Scored(
            index,
            item.path,
            item.name,
            item.score,
            anomaly_map,
            None if image is None else (image.image.shape[0], image.image.shape[1]),
            None if image is None else image.display,
            location,
        )

    def _map(self, location: Mapping[str, Any]) -> tuple[NDArray[np.float32], Mapping[str, Any]]:
        path = resolve(location["path"], self.base_dir)
        if "row" not in location:
            return read_npy(path, max_pixels=self.max_pixels), location
        from pyimgano_dask.storage.zarr_store import find_row, read_row

        array = location.get("array") or find_row(path, location["row"], max_pixels=self.max_pixels)
        values = read_row(path, array, location["row"], max_pixels=self.max_pixels)
        return values, {**location, "array": array}
