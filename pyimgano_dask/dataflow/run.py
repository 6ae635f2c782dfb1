"""A whole run: preflight → fit and calibrate → chunks → ordered merge → summary."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

from pyimgano_dask.dataflow.artifacts import is_zarr
from pyimgano_dask.dataflow.chunk import Job, Receipt, process_chunk
from pyimgano_dask.dataflow.merge import OrderedMerge
from pyimgano_dask.dataflow.plan import chunked
from pyimgano_dask.dataflow.preflight import Preflight, check
from pyimgano_dask.dataflow.reading import Reader
from pyimgano_dask.dataflow.schedulers import Scheduler, open_scheduler
from pyimgano_dask.dataflow.training import TrainingImages, calibrate, fit_detector, pixel_quantile
from pyimgano_dask.detectors.base import Detector
from pyimgano_dask.detectors.checkpoint import encode_detector
from pyimgano_dask.errors import RunError
from pyimgano_dask.settings.resolve import Resolved
from pyimgano_dask.settings.run import InferSettings
from pyimgano_dask.storage.files import make_folder, resolve, write_atomic
from pyimgano_dask.storage.jsonl import iter_records
from pyimgano_dask.thresholds import (
    calibrated_pixel_provenance,
    fixed_pixel_provenance,
    score_quantile,
    score_threshold_provenance,
)

DEFAULT_SCORE_QUANTILE = 0.995
SHOWN_ERRORS = 5


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

    `stage_seconds` are summed over all workers; `seconds` and `training_seconds` are wall time.
    """

    settings: InferSettings
    detector_name: str
    scheduler: str
    thresholds: Thresholds
    n_inputs: int = 0
    n_errors: int = 0
    n_anomalous: int = 0
    n_defective: int = 0
    n_regions: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    errors: list[tuple[str, str]] = field(default_factory=list)
    warnings: tuple[str, ...] = ()
    base_dir: str = field(default_factory=os.getcwd)
    unsaved_records: BinaryIO | None = None

    @property
    def exit_code(self) -> int:
        """0 when every input is done, 3 when some have an error record."""
        return 3 if self.n_errors else 0

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
        for stage, seconds in receipt.seconds.items():
            self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + seconds
        self.errors = [*self.errors, *receipt.errors][:SHOWN_ERRORS]


def run(resolved: Resolved, stdout: BinaryIO, progress: Progress | None = None) -> RunSummary:
    """Inspect the inputs of `resolved`; records go to `save_jsonl`, or to `stdout` as soon as their turn comes.

    Raises ConfigError before any work when something cannot be right, RunError when the run cannot finish.
    """
    started = time.perf_counter()
    base_dir = os.getcwd()
    preflight = check(resolved, base_dir)
    settings = resolved.settings
    progress = progress or SilentProgress()
    with ExitStack() as stack:
        flow = settings.dataflow
        scheduler = stack.enter_context(open_scheduler(flow.scheduler, flow.workers, preflight.n_inputs))
        detector, thresholds, warnings = _train(preflight, settings, scheduler, progress)
        training_seconds = time.perf_counter() - started
        parts_dir = stack.enter_context(_parts_folder(settings, base_dir))
        _prepare_outputs(settings, base_dir)
        sink = stack.enter_context(_open_sink(settings, base_dir, stdout))
        job = Job(
            settings=settings,
            detector=detector,
            score_threshold=thresholds.score,
            pixel_threshold=thresholds.pixel,
            pixel_threshold_provenance=thresholds.pixel_provenance,
            base_dir=base_dir,
            parts_dir=parts_dir,
            n_inputs=preflight.n_inputs,
        )
        summary = RunSummary(settings, detector.name, scheduler.describe(), thresholds, warnings=warnings)
        summary.training_seconds = training_seconds
        merge = OrderedMerge(parts_dir, sink)
        progress.phase("inspecting", preflight.n_inputs)

        def on_receipt(receipt: Receipt) -> None:
            summary._add(receipt)
            merge.add(receipt.index)
            progress.advance(receipt.n_inputs)

        chunks = chunked(preflight.inputs, flow.chunk_size)
        scheduler.run(process_chunk, chunks, job, on_receipt)
        if summary.n_inputs != preflight.n_inputs:
            raise RunError(
                f"the input list changed during the run: {preflight.n_inputs} inputs at its start, "
                f"{summary.n_inputs} when it was read; run again once nothing is added or removed"
            )
        if flow.run_dir is not None:
            _save_deployable(resolve(flow.run_dir, base_dir), settings, detector, thresholds)
    summary.seconds = time.perf_counter() - started
    return summary


