"""One chunk, one task: read → infer → extract → write. Everything a chunk leaves behind is written here."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.dataflow.artifacts import ArtifactWriter
from pyimgano_dask.dataflow.merge import part_path
from pyimgano_dask.dataflow.plan import Chunk
from pyimgano_dask.dataflow.reading import Failed, Loaded, Reader
from pyimgano_dask.defects import Defects, check_map, extract_defects, scale_to_image
from pyimgano_dask.detectors.base import Detector
from pyimgano_dask.errors import InputError, RunError, Stage
from pyimgano_dask.settings.run import InferSettings
from pyimgano_dask.storage.files import write_atomic
from pyimgano_dask.storage.jsonl import encode_record

STAGES = ("read", "infer", "extract", "write")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
CANNOT_WRITE = "results cannot be written"
REMEDY = "make room or access and run again"
SHOWN_ERRORS = 5


@dataclass(frozen=True)
class Job:
    """What every chunk of a run needs; made once, sent to each worker once.

    `base_dir` is where relative paths start, `parts_dir` where shards go, `n_inputs` the length of the whole list.
    """

    settings: InferSettings
    detector: Detector[Any]
    score_threshold: float | None
    pixel_threshold: float | None
    pixel_threshold_provenance: Mapping[str, Any] | None
    base_dir: str
    parts_dir: str
    n_inputs: int


@dataclass(frozen=True)
class Receipt:
    """What comes back from a chunk: counts, seconds by stage, and the first few errors."""

    index: int
    n_inputs: int
    n_errors: int
    n_anomalous: int
    n_defective: int
    n_regions: int
    seconds: Mapping[str, float]
    errors: tuple[tuple[str, str], ...]


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


def process_chunk(chunk: Chunk, job: Job) -> Receipt:
    """Inspect the inputs of a chunk and write its shard and artifacts.

    An input that fails becomes an error record. Raises RunError when nothing more can be written.
    """
    clock = _Clock()
    settings = job.settings
    reader = Reader(
        job.base_dir,
        job.detector.color,
        settings.inputs.max_image_pixels,
        with_display=settings.output.save_overlays is not None,
    )
    writer = ArtifactWriter(settings, job.base_dir, chunk.start, job.n_inputs)
    records: dict[int, dict[str, Any]] = {}
    errors: list[tuple[str, str]] = []

    def fail(failed: Failed) -> None:
        error = failed.error
        records[failed.index] = {
            "index": failed.index,
            "input": failed.path,
            "error": {"stage": error.stage, "type": error.kind, "message": error.message},
        }
        errors.append((failed.path, error.message))

    groups = reader.groups(chunk.rows())
    while True:
        with clock.stage("read"):
            group = next(groups, None)
        if group is None:
            break
        loaded, unread = group
        for failed in unread:
            fail(failed)
        with clock.stage("infer"):
            predictions = _infer(job.detector, loaded)
        for item, prediction in zip(loaded, predictions, strict=True):
            try:
                if isinstance(prediction, InputError):
                    raise prediction
                records[item.index] = _inspect(item, *prediction, job, writer, clock)
            except InputError as error:
                fail(Failed(item.index, item.path, error))
    with clock.stage("write"), _shard_faults_end_the_run():
        for index, entry in writer.finish().items():
            if "error" not in records[index]:
                _locate(records[index], entry)
        lines = [encode_record(records[index]) for index, _ in chunk.rows()]
        write_atomic(part_path(job.parts_dir, chunk.index), *lines)
    regions = [len(record["defects"]["regions"]) for record in records.values() if "defects" in record]
    return Receipt(
        index=chunk.index,
        n_inputs=len(chunk.inputs),
        n_errors=len(errors),
        n_anomalous=sum(record.get("label") == 1 for record in records.values()),
        n_defective=sum(count > 0 for count in regions),
        n_regions=sum(regions),
        seconds=clock.seconds,
        errors=tuple(errors[:SHOWN_ERRORS]),
    )


Answer = tuple[float, NDArray[np.float32]]


def _infer(detector: Detector[Any], loaded: Sequence[Loaded]) -> list[Answer | InputError]:
    """Scores and maps of a group; when the batch fails, each image on its own, so that only the culprit fails."""
    try:
        return _predict(detector, loaded)
    except InputError as error:
        if len(loaded) == 1:
            return [error]
        return [answer for item in loaded for answer in _infer(detector, [item])]


def _predict(detector: Detector[Any], loaded: Sequence[Loaded]) -> list[Answer | InputError]:
    if not loaded:
        return []
    with _faults_are_the_inputs("infer", "the detector failed on this image"):
        prediction = detector.predict([item.image for item in loaded])
    answers: list[Answer | InputError] = []
    for score, anomaly_map in zip(prediction.scores.tolist(), prediction.maps, strict=True):
        if np.isfinite(score):
            answers.append((score, anomaly_map))
        else:
            answers.append(InputError("infer", "NonFiniteScoreError", f"the detector's score is {score}"))
    return answers


def _inspect(
    item: Loaded,
    score: float,
    anomaly_map: NDArray[np.float32],
    job: Job,
    writer: ArtifactWriter,
    clock: _Clock,
) -> dict[str, Any]:
    """Record of one input, its artifacts written."""
    settings = job.settings
    record: dict[str, Any] = {"index": item.index, "input": item.path, "score": score}
    if job.score_threshold is not None:
        record["label"] = int(score >= job.score_threshold)
    defects: Defects | None = None
    if job.pixel_threshold is not None:
        with clock.stage("extract"), _faults_are_the_inputs("extract", "its defects cannot be extracted"):
            defects = extract_defects(anomaly_map, settings.defects, pixel_threshold=job.pixel_threshold)
            if settings.defects.image_space:
                height, width = item.image.shape[:2]
                defects = scale_to_image(defects, (height, width))
            record["defects"] = {
                "space": {"type": "anomaly_map", "shape": list(anomaly_map.shape)},
                "pixel_threshold": job.pixel_threshold,
                "pixel_threshold_provenance": job.pixel_threshold_provenance,
                "mask": {"shape": list(defects.mask.shape), "dtype": "uint8", "encoding": settings.defects.mask_format},
                **defects.to_record(),
            }
    elif settings.needs_maps:
        check_map(anomaly_map)
    if settings.wants_maps:
        record["anomaly_map"] = {"shape": list(anomaly_map.shape), "dtype": "float32"}
    if settings.output.include_anomaly_map_values:
        record["anomaly_map_values"] = anomaly_map.tolist()
    with clock.stage("write"), _faults_are_the_inputs("write", "its artifacts cannot be written"):
        _locate(record, writer.write(item, anomaly_map, defects.mask if defects else None))
    return record


def _locate(record: dict[str, Any], entry: Mapping[str, Mapping[str, Any]]) -> None:
    """Put where its map and mask lie into a record."""
    if "map" in entry:
        record["anomaly_map"].update(entry["map"])
    if "mask" in entry:
        record["defects"]["mask"].update(entry["mask"])


@contextmanager
def _faults_are_the_inputs(stage: Stage, what: str) -> Iterator[None]:
    """Whatever goes wrong with one input becomes its error record; only a full or read-only disk ends the run.

    Everything is caught, because detectors are foreign code and one bad image must never end a run.
    """
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise RunError(f"{CANNOT_WRITE}: {error}; {REMEDY}") from error
        raise InputError(stage, type(error).__name__, f"{what}: {error}") from error


@contextmanager
def _shard_faults_end_the_run() -> Iterator[None]:
    """Without its shard a chunk is lost, whatever the reason."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{CANNOT_WRITE}: {error}; {REMEDY}") from error
