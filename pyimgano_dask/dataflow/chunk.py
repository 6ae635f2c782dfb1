"""One chunk, one task: read → infer → extract → write. Everything a chunk leaves behind is written here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pyimgano_dask.dataflow.artifacts import ArtifactWriter
from pyimgano_dask.dataflow.faults import faults_are_the_inputs, shard_faults_end_the_run
from pyimgano_dask.dataflow.plan import Chunk
from pyimgano_dask.dataflow.profile import Worker, this_worker
from pyimgano_dask.dataflow.reading import Failed
from pyimgano_dask.dataflow.scheduler import Chain, Loss
from pyimgano_dask.dataflow.shards import part_path
from pyimgano_dask.dataflow.sources import Clock, Scored, Source, path_of
from pyimgano_dask.dataflow.tally import Record, Tally, tally
from pyimgano_dask.defects import Defects, check_map, extract_defects, scale_to_image
from pyimgano_dask.errors import InputError
from pyimgano_dask.settings.run import InferSettings
from pyimgano_dask.storage.files import read_file, write_atomic
from pyimgano_dask.storage.jsonl import encode_record


@dataclass(frozen=True)
class Job:
    """What every chunk of a run needs; made once, sent to each worker once.

    `base_dir` is where relative paths start, `parts_dir` where shards go, `n_inputs` the length of the whole list,
    `overlay_scale` the map values that overlays span, None for each map's own.
    """

    settings: InferSettings
    source: Source
    score_threshold: float | None
    pixel_threshold: float | None
    pixel_threshold_provenance: Mapping[str, Any] | None
    base_dir: str
    parts_dir: str
    n_inputs: int
    overlay_scale: tuple[float, float] | None = None


@dataclass(frozen=True)
class Receipt:
    """What comes back from a chunk.

    Its place, what its records say in numbers, the seconds by stage, the processes that worked on it, and what the user
    should know about these.
    """

    index: int
    tally: Tally
    seconds: Mapping[str, float]
    workers: tuple[Worker, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Started:
    """The first half of a chunk: its inputs as they are scored, one by one where the second half follows at once.

    `workers` is the process that has scored them, where another one goes on.
    """

    outcomes: Iterable[Scored | Failed]
    clock: Clock
    warnings: tuple[str, ...]
    workers: tuple[Worker, ...] = ()


def start(chunk: Chunk[Any], source: Source) -> Started:
    """Read the inputs of a chunk and infer, as the outcomes are asked for."""
    clock = Clock()
    return Started(source.outcomes(chunk, clock), clock, source.warnings())


def score_chunk(chunk: Chunk[Any], job: Job) -> Started:
    """The first half of `process_chunk`."""
    return start(chunk, job.source)


def pack(started: Started) -> Started:
    """The same with all outcomes in memory, ready to travel to another worker."""
    outcomes = list(started.outcomes)
    return replace(started, outcomes=outcomes, workers=(this_worker(),))


def finish_chunk(chunk: Chunk[Any], started: Started, job: Job) -> Receipt:
    """Extract the defects of scored inputs and write the chunk's shard and artifacts.

    An input that fails becomes an error record. Raises RunError when nothing more can be written.
    """
    clock = started.clock
    writer = ArtifactWriter(job.settings, job.base_dir, chunk.start, job.n_inputs, job.overlay_scale)
    records: dict[int, Record] = {}
    for outcome in started.outcomes:
        if isinstance(outcome, Scored):
            try:
                records[outcome.index] = _inspect(outcome, job, writer, clock)
            except InputError as error:
                outcome = Failed(outcome.index, outcome.path, error)
            else:
                del outcome  # large maps are let go before the next image is read
                continue
        records[outcome.index] = error_record(outcome)
    in_order = [records[index] for index, _ in chunk.rows()]
    with clock.stage("write"), shard_faults_end_the_run():
        for index, entry in writer.finish().items():
            if "error" not in records[index]:
                _locate(records[index], entry)
        write_shard(part_path(job.parts_dir, chunk.index), in_order)
    return Receipt(chunk.index, tally(in_order), clock.seconds, (*started.workers, this_worker()), started.warnings)


process_chunk: Chain[Job, Receipt] = Chain(score_chunk, finish_chunk, pack)
"""Inspect the inputs of a chunk: both halves, one after the other."""


def give_up_chunk(chunk: Chunk[Any], loss: Loss, job: Job) -> Receipt:
    """Write the shard of a chunk that cannot be done: an error record for each of its inputs."""
    records = [error_record(failed) for failed in lost_inputs(chunk, loss)]
    with shard_faults_end_the_run():
        write_shard(part_path(job.parts_dir, chunk.index), records)
    return Receipt(chunk.index, tally(records), {})


def read_receipt(chunk: Chunk[Any], parts_dir: str) -> Receipt | None:
    """The receipt of a chunk that is done, counted from its shard; None when that is not whole or of other inputs."""
    wanted = [(index, path_of(item)) for index, item in chunk.rows()]
    try:
        data = read_file(part_path(parts_dir, chunk.index))
        records = [json.loads(line) for line in data.splitlines()]
        says_something = all(len(record) > len(("index", "input")) for record in records)
        is_whole = says_something and b"".join(map(encode_record, records)) == data
        if not is_whole or [(record["index"], record["input"]) for record in records] != wanted:
            return None
        return Receipt(chunk.index, tally(records), {})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def lost_inputs(chunk: Chunk[Any], loss: Loss) -> Iterator[Failed]:
    """Every input of a chunk that is given up."""
    error = InputError("infer", loss.kind, loss.message)
    return (Failed(index, path_of(item), error) for index, item in chunk.rows())


def write_shard(path: str, records: Iterable[Record]) -> None:
    """Write records as one file that appears whole."""
    write_atomic(path, *map(encode_record, records))


def error_record(failed: Failed) -> Record:
    """The record of an input that failed."""
    error = failed.error
    return {
        "index": failed.index,
        "input": failed.path,
        "error": {"stage": error.stage, "type": error.kind, "message": error.message},
    }


def _inspect(item: Scored, job: Job, writer: ArtifactWriter, clock: Clock) -> Record:
    """Record of one input, its artifacts written."""
    settings = job.settings
    record: Record = {"index": item.index, "input": item.path}
    if item.score is not None:
        record["score"] = item.score
        if job.score_threshold is not None:
            record["label"] = int(item.score >= job.score_threshold)
    defects: Defects | None = None
    if job.pixel_threshold is not None:
        with clock.stage("extract"), faults_are_the_inputs("extract", "its defects cannot be extracted"):
            defects = extract_defects(item.anomaly_map, settings.defects, pixel_threshold=job.pixel_threshold)
            if settings.defects.image_space:
                defects = scale_to_image(defects, _known(item.image_hw))
            record["defects"] = {
                "space": {"type": "anomaly_map", "shape": list(item.anomaly_map.shape)},
                "pixel_threshold": job.pixel_threshold,
                "pixel_threshold_provenance": job.pixel_threshold_provenance,
                "mask": {"shape": list(defects.mask.shape), "dtype": "uint8", "encoding": settings.defects.mask_format},
                **defects.to_record(),
            }
    elif settings.needs_maps:
        check_map(item.anomaly_map)
    if settings.wants_maps:
        record["anomaly_map"] = {"shape": list(item.anomaly_map.shape), "dtype": "float32", **item.location}
    if settings.output.include_anomaly_map_values:
        record["anomaly_map_values"] = item.anomaly_map.tolist()
    with clock.stage("write"), faults_are_the_inputs("write", "its artifacts cannot be written"):
        _locate(record, writer.write(item, defects))
    return record


def _known(image_hw: tuple[int, int] | None) -> tuple[int, int]:
    if image_hw is None:
        raise InputError(
            "extract", "ImageSizeError", "boxes in image pixels need the image of the map; it is not known"
        )
    return image_hw


def _locate(record: Record, entry: Mapping[str, Mapping[str, Any]]) -> None:
    """Put where its map and mask lie into a record."""
    if "map" in entry:
        record["anomaly_map"].update(entry["map"])
    if "mask" in entry:
        record["defects"]["mask"].update(entry["mask"])
