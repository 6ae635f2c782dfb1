"""The second half of every run: chunks → ordered merge → summary, whatever the maps come from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeVar

from pyimgano_dask.dataflow.chunk import Job, Receipt, give_up_chunk, process_chunk, read_receipt
from pyimgano_dask.dataflow.merge import OrderedMerge
from pyimgano_dask.dataflow.outputs import (
    open_output,
    output_faults_in_words,
    prepare_outputs,
    remove_leftovers_of_outputs,
)
from pyimgano_dask.dataflow.plan import Chunk, chunked
from pyimgano_dask.dataflow.profile import Profile
from pyimgano_dask.dataflow.progress import Progress
from pyimgano_dask.dataflow.reading import Reader
from pyimgano_dask.dataflow.run_folder import RunFolder
from pyimgano_dask.dataflow.scheduler import Loss, Scheduler
from pyimgano_dask.dataflow.sources import STAGES, Source, StoredSource
from pyimgano_dask.dataflow.survey import (
    Extremes,
    SpooledSource,
    Survey,
    give_up_survey,
    read_extremes,
    survey_chunk,
)
from pyimgano_dask.dataflow.tally import Tally, tally
from pyimgano_dask.defects import Waterfall
from pyimgano_dask.errors import ConfigError, RunError
from pyimgano_dask.settings.run import InferSettings
from pyimgano_dask.settings.run_manifest import MANIFEST_NAME, RunManifest, read_run_manifest
from pyimgano_dask.storage.files import make_folder, resolve, stamp_of, write_atomic
from pyimgano_dask.storage.jsonl import iter_records
from pyimgano_dask.urls import join
from pyimgano_dask.version import __version__

Done = TypeVar("Done")


@dataclass(frozen=True)
class Thresholds:
    """Score and pixel threshold of a run, with their provenance; None where there is none."""

    score: float | None = None
    score_provenance: Mapping[str, Any] | None = None
    pixel: float | None = None
    pixel_provenance: Mapping[str, Any] | None = None


@dataclass
class RunSummary:
    """What a run did.

    `source` names the detector, or says that the maps were stored. `tally` counts over all records, `n_resumed` how
    many inputs an earlier session had done. `seconds` and `training_seconds` are wall time, `profile` says where time
    and memory went.
    """

    settings: InferSettings = field(repr=False)
    source: str
    scheduler: str = "done before"
    thresholds: Thresholds = field(repr=False, default=Thresholds())
    tally: Tally = field(default_factory=Tally)
    n_resumed: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    profile: Profile = field(default_factory=Profile, repr=False)
    warnings: tuple[str, ...] = ()
    base_dir: str = field(default_factory=os.getcwd)
    unsaved_records: BinaryIO | None = None

    @property
    def n_inputs(self) -> int:
        """Inputs, each with a record."""
        return self.tally.n_inputs

    @property
    def n_worked(self) -> int:
        """Inputs that this session has worked on; an earlier one had done the others."""
        return self.n_inputs - self.n_resumed

    @property
    def n_errors(self) -> int:
        """Inputs with an error record."""
        return self.tally.n_errors

    @property
    def n_anomalous(self) -> int:
        """Inputs with label 1."""
        return self.tally.n_anomalous

    @property
    def n_defective(self) -> int:
        """Inputs with at least one region."""
        return self.tally.n_defective

    @property
    def n_regions(self) -> int:
        """Regions of all inputs."""
        return self.tally.n_regions

    @property
    def waterfall(self) -> Waterfall:
        """What each control dropped, with `--explain-defects`."""
        return self.tally.waterfall

    @property
    def errors(self) -> tuple[tuple[int, str, str], ...]:
        """The first few errors in the order of the inputs: index, input, message."""
        return self.tally.errors

    @property
    def exit_code(self) -> int:
        """0 when every input is done, 3 when some have an error record."""
        return 3 if self.n_errors else 0

    @property
    def stage_seconds(self) -> Mapping[str, float]:
        """Seconds of each stage of a chunk, summed over all workers."""
        return {stage: self.profile.seconds[stage] for stage in STAGES}

    def records(self) -> Iterator[dict[str, Any]]:
        """The records, read one by one from `save_jsonl` or from the temporary file that stands for it."""
        if self.settings.output.save_jsonl is not None:
            return iter_records(resolve(self.settings.output.save_jsonl, self.base_dir))
        if self.unsaved_records is None:
            raise ValueError("the records went to standard output; give save_jsonl to read them back")
        self.unsaved_records.seek(0)
        return map(json.loads, self.unsaved_records)

    def _add(self, receipt: Receipt) -> None:
        self.tally += receipt.tally
        self._add_work(receipt)

    def _add_work(self, done: Receipt | Extremes) -> None:
        self.profile.add_chunk(done.seconds, done.workers)
        self.warnings += tuple(warning for warning in done.warnings if warning not in self.warnings)


@dataclass(frozen=True)
class Inspection:
    """What is to be done: `n_inputs` inputs, whose maps `source` gives, with these settings and thresholds.

    `images` reads the images of the inputs for a second pass over maps that were put aside; it is None where the maps
    are stored already. Relative paths of inputs and stored maps start at `inputs_dir`, those of outputs at `base_dir`.
    """

    settings: InferSettings
    base_dir: str
    inputs_dir: str
    inputs: Iterable[Any]
    n_inputs: int
    source: Source
    thresholds: Thresholds
    images: StoredSource | None


def inspect(
    work: Inspection,
    scheduler: Scheduler,
    folder: RunFolder,
    stdout: BinaryIO,
    progress: Progress,
    summary: RunSummary,
) -> None:
    """Process every chunk that is not done yet and join the shards, in a folder that has begun.

    Records go to `save_jsonl`, or to `stdout` as soon as their turn comes. Overlays that share the scale of the run
    need a first pass, which finds the extremes of all maps.
    """
    settings, base_dir = work.settings, work.base_dir
    prepare_outputs(settings, base_dir, anew=not folder.outputs_are_ready)
    folder.keep_outputs_are_ready()
    if folder.follows_another:
        remove_leftovers_of_outputs(settings, base_dir)
    with open_output(settings, base_dir, stdout) as sink:
        source, scale = work.source, settings.output.fixed_overlay_scale
        if settings.output.save_overlays is not None and settings.output.overlay_scale == "run":
            spool_dir = None if work.images is None else folder.spool_dir
            scale = _survey(work, spool_dir, scheduler, folder, progress, summary)
            if spool_dir is not None and work.images is not None:
                source = SpooledSource(spool_dir, work.images)
        job = Job(
            settings=settings,
            source=source,
            score_threshold=work.thresholds.score,
            pixel_threshold=work.thresholds.pixel,
            pixel_threshold_provenance=work.thresholds.pixel_provenance,
            base_dir=base_dir,
            parts_dir=folder.parts_dir,
            n_inputs=work.n_inputs,
            overlay_scale=scale,
        )
        merge = OrderedMerge(folder.parts_dir, sink)
        progress.phase("inspecting", work.n_inputs)

        def on_receipt(receipt: Receipt) -> None:
            summary._add(receipt)
            with summary.profile.stage("merge"), output_faults_in_words(settings):
                merge.add(receipt.index)
            progress.advance(receipt.tally.n_inputs)
            _stop_at_too_many_errors(settings.dataflow.max_errors, summary.tally)

        def on_done_before(receipt: Receipt) -> None:
            summary.n_resumed += receipt.tally.n_inputs
            on_receipt(receipt)

        def on_lost(chunk: Chunk[Any], loss: Loss) -> None:
            on_receipt(give_up_chunk(chunk, loss, job))

        chunks = chunked(work.inputs, settings.dataflow.chunk_size)
        if folder.is_resumed:
            done = folder.finished_chunks()
            chunks = _not_done(chunks, done, lambda chunk: read_receipt(chunk, folder.parts_dir), on_done_before)
        scheduler.run(process_chunk, chunks, job, on_receipt, on_lost)
        if summary.n_inputs != work.n_inputs:
            raise RunError(
                f"the input list changed during the run: {work.n_inputs} inputs at its start, "
                f"{summary.n_inputs} when it was read; run again once nothing is added or removed"
            )


def say_finished(work: Inspection, folder: RunFolder) -> None:
    """Write `run.json`, the last of all files of a run."""
    if folder.run_dir is not None:
        write_atomic(join(folder.run_dir, MANIFEST_NAME), _manifest(work).encode())


def take_finished(folder: RunFolder, settings: InferSettings, base_dir: str, summary: RunSummary) -> bool:
    """Whether the run is finished and its records are there; then `summary` counts them.

    Raises ConfigError when it is finished and its records are nowhere.
    """
    if folder.earlier is None or not folder.earlier.is_finished:
        return False
    if len(folder.finished_chunks()) == folder.plan.n_chunks:
        return False
    jsonl = settings.output.save_jsonl
    path = None if jsonl is None else resolve(jsonl, base_dir)
    manifest = _manifest_in(folder)
    if path is not None and manifest is not None and path == manifest.records and manifest.stamp == stamp_of(path):
        summary.tally = tally(iter_records(path))
        summary.n_resumed = summary.n_inputs
        return True
    raise ConfigError(
        f"--resume: the run in {settings.dataflow.run_dir!r} is finished, and its records are not "
        f"{'on standard output any more' if jsonl is None else f'in {jsonl!r}'}; --no-resume starts anew"
    )


def _manifest_in(folder: RunFolder) -> RunManifest | None:
    """What the finished run says of itself; None when that is damaged."""
    try:
        return read_run_manifest(folder.run_dir or "")
    except ConfigError:
        return None


def _not_done(
    chunks: Iterable[Chunk[Any]],
    done: set[int],
    read: Callable[[Chunk[Any]], Done | None],
    on_done: Callable[[Done], None],
) -> Iterator[Chunk[Any]]:
    """The chunks that are left; what was kept of the others goes to `on_done`. A damaged one is done again."""
    for chunk in chunks:
        kept = read(chunk) if chunk.index in done else None
        if kept is None:
            yield chunk
        else:
            on_done(kept)


def _stop_at_too_many_errors(max_errors: int, so_far: Tally) -> None:
    if 0 < max_errors <= so_far.n_errors:
        _, path, message = so_far.errors[0]
        raise RunError(
            f"stopped at --max-errors {max_errors} (error records: {so_far.n_errors}); the first one is {path!r}: "
            f"{message}; mend the inputs, or go on with a larger --max-errors"
        )


def stored_source(settings: InferSettings, base_dir: str) -> StoredSource:
    """How stored maps are read, and their images where defects are scaled to them or drawn on them."""
    draws = settings.output.save_overlays is not None
    limit = settings.inputs.max_image_pixels
    reader = Reader(base_dir, "rgb", limit, with_display=draws) if draws or settings.defects.image_space else None
    return StoredSource(base_dir, limit, reader)


def _survey(
    work: Inspection,
    spool_dir: str | None,
    scheduler: Scheduler,
    folder: RunFolder,
    progress: Progress,
    summary: RunSummary,
) -> tuple[float, float] | None:
    """Least and greatest value of all maps, None when they have no two values."""
    is_known, scale = folder.surveyed_scale
    if is_known:
        return scale
    lows, highs = [], []
    progress.phase("finding the overlays' scale", work.n_inputs)

    def on_extremes(extremes: Extremes) -> None:
        lows.append(extremes.low)
        highs.append(extremes.high)
        summary._add_work(extremes)
        progress.advance(extremes.n_inputs)

    survey = Survey(work.source, spool_dir)
    chunks = chunked(work.inputs, work.settings.dataflow.chunk_size)
    if spool_dir is not None:
        make_folder(spool_dir)
        if folder.is_resumed:
            chunks = _not_done(
                chunks, folder.surveyed_chunks(), lambda chunk: read_extremes(chunk, spool_dir), on_extremes
            )
    scheduler.run(
        survey_chunk, chunks, survey, on_extremes, lambda chunk, loss: on_extremes(give_up_survey(chunk, loss, survey))
    )
    low, high = min(lows), max(highs)
    scale = (low, high) if low < high else None
    folder.keep_scale(scale)
    return scale


def _manifest(work: Inspection) -> RunManifest:
    settings, jsonl = work.settings, work.settings.output.save_jsonl
    return RunManifest(
        version=__version__,
        base_dir=work.inputs_dir,
        n_inputs=work.n_inputs,
        records=None if jsonl is None else resolve(jsonl, work.base_dir),
        stamp=None if jsonl is None else stamp_of(resolve(jsonl, work.base_dir)),
        settings=stored_settings(settings, work.thresholds),
    )


def stored_settings(settings: InferSettings, thresholds: Thresholds) -> dict[str, Any]:
    """The blocks of an infer config that defects depend on, with the thresholds of the run."""
    return {
        "defects": {**settings.defects.model_dump(mode="json"), "pixel_threshold": thresholds.pixel},
        "threshold": thresholds.score,
        "threshold_provenance": thresholds.score_provenance,
        "pixel_threshold_provenance": thresholds.pixel_provenance,
    }
