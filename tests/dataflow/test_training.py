"""Fitting and calibration: independent of where they run, exact, and clear about what could not be used."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import pyimgano_dask
from pyimgano_dask.dataflow.native import limit_native_threads, native_threads_as_before
from pyimgano_dask.dataflow.reading import Reader
from pyimgano_dask.dataflow.run import RunSummary
from pyimgano_dask.dataflow.scheduler import Scheduler
from pyimgano_dask.dataflow.training import (
    Calibration,
    LeftOut,
    TrainingImages,
    calibrate,
    fit_detector,
    left_out_warnings,
    pixel_quantile,
    tied_scores_warnings,
)
from pyimgano_dask.detectors.base import Detector, Image, State
from pyimgano_dask.detectors.checkpoint import decode_detector, encode_detector
from pyimgano_dask.detectors.devices import NO_DEVICE
from pyimgano_dask.detectors.pixel_statistics import PixelMeanAbsdiffMap
from pyimgano_dask.detectors.registry import find_detector_type
from pyimgano_dask.errors import ConfigError, InputError
from pyimgano_dask.images.decoding import decode_image
from pyimgano_dask.images.listing import InputList
from pyimgano_dask.synthesis import InspectionSet
from tests.conftest import N_TRAIN, infer_command
from tests.dataflow.doubles import ShuffledScheduler, opened

MODEL = "vision_pixel_mad_map"
RESIZE = {"resize_hw": [64, 64]}
MODELS = (
    ("vision_pixel_mad_map", RESIZE),
    ("vision_pixel_mad_map", {**RESIZE, "max_train_images": 5}),
    ("vision_pixel_gaussian_map", {**RESIZE, "color": "rgb"}),
    ("vision_pixel_mean_absdiff_map", RESIZE),
)
ROI = (0.9, 0.2, 0.15, 0.7)


def settle(
    scheduler: Scheduler, parts: InspectionSet, model: str, kwargs: dict[str, Any], q: float
) -> tuple[bytes, Calibration, float]:
    """A fitted detector's checkpoint, its calibration and pixel threshold, one image a chunk."""
    detector = find_detector_type(model).create(**kwargs)
    reader = Reader("/", detector.color, 2**28)
    images = TrainingImages(InputList((parts.train_dir,), base_dir="/"), reader, chunk_size=1)
    fitted, _ = fit_detector(scheduler, detector, images)
    calibration = calibrate(scheduler, fitted, images, pixel_quantile=q, roi_xyxy_norm=ROI)
    return encode_detector(fitted), calibration, pixel_quantile(scheduler, calibration, fitted, images, ROI)


@pytest.fixture(scope="module")
def in_turn(parts: InspectionSet) -> dict[tuple[int, float], tuple[bytes, Calibration, float]]:
    """What one thread settles on, for every model and for a high and a low quantile."""
    with opened("sync", None, N_TRAIN) as scheduler:
        return {(n, q): settle(scheduler, parts, *MODELS[n], q) for n in range(len(MODELS)) for q in (0.999, 0.3)}


def assert_same(one: tuple[bytes, Calibration, float], other: tuple[bytes, Calibration, float]) -> None:
    assert one[0] == other[0]
    assert one[1].scores.tobytes() == other[1].scores.tobytes()
    assert one[1].roi_pixel_counts == other[1].roi_pixel_counts
    assert one[2] == other[2]


@pytest.mark.parametrize("n", range(len(MODELS)))
@pytest.mark.parametrize("q", [0.999, 0.3])
def test_shuffled_completion_settles_on_the_same(
    in_turn: dict[tuple[int, float], tuple[bytes, Calibration, float]], parts: InspectionSet, n: int, q: float
) -> None:
    for seed in range(3):
        assert_same(settle(ShuffledScheduler(seed), parts, *MODELS[n], q), in_turn[n, q])


@pytest.mark.parametrize("kind", ["threads", "processes", pytest.param("address", marks=pytest.mark.cluster)])
def test_every_scheduler_settles_on_the_same(
    kind: str,
    in_turn: dict[tuple[int, float], tuple[bytes, Calibration, float]],
    parts: InspectionSet,
    request: pytest.FixtureRequest,
) -> None:
    name = request.getfixturevalue("dask_cluster").address if kind == "address" else kind
    chosen = [(2, 0.999)] if kind == "processes" else list(in_turn)
    with opened(name, 2, N_TRAIN) as scheduler:
        for n, q in chosen:
            assert_same(settle(scheduler, parts, *MODELS[n], q), in_turn[n, q])


