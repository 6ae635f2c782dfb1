"""Overlays of a run: the map values their colours span, and their file format."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import pyimgano_dask
from pyimgano_dask.dataflow.inspection import (
    Inspection,
    RunSummary,
    Thresholds,
    inspect,
    stored_source,
)
from pyimgano_dask.dataflow.plan import RunPlan
from pyimgano_dask.dataflow.progress import SilentProgress
from pyimgano_dask.dataflow.reading import Reader
from pyimgano_dask.dataflow.run_folder import find_run_folder
from pyimgano_dask.dataflow.scheduler import Scheduler
from pyimgano_dask.dataflow.sources import DetectorSource
from pyimgano_dask.detectors.base import Detector, Image, Prediction
from pyimgano_dask.errors import RunError
from pyimgano_dask.settings.resolve import given_by_keyword, resolve
from pyimgano_dask.settings.run import InferSettings
from tests.conftest import hashes_below
from tests.dataflow.doubles import ShuffledScheduler, WaitsForOthers, opened

HW = (24, 32)
LEVEL = 100
MODEL = {"model": "vision_reference_diff_map", "reference_dir": "golden.png", "model_kwargs": {"tolerance_px": 0}}
COMMON = {**MODEL, "input": "in", "batch_size": 2, "scheduler": "sync", "defects": True, "pixel_threshold": 25.0}
OUT = {"save_jsonl": "out/records.jsonl", "save_overlays": "out/overlays"}

# The anomaly in each image: its grey levels above the golden one, from the left third to the right.
STEPS = ((0, 10, 20), (0, 10, 40), (0, 20, 80), (0, 0, 0), (10, 20, 30))


def write_images(place: Path) -> Path:
    """`golden.png`, level everywhere, and `in/0.png` … that leave it by `STEPS`."""
    (place / "in").mkdir()
    cv2.imwrite(str(place / "golden.png"), np.full(HW, LEVEL, np.uint8))
    for number, steps in enumerate(STEPS):
        image = np.full(HW, LEVEL, np.uint8)
        for third, step in enumerate(steps):
            image[:, columns(third)] += np.uint8(step)
        cv2.imwrite(str(place / f"in/{number}.png"), image)
    return place


def columns(third: int) -> slice:
    return slice(third * 12, third * 12 + 8)


@pytest.fixture
def at(tmp_path: Path) -> Path:
    return write_images(tmp_path)


def infer(place: Path, **settings: Any) -> RunSummary:
    with chdir(place):
        return pyimgano_dask.infer(**{**COMMON, **OUT, **settings})


def overlay(place: Path, number: int, suffix: str = ".png") -> NDArray[np.uint8]:
    data = (place / f"out/overlays/{number:06d}_{number}{suffix}").read_bytes()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    return np.asarray(image, dtype=np.uint8)


def heat(place: Path, number: int, third: int) -> tuple[int, ...]:
    """The colour of a third of an image, away from boxes, labels and other thirds."""
    (colour,) = np.unique(overlay(place, number)[12:20, columns(third)][:, 3:5].reshape(-1, 3), axis=0).tolist()
    return tuple(colour)


class TestScale:
    def test_of_each_image(self, at: Path) -> None:
        infer(at, pixel_threshold=1000.0)
        assert heat(at, 0, 1) != heat(at, 1, 1)

    def test_of_the_run_makes_equal_values_equal_colours(self, at: Path) -> None:
        infer(at, pixel_threshold=1000.0, overlay_scale="run")
        at_ten = {heat(at, 0, 1), heat(at, 1, 1), heat(at, 4, 0)}
        at_twenty = {heat(at, 0, 2), heat(at, 2, 1), heat(at, 4, 1)}
        assert (len(at_ten), len(at_twenty)) == (1, 1)
        assert at_ten != at_twenty

    def test_of_the_run_is_that_of_its_extremes_in_numbers(self, at: Path) -> None:
        infer(at, overlay_scale="run")
        by_run = hashes_below(at / "out")
        infer(at, overlay_scale="0,80")
        assert hashes_below(at / "out") == by_run
        infer(at, overlay_scale="0,81")
        assert hashes_below(at / "out") != by_run

    def test_of_the_run_knows_the_least_value_too(self, at: Path) -> None:
        inputs = ["in/4.png"]
        image = cv2.imread(str(at / "in/4.png"), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(at / "in/4.png"), np.maximum(image, LEVEL + 10))
        infer(at, input=inputs, overlay_scale="run")
        by_run = hashes_below(at / "out")
        infer(at, input=inputs, overlay_scale="10,30")
        assert hashes_below(at / "out") == by_run

    def test_of_a_run_of_one_value_shows_no_heat(self, at: Path) -> None:
        infer(at, input="in/3.png", overlay_scale="run")
        by_run = hashes_below(at / "out")
        infer(at, input="in/3.png", overlay_scale="image")
        assert hashes_below(at / "out") == by_run

    def test_is_not_asked_for_without_overlays(self, at: Path) -> None:
        infer(at, save_overlays=None, overlay_scale="run", run_dir="run", keep_parts=True)
        assert not (at / "out/overlays").exists()
        assert {path.name[:5] for path in (at / "run/parts").rglob("*")} == {"part-"}

    def test_of_the_run_without_defects_or_maps_in_the_records(self, at: Path) -> None:
        with chdir(at):
            for scale, folder in (("run", "a"), ("0,80", "b")):
                pyimgano_dask.infer(**MODEL, input="in", save_overlays=folder, overlay_scale=scale, scheduler="sync")
        assert hashes_below(at / "a") == hashes_below(at / "b")


def spoil(place: Path) -> None:
    """A torn image, one that is none, and one that is not there."""
    data = (place / "in/1.png").read_bytes()
    (place / "in/1.png").write_bytes(data[: len(data) // 2])
    (place / "in/2b.png").write_bytes(b"no image")
    (place / "in/3b.png").symlink_to("nowhere.png")


EVERYTHING = {
    "save_masks": "out/masks",
    "save_maps": "out/maps",
    "include_anomaly_map_values": True,
    "defects_image_space": True,
    "explain_defects": "full",
    "defect_min_area": 30,
}


class TestSecondPass:
    @pytest.mark.parametrize("zarr", [False, True])
    def test_everything_else_is_as_without_it(self, at: Path, zarr: bool) -> None:
        spoil(at)
        settings = dict(EVERYTHING)
        if zarr:
            settings |= {"save_masks": "out/masks.zarr", "mask_format": "zarr", "save_maps": "out/maps.zarr"}
        left = {}
        for scale in ("image", "run"):
            run = infer(at, **settings, overlay_scale=scale)
            assert (run.n_inputs, run.n_errors, run.exit_code) == (7, 3, 3)
            records = list(run.records())
            assert [record["index"] for record in records if "error" in record] == [1, 3, 5]
            assert len(run.errors) == 3
            files = hashes_below(at / "out")
            left[scale] = {name: digest for name, digest in files.items() if not name.startswith("overlays")}
            assert sum(name.startswith("overlays") for name in files) == 4
        assert left["run"] == left["image"]
        assert len(left["run"]) > 5

    def test_the_summary_counts_each_input_once(self, at: Path) -> None:
        spoil(at)
        image, run = (infer(at, overlay_scale=scale, explain_defects="counts") for scale in ("image", "run"))
        for name in ("n_inputs", "n_errors", "n_anomalous", "n_defective", "n_regions", "waterfall", "errors"):
            assert getattr(run, name) == getattr(image, name)

    def test_when_no_input_can_be_used(self, at: Path) -> None:
        for path in (at / "in").iterdir():
            path.write_bytes(b"no image")
        run = infer(at, overlay_scale="run")
        assert (run.n_inputs, run.n_errors) == (5, 5)
        assert list((at / "out/overlays").iterdir()) == []

    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    def test_format(self, at: Path, suffix: str) -> None:
        infer(at, overlay_format=suffix[1:], overlay_scale="run")
        assert {path.suffix for path in (at / "out/overlays").iterdir()} == {suffix}
        head = {".png": b"\x89PNG", ".jpg": b"\xff\xd8\xff"}[suffix]
        assert all(path.read_bytes().startswith(head) for path in (at / "out/overlays").iterdir())

    def test_jpg_looks_like_png(self, at: Path) -> None:
        for fmt in ("png", "jpg"):
            infer(at, overlay_format=fmt, overlay_scale="run")
        for number in range(len(STEPS)):
            difference = overlay(at, number).astype(int) - overlay(at, number, ".jpg")
            assert np.abs(difference).mean() < 6


class TestSpool:
    """The maps of the first pass are put aside in the folder of the shards, and gone when the run has ended."""

    def test_is_gone_after_a_run(self, at: Path) -> None:
        infer(at, overlay_scale="run")
        assert sorted(path.name for path in at.iterdir()) == ["golden.png", "in", "out"]
        assert sorted(path.name for path in (at / "out").iterdir()) == ["overlays", "records.jsonl"]

    def test_is_gone_where_shards_are_kept(self, at: Path) -> None:
        infer(at, overlay_scale="run", run_dir="run", keep_parts=True)
        assert sorted(path.name for path in (at / "run/parts").iterdir()) == [f"part-{k:08d}.jsonl" for k in range(3)]

    @pytest.mark.parametrize("fails", ["survey", "inspection"])
    def test_is_gone_after_a_run_that_failed(self, at: Path, fails: str) -> None:
        inputs = Changing(["in/0.png", "in/1.png", "in/2.png"], [1] if fails == "survey" else [3, 1])
        with pytest.raises(RunError, match="the input list changed"):
            inspect_with(at, ReferenceFree(), inputs, 3)
        assert [path.name for path in (at / "out").iterdir()] == ["overlays"]

    def test_stays_in_a_folder_of_the_run_that_failed(self, at: Path) -> None:
        inputs = Changing(["in/0.png", "in/1.png", "in/2.png"], [3, 1])
        with pytest.raises(RunError, match="--resume"):
            inspect_with(at, ReferenceFree(), inputs, 3, run_dir="run")
        assert len(list((at / "run/parts/.spool").glob("map-*.npy"))) == 3
        assert not (at / "run/run.json").exists()


class Changing:
    """Inputs that are fewer or more the second time they are listed."""

    def __init__(self, paths: Sequence[str], lengths: Sequence[int]) -> None:
        self._paths, self._lengths = paths, list(lengths)

    def __iter__(self) -> Iterator[str]:
        length = self._lengths.pop(0) if len(self._lengths) > 1 else self._lengths[0]
        return iter(self._paths[:length])


class ReferenceFree(WaitsForOthers):
    """Scores and shows brightness at once."""

    name = "reference_free"

    def __init__(self) -> None:
        super().__init__(WaitsForOthers.create().arguments)


def inspect_with(
    place: Path, detector: Detector[Any], inputs: Any, n_inputs: int, on: Scheduler | None = None, **settings: Any
) -> tuple[list[dict[str, Any]], RunSummary]:
    """The inspecting half of a run, with overlays on the scale of the run unless told otherwise."""
    given = {"input": ["in"], "defects": True, "batch_size": 2, "overlay_scale": "run"}
    output = {"save_overlays": str(place / "out/overlays"), "save_jsonl": str(place / "out/records.jsonl")}
    if "run_dir" in settings:
        settings["run_dir"] = str(place / settings["run_dir"])
    resolved: InferSettings = resolve(given_by_keyword({**given, **output, **settings})).settings
    once = resolved.output.overlay_scale != "run"
    thresholds = Thresholds(pixel=0.5, pixel_provenance={"method": "fixed"})
    work = Inspection(
        settings=resolved,
        base_dir=str(place),
        inputs_dir=str(place),
        inputs=inputs,
        n_inputs=n_inputs,
        source=DetectorSource(Reader(str(place), "gray", 2**28, with_display=once), detector),
        thresholds=thresholds,
        images=stored_source(resolved, str(place)),
    )
    summary = RunSummary(resolved, detector.name, "sync", thresholds)
    folder = find_run_folder(resolved, str(place), RunPlan(n_inputs, resolved.dataflow.chunk_size, {}))
    with opened("sync", None, n_inputs) as scheduler, folder.begun():
        inspect(work, on or scheduler, folder, io.BytesIO(), SilentProgress(), summary)
    lines = (place / "out/records.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], summary


class TakesAway(ReferenceFree):
    """Removes images while it scores: what is read again later is not there."""

    name = "takes_away"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def predict(self, images: Sequence[Image]) -> Prediction:
        self.path.unlink(missing_ok=True)
        return super().predict(images)


PATHS = [f"in/{number}.png" for number in range(len(STEPS))]


def test_an_image_that_disappears_between_the_passes_is_an_error_record(at: Path) -> None:
    records, summary = inspect_with(at, TakesAway(at / "in/1.png"), PATHS, len(PATHS))
    assert [record["index"] for record in records if "error" in record] == [1]
    assert (records[1]["error"]["stage"], records[1]["error"]["type"]) == ("read", "FileNotFoundError")
    assert (summary.n_inputs, summary.n_errors) == (5, 1)
    assert len(list((at / "out/overlays").iterdir())) == 4


@pytest.mark.parametrize("lengths", [[5, 4], [4, 5], [5, 1], [1, 5]])
def test_an_input_list_that_changes_between_the_passes_ends_the_run(at: Path, lengths: list[int]) -> None:
    with pytest.raises(RunError, match="input list changed"):
        inspect_with(at, ReferenceFree(), Changing(PATHS, lengths), lengths[0])
    assert not (at / "out/records.jsonl").exists()


class Odd(ReferenceFree):
    """Fails on one image, in a way of its own; images are told apart by their brightest pixel."""

    name = "odd"

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def predict(self, images: Sequence[Image]) -> Prediction:
        prediction = super().predict(images)
        scores, maps = prediction.scores.copy(), list(prediction.maps)
        for number, image in enumerate(images):
            if image.max() == LEVEL + 80:
                if self.how == "raises":
                    raise ArithmeticError("the image is odd")
                if self.how == "missing":
                    del maps[number]
                elif self.how == "score":
                    scores[number] = np.nan
                else:
                    maps[number] = odd_map(self.how, maps[number])
        return Prediction(scores, tuple(maps))


def odd_map(how: str, values: NDArray[np.float32]) -> NDArray[Any]:
    if how == "nan":
        return np.where(values > 0.6, np.float32(np.nan), values)
    if how == "infinite":
        return np.where(values > 0.6, np.float32(np.inf), values)
    if how == "float64":
        return values.astype(np.float64)
    if how == "nothing":
        return None  # type: ignore[return-value]
    if how == "empty":
        return values[:0]
    return values[None]


@pytest.mark.parametrize("how", ["raises", "score", "missing", "nothing", "nan", "infinite", "float64", "empty", "3-d"])
def test_error_records_are_those_of_a_single_pass(at: Path, how: str) -> None:
    once, _ = inspect_with(at, Odd(how), PATHS, len(PATHS), overlay_scale="image")
    twice, summary = inspect_with(at, Odd(how), PATHS, len(PATHS))
    assert [record["index"] for record in once if "error" in record] == [2]
    assert twice == once
    assert (summary.n_inputs, summary.n_errors) == (5, 1)


def test_a_map_that_is_not_finite_does_not_stretch_the_scale(at: Path) -> None:
    inspect_with(at, Odd("infinite"), PATHS, len(PATHS))
    by_run = hashes_below(at / "out")
    low, high = (np.float32(level) / np.float32(255) for level in (LEVEL, LEVEL + 40))
    inspect_with(at, Odd("infinite"), PATHS, len(PATHS), overlay_scale=f"{low},{high}")
    assert hashes_below(at / "out") == by_run


@pytest.mark.parametrize("seed", range(3))
def test_the_first_errors_are_shown_in_the_order_of_the_inputs_whatever_ends_first(at: Path, seed: int) -> None:
    missing = [f"in/missing-{number}.png" for number in range(8)]
    _, summary = inspect_with(
        at, ReferenceFree(), missing, 8, ShuffledScheduler(seed), batch_size=1, overlay_scale="image"
    )
    assert [path for _, path, _ in summary.errors] == missing[:5]
    assert summary.n_errors == 8
