"""A run of a detector over images: preflight → fit and calibrate → inspection."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, BinaryIO

from pyimgano_dask.dataflow.inspection import (
    Inspection,
    Progress,
    RunSummary,
    SilentProgress,
    Thresholds,
    inspect,
    stored_settings,
    stored_source,
)
from pyimgano_dask.dataflow.preflight import Preflight, check
from pyimgano_dask.dataflow.schedulers import Scheduler, open_scheduler
from pyimgano_dask.dataflow.sources import DetectorSource
from pyimgano_dask.dataflow.training import TrainingImages, calibrate, fit_detector, pixel_quantile
from pyimgano_dask.detectors.base import Detector
from pyimgano_dask.detectors.checkpoint import encode_detector
from pyimgano_dask.settings.resolve import Resolved
from pyimgano_dask.settings.run import InferSettings
from pyimgano_dask.settings.run_manifest import CONFIG_NAME, DETECTOR_NAME
from pyimgano_dask.storage.files import resolve, write_atomic
from pyimgano_dask.thresholds import (
    calibrated_pixel_provenance,
    fixed_pixel_provenance,
    score_quantile,
    score_threshold_provenance,
)

DEFAULT_SCORE_QUANTILE = 0.995


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
        report = None if flow.performance_report is None else resolve(flow.performance_report, base_dir)
        scheduler = stack.enter_context(
            open_scheduler(flow.scheduler, flow.workers, preflight.n_inputs, tls=flow.tls, report=report)
        )
        detector, thresholds, warnings = _train(preflight, settings, scheduler, progress)
        summary = RunSummary(
            settings, detector.name, scheduler.describe(), thresholds, warnings=(*scheduler.warnings, *warnings)
        )
        summary.training_seconds = time.perf_counter() - started
        draws_at_once = settings.output.save_overlays is not None and settings.output.overlay_scale != "run"
        work = Inspection(
            settings=settings,
            base_dir=base_dir,
            inputs_dir=base_dir,
            inputs=preflight.inputs,
            n_inputs=preflight.n_inputs,
            source=DetectorSource(preflight.reader(settings, with_display=draws_at_once), detector),
            thresholds=thresholds,
            images=stored_source(settings, base_dir),
        )
        inspect(work, scheduler, stdout, progress, summary)
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
        reader = preflight.reader(settings)
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


def _save_deployable(run_dir: str, settings: InferSettings, detector: Detector[Any], thresholds: Thresholds) -> None:
    """Leave the fitted detector and an infer config beside the shards: the next run needs no training images."""
    write_atomic(os.path.join(run_dir, DETECTOR_NAME), encode_detector(detector))
    model = {**settings.model.model_dump(mode="json", exclude_none=True), "name": detector.name}
    config = {
        "schema_version": settings.schema_version,
        "model": {
            **model,
            "model_kwargs": detector.arguments.model_dump(mode="json"),
            "checkpoint_path": DETECTOR_NAME,
        },
        "adaptation": {"save_maps": settings.wants_maps},
        **stored_settings(settings, thresholds),
    }
    text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomic(os.path.join(run_dir, CONFIG_NAME), text.encode())