def infer(parts: InspectionSet, **settings: Any) -> RunSummary:
    return pyimgano_dask.infer(
        **{"input": parts.test_good[0], "model_kwargs": RESIZE, "scheduler": "sync", "defects": True, **settings}
    )


NETWORKS: dict[str, dict[str, Any]] = {
    "vision_autoencoder": {"image_size": 32, "base_channels": 16, "latent_dim": 8, "epochs": 2},
    "vision_stfpm": {"image_size": 64, "epochs": 1},
}


def trained_network(scheduler: Scheduler, parts: InspectionSet, model: str) -> bytes:
    """The checkpoint of a network, trained on images that are read one a chunk."""
    detector = find_detector_type(model).create(**NETWORKS[model])
    reader = Reader("/", detector.color, 2**28)
    images = TrainingImages(InputList((parts.train_dir,), base_dir="/"), reader, chunk_size=1)
    return encode_detector(fit_detector(scheduler, detector, images)[0])


@pytest.mark.parametrize("model", NETWORKS)
def test_networks_are_trained_alike_in_any_order_and_with_any_threads_of_the_caller(
    parts: InspectionSet, model: str
) -> None:
    pytest.importorskip("torch", reason="networks are trained with torch")
    checkpoints = {trained_network(ShuffledScheduler(0), parts, model)}
    for name, threads_of_the_caller in (("sync", 2), ("threads", 3)):
        with native_threads_as_before(), opened(name, 2, N_TRAIN) as scheduler:
            limit_native_threads(threads_of_the_caller)
            checkpoints.add(trained_network(scheduler, parts, model))
    assert len(checkpoints) == 1


def trained(parts: InspectionSet, **settings: Any) -> RunSummary:
    return infer(parts, model=MODEL, train_dir=parts.train_dir, **settings)


def maps_of(detector: Detector[Any], paths: Sequence[str]) -> tuple[NDArray[np.float64], list[NDArray[np.float32]]]:
    images = [decode_image(Path(path).read_bytes(), detector.color, max_pixels=2**28) for path in paths]
    prediction = detector.predict(images)
    return prediction.scores, list(prediction.maps)


def roi_of(anomaly_map: NDArray[np.float32]) -> NDArray[np.float32]:
    """ROI, put in order: rows floor(y1·H) up to ceil(y2·H), columns alike."""
    (x1, x2), (y1, y2) = sorted(ROI[0::2]), sorted(ROI[1::2])
    height, width = anomaly_map.shape
    rows = slice(math.floor(y1 * height), math.ceil(y2 * height))
    return anomaly_map[rows, math.floor(x1 * width) : math.ceil(x2 * width)]


def test_scores_stand_in_the_order_of_the_images(
    in_turn: dict[tuple[int, float], tuple[bytes, Calibration, float]], parts: InspectionSet
) -> None:
    for n, q in in_turn:
        checkpoint, calibration, _ = in_turn[n, q]
        scores, _ = maps_of(decode_detector(checkpoint, "detector.npz"), parts.train_good)
        np.testing.assert_array_equal(calibration.scores, scores)


