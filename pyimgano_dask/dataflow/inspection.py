"""The second half of every run: chunks → ordered merge → summary, whatever the maps come from."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

from pyimgano_dask.dataflow.artifacts import is_zarr
from pyimgano_dask.dataflow.chunk import SHOWN_ERRORS, Extremes, Job, Receipt, Survey, process_chunk, survey_chunk
from pyimgano_dask.dataflow.merge import OrderedMerge
from pyimgano_dask.dataflow.plan import chunked
from pyimgano_dask.dataflow.profile import Profile
from pyimgano_dask.dataflow.reading import Reader
from pyimgano_dask.dataflow.schedulers import Scheduler
from pyimgano_dask.dataflow.sources import STAGES, Source, SpooledSource, StoredSource
from pyimgano_dask.defects import Waterfall, add_waterfalls
from pyimgano_dask.errors import RunError
from pyimgano_dask.settings.run import InferSettings
from pyimgano_dask.settings.run_manifest import MANIFEST_NAME, RunManifest
from pyimgano_dask.storage.files import TEMP_PREFIX, make_folder, resolve, write_atomic
from pyimgano_dask.storage.jsonl import iter_records
from pyimgano_dask.version import __version__

PARTS = "parts"
SPOOL = ".spool"
_SHARD = re.compile(rf"part-\d{{8}}\.jsonl|{re.escape(TEMP_PREFIX)}.*")


class Progress(Protocol):
    """Where a run tells how far it is."""

    def phase(self, name: str, total: int | None = None) -> None:
        """A new phase begins, of `total` inputs where that is known."""

    def advance(self, inputs: int) -> None:
        """So many more inputs are done."""


class SilentProgress:
    """Tells nobody."""

    def phase(self, name: str, total: int | None = None) -> None:
        """Ignored."""

    def advance(self, inputs: int) -> None:
        """Ignored."""


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

    `source` names the detector, or says that the maps were stored. `waterfall` is what each control dropped, summed
    over all inputs, with `--explain-defects`. `seconds` and `training_seconds` are wall time, `profile` says where time
    and memory went. `errors` are the first few in the order of the inputs (index, input, message).
    """

    settings: InferSettings = field(repr=False)
    source: str
    scheduler: str
    thresholds: Thresholds = field(repr=False)
    n_inputs: int = 0
    n_errors: int = 0
    n_anomalous: int = 0
    n_defective: int = 0
    n_regions: int = 0
    waterfall: Waterfall = ()
    seconds: float = 0.0
    training_seconds: float = 0.0
    profile: Profile = field(default_factory=Profile, repr=False)
    errors: list[tuple[int, str, str]] = field(default_factory=list)
    warnings: tuple[str, ...] = ()
    base_dir: str = field(default_factory=os.getcwd)
    unsaved_records: BinaryIO | None = None

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
        self.n_inputs += receipt.n_inputs
        self.n_errors += receipt.n_errors
        self.n_anomalous += receipt.n_anomalous
        self.n_defective += receipt.n_defective
        self.n_regions += receipt.n_regions
        self.waterfall = add_waterfalls(self.waterfall, receipt.waterfall)
        self._add_work(receipt)
        self.errors = sorted([*self.errors, *receipt.errors])[:SHOWN_ERRORS]

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


def inspect(work: Inspection, scheduler: Scheduler, stdout: BinaryIO, progress: Progress, summary: RunSummary) -> None:
    """Process every chunk and join the shards; records go to `save_jsonl`, or to `stdout` as soon as their turn comes.

    Overlays that share the scale of the run need a first pass, which finds the extremes of all maps.
    """
    settings, base_dir = work.settings, work.base_dir
    with ExitStack() as stack:
        parts_dir = stack.enter_context(_parts_folder(settings, base_dir))
        _prepare_outputs(settings, base_dir)
        sink = stack.enter_context(_open_sink(settings, base_dir, stdout))
        source, scale = work.source, settings.output.fixed_overlay_scale
        if settings.output.save_overlays is not None and settings.output.overlay_scale == "run":
            spool_dir = stack.enter_context(_spool_folder(parts_dir)) if work.images is not None else None
            scale = _survey(work, spool_dir, scheduler, progress, summary)
            if spool_dir is not None and work.images is not None:
                source = SpooledSource(spool_dir, work.images)
        job = Job(
            settings=settings,
            source=source,
            score_threshold=work.thresholds.score,
            pixel_threshold=work.thresholds.pixel,
            pixel_threshold_provenance=work.thresholds.pixel_provenance,
            base_dir=base_dir,
            parts_dir=parts_dir,
            n_inputs=work.n_inputs,
            overlay_scale=scale,
        )
        merge = OrderedMerge(parts_dir, sink)
        progress.phase("inspecting", work.n_inputs)

        def on_receipt(receipt: Receipt) -> None:
            summary._add(receipt)
            with summary.profile.stage("merge"):
                merge.add(receipt.index)
            progress.advance(receipt.n_inputs)

        scheduler.run(process_chunk, chunked(work.inputs, settings.dataflow.chunk_size), job, on_receipt)
        if summary.n_inputs != work.n_inputs:
            raise RunError(
                f"the input list changed during the run: {work.n_inputs} inputs at its start, "
                f"{summary.n_inputs} when it was read; run again once nothing is added or removed"
            )
    if settings.dataflow.run_dir is not None:
        manifest = _manifest(work)
        write_atomic(os.path.join(resolve(settings.dataflow.run_dir, base_dir), MANIFEST_NAME), manifest.encode())


