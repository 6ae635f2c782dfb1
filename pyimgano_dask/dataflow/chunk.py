"""One chunk, one task: read → infer → extract → write. Everything a chunk leaves behind is written here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pyimgano_dask.dataflow.artifacts import ArtifactWriter
from pyimgano_dask.dataflow.faults import faults_are_the_inputs, shard_faults_end_the_run
from pyimgano_dask.dataflow.merge import part_path
from pyimgano_dask.dataflow.plan import Chunk
from pyimgano_dask.dataflow.reading import Failed
from pyimgano_dask.dataflow.sources import Clock, Scored, Source, map_path, scores_path
from pyimgano_dask.defects import Defects, Waterfall, add_waterfalls, check_map, extract_defects, scale_to_image
from pyimgano_dask.errors import InputError
from pyimgano_dask.settings.run import InferSettings
from pyimgano_dask.storage.files import write_atomic
from pyimgano_dask.storage.jsonl import encode_record
from pyimgano_dask.storage.maps import encode_npy

SHOWN_ERRORS = 5

Record = dict[str, Any]


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
    """What comes back from a chunk: counts, seconds by stage, and the first few errors (index, input, message)."""

    index: int
    n_inputs: int
    n_errors: int
    n_anomalous: int
    n_defective: int
    n_regions: int
    waterfall: Waterfall
    seconds: Mapping[str, float]
    errors: tuple[tuple[int, str, str], ...]


def process_chunk(chunk: Chunk[Any], job: Job) -> Receipt:
    """Inspect the inputs of a chunk and write its shard and artifacts.

    An input that fails becomes an error record. Raises RunError when nothing more can be written.
    """
    clock = Clock()
    writer = ArtifactWriter(job.settings, job.base_dir, chunk.start, job.n_inputs, job.overlay_scale)
    records: dict[int, Record] = {}
    failures: list[Failed] = []
    waterfall: Waterfall = ()
    for outcome in job.source.outcomes(chunk, clock):
        if isinstance(outcome, Scored):
            try:
                record, defects = _inspect(outcome, job, writer, clock)
            except InputError as error:
                outcome = Failed(outcome.index, outcome.path, error)
            else:
                records[outcome.index] = record
                waterfall = add_waterfalls(waterfall, defects.waterfall if defects else ())
                del outcome, defects  # large maps are let go before the next image is read
                continue
        records[outcome.index] = _error_record(outcome)
        failures.append(outcome)
    with clock.stage("write"), shard_faults_end_the_run():
        for index, entry in writer.finish().items():
            if "error" not in records[index]:
                _locate(records[index], entry)
        lines = [encode_record(records[index]) for index, _ in chunk.rows()]
        write_atomic(part_path(job.parts_dir, chunk.index), *lines)
    regions = [len(record["defects"]["regions"]) for record in records.values() if "defects" in record]
    return Receipt(
        index=chunk.index,
        n_inputs=len(chunk.inputs),
        n_errors=len(failures),
        n_anomalous=sum(record.get("label") == 1 for record in records.values()),
        n_defective=sum(count > 0 for count in regions),
        n_regions=sum(regions),
        waterfall=waterfall,
        seconds=clock.seconds,
        errors=tuple(sorted((item.index, item.path, item.error.message) for item in failures)[:SHOWN_ERRORS]),
    )


def _error_record(failed: Failed) -> Record:
    error = failed.error
    return {
        "index": failed.index,
        "input": failed.path,
        "error": {"stage": error.stage, "type": error.kind, "message": error.message},
    }


def _inspect(item: Scored, job: Job, writer: ArtifactWriter, clock: Clock) -> tuple[Record, Defects | None]:
    """Record of one input, its artifacts written, and its defects where they are asked for."""
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
    return record, defects


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


@dataclass(frozen=True)
class Survey:
    """What a first pass needs: its maps, and where it puts them aside (None: they are stored already)."""

    source: Source
    spool_dir: str | None


@dataclass(frozen=True)
class Extremes:
    """What a first pass says of a chunk: the least and greatest value of its maps, and the seconds it took."""

    n_inputs: int
    low: float
    high: float
    seconds: Mapping[str, float]


def survey_chunk(chunk: Chunk[Any], survey: Survey) -> Extremes:
    """Find the extremes of the maps of a chunk, those that are finite throughout; put maps and scores aside.

    Raises RunError when nothing more can be written.
    """
    clock = Clock()
    records: dict[int, Record] = {}
    low, high = math.inf, -math.inf
    for outcome in survey.source.outcomes(chunk, clock):
        if isinstance(outcome, Failed):
            records[outcome.index] = _error_record(outcome)
            continue
        records[outcome.index] = {"index": outcome.index, "input": outcome.path, "score": outcome.score}
        values = outcome.anomaly_map
        with suppress(InputError):
            check_map(values)
            low, high = min(low, float(values.min())), max(high, float(values.max()))
        if survey.spool_dir is not None:
            with clock.stage("write"), shard_faults_end_the_run():
                write_atomic(map_path(survey.spool_dir, outcome.index), *encode_npy(values))
    if survey.spool_dir is not None:
        with clock.stage("write"), shard_faults_end_the_run():
            lines = [encode_record(records[index]) for index, _ in chunk.rows()]
            write_atomic(scores_path(survey.spool_dir, chunk.index), *lines)
    return Extremes(len(chunk.inputs), low, high, clock.seconds)
