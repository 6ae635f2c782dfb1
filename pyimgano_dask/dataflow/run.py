"""A run of a detector over images: preflight → fit and calibrate → inspection."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, BinaryIO

from pyimgano_dask.dataflow.config_advice import calibrated_otherwise, fitted_otherwise, mixes_precision
from pyimgano_dask.dataflow.inspection import (
    Inspection,
    RunSummary,
    Thresholds,
    inspect,
    say_finished,
    stored_settings,
    stored_source,
    take_finished,
)
from pyimgano_dask.dataflow.plan import make_plan
from pyimgano_dask.dataflow.preflight import Preflight, check
from pyimgano_dask.dataflow.profile import Profile, finish
from pyimgano_dask.dataflow.progress import Progress, SilentProgress
from pyimgano_dask.dataflow.run_folder import RunFolder, Training, find_run_folder, hold_run_folder
from pyimgano_dask.dataflow.scheduler import Scheduler
from pyimgano_dask.dataflow.schedulers import open_scheduler
from pyimgano_dask.dataflow.sources import DetectorSource
from pyimgano_dask.dataflow.training import (
    LeftOut,
    TrainingImages,
    calibrate,
    fit_detector,
    left_out_warnings,
    own_images_warnings,
    pixel_quantile,
    score_threshold,
    tied_scores_warnings,
)
from pyimgano_dask.dataflow.versions import package_versions
from pyimgano_dask.detectors.amp import device_of
from pyimgano_dask.detectors.base import Detector
from pyimgano_dask.detectors.checkpoint import decode_detector, encode_detector
from pyimgano_dask.detectors.devices import device_here
from pyimgano_dask.detectors.model_files import ReadFile
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.commands import INFER
from pyimgano_dask.settings.infer_config import CONFIG_NAME
from pyimgano_dask.settings.resolve import Resolved
from pyimgano_dask.settings.run import LOCAL_SCHEDULERS, InferSettings
from pyimgano_dask.settings.run_manifest import DETECTOR_NAME
from pyimgano_dask.settings.tiling import TilingSettings
from pyimgano_dask.storage.files import write_atomic
from pyimgano_dask.thresholds import calibrated_pixel_provenance, fixed_pixel_provenance, with_value_and_origin
from pyimgano_dask.urls import join

OF_EACH_WORKER = "that of each worker"
CALIBRATE_ON_OTHERS = (
    "Calibrate on other normal images, with this run's config and --train-dir "
    "(docs/DETECTORS.md#thresholds-from-other-images)"
)


def run(resolved: Resolved, stdout: BinaryIO, progress: Progress | None = None) -> RunSummary:
    """Inspect the inputs of `resolved`; records go to `save_jsonl`, or to `stdout` as soon as their turn comes.

    Raises ConfigError before any work when something cannot be right, RunError when the run cannot finish.
    """
    started = time.perf_counter()
    base_dir = os.getcwd()
    profile = Profile()
    preflight = check(resolved, base_dir, profile)
    settings = resolved.settings
    plan = make_plan(
        settings,
        preflight.lists,
        base_dir,
        package_versions(preflight.detector.libraries),
        {**_contents(preflight.made.files), **_of_the_library(preflight.detector, settings)},
    )
    summary = RunSummary(settings, preflight.detector.name, profile=profile)
    progress = progress or SilentProgress()
    with ExitStack() as stack:
        stack.enter_context(hold_run_folder(settings, base_dir))
        folder = find_run_folder(settings, base_dir, plan)
        if take_finished(folder, settings, base_dir, summary):
            if folder.training is not None:
                summary.thresholds = _thresholds_of(folder.training)
            finish(summary, started, INFER.name)
            return summary
        flow = settings.dataflow
        libraries = preflight.detector.libraries
        scheduler = stack.enter_context(open_scheduler(flow, preflight.n_inputs, base_dir, libraries))
        profile.n_workers = scheduler.n_workers
        detector, thresholds, warnings = _trained(preflight, settings, scheduler, folder, progress, profile)
        summary.warnings = (
            *preflight.warnings,
            *scheduler.warnings,
            *warnings,
            *_unsuited_to_tiles(detector, settings),
            *_without_colours(detector, resolved),
            *fitted_otherwise(resolved, preflight),
            *calibrated_otherwise(resolved, preflight),
        )
        summary.scheduler, summary.thresholds = scheduler.describe(), thresholds
        stack.enter_context(folder.begun())
        if folder.run_dir is not None and folder.training is None:
            _keep_training(folder, detector, thresholds, warnings)
        summary.training_seconds = time.perf_counter() - started
        draws_at_once = settings.output.save_overlays is not None and settings.output.overlay_scale != "run"
        work = Inspection(
            settings=settings,
            base_dir=base_dir,
            inputs_dir=base_dir,
            inputs=preflight.inputs,
            n_inputs=preflight.n_inputs,
            source=DetectorSource(
                preflight.reader(settings, with_display=draws_at_once),
                detector,
                amp=flow.amp,
                amp_named="--amp" if resolved.is_explicit("dataflow.amp") else "dataflow.amp of the config",
            ),
            thresholds=thresholds,
            images=stored_source(settings, base_dir),
        )
        inspect(work, scheduler, folder, stdout, progress, summary)
        if folder.run_dir is not None:
            _save_config(folder.run_dir, settings, detector, thresholds)
        say_finished(work, folder)
    finish(summary, started, INFER.name)
    return summary


def _of_the_library(detector: Detector[Any], settings: InferSettings) -> Mapping[str, Any]:
    """What the rounding of a detector's library depends on besides its version.

    Networks split sums by threads, and add them up in another order on another device. Without --device the workers of
    a cluster take what each of them has, and nobody knows before they work: then that is the fact.
    """
    if detector.extra is None:
        return {}
    facts: dict[str, Any] = {"dataflow": {"threads_per_task": settings.dataflow.threads_per_task}}
    if hasattr(detector.arguments, "device"):
        device = device_of(detector)
        if device is not None or settings.dataflow.scheduler in LOCAL_SCHEDULERS:
            device = device_here(device, detector.extra)
        facts["model"] = {"device": device or OF_EACH_WORKER}
    return facts


def _contents(files: Mapping[str, ReadFile]) -> Mapping[str, str]:
    """The facts that files of weights and models hold what they did."""
    return {f"{file.named_by}, content of {path!r} (sha256)": file.sha256 for path, file in files.items()}


def _trained(
    preflight: Preflight,
    settings: InferSettings,
    scheduler: Scheduler,
    folder: RunFolder,
    progress: Progress,
    profile: Profile,
) -> tuple[Detector[Any], Thresholds, tuple[str, ...]]:
    """The fitted detector, both thresholds, and warnings: from an earlier session of this run, or made now."""
    kept = folder.training
    if kept is None:
        return _train(preflight, settings, scheduler, progress, profile)
    detector, told = _kept_detector(preflight, folder)
    return detector, _thresholds_of(kept), (*kept.warnings, *told)


def _thresholds_of(kept: Training) -> Thresholds:
    return Thresholds(kept.threshold, kept.threshold_provenance, kept.pixel_threshold, kept.pixel_threshold_provenance)


def _keep_training(
    folder: RunFolder, detector: Detector[Any], thresholds: Thresholds, warnings: tuple[str, ...]
) -> None:
    """Leave what fitting and calibrating gave, for a later session of this run."""
    encoded = encode_detector(detector)
    training = Training(
        detector_sha256=_sha256(encoded),
        threshold=thresholds.score,
        threshold_provenance=_plain(thresholds.score_provenance),
        pixel_threshold=thresholds.pixel,
        pixel_threshold_provenance=_plain(thresholds.pixel_provenance),
        warnings=warnings,
    )
    folder.keep_training(training, encoded)


def _train(
    preflight: Preflight, settings: InferSettings, scheduler: Scheduler, progress: Progress, profile: Profile
) -> tuple[Detector[Any], Thresholds, tuple[str, ...]]:
    """Fit the detector where it is not fitted yet, and settle both thresholds."""
    detector = preflight.detector
    defects = settings.defects
    thresholds = Thresholds(settings.threshold, settings.threshold_provenance)
    warnings: tuple[str, ...] = ()
    if preflight.training is not None:
        reader = preflight.reader(settings)
        images = TrainingImages(preflight.training, reader, settings.dataflow.chunk_size)
        unfit, is_fitted_before = LeftOut.of(()), detector.is_fitted
        if not is_fitted_before:
            progress.phase("fitting")
            with profile.stage("fit"):
                detector, unfit = fit_detector(scheduler, detector, images, progress)
        progress.phase("calibrating")
        wants_pixels = preflight.pixel_threshold_source == "train_dir"
        with profile.stage("calibrate"):
            calibration = calibrate(
                scheduler,
                detector,
                images,
                pixel_quantile=defects.pixel_normal_quantile if wants_pixels else None,
                roi_xyxy_norm=defects.roi_xyxy_norm,
                amp=settings.dataflow.amp,
            )
        warnings = left_out_warnings(unfit, calibration.left_out)
        if not is_fitted_before:
            warnings += own_images_warnings(detector, CALIBRATE_ON_OTHERS)
        asked = settings.training.calibration_quantile
        value, score_provenance = score_threshold(detector, asked, calibration.scores, is_new=not is_fitted_before)
        thresholds = Thresholds(value, score_provenance)
        warnings += tied_scores_warnings(calibration.scores, value)
        if wants_pixels and calibration.pixels is not None:
            with profile.stage("calibrate"):
                value = pixel_quantile(
                    scheduler, calibration, detector, images, defects.roi_xyxy_norm, amp=settings.dataflow.amp
                )
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


def _without_colours(detector: Detector[Any], resolved: Resolved) -> Iterator[str]:
    """A white balance given as a flag that finds no colours; presets, and configs that keep them, have it for all."""
    white_balance = resolved.settings.preprocessing.illumination_contrast.white_balance
    is_flag = resolved.is_explicit("preprocessing.illumination_contrast.white_balance")
    if detector.color == "gray" and is_flag and white_balance != "none":
        yield (
            f"--white-balance {white_balance} does nothing: {detector.name} reads images in grey; "
            "let it read colours where it can (see its arguments), or leave the flag out"
        )


def _unsuited_to_tiles(detector: Detector[Any], settings: InferSettings) -> Iterator[str]:
    if detector.is_position_bound and settings.adaptation.tiling.tile_size is not None:
        yield (
            f"{detector.name} compares each tile with a whole normal image, brought to the same size: on tiles its "
            "scores mean something only where every tile and every normal image show the same thing (docs/TILING.md)"
        )


def _with_pixel(thresholds: Thresholds, value: float, provenance: Mapping[str, Any]) -> Thresholds:
    return Thresholds(thresholds.score, thresholds.score_provenance, value, provenance)


def _kept_detector(preflight: Preflight, folder: RunFolder) -> tuple[Detector[Any], tuple[str, ...]]:
    """The detector that an earlier session of this run worked with, and what to know of it.

    Raises ConfigError when it is not there any more.
    """
    detector = preflight.detector
    if detector.is_fitted:  # of a file whose content is part of the plan
        return detector, ()
    data = folder.read_detector()
    if data is None:
        raise ConfigError(
            f"--resume: {DETECTOR_NAME} is not the detector that the run in {folder.run_dir!r} began with; bring it "
            "back, or start anew with --no-resume"
        )
    loaded = detector.with_state(decode_detector(data, DETECTOR_NAME).state())
    return loaded, loaded.check()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _plain(provenance: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if provenance is None else dict(provenance)


def _save_config(run_dir: str, settings: InferSettings, detector: Detector[Any], thresholds: Thresholds) -> None:
    """Leave an infer config beside the fitted detector: the next run needs no training images."""
    correction = settings.preprocessing.illumination_contrast
    model = {
        **settings.model.model_dump(mode="json", exclude_none=True, exclude={"trust_model_file"}),
        "name": detector.name,
    }
    config = {
        "schema_version": settings.schema_version,
        "model": {
            **model,
            "model_kwargs": detector.arguments.model_dump(mode="json"),
            "checkpoint_path": DETECTOR_NAME,
        },
        "checkpoint": {"path": DETECTOR_NAME, "sha256": _sha256(encode_detector(detector))},
        "adaptation": {"save_maps": settings.wants_maps, **_tiling(settings.adaptation.tiling)},
        "preprocessing": {"illumination_contrast": correction.model_dump(mode="json") if correction.is_on else None},
        **stored_settings(settings, thresholds),
        "pixel_threshold_provenance": with_value_and_origin(
            thresholds.pixel_provenance, thresholds.pixel, settings.pixel_threshold_provenance
        ),
    }
    if settings.dataflow.amp and mixes_precision(settings, detector):
        config["dataflow"] = {"amp": True}
    text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomic(join(run_dir, CONFIG_NAME), text.encode())


def _tiling(tiling: TilingSettings) -> Mapping[str, Any]:
    return {} if tiling.tile_size is None else {"tiling": tiling.model_dump(mode="json")}
