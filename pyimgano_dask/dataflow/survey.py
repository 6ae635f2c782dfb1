"""The first pass of a run whose overlays share one scale: it finds the extremes of all maps, and puts them aside."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pyimgano_dask.dataflow.chunk import Started, error_record, lost_inputs, pack, start, write_shard
from pyimgano_dask.dataflow.faults import shard_faults_end_the_run
from pyimgano_dask.dataflow.plan import Chunk
from pyimgano_dask.dataflow.profile import Worker, this_worker
from pyimgano_dask.dataflow.reading import Failed
from pyimgano_dask.dataflow.scheduler import Chain, Loss
from pyimgano_dask.dataflow.shards import map_path, scores_path
from pyimgano_dask.dataflow.sources import Clock, Scored, Source, StoredMap, StoredSource, path_of
from pyimgano_dask.dataflow.tally import Record
from pyimgano_dask.defects import check_map
from pyimgano_dask.errors import ConfigError, InputError, RunError
from pyimgano_dask.storage.files import write_atomic
from pyimgano_dask.storage.jsonl import iter_records
from pyimgano_dask.storage.maps import encode_npy


@dataclass(frozen=True)
class Survey:
    """What a first pass needs: its maps, and where it puts them aside (None: they are stored already)."""

    source: Source
    spool_dir: str | None


@dataclass(frozen=True)
class Extremes:
    """What a first pass says of a chunk.

    `low` and `high` are the least and greatest value of its maps (inf and -inf where it has none); the rest is as in
    receipts.
    """

    n_inputs: int
    low: float
    high: float
    seconds: Mapping[str, float]
    workers: tuple[Worker, ...] = ()
    warnings: tuple[str, ...] = ()


def score_for_survey(chunk: Chunk[Any], survey: Survey) -> Started:
    """The first half of `survey_chunk`."""
    return start(chunk, survey.source)


def finish_survey(chunk: Chunk[Any], started: Started, survey: Survey) -> Extremes:
    """Find the extremes of the maps of a chunk, those that are finite throughout; put maps and scores aside.

    Raises RunError when nothing more can be written.
    """
    clock = started.clock
    records: dict[int, Record] = {}
    low, high = math.inf, -math.inf
    for outcome in started.outcomes:
        if isinstance(outcome, Failed):
            records[outcome.index] = error_record(outcome)
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
        with clock.stage("write"):
            _write_scores(chunk, survey.spool_dir, [records[index] for index, _ in chunk.rows()], low, high)
    workers = (*started.workers, this_worker())
    return Extremes(len(chunk.inputs), low, high, clock.seconds, workers, started.warnings)


survey_chunk: Chain[Survey, Extremes] = Chain(score_for_survey, finish_survey, pack)
"""Look at the maps of a chunk: both halves, one after the other."""


def give_up_survey(chunk: Chunk[Any], loss: Loss, survey: Survey) -> Extremes:
    """Put aside that the inputs of a chunk failed, so that the second pass does not meet them again."""
    if survey.spool_dir is not None:
        records = [error_record(failed) for failed in lost_inputs(chunk, loss)]
        _write_scores(chunk, survey.spool_dir, records, math.inf, -math.inf)
    return Extremes(len(chunk.inputs), math.inf, -math.inf, {})


def read_extremes(chunk: Chunk[Any], spool_dir: str) -> Extremes | None:
    """What was found of a chunk that is done; None when its scores are not whole or of other inputs."""
    try:
        found, *records = iter_records(scores_path(spool_dir, chunk.index))
    except (OSError, ValueError, ConfigError):
        return None
    if [record.get("input") for record in records] != [path_of(item) for item in chunk.inputs]:
        return None
    low, high = (math.inf, -math.inf) if found["low"] is None else (found["low"], found["high"])
    return Extremes(len(records), low, high, {})


@dataclass(frozen=True)
class SpooledSource(Source):
    """What the first pass of a run put aside in `spool_dir`: its maps, and a shard of scores for each chunk."""

    spool_dir: str
    stored: StoredSource

    def outcomes(self, chunk: Chunk[Any], clock: Clock) -> Iterator[Scored | Failed]:
        try:
            _, *records = iter_records(scores_path(self.spool_dir, chunk.index))
        except FileNotFoundError:
            records = []
        items = []
        for record in records:
            path, error = record["input"], record.get("error")
            failure = None if error is None else (error["stage"], error["type"], error["message"])
            location = {"path": map_path(self.spool_dir, record["index"])}
            items.append(StoredMap(path, location, image=path, score=record.get("score"), failure=failure))
        if tuple(item.path for item in items) != chunk.inputs:
            raise RunError(
                f"the input list changed during the run, at input {chunk.start} or soon after; "
                "run again once nothing is added or removed"
            )
        for outcome in self.stored.outcomes(Chunk(chunk.index, chunk.start, tuple(items)), clock):
            yield replace(outcome, location={}) if isinstance(outcome, Scored) else outcome


def _write_scores(chunk: Chunk[Any], spool_dir: str, records: list[Record], low: float, high: float) -> None:
    """The shard of scores: first a line with the extremes (null where there are none), then a record an input."""
    found = {"low": low, "high": high} if low <= high else {"low": None, "high": None}
    with shard_faults_end_the_run():
        write_shard(scores_path(spool_dir, chunk.index), [found, *records])