def _train(
    preflight: Preflight, settings: InferSettings, scheduler: Scheduler, progress: Progress
) -> tuple[Detector[Any], Thresholds, tuple[str, ...]]:
    """Fit the detector where it is not fitted yet, and settle both thresholds."""
    detector = preflight.detector
    defects = settings.defects
    thresholds = Thresholds(settings.threshold, settings.threshold_provenance)
    warnings: tuple[str, ...] = ()
    if preflight.training is not None:
        reader = Reader(preflight.base_dir, detector.color, settings.inputs.max_image_pixels)
        images = TrainingImages(preflight.training, reader, settings.dataflow.chunk_size)
        if not detector.is_fitted:
            progress.phase("fitting")
            detector = fit_detector(scheduler, detector, images)
        progress.phase("calibrating")
        wants_pixels = preflight.pixel_threshold_source == "train_dir"
        calibration = calibrate(
            scheduler,
            detector,
            images,
            pixel_quantile=defects.pixel_normal_quantile if wants_pixels else None,
            roi_xyxy_norm=defects.roi_xyxy_norm,
        )
        warnings = calibration.warnings
        q = settings.training.calibration_quantile
        if q is None:
            q = DEFAULT_SCORE_QUANTILE if detector.contamination is None else 1 - detector.contamination
        thresholds = Thresholds(
            score_quantile(calibration.scores, q), score_threshold_provenance(calibration.scores, q, "train_dir")
        )
        if wants_pixels and calibration.pixels is not None:
            value = pixel_quantile(scheduler, calibration, detector, images, defects.roi_xyxy_norm)
            provenance = calibrated_pixel_provenance(
                defects.pixel_normal_quantile,
                map_count=len(calibration.scores),
                pixel_count=calibration.pixels.count,
                roi_xyxy_norm=defects.roi_xyxy_norm,
                roi_pixel_counts=calibration.roi_pixel_counts,
            )
            return detector, _with_pixel(thresholds, value, provenance), warnings
    source = preflight.pixel_threshold_source
    if source in ("explicit", "infer_config") and defects.pixel_threshold is not None:
        value = defects.pixel_threshold
        thresholds = _with_pixel(thresholds, value, fixed_pixel_provenance(value, source))
    return detector, thresholds, warnings


def _with_pixel(thresholds: Thresholds, value: float, provenance: Mapping[str, Any]) -> Thresholds:
    return Thresholds(thresholds.score, thresholds.score_provenance, value, provenance)


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
        parts = os.path.join(resolve(flow.run_dir, base_dir), "parts")
        shutil.rmtree(parts, ignore_errors=True)
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
            shutil.rmtree(parts, ignore_errors=True)


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


def _save_deployable(run_dir: str, settings: InferSettings, detector: Detector[Any], thresholds: Thresholds) -> None:
    """Leave the fitted detector and an infer config beside the shards: the next run needs no training images."""
    write_atomic(os.path.join(run_dir, "detector.npz"), encode_detector(detector))
    model = {**settings.model.model_dump(mode="json", exclude_none=True), "name": detector.name}
    config = {
        "schema_version": settings.schema_version,
        "model": {
            **model,
            "model_kwargs": detector.arguments.model_dump(mode="json"),
            "checkpoint_path": "detector.npz",
        },
        "adaptation": {"save_maps": settings.wants_maps},
        "defects": {**settings.defects.model_dump(mode="json"), "pixel_threshold": thresholds.pixel},
        "threshold": thresholds.score,
        "threshold_provenance": thresholds.score_provenance,
        "pixel_threshold_provenance": thresholds.pixel_provenance,
    }
    text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomic(os.path.join(run_dir, "infer_config.json"), text.encode())