@pytest.mark.parametrize("roi", [None, ROI])
@pytest.mark.parametrize("q", [0.999, 0.5, 0.02])
def test_thresholds_are_the_quantiles_over_all_training_images(
    parts: InspectionSet, tmp_path: Path, roi: tuple[float, ...] | None, q: float
) -> None:
    run = trained(
        parts, pixel_normal_quantile=q, calibration_quantile=0.7, roi_xyxy_norm=roi, run_dir=tmp_path, batch_size=5
    )
    detector = decode_detector((tmp_path / "detector.npz").read_bytes(), "detector.npz")
    scores, maps = maps_of(detector, parts.train_good)
    crops = maps if roi is None else [roi_of(anomaly_map) for anomaly_map in maps]
    pixels = np.concatenate([crop.ravel() for crop in crops]).astype(np.float64)

    assert run.thresholds.pixel == np.quantile(pixels, q)
    assert run.thresholds.score == np.quantile(scores, 0.7)
    record = next(run.records())
    assert record["defects"]["pixel_threshold"] == run.thresholds.pixel
    assert record["defects"]["pixel_threshold_provenance"] == {
        "method": "normal_pixel_quantile",
        "source": "train_dir",
        "q": q,
        "exact": True,
        "calibration_map_count": N_TRAIN,
        "calibration_pixel_count": pixels.size,
        "roi_used": roi is not None,
        "roi_xyxy_norm": None if roi is None else [0.15, 0.2, 0.9, 0.7],
        "roi_pixel_count": None,
        "roi_reason": None,
    }
    assert run.thresholds.score_provenance == {
        "method": "quantile",
        "source": "train_dir",
        "quantile": 0.7,
        "count": N_TRAIN,
        "score_min": scores.min(),
        "score_mean": pytest.approx(scores.mean(), rel=1e-12),
        "score_max": scores.max(),
    }


@pytest.mark.parametrize(
    ("settings", "q"),
    [({}, 0.99), ({"contamination": 0.25}, 0.75), ({"calibration_quantile": 0.5, "contamination": 0.25}, 0.5)],
)
def test_the_score_quantile_is_the_flag_or_one_minus_contamination(
    parts: InspectionSet, settings: dict[str, float], q: float
) -> None:
    provenance = trained(parts, **settings).thresholds.score_provenance
    assert provenance is not None
    assert provenance["quantile"] == q


def test_an_empty_roi_takes_the_whole_maps_and_says_so(parts: InspectionSet) -> None:
    whole, empty = trained(parts), trained(parts, roi_xyxy_norm=[0.5, 0.5, 0.5, 0.5])
    assert empty.thresholds.pixel == whole.thresholds.pixel
    provenance = next(empty.records())["defects"]["pixel_threshold_provenance"]
    assert provenance["roi_used"] is False
    assert provenance["roi_reason"] == "roi_empty"
    assert provenance["roi_pixel_count"] == 0
    assert provenance["calibration_map_count"] == N_TRAIN


@pytest.fixture
def normal(parts: InspectionSet, tmp_path: Path) -> Path:
    """A copy of the training images."""
    return Path(shutil.copytree(parts.train_dir, tmp_path / "normal"))


def test_unreadable_training_images_are_left_out_and_named(parts: InspectionSet, normal: Path, tmp_path: Path) -> None:
    expected = trained(parts)
    (normal / "000-torn.png").write_bytes((normal / "000.png").read_bytes()[:200])
    (normal / "zzz.jpg").write_text("not an image")
    done = infer_command(
        *("--model", MODEL, "--model-kwargs", json.dumps(RESIZE), "--train-dir", normal, "--defects"),
        *("--input", parts.test_good[0], "--save-jsonl", tmp_path / "records.jsonl", "--batch-size", 1),
        cwd=tmp_path,
    )
    assert done.rc == 0, done.stderr
    assert "warning: 2 training images were left out" in done.stderr
    for name in ("000-torn.png", "zzz.jpg"):
        assert any(line.strip().startswith(f"{normal / name}: ") for line in done.stderr.splitlines())
    record = json.loads((tmp_path / "records.jsonl").read_text())
    assert record == next(expected.records())


@pytest.mark.parametrize("fitted", [False, True], ids=["to be fitted", "fitted already"])
def test_training_images_none_of_which_can_be_read_end_the_run_before_anything_is_written(
    parts: InspectionSet, tmp_path: Path, fitted: bool
) -> None:
    (tmp_path / "torn").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "torn" / name).write_text("not an image")
    source: tuple[object, ...] = ("--model", MODEL)
    if fitted:
        trained(parts, run_dir=tmp_path / "run")
        source = ("--infer-config", tmp_path / "run/infer_config.json")
    done = infer_command(
        *(*source, "--train-dir", "torn", "--defects", "--input", parts.test_good[0]),
        *("--save-jsonl", "out/records.jsonl", "--save-masks", "out/masks"),
        cwd=tmp_path,
    )
    assert done.rc == 2, done.stderr
    assert "--train-dir" in done.stderr
    assert "torn/a.png" in done.stderr
    assert "torn/b.jpg" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", [name for name, _ in MODELS[1:]])
