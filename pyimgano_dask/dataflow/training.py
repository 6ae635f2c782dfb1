"""Fitting a detector and calibrating its thresholds on normal images: reductions over chunks, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.dataflow.native import limit_native_threads, native_threads_as_before
from pyimgano_dask.dataflow.plan import Chunk, chunked
from pyimgano_dask.dataflow.progress import Progress, SilentProgress
from pyimgano_dask.dataflow.reading import Failed, Loaded, Reader
from pyimgano_dask.dataflow.scheduler import Scheduler
from pyimgano_dask.dataflow.sources import Answer, infer
from pyimgano_dask.defects import roi_slices
from pyimgano_dask.detectors.base import Detector, State
from pyimgano_dask.detectors.devices import NO_DEVICE
from pyimgano_dask.detectors.epochs import epochs_told_to
from pyimgano_dask.errors import ConfigError, InputError
from pyimgano_dask.settings.defects import RoiXyxyNorm
from pyimgano_dask.thresholds import (
    BucketHistogram,
    NeedsRefinement,
    PixelHistogram,
    Provenance,
    own_score_threshold_provenance,
    refined_quantile,
    score_quantile,
    score_threshold_provenance,
)

SHOWN_FAULTS = 5
DEFAULT_SCORE_QUANTILE = 0.995


class ImageNames(Protocol):
    """Names of images in a fixed order, as often as they are iterated."""

    def count(self) -> int:
        """How many there are."""

    def __iter__(self) -> Iterator[str]:
        """Each of them."""


@dataclass(frozen=True)
class TrainingImages:
    """The normal images: their names and how they are read, `chunk_size` to a task; errors call them `called`."""

    inputs: ImageNames
    reader: Reader
    chunk_size: int
    called: str = "--train-dir"

    def none_is_usable(self, faults: Sequence[str]) -> ConfigError:
        """The error that says why."""
        return ConfigError(f"{self.called}: none of its images can be used:\n" + "\n".join(faults))


def score_threshold(
    detector: Detector[Any], asked: float | None, scores: NDArray[np.float64], *, is_new: bool
) -> tuple[float, Provenance]:
    """The threshold of the scores of normal images, float64 (n,): the quantile that is asked for, or the usual one.

    Where none is asked for and the detector `is_new`, fitted on these images, it may have one of its own.
    """
    own = detector.own_score_threshold
    if asked is None and is_new and own is not None:
        return own, own_score_threshold_provenance(scores, detector.contamination, "train_dir")
    q = usual_quantile(detector.contamination) if asked is None else asked
    return score_quantile(scores, q), score_threshold_provenance(scores, q, "train_dir")


def usual_quantile(contamination: float | None) -> float:
    """The quantile of normal scores that becomes the score threshold where none is asked for."""
    return DEFAULT_SCORE_QUANTILE if contamination is None else 1 - contamination


@dataclass(frozen=True)
class LeftOut:
    """How many training images could not be used, and what was wrong with the first of them: `path: reason`."""

    count: int
    faults: tuple[str, ...]

    @classmethod
    def of(cls, failed: Sequence[Failed]) -> Self:
        """Those of a chunk."""
        return cls(len(failed), tuple(f"{item.path}: {item.error.message}" for item in failed[:SHOWN_FAULTS]))

    @classmethod
    def joined(cls, parts: Iterable[LeftOut]) -> Self:
        """Those of several chunks, in their order."""
        parts = list(parts)
        shown = tuple(fault for part in parts for fault in part.faults)[:SHOWN_FAULTS]
        return cls(sum(part.count for part in parts), shown)

    def warnings(self, of: str = "") -> tuple[str, ...]:
        """One sentence that names the first of them, none where there are none; `of` says what they are left out of."""
        if not self.count:
            return ()
        more = f"\n  … and {self.count - len(self.faults)} more" if self.count > len(self.faults) else ""
        return (f"{self.count} training images were left out{of}:\n  " + "\n  ".join(self.faults) + more,)


@dataclass(frozen=True)
class _FitPartial:
    """Summary of some training images; `state` is None while none could be read."""

    state: State | None
    left_out: LeftOut


def fit_detector(
    scheduler: Scheduler, detector: Detector[Any], images: TrainingImages, progress: Progress | None = None
) -> tuple[Detector[Any], LeftOut]:
    """A fitted copy of `detector`, and the training images that could not be used and were left out.

    The last step, in which networks are trained, is done in this process with the native threads of one task, so that
    its rounding is the same on every scheduler. Raises ConfigError when no training image can be used.
    """
    chosen = detector.select_training(images.inputs.count())
    paths = _take(images.inputs, chosen)
    merged = scheduler.reduce(
        _accumulate_chunk,
        partial(_merge_fits, merge=detector.merge),
        chunked(paths, images.chunk_size),
        (detector, images.reader),
    )
    if merged.state is None:
        raise images.none_is_usable(merged.left_out.faults)
    progress = progress or SilentProgress()
    if detector.trains_network:
        progress.phase("training")
    with native_threads_as_before(), epochs_told_to(partial(_tell_epoch, progress)):
        limit_native_threads(scheduler.threads_per_task)
        return detector.finalize(merged.state), merged.left_out


def left_out_warnings(of_fitting: LeftOut, of_calibrating: LeftOut) -> tuple[str, ...]:
    """What to know of training images that could not be used; those that neither step could use are told once."""
    if of_fitting.count <= of_calibrating.count and set(of_fitting.faults) <= set(of_calibrating.faults):
        return of_calibrating.warnings()
    return (*of_fitting.warnings(" of fitting"), *of_calibrating.warnings(" of calibrating"))


def tied_scores_warnings(scores: NDArray[np.float64], threshold: float) -> tuple[str, ...]:
    """What to know of a threshold that several of the scores of normal images, float64 (n,), reach and none exceeds."""
    n_highest = int(np.count_nonzero(scores == threshold))
    if n_highest < 2 or threshold < scores.max():
        return ()
    return (
        f"{n_highest} of {len(scores)} normal images share the highest score, {threshold:g}, which is the threshold: "
        "they count as anomalous. Set the threshold in the infer config by hand, or take scores that tell images apart "
        "(of an exported model those without normalisation)",
    )


def own_images_warnings(detector: Detector[Any], remedy: str) -> tuple[str, ...]:
    """What to know of thresholds from the same images that this detector was fitted on, and the remedy in words."""
    if not detector.fits_closely:
        return ()
    return (
        f"{detector.name} fits closely the images that it was fitted on, and its thresholds come from the same ones: "
        f"more good images than expected will lie above them. {remedy}",
    )


def _tell_epoch(progress: Progress, n_done: int, n_epochs: int) -> None:
    if n_done == 1:
        progress.phase("training", n_epochs)
    progress.advance(1)


def _take(inputs: ImageNames, chosen: Sequence[int]) -> Iterator[str]:
    """The inputs at ascending positions, lazily."""
    wanted = iter(chosen)
    position = next(wanted, None)
    for index, path in enumerate(inputs):
        if index == position:
            yield path
            position = next(wanted, None)


def _accumulate_chunk(chunk: Chunk[str], common: tuple[Detector[Any], Reader]) -> _FitPartial:
    detector, reader = common
    states: list[State] = []
    failed: list[Failed] = []
    for loaded, unread in reader.groups(chunk.rows()):
        failed += unread
        summarised, unusable = _summaries(detector, loaded)
        states += summarised
        failed += unusable
        del loaded
    return _FitPartial(detector.merge(states) if states else None, LeftOut.of(failed))


def _summaries(detector: Detector[Any], loaded: Sequence[Loaded]) -> tuple[list[State], list[Failed]]:
    """The summary of a group without the images that the detector cannot take, and these with the reason.

    Where the group fails and none of its images does by itself, each has a summary of its own. Raises ConfigError where
    the fault is this machine's.
    """
    if not loaded:
        return [], []
    try:
        return [detector.accumulate([item.image for item in loaded])], []
    except InputError as error:
        if error.kind == NO_DEVICE:
            raise ConfigError(error.message) from error
        if len(loaded) == 1:
            return [], [Failed(loaded[0].index, loaded[0].path, error)]
    alone = [_summaries(detector, [item]) for item in loaded]
    failed = [fault for _, faults in alone for fault in faults]
    if not failed:
        return [state for states, _ in alone for state in states], []
    culprits = {fault.index for fault in failed}
    states, others = _summaries(detector, [item for item in loaded if item.index not in culprits])
    return states, failed + others


def _merge_fits(partials: Sequence[_FitPartial], merge: Callable[[Sequence[State]], State]) -> _FitPartial:
    states = [fit.state for fit in partials if fit.state is not None]
    return _FitPartial(merge(states) if states else None, LeftOut.joined(fit.left_out for fit in partials))


@dataclass(frozen=True)
class Calibration:
    """What a fitted detector says about the normal images.

    `scores` float64 (n,) in the order of the images, `pixels` the merged histogram of their maps inside the ROI,
    `roi_pixel_counts` the distinct sizes of it in pixels, `left_out` the images that could not be used.
    """

    scores: NDArray[np.float64]
    pixels: PixelHistogram | None
    roi_pixel_counts: frozenset[int]
    left_out: LeftOut


@dataclass(frozen=True)
class _CalibrationTask:
    """What a calibration task needs: with `quantile` None only scores are taken."""

    detector: Detector[Any]
    reader: Reader
    quantile: float | None
    roi_xyxy_norm: RoiXyxyNorm | None
    amp: bool
    buckets: tuple[int, ...] = ()


def calibrate(
    scheduler: Scheduler,
    detector: Detector[Any],
    images: TrainingImages,
    *,
    pixel_quantile: float | None,
    roi_xyxy_norm: RoiXyxyNorm | None,
    amp: bool = False,
) -> Calibration:
    """Scores of the normal images, and the histogram of their maps' pixels when `pixel_quantile` is given.

    Where the ROI holds no pixel of any map, the whole maps are taken. `amp` is that of the inspection to come.
    """
    task = _CalibrationTask(detector, images.reader, pixel_quantile, roi_xyxy_norm, amp)
    calibration = scheduler.reduce(
        _calibrate_chunk, _merge_calibrations, chunked(images.inputs, images.chunk_size), task
    )
    if not len(calibration.scores):
        raise images.none_is_usable(calibration.left_out.faults)
    roi_is_empty = calibration.roi_pixel_counts == {0}
    if roi_xyxy_norm is not None and roi_is_empty:
        whole = calibrate(scheduler, detector, images, pixel_quantile=pixel_quantile, roi_xyxy_norm=None, amp=amp)
        return replace(whole, roi_pixel_counts=frozenset({0}))
    return calibration


def pixel_quantile(
    scheduler: Scheduler,
    calibration: Calibration,
    detector: Detector[Any],
    images: TrainingImages,
    roi_xyxy_norm: RoiXyxyNorm | None,
    *,
    amp: bool = False,
) -> float:
    """The exact pixel quantile; asks the images a second time only where the first pass did not settle it."""
    assert calibration.pixels is not None
    answer = calibration.pixels.quantile()
    if not isinstance(answer, NeedsRefinement):
        return answer
    used_roi = None if calibration.roi_pixel_counts == {0} else roi_xyxy_norm
    task = _CalibrationTask(detector, images.reader, calibration.pixels.q, used_roi, amp, answer.buckets)
    fine = scheduler.reduce(_refine_chunk, _merge_buckets, chunked(images.inputs, images.chunk_size), task)
    return refined_quantile(calibration.pixels, fine)


def _calibrate_chunk(chunk: Chunk[str], task: _CalibrationTask) -> Calibration:
    scores: list[float] = []
    pixels = None if task.quantile is None else PixelHistogram.empty(task.quantile)
    counts: set[int] = set()
    failed: list[Failed] = []
    for loaded, unread in task.reader.groups(chunk.rows()):
        failed += unread
        scored, unusable = _predict(task, loaded)
        failed += unusable
        scores += [score for score, _ in scored]
        crops = _crops(scored, task.roi_xyxy_norm)
        counts.update(crop.size for crop in crops)
        if pixels is not None:
            pixels = pixels.merge(PixelHistogram.of(crops, pixels.q))
        del loaded, scored, crops  # large images and maps are let go before the next ones are read
    return Calibration(np.array(scores), pixels, frozenset(counts), LeftOut.of(failed))


def _predict(task: _CalibrationTask, loaded: Sequence[Loaded]) -> tuple[list[Answer], list[Failed]]:
    """Scores and maps of the images that the detector can take, and the others with the reason."""
    scored, failed = [], []
    for item, answer in zip(loaded, infer(task.detector, loaded, amp=task.amp), strict=True):
        if isinstance(answer, InputError):
            failed.append(Failed(item.index, item.path, answer))
        else:
            scored.append(answer)
    return scored, failed


def _crops(scored: Sequence[Answer], roi_xyxy_norm: RoiXyxyNorm | None) -> Sequence[NDArray[np.float32]]:
    maps = [anomaly_map for _, anomaly_map in scored if anomaly_map is not None]
    if roi_xyxy_norm is None:
        return maps
    return [anomaly_map[roi_slices(roi_xyxy_norm, anomaly_map.shape)] for anomaly_map in maps]


def _merge_calibrations(partials: Sequence[Calibration]) -> Calibration:
    first, *rest = partials
    pixels = first.pixels
    for other in rest:
        if pixels is not None and other.pixels is not None:
            pixels = pixels.merge(other.pixels)
    return Calibration(
        np.concatenate([part.scores for part in partials]),
        pixels,
        frozenset[int]().union(*(part.roi_pixel_counts for part in partials)),
        LeftOut.joined(part.left_out for part in partials),
    )


def _refine_chunk(chunk: Chunk[str], task: _CalibrationTask) -> BucketHistogram:
    fine = BucketHistogram.of([], task.buckets)
    for loaded, _ in task.reader.groups(chunk.rows()):
        scored, _ = _predict(task, loaded)
        crops = _crops(scored, task.roi_xyxy_norm)
        fine = fine.merge(BucketHistogram.of(crops, task.buckets))
        del loaded, scored, crops
    return fine


def _merge_buckets(partials: Sequence[BucketHistogram]) -> BucketHistogram:
    first, *rest = partials
    for other in rest:
        first = first.merge(other)
    return first
