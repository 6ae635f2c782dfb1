"""Tiled inference in a run: the same bytes anywhere, calibrated through tiles, and known to the run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import pyimgano_dask
from pyimgano_dask.dataflow.reading import Loaded
from pyimgano_dask.dataflow.sources import infer
from pyimgano_dask.detectors.base import Color, Image, Prediction, TrainingFreeDetector
from pyimgano_dask.detectors.registry import find_detector_type
from pyimgano_dask.detectors.tiling import tiled
from pyimgano_dask.errors import InputError
from pyimgano_dask.settings.knob import Block
from pyimgano_dask.settings.tiling import TilingSettings
from tests.conftest import hashes_below, infer_command
from tests.dataflow.test_references import board, flawed, write_image
from tests.dataflow.test_same_bytes import OTHERS, flags, where

N_BOARDS = 7
KWARGS = {"tolerance_px": 1, "registration": "translation", "max_shift_px": 4}
DETECTOR = {"model": "vision_reference_diff_map", "reference_dir": "golden", "model_kwargs": KWARGS}
TILES = {"tile_size": 32, "tile_stride": 20, "tile_map_reduce": "hann", "tile_score_reduce": "topk_mean"}
DEFECTS = {
    "defects": True,
    "pixel_threshold": 40.0,
    "defect_border_ignore_px": 2,
    "defect_min_area": 4,
    "defect_fill_holes": True,
    "batch_size": 3,
}
EVERYTHING = {
    **DETECTOR,
    **TILES,
    **DEFECTS,
    "input": "in",
    "save_jsonl": "out/records.jsonl",
    "save_masks": "out/masks",
    "save_maps": "out/maps",
    "save_overlays": "out/overlays",
}


def write_boards(folder: Path) -> None:
    """Boards of three sizes, one smaller than a tile, one whose reference has another size, and one that is torn."""
    for number in range(N_BOARDS):
        write_image(folder / f"golden/board_{number}.png", board(number))
        write_image(folder / f"in/board_{number}.png", flawed(number))
    small = flawed(0)[5:30, 5:70]
    write_image(folder / "in/small.png", small)
    write_image(folder / "golden/small.png", cv2.resize(board(0)[5:30, 5:70], (31, 40)))
    torn = folder / "in/board_5.png"
    torn.write_bytes(torn.read_bytes()[:200])


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the command ran on one thread."""
    place = tmp_path_factory.mktemp("sync")
    write_boards(place)
    done = infer_command(*flags({**EVERYTHING, "scheduler": "sync", "run_dir": "run"}), cwd=place, fresh=True)
    assert done.rc == 3, done.stderr
    assert "warning" not in done.stderr
    return place


def records_at(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "out/records.jsonl").read_text().splitlines()]


def test_the_defects_of_the_boards_are_found_on_tiles(first: Path) -> None:
    records = records_at(first)
    assert [record["index"] for record in records if "error" in record] == [5]
    *boards, small = (record for record in records if "error" not in record)
    for record in boards:
        assert any(
            x1 <= 12 <= x2 and y1 <= 14 <= y2
            for x1, y1, x2, y2 in (region["bbox_xyxy"] for region in record["defects"]["regions"])
        )
    assert small["anomaly_map"]["shape"] == [25, 59]