def test_one_training_image_is_enough(parts: InspectionSet, model: str) -> None:
    run = infer(parts, model=model, train_dir=parts.train_good[0], input=parts.train_good[0])
    (record,) = run.records()
    assert (record["score"], record["label"]) == (0, 1)
    assert run.thresholds.score == 0
    provenance = run.thresholds.score_provenance
    assert provenance is not None
    assert provenance["count"] == 1


def test_defects_without_any_threshold_name_the_three_ways_out(parts: InspectionSet, tmp_path: Path) -> None:
    run = trained(parts, defects=False, run_dir=tmp_path / "run")
    assert run.thresholds.pixel is None
    done = infer_command(
        *("--infer-config", tmp_path / "run/infer_config.json", "--input", parts.test_good[0], "--defects"),
        *("--save-jsonl", "out/records.jsonl"),
        cwd=tmp_path,
    )
    assert (done.rc, done.stdout) == (2, "")
    for way in ("--pixel-threshold T", "--train-dir DIR", "--infer-config"):
        assert way in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def config(parts: InspectionSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An infer config with a detector and the pixel threshold 3.25."""
    folder = tmp_path_factory.mktemp("config")
    trained(parts, run_dir=folder)
    path = folder / "infer_config.json"
    payload = json.loads(path.read_text())
    payload["defects"]["pixel_threshold"] = 3.25
    path.write_text(json.dumps(payload))
    return {"infer_config": str(path)}


def threshold_of(run: RunSummary) -> tuple[float | None, str, str]:
    provenance = next(run.records())["defects"]["pixel_threshold_provenance"]
    return run.thresholds.pixel, provenance["method"], provenance["source"]


@pytest.mark.parametrize("value", [2.5, 3.25])
def test_an_explicit_pixel_threshold_wins_over_everything(
    parts: InspectionSet, config: dict[str, Any], value: float
) -> None:
    for more in ({}, {"train_dir": parts.train_dir}, {"pixel_threshold_strategy": "infer_config"}):
        assert threshold_of(infer(parts, **config, **more, pixel_threshold=value)) == (value, "fixed", "explicit")


def test_training_images_win_over_the_config(parts: InspectionSet, config: dict[str, Any]) -> None:
    expected = trained(parts).thresholds.pixel
    found = threshold_of(infer(parts, **config, train_dir=parts.train_dir))
    assert found == (expected, "normal_pixel_quantile", "train_dir")


def test_the_config_is_taken_without_training_images(parts: InspectionSet, config: dict[str, Any]) -> None:
    assert threshold_of(infer(parts, **config)) == (3.25, "fixed", "infer_config")


@pytest.mark.parametrize("strategy", ["fixed", "infer_config"])
def test_other_strategies_take_the_config_even_with_training_images(
    parts: InspectionSet, config: dict[str, Any], strategy: str
) -> None:
    run = infer(parts, **config, train_dir=parts.train_dir, pixel_threshold_strategy=strategy)
    assert threshold_of(run) == (3.25, "fixed", "infer_config")
    with pytest.raises(ConfigError, match="three ways"):
        trained(parts, pixel_threshold_strategy=strategy)


class FailsInGroups(PixelMeanAbsdiffMap):
    """Takes one image at a time, as a network on a device of little memory may."""

    def accumulate(self, images: Sequence[Image]) -> State:
        if len(images) > 1:
            raise InputError("infer", "BackboneError", "too many")
        return super().accumulate(images)


class FailsOnBright(PixelMeanAbsdiffMap):
    """Takes no white images for fitting."""

    kind = "BackboneError"

    def accumulate(self, images: Sequence[Image]) -> State:
        if any(image.min() == 255 for image in images):
            raise InputError("infer", self.kind, "too bright")
        return super().accumulate(images)


class LacksItsDevice(FailsOnBright):
    kind = NO_DEVICE


def fit_as(detector_type: type[Detector[Any]], folder: str | Path) -> tuple[bytes, LeftOut]:
    detector = detector_type.create(**RESIZE)
    images = TrainingImages(InputList((str(folder),), base_dir="/"), Reader("/", detector.color, 2**28), 8)
    with opened("sync") as scheduler:
        fitted, left_out = fit_detector(scheduler, detector, images)
    return encode_detector(fitted), left_out


def test_images_that_fail_only_together_are_fitted_one_by_one(parts: InspectionSet) -> None:
    expected, _ = fit_as(PixelMeanAbsdiffMap, parts.train_dir)
    assert fit_as(FailsInGroups, parts.train_dir) == (expected, LeftOut(0, ()))


def test_images_that_a_detector_cannot_be_fitted_on_are_left_out_and_told(parts: InspectionSet, normal: Path) -> None:
    expected, _ = fit_as(PixelMeanAbsdiffMap, parts.train_dir)
    cv2.imwrite(str(normal / "005-white.png"), np.full((64, 64), 255, np.uint8))
    fitted, left_out = fit_as(FailsOnBright, normal)
    assert fitted == expected
    assert left_out == LeftOut(1, (f"{normal}/005-white.png: too bright",))


def test_a_missing_device_is_no_fault_of_an_image(normal: Path) -> None:
    cv2.imwrite(str(normal / "005-white.png"), np.full((64, 64), 255, np.uint8))
    with pytest.raises(ConfigError, match="too bright"):
        fit_as(LacksItsDevice, normal)


def test_images_left_out_of_both_steps_are_told_once() -> None:
    both, none = LeftOut(1, ("a.png: torn",)), LeftOut(0, ())
    assert left_out_warnings(both, both) == ("1 training images were left out:\n  a.png: torn",)
    assert left_out_warnings(none, both) == left_out_warnings(both, both)
    assert left_out_warnings(both, none) == ("1 training images were left out of fitting:\n  a.png: torn",)
    assert left_out_warnings(none, none) == ()
    other = LeftOut(1, ("b.png: too bright",))
    assert left_out_warnings(both, other) == (
        "1 training images were left out of fitting:\n  a.png: torn",
        "1 training images were left out of calibrating:\n  b.png: too bright",
    )


@pytest.mark.parametrize(("model", "is_told"), [("vision_texture_padim", True), ("vision_pixel_mad_map", False)])
def test_thresholds_from_the_images_of_a_close_fit_are_told_until_others_calibrate(
    model: str, is_told: bool, parts: InspectionSet, tmp_path: Path
) -> None:
    common = {"train_dir": parts.train_dir, "input": parts.test_good[0], "scheduler": "sync"}
    fitted = pyimgano_dask.infer(model=model, **common, run_dir=tmp_path / "run")
    again = pyimgano_dask.infer(infer_config=tmp_path / "run/infer_config.json", **common)
    assert [any("fits closely" in line for line in run.warnings) for run in (fitted, again)] == [is_told, False]


@pytest.mark.parametrize(
    ("scores", "threshold", "n_told"),
    [([0.2, 1.0, 1.0, 1.0], 1.0, 3), ([0.2, 0.9, 1.0], 1.0, 0), ([0.2, 0.5, 0.5, 1.0], 0.5, 0), ([1.0, 1.0], 1.5, 0)],
)
def test_a_threshold_that_several_images_reach_and_none_exceeds_is_told(
    scores: list[float], threshold: float, n_told: int
) -> None:
    told = tied_scores_warnings(np.array(scores), threshold)
    assert [line.split(" share the highest score, ")[0] for line in told] == (
        [f"{n_told} of {len(scores)} normal images"] if n_told else []
    )


def test_a_run_tells_that_its_threshold_is_the_ceiling(workplace: Callable[[str], Path]) -> None:
    place = workplace("ceiling")
    (place / "copies").mkdir()
    image = sorted((place / "set/train/good").iterdir())[0]
    for number in range(4):
        shutil.copy(image, place / "copies" / f"{number}.png")
    with chdir(place):
        run = pyimgano_dask.infer(
            model="vision_pixel_mad_map", train_dir="copies", input="set/test/good", scheduler="sync"
        )
    assert any(line.startswith("4 of 4 normal images share the highest score, 0,") for line in run.warnings)