def stored_source(settings: InferSettings, base_dir: str) -> StoredSource:
    """How stored maps are read, and their images where defects are scaled to them or drawn on them."""
    draws = settings.output.save_overlays is not None
    limit = settings.inputs.max_image_pixels
    reader = Reader(base_dir, "rgb", limit, with_display=draws) if draws or settings.defects.image_space else None
    return StoredSource(base_dir, limit, reader)


def _survey(
    work: Inspection, spool_dir: str | None, scheduler: Scheduler, progress: Progress, summary: RunSummary
) -> tuple[float, float] | None:
    """Least and greatest value of all maps, None when they have no two values."""
    lows, highs = [], []
    progress.phase("finding the overlays' scale", work.n_inputs)

    def on_extremes(extremes: Extremes) -> None:
        lows.append(extremes.low)
        highs.append(extremes.high)
        summary._add_work(extremes)
        progress.advance(extremes.n_inputs)

    chunks = chunked(work.inputs, work.settings.dataflow.chunk_size)
    scheduler.run(survey_chunk, chunks, Survey(work.source, spool_dir), on_extremes)
    low, high = min(lows), max(highs)
    return (low, high) if low < high else None


def _manifest(work: Inspection) -> RunManifest:
    settings, jsonl = work.settings, work.settings.output.save_jsonl
    return RunManifest(
        version=__version__,
        base_dir=work.inputs_dir,
        n_inputs=work.n_inputs,
        records=None if jsonl is None else resolve(jsonl, work.base_dir),
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


def _prepare_outputs(settings: InferSettings, base_dir: str) -> None:
    """Make the output folders and the zarr stores: one explicit step, before any task."""
    output = settings.output
    stores = []
    if output.save_maps is not None and is_zarr(output.save_maps):
        stores.append(output.save_maps)
    if output.save_masks is not None and settings.defects.mask_format == "zarr":
        stores.append(output.save_masks)
    for folder in (output.save_maps, output.save_masks, output.save_overlays):
        if folder is not None and folder not in stores:
            make_folder(resolve(folder, base_dir))
    if stores:
        from pyimgano_dask.storage.zarr_store import create_store

        for store in stores:
            create_store(resolve(store, base_dir))


@contextmanager
def _parts_folder(settings: InferSettings, base_dir: str) -> Iterator[str]:
    """Folder of the shards: in the run folder, else a temporary one beside the JSONL; emptied first, removed after."""
    flow = settings.dataflow
    if flow.run_dir is not None:
        run_dir = resolve(flow.run_dir, base_dir)
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(run_dir, MANIFEST_NAME))
        parts = os.path.join(run_dir, PARTS)
        _remove_shards(parts)
        make_folder(parts)
    else:
        jsonl = settings.output.save_jsonl
        beside = os.path.dirname(resolve(jsonl, base_dir)) if jsonl is not None else _scratch_folder(base_dir)
        make_folder(beside)
        parts = tempfile.mkdtemp(prefix=".parts-", dir=beside)
    try:
        yield parts
    finally:
        if not flow.keep_parts:
            _remove_shards(parts)


def _remove_shards(parts: str) -> None:
    """Remove what runs leave in a folder of shards, and the folder if nothing else is in it."""
    with suppress(FileNotFoundError), os.scandir(parts) as entries:
        for entry in entries:
            if _SHARD.fullmatch(entry.name):
                os.unlink(entry.path)
        shutil.rmtree(os.path.join(parts, SPOOL), ignore_errors=True)
    with suppress(OSError):
        os.rmdir(parts)


def _scratch_folder(base_dir: str) -> str:
    """The working folder, which workers on other machines mostly share; else the system's temporary folder."""
    return base_dir if os.access(base_dir, os.W_OK) else tempfile.gettempdir()


@contextmanager
def _open_sink(settings: InferSettings, base_dir: str, stdout: BinaryIO) -> Iterator[BinaryIO]:
    """Where merged records go: standard output, or a file that appears whole when the run ends well."""
    jsonl = settings.output.save_jsonl
    if jsonl is None:
        try:
            yield stdout
        except BrokenPipeError:
            raise
        except OSError as error:
            raise RunError(f"standard output cannot be written: {error}; make room and run again") from error
        return
    path = resolve(jsonl, base_dir)
    partial = f"{path}.partial-{os.getpid()}"
    try:
        make_folder(os.path.dirname(path))
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    except OSError as error:
        raise RunError(f"{jsonl!r} cannot be written: {error}; make room or access and run again") from error
    finally:
        if os.path.exists(partial):
            os.unlink(partial)


@contextmanager
def _spool_folder(parts_dir: str) -> Iterator[str]:
    """Folder for the maps of a first pass; removed with all in it."""
    spool = os.path.join(parts_dir, SPOOL)
    make_folder(spool)
    try:
        yield spool
    finally:
        shutil.rmtree(spool, ignore_errors=True)