@pytest.mark.parametrize("kind", OTHERS)
def test_the_same_bytes_on_every_scheduler(
    kind: str, first: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    write_boards(tmp_path)
    done = infer_command(*flags({**EVERYTHING, **where(kind, request)}), cwd=tmp_path)
    assert done.rc == 3, done.stderr
    assert hashes_below(tmp_path / "out") == hashes_below(first / "out")


@pytest.mark.parametrize("batch_size", [1, 5, 0])
def test_the_same_bytes_for_every_batch_size(batch_size: int, first: Path, tmp_path: Path) -> None:
    write_boards(tmp_path)
    with chdir(tmp_path):
        pyimgano_dask.infer(**{**EVERYTHING, "batch_size": batch_size}, scheduler="sync")
    assert hashes_below(tmp_path / "out") == hashes_below(first / "out")


def test_a_run_folder_knows_its_tiles(first: Path, tmp_path: Path) -> None:
    config = json.loads((first / "run/infer_config.json").read_text())
    assert config["adaptation"]["tiling"] == {
        "tile_size": 32,
        "stride": 20,
        "score_reduce": "topk_mean",
        "score_topk": 0.1,
        "map_reduce": "hann",
    }
    write_boards(tmp_path)
    given = {key: value for key, value in EVERYTHING.items() if key not in {**DETECTOR, **TILES, **DEFECTS}}
    done = infer_command(*flags({**given, "infer_config": str(first / "run/infer_config.json")}), cwd=tmp_path)
    assert done.rc == 3, done.stderr
    for folder in ("masks", "maps", "overlays"):
        assert hashes_below(tmp_path / "out" / folder) == hashes_below(first / "out" / folder)
    scores = [[record.get("score") for record in records_at(place)] for place in (tmp_path, first)]
    assert scores[0] == scores[1]


def test_a_flag_wins_over_the_tiles_of_a_run_folder(first: Path, tmp_path: Path) -> None:
    write_boards(tmp_path)
    given = {"input": "in/board_0.png", "infer_config": str(first / "run/infer_config.json"), "save_maps": "maps"}
    done = infer_command(*flags({**given, "tile_map_reduce": "max"}), cwd=tmp_path)
    assert done.rc == 0, done.stderr
    largest = np.load(tmp_path / "maps/000000_board_0.npy")
    blended = np.load(first / "out/maps/000000_board_0.npy")
    assert (largest >= blended * np.float32(0.9999)).all()
    assert not np.allclose(largest, blended)


def test_a_run_without_tiles_says_nothing_of_them(tmp_path: Path) -> None:
    write_boards(tmp_path)
    with chdir(tmp_path):
        pyimgano_dask.infer(**DETECTOR, **DEFECTS, input="in", run_dir="run", scheduler="sync")
    assert "tiling" not in json.loads((tmp_path / "run/infer_config.json").read_text())["adaptation"]


def test_both_thresholds_are_calibrated_through_tiles(tmp_path: Path) -> None:
    write_boards(tmp_path)
    settings = {**DETECTOR, **TILES, "defects": True, "pixel_normal_quantile": 0.9, "calibration_quantile": 0.5}
    with chdir(tmp_path):
        run = pyimgano_dask.infer(**settings, train_dir="in", input="in", save_maps="maps", scheduler="sync")
        scores = [record["score"] for record in run.records() if "error" not in record]
        pixels = np.concatenate([np.load(path).ravel() for path in sorted((tmp_path / "maps").iterdir())])

    assert run.thresholds.score == np.quantile(scores, 0.5)
    assert run.thresholds.pixel == np.quantile(pixels.astype(np.float64), 0.9)


def test_a_detector_is_fitted_on_whole_images_and_its_checkpoint_has_no_tiles(tmp_path: Path) -> None:
    write_boards(tmp_path)
    model = {"model": "vision_pixel_mad_map", "model_kwargs": {"resize_hw": [24, 24]}, "train_dir": "golden"}
    with chdir(tmp_path):
        whole = pyimgano_dask.infer(**model, input="in", run_dir="whole", scheduler="sync")
        tiles = pyimgano_dask.infer(**model, **TILES, input="in", run_dir="tiles", scheduler="threads")

    assert (tmp_path / "whole/detector.npz").read_bytes() == (tmp_path / "tiles/detector.npz").read_bytes()
    assert not whole.warnings
    (warning,) = tiles.warnings
    assert "vision_pixel_mad_map compares each tile with a whole normal image" in warning


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tile-size", 64, "--tile-stride", 65), "a --tile-stride of at most 64"),
        (("--tile-size", 0), "--tile-size"),
        (("--tile-size", 64, "--tile-map-reduce", "median"), "max, mean, hann, gaussian"),
        (("--tile-size", 64, "--tile-score-topk", 0), "--tile-score-topk"),
    ],
)
def test_tiles_that_cannot_be_are_told_before_any_work(words: Sequence[object], said: str, tmp_path: Path) -> None:
    write_boards(tmp_path)
    done = infer_command(
        *("--model", DETECTOR["model"], "--reference-dir", "golden", "--input", "in", *words), cwd=tmp_path
    )
    assert done.rc == 2
    assert said in done.stderr
    assert done.stdout == ""


class NoArguments(Block):
    """No arguments."""


class RefusesWhite(TrainingFreeDetector[NoArguments]):
    """Fails on a tile with a white pixel."""

    name = "refuses_white"
    summary = "Fails on white."
    tags = ("test",)
    reference = "None."
    arguments_type = NoArguments
    color: Color = "gray"
    contamination = None

    def predict(self, images: Sequence[Image], references: Sequence[Image] = ()) -> Prediction:
        if any((image == 255).any() for image in images):
            raise ZeroDivisionError("a white pixel")
        return Prediction(np.zeros(len(images)), tuple(image.astype(np.float32) for image in images))


def test_an_image_with_a_tile_that_fails_is_alone_in_failing() -> None:
    images = [np.full((40, 50), level, np.uint8) for level in (1, 255, 3)]
    detector = tiled(RefusesWhite.create(), TilingSettings(tile_size=16))

    answers = infer(detector, [Loaded(n, f"{n}.png", image, None) for n, image in enumerate(images)])

    assert isinstance(answers[1], InputError)
    assert "a white pixel" in answers[1].message
    for number in (0, 2):
        answer = answers[number]
        assert not isinstance(answer, InputError)
        assert np.array_equal(answer[1], images[number])


def test_the_detectors_that_judge_places_are_known() -> None:
    bound = {
        name: find_detector_type(name).is_position_bound for name in ("vision_pixel_mad_map", str(DETECTOR["model"]))
    }
    assert bound == {"vision_pixel_mad_map": True, "vision_reference_diff_map": False}
