"""Fitting a detector on images and scoring others, without records or files: what estimators are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.dataflow.making import make_detector
from pyimgano_dask.dataflow.plan import Chunk, chunked
from pyimgano_dask.dataflow.preflight import references_for
from pyimgano_dask.dataflow.reading import ArrayReader, Failed, Reader
from pyimgano_dask.dataflow.scheduler import Loss, Scheduler
from pyimgano_dask.dataflow.schedulers import open_scheduler
from pyimgano_dask.dataflow.sources import Clock, DetectorSource
from pyimgano_dask.dataflow.training import (
    LeftOut,
    TrainingImages,
    calibrate,
    fit_detector,
    left_out_warnings,
    own_images_warnings,
    score_threshold,
    tied_scores_warnings,
    usual_quantile,
)
from pyimgano_dask.detectors.base import Detector, Image
from pyimgano_dask.detectors.tiling import tiled
from pyimgano_dask.errors import ConfigError, RunError
from pyimgano_dask.settings.resolve import Resolved
from pyimgano_dask.settings.run import InferSettings

IN_THIS_PROCESS = ("sync", "threads")
TAKE_OTHERS = "Take a quantile of -score_samples of other normal images (docs/SKLEARN.md#thresholds-from-other-images)"


@dataclass(frozen=True)
class NamedImages:
    """Images by name, in a fixed order: paths or URLs of files, or arrays in memory with made-up names."""

    names: tuple[str, ...]
    arrays: Mapping[str, Image] | None = None

    def count(self) -> int:
        """How many there are."""
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)


@dataclass(frozen=True)
class Fitted:
    """A fitted detector, the score threshold of its normal images, and what the user should know of these."""

    detector: Detector[Any]
    threshold: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ImageScores:
    """Answers in the order of the images: scores float64 (n,), and maps float32 (H, W) where they were asked for.

    An image that could not be scored has NaN, no map, and a line in `faults`. `warnings` are what the user should know
    of the processes that have worked.
    """

    scores: NDArray[np.float64]
    maps: tuple[NDArray[np.float32] | None, ...]
    faults: tuple[str, ...]
    warnings: tuple[str, ...]


def fit(settings: InferSettings, images: NamedImages, base_dir: str) -> Fitted:
    """Make the detector of the settings, fit it where it is not fitted yet, and calibrate it on the same images.

    The threshold is the quantile 1 - contamination of their scores, that of the settings or else the detector's own,
    unless a detector that is fitted here settles one itself.
    Raises ConfigError for settings that cannot work and where no image can be used.
    """
    made = make_detector(Resolved(settings), base_dir)
    detector = tiled(made.detector, settings.adaptation.tiling)
    reader = _reader(settings, detector, images, base_dir)
    training = TrainingImages(images, reader, settings.dataflow.chunk_size, called="X")
    unfit, is_new = LeftOut.of(()), not detector.is_fitted
    with _scheduler_for(images, settings, base_dir, detector) as scheduler:
        if is_new:
            detector, unfit = fit_detector(scheduler, detector, training)
        calibration = calibrate(
            scheduler, detector, training, pixel_quantile=None, roi_xyxy_norm=None, amp=settings.dataflow.amp
        )
        warnings = (*made.warnings, *scheduler.warnings, *left_out_warnings(unfit, calibration.left_out))
    if is_new:
        warnings += own_images_warnings(detector, TAKE_OTHERS)
    chosen = settings.model.contamination
    asked = None if chosen in (None, detector.contamination) else usual_quantile(chosen)
    threshold, _ = score_threshold(detector, asked, calibration.scores, is_new=is_new)
    return Fitted(detector, threshold, (*warnings, *tied_scores_warnings(calibration.scores, threshold)))


def score(
    settings: InferSettings, detector: Detector[Any], images: NamedImages, base_dir: str, *, with_maps: bool = False
) -> ImageScores:
    """Scores of images by a fitted detector; raises RunError where a chunk is lost with its workers."""
    if with_maps and not detector.gives_maps:
        raise ConfigError(f"{detector.name} scores whole images and gives no anomaly maps; choose one that does")
    source = DetectorSource(_reader(settings, detector, images, base_dir), detector, amp=settings.dataflow.amp)
    scores = np.full(images.count(), np.nan)
    maps: list[NDArray[np.float32] | None] = [None] * images.count()
    failed: list[Failed] = []
    warnings: dict[str, None] = {}

    def take(part: _Part) -> None:
        failed.extend(part.failed)
        warnings.update(dict.fromkeys(part.warnings))
        for index, value, anomaly_map in part.scored:
            scores[index], maps[index] = value, anomaly_map

    def lose(chunk: Chunk[Any], loss: Loss) -> None:
        raise RunError(f"X: images {chunk.start} to {chunk.start + len(chunk.inputs) - 1} are lost: {loss.message}")

    with _scheduler_for(images, settings, base_dir, detector) as scheduler:
        chunks = chunked(images, settings.dataflow.chunk_size)
        scheduler.run(_score_chunk, chunks, _Common(source, with_maps), take, lose)
    failed.sort(key=lambda item: item.index)
    faults = tuple(f"{item.path}: {item.error.message}" for item in failed)
    return ImageScores(scores, tuple(maps), faults, tuple(warnings))


@dataclass(frozen=True)
class _Common:
    source: DetectorSource
    with_maps: bool


@dataclass(frozen=True)
class _Part:
    """The answers of a chunk: index, score and map of each image, the images that failed, and warnings."""

    scored: tuple[tuple[int, float, NDArray[np.float32] | None], ...]
    failed: tuple[Failed, ...]
    warnings: tuple[str, ...]


def _score_chunk(chunk: Chunk[str], common: _Common) -> _Part:
    scored: list[tuple[int, float, NDArray[np.float32] | None]] = []
    failed = []
    for outcome in common.source.outcomes(chunk, Clock()):
        if isinstance(outcome, Failed):
            failed.append(outcome)
        elif outcome.score is not None:
            scored.append((outcome.index, outcome.score, outcome.anomaly_map if common.with_maps else None))
    return _Part(tuple(scored), tuple(failed), common.source.warnings())


def _reader(settings: InferSettings, detector: Detector[Any], images: NamedImages, base_dir: str) -> Reader:
    """How the images are had; raises ConfigError for a detector that compares arrays, which have no file names."""
    references = references_for(settings, detector, base_dir)
    limit, correction = settings.inputs.max_image_pixels, settings.preprocessing.illumination_contrast
    if images.arrays is None:
        return Reader(base_dir, detector.color, limit, references=references, correction=correction)
    if references is not None and references.shared is None:
        raise ConfigError(
            f"--reference-dir: {detector.name} finds the reference of an image by its file name, and arrays have none; "
            "give paths, or one reference image for all"
        )
    return ArrayReader(
        base_dir, detector.color, limit, references=references, correction=correction, arrays=images.arrays
    )


@contextmanager
def _scheduler_for(
    images: NamedImages, settings: InferSettings, base_dir: str, detector: Detector[Any]
) -> Iterator[Scheduler]:
    """The scheduler of the settings; for arrays threads of this process, which share them with it."""
    flow = settings.dataflow
    if images.arrays is not None and flow.scheduler not in IN_THIS_PROCESS:
        flow = flow.model_copy(update={"scheduler": "threads"})
    with open_scheduler(flow, images.count(), base_dir, detector.libraries) as scheduler:
        yield scheduler
