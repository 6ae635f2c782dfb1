"""A scikit-learn estimator around the dataflow: `pip install 'pyimgano-dask[sklearn]'`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

try:
    from sklearn.base import BaseEstimator, OutlierMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError(
        f"DaskAnomalyDetector needs scikit-learn, which cannot be loaded here ({error}); "
        "install it with: pip install 'pyimgano-dask[sklearn]'"
    ) from error

from pyimgano_dask.dataflow.detector_advice import detector_advice
from pyimgano_dask.dataflow.estimation import ImageScores, NamedImages, fit, score
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.commands import ESTIMATOR, knobs_of
from pyimgano_dask.settings.resolve import Resolved, given_by_keyword, meant_by, resolve
from pyimgano_dask.settings.run import InferSettings

SHOWN_FAULTS = 5


class DaskAnomalyDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc,unused-ignore]
    """Outlier detection on images of any sizes, computed by Dask.

    Wherever a method takes `X`, it is a sequence of n images, all of one kind:

    - paths or URLs of image files (text or `os.PathLike`), read where they are worked on, or
    - arrays in memory, uint8, (H, W) grey or (H, W, 3) RGB, as a list or as one array with n first. They are worked on
      by threads of this process, whatever `scheduler` says, so that no pixel is copied into a graph or sent to a
      worker. The answers are those of PNG files of the same pixels.

    What is no images raises ValueError, as do images that cannot be scored; `settings` that are no mapping TypeError,
    and settings that cannot work `pyimgano_dask.ConfigError`. `fit` leaves out normal images that cannot be read, with
    a warning; where it can use none of them it raises ConfigError.

    Parameters
    ----------
    model: name of a detector (`pyimgano-infer --list-models`).
    model_kwargs: its arguments, by name.
    contamination: expected share of anomalies among the images of `fit`, in (0, 0.5]; the threshold is the quantile
        1 - contamination of their scores (default: the detector's own).
    seed, device, pretrained: arguments of detectors that have them.
    checkpoint_path: saved state or model file; `fit` then calibrates the threshold only.
    scheduler: auto, threads, sync, processes, local-cluster, the address of a Dask scheduler or a scheduler.json file.
    workers: threads or processes to use.
    batch_size: images a task works on; 0 takes 32. A fitted detector scores the same with any; which patches
        `vision_patchcore` keeps while it is fitted depends on it.
    settings: further settings of `pyimgano-infer` by keyword, such as `{"tile_size": 512, "clahe": True}`.

    Attributes
    ----------
    detector_: the fitted detector.
    threshold_: images that score this or more are anomalous, as in the records of `pyimgano-infer`.
    offset_: what `decision_function` subtracts, the least number above `-threshold_`.
    """

    def __init__(
        self,
        model: str = "vision_pixel_mad_map",
        *,
        model_kwargs: Mapping[str, Any] | None = None,
        contamination: float | None = None,
        seed: int | None = None,
        device: str | None = None,
        pretrained: bool | None = None,
        checkpoint_path: str | os.PathLike[str] | None = None,
        scheduler: str = "auto",
        workers: int | None = None,
        batch_size: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.model_kwargs = model_kwargs
        self.contamination = contamination
        self.seed = seed
        self.device = device
        self.pretrained = pretrained
        self.checkpoint_path = checkpoint_path
        self.scheduler = scheduler
        self.workers = workers
        self.batch_size = batch_size
        self.settings = settings

    def fit(self, X: Iterable[Any], y: object = None) -> Self:  # noqa: N803 - scikit-learn's name
        """Fit the detector on normal images `X` and calibrate its threshold on them; `y` is ignored."""
        images = named_images(X)
        resolved = self._resolved()
        for sentence in (*resolved.advice, *detector_advice(_without_contamination(resolved))):
            warnings.warn(sentence, stacklevel=2)
        fitted = fit(resolved.settings, images, os.getcwd())
        for sentence in fitted.warnings:
            warnings.warn(sentence, stacklevel=2)
        self._settings_of_fit = resolved.settings
        self.detector_ = fitted.detector
        self.threshold_ = fitted.threshold
        self.offset_ = float(np.nextafter(-fitted.threshold, np.inf))
        return self

    def fit_predict(self, X: Iterable[Any], y: object = None) -> NDArray[np.int64]:  # noqa: N803
        """`fit`, and then `predict` for the same images."""
        images = list(X) if isinstance(X, Iterator) else X
        return self.fit(images).predict(images)

    def score_samples(self, X: Iterable[Any]) -> NDArray[np.float64]:  # noqa: N803
        """Normality of images, float64 (n,): the negative of the score in records; higher is more normal."""
        return -self._scored(X, with_maps=False).scores

    def decision_function(self, X: Iterable[Any]) -> NDArray[np.float64]:  # noqa: N803
        """`score_samples` less `offset_`, float64 (n,): negative for anomalies."""
        normality = self.score_samples(X)
        return normality - self.offset_

    def predict(self, X: Iterable[Any]) -> NDArray[np.int64]:  # noqa: N803
        """1 for normal images, -1 for anomalies (label 1 in records), int64 (n,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def anomaly_maps(self, X: Iterable[Any]) -> list[NDArray[np.float32]]:  # noqa: N803
        """The anomaly maps of images in their order, each float32 (H, W) of its image's size; all in memory."""
        return [anomaly_map for anomaly_map in self._scored(X, with_maps=True).maps if anomaly_map is not None]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags

    def _resolved(self) -> Resolved:
        """The parameters as validated settings; raises ConfigError naming every faulty one.

        TypeError for `settings` that are no mapping of names to values.
        """
        given = {name: value for name, value in self.get_params(deep=False).items() if value is not None}
        further = _further_settings(given.pop("settings", {}))
        if doubled := sorted(further.keys() & given.keys()):
            raise ConfigError(
                f"settings: {', '.join(doubled)} {'is a parameter' if len(doubled) == 1 else 'are parameters'} of "
                "DaskAnomalyDetector with a value of its own; give it there and not in settings"
            )
        known = {knob.dest for knob in knobs_of(ESTIMATOR)}
        if unknown := sorted(further.keys() - known):
            allowed = sorted(known - self.get_params(deep=False).keys())
            raise ConfigError(
                f"settings: unknown setting {', '.join(unknown)}; {meant_by(unknown, allowed)}allowed are "
                f"{', '.join(allowed)}; inputs, defects and outputs are settings of pyimgano_dask.infer"
            )
        return resolve(given_by_keyword({**further, **given}, ESTIMATOR))

    def _scored(self, X: Iterable[Any], *, with_maps: bool) -> ImageScores:  # noqa: N803
        check_is_fitted(self)
        images = named_images(X)
        settings: InferSettings = self._settings_of_fit
        settings = settings.model_copy(update={"dataflow": self._resolved().settings.dataflow})
        answers = score(settings, self.detector_, images, os.getcwd(), with_maps=with_maps)
        for sentence in answers.warnings:
            warnings.warn(sentence, stacklevel=3)
        if answers.faults:
            raise ValueError(
                f"{len(answers.faults)} of {images.count()} images cannot be scored: {_first_of(answers.faults)}"
            )
        return answers


def _further_settings(settings: object) -> Mapping[str, Any]:
    if isinstance(settings, Mapping) and all(isinstance(name, str) for name in settings):
        return settings
    got = f"keys such as {next(iter(settings))!r}" if isinstance(settings, Mapping) else type(settings).__name__
    raise TypeError(
        "settings must be a mapping of settings of pyimgano-infer, by flags with underscores, to their values, such as "
        f'{{"tile_size": 512, "clahe": True}}; got {got}: {settings!r}'
    )


def _without_contamination(resolved: Resolved) -> Resolved:
    """Here it says where the threshold lies also where the detector has no such argument, so it does do something."""
    return replace(resolved, explicit=resolved.explicit - {("model", "contamination")})


def named_images(X: Iterable[Any]) -> NamedImages:  # noqa: N803
    """The images of `X`, as `DaskAnomalyDetector` takes them; raises ValueError that says what is wrong with which."""
    is_one = isinstance(X, np.ndarray) and X.ndim == 0
    if is_one or isinstance(X, str | bytes | os.PathLike | Mapping) or not isinstance(X, Iterable):
        raise ValueError(
            f"X must be a sequence of image paths or of uint8 arrays, got {type(X).__name__}; for one image give a list"
        )
    if isinstance(X, np.ndarray) and X.ndim == 3 and X.shape[2] == 3:
        raise ValueError(
            f"X of shape {X.shape} looks like one RGB image; give a list of images, or one array (n, H, W[, 3])"
        )
    items = list(X)
    if not items:
        raise ValueError("X holds no images (0 samples); at least one is needed")
    paths = [number for number, item in enumerate(items) if isinstance(item, str | os.PathLike)]
    if len(paths) == len(items):
        return NamedImages(tuple(_path(number, item) for number, item in enumerate(items)))
    arrays = [number for number, item in enumerate(items) if isinstance(item, np.ndarray)]
    if paths and arrays:
        raise ValueError(
            f"X holds paths of images, such as X[{paths[0]}], and arrays, such as X[{arrays[0]}]; give one kind"
        )
    faults = [fault for number, item in enumerate(items) for fault in _faults_of(number, item)]
    if faults:
        raise ValueError(f"X must hold paths of images or uint8 arrays: {_first_of(faults)}")
    names = tuple(f"X[{number}]" for number in range(len(items)))
    return NamedImages(names, dict(zip(names, items, strict=True)))


def _path(number: int, item: str | os.PathLike[str]) -> str:
    path = os.fspath(item)
    if not isinstance(path, str) or not path:
        raise ValueError(f"X[{number}] is {path!r}; give the path of an image as text")
    return str(path)


def _faults_of(number: int, item: object) -> Iterable[str]:
    if not isinstance(item, np.ndarray):
        yield f"X[{number}] is of type {type(item).__name__}"
    elif item.dtype != np.uint8:
        yield f"X[{number}] is an array of {item.dtype}; give uint8 levels from 0 to 255"
    elif item.ndim not in (2, 3) or item.shape[2:] not in ((), (3,)) or item.size == 0:
        yield f"X[{number}] has the shape {item.shape}; give (H, W) grey or (H, W, 3) RGB of one pixel or more"


def _first_of(faults: Sequence[str]) -> str:
    more = f"; and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
    return "; ".join(faults[:SHOWN_FAULTS]) + more
