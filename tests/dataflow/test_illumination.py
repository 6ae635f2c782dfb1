"""Illumination correction in a run: for every image the detector sees and none that a person does, the same bytes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import pyimgano_dask
from pyimgano_dask.dataflow.inspection import RunSummary
from pyimgano_dask.dataflow.preprocessing import correct
from pyimgano_dask.dataflow.reading import Reader
from pyimgano_dask.images.illumination import (
    clahe,
    contrast_stretch,
    gamma_correction,
    homomorphic_filter,
    max_rgb,
)
from pyimgano_dask.settings.preprocessing import ILLUMINATION_PRESETS, IlluminationContrast
from tests.conftest import hashes_below, infer_command
from tests.dataflow.test_references import board, flawed, write_image
from tests.dataflow.test_same_bytes import flags, where
from tests.images.samples import smooth_noise

N_BOARDS = 5
EVERY_STEP: dict[str, Any] = {
    "white_balance": "max_rgb",
    "homomorphic": True,
    "homomorphic_cutoff": 0.2,
    "clahe": True,
    "clahe_tile_grid_size": [3, 2],
    "gamma": 1.2,
    "contrast_stretch": True,
    "contrast_lower_percentile": 1.0,
}
CORRECTION = IlluminationContrast(**{**EVERY_STEP, "clahe_tile_grid_size": (3, 2)})
DETECTOR = {
    "model": "vision_pixel_mad_map",
    "train_dir": "good",
    "input": "in",
    "model_kwargs": {"resize_hw": [48, 64], "color": "rgb"},
    "defects": True,
    "batch_size": 2,
}
FILES = {"save_jsonl": "out/records.jsonl", "save_masks": "out/masks", "save_maps": "out/maps"}


def coloured(image: np.ndarray, light: float) -> np.ndarray:
    """A board in colour, BGR, whose light fades to the right by the share `light`."""
    fading = np.linspace(1, 1 - light, image.shape[1])[None, :, None]
    return (image[..., None] * fading * np.array([1.0, 0.8, 0.6])).astype(np.uint8)


def write_boards(folder: Path, correction: IlluminationContrast | None = None) -> None:
    """Normal boards in `good`, golden ones in `golden`, flawed ones in `in`, all unevenly lit; corrected if asked."""
    for number in range(N_BOARDS):
        light = 0.1 * number
        for name, image in (
            (f"good/{number}.png", coloured(board(number), light)),
            (f"golden/{number}.png", coloured(board(number), 0.3)),
            (f"in/{number}.png", coloured(flawed(number), light)),
        ):
            corrected = image if correction is None else correct(image[..., ::-1].copy(), correction)[..., ::-1]
            write_image(folder / name, corrected)


def run_at(place: Path, **settings: Any) -> RunSummary:
    with chdir(place):
        return pyimgano_dask.infer(**{"scheduler": "sync", **settings})


def answers(run: RunSummary) -> list[tuple[Any, ...]]:
    """What records say, but for where the files lie."""
    return [(record["score"], record["label"], record["defects"]["regions"]) for record in run.records()]


@pytest.fixture
def uncorrected(tmp_path: Path) -> Path:
    write_boards(tmp_path / "uncorrected")
    return tmp_path / "uncorrected"


@pytest.mark.parametrize("image", [smooth_noise(1, 40, 50, 3), smooth_noise(2, 40, 50)], ids=["rgb", "grey"])
def test_the_steps_run_in_the_order_of_the_settings(image: np.ndarray) -> None:
    filtered = homomorphic_filter(max_rgb(image), cutoff=0.2, gamma_low=0.7, gamma_high=1.5, c=1.0, per_channel=True)
    expected = contrast_stretch(gamma_correction(clahe(filtered, 2.0, (3, 2)), 1.2), 1.0, 98.0)
    np.testing.assert_array_equal(correct(image, CORRECTION), expected)


def test_without_a_step_an_image_stays_itself() -> None:
    image = smooth_noise(1, 8, 9, 3)
    assert correct(image, IlluminationContrast()) is image


@pytest.mark.parametrize(
    "detector",
    [
        {},
        {"model_kwargs": {"resize_hw": [48, 64], "color": "gray"}},
        {"model": "vision_reference_diff_map", "reference_dir": "golden", "model_kwargs": {"color": "rgb"}},
    ],
    ids=["rgb", "grey", "references"],
)
@pytest.mark.filterwarnings("ignore:.*white-balance")
def test_a_run_sees_what_one_on_corrected_files_sees(
    detector: Mapping[str, Any], uncorrected: Path, tmp_path: Path
) -> None:
    is_grey = detector.get("model_kwargs", {}).get("color") == "gray"
    if is_grey:
        for path in uncorrected.rglob("*.png"):
            write_image(path, cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    corrected = tmp_path / "corrected"
    for path in uncorrected.rglob("*.png"):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        answer = correct(image if is_grey else image[..., ::-1].copy(), CORRECTION)
        write_image(corrected / path.relative_to(uncorrected), answer if is_grey else answer[..., ::-1])
    given = {**DETECTOR, **detector}
    assert answers(run_at(uncorrected, **given, **EVERY_STEP)) == answers(run_at(corrected, **given))
    assert answers(run_at(uncorrected, **given)) != answers(run_at(corrected, **given))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the command ran on one thread, with every step."""
    place = tmp_path_factory.mktemp("sync")
    write_boards(place)
    given = {**DETECTOR, **EVERY_STEP, **FILES, "save_overlays": "out/overlays", "run_dir": "run"}
    done = infer_command(*flags({**given, "scheduler": "sync"}), cwd=place)
    assert done.rc == 0, done.stderr
    assert "warning" not in done.stderr
    return place


@pytest.mark.parametrize("kind", ["threads x2", "processes x2", pytest.param("address", marks=pytest.mark.cluster)])
def test_the_same_bytes_on_every_scheduler(
    kind: str, first: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    write_boards(tmp_path)
    given = {**DETECTOR, **EVERY_STEP, **FILES, "save_overlays": "out/overlays", "threads_per_task": 2}
    done = infer_command(*flags({**given, **where(kind, request)}), cwd=tmp_path)
    assert done.rc == 0, done.stderr
    assert hashes_below(tmp_path / "out") == hashes_below(first / "out")


def test_a_run_folder_knows_its_correction(first: Path, tmp_path: Path) -> None:
    config = json.loads((first / "run/infer_config.json").read_text())
    assert config["preprocessing"]["illumination_contrast"] == CORRECTION.model_dump(mode="json")
    write_boards(tmp_path)
    run_at(tmp_path, input="in", infer_config=first / "run/infer_config.json", **FILES)
    for folder in ("masks", "maps"):
        assert hashes_below(tmp_path / "out" / folder) == hashes_below(first / "out" / folder)


def test_a_run_folder_without_one_says_null(uncorrected: Path) -> None:
    run_at(uncorrected, **DETECTOR, run_dir="run")
    config = json.loads((uncorrected / "run/infer_config.json").read_text())
    assert config["preprocessing"] == {"illumination_contrast": None}
    run_at(uncorrected, input="in", infer_config="run/infer_config.json")


def test_another_correction_is_another_plan(uncorrected: Path) -> None:
    given = {**DETECTOR, "gamma": 1.2, "run_dir": "run", "input": ["in", "@list.txt"], "max_errors": 1}
    (uncorrected / "list.txt").write_text("none.png\n")
    with pytest.raises(pyimgano_dask.RunError, match="--max-errors"):
        run_at(uncorrected, **given)
    with pytest.raises(pyimgano_dask.ConfigError, match=r"--gamma: 1\.2 then, 1\.3 now"):
        run_at(uncorrected, **{**given, "gamma": 1.3, "resume": True})


@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_what_is_displayed_is_the_image_as_it_is(color: Any, uncorrected: Path) -> None:
    reader = Reader(str(uncorrected), color, 10**6, with_display=True, correction=CORRECTION)
    loaded = reader.read(0, "in/3.png")
    as_it_is = cv2.imread(str(uncorrected / "in/3.png"))
    assert loaded.display is not None
    np.testing.assert_array_equal(loaded.display, as_it_is[..., ::-1])
    plain = Reader(str(uncorrected), color, 10**6).read(0, "in/3.png").image
    np.testing.assert_array_equal(loaded.image, correct(plain, CORRECTION))


def test_overlays_of_rescoring_are_those_of_the_run(first: Path) -> None:
    with chdir(first):
        pyimgano_dask.rescore(from_run="run", save_overlays="again", scheduler="sync")
    assert hashes_below(first / "again") == hashes_below(first / "out/overlays")


BROKEN = IlluminationContrast.model_construct(gamma=0.0)


def test_a_fault_is_the_inputs_and_names_its_stage(uncorrected: Path) -> None:
    reader = Reader(str(uncorrected), "rgb", 10**6, correction=BROKEN)
    ((loaded, failed),) = reader.groups([(0, "in/0.png")])
    assert loaded == []
    (error,) = (fault.error for fault in failed)
    assert (error.stage, error.kind) == ("preprocess", "ZeroDivisionError")
    assert error.message.startswith("its illumination cannot be corrected: ")


def told(place: Path, **settings: Any) -> list[str]:
    """Warnings of a run, those before it begins among them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = run_at(place, **settings)
    return [*(str(warning.message) for warning in caught if warning.category is UserWarning), *run.warnings]


def test_white_balance_of_a_detector_that_reads_grey_is_told(uncorrected: Path) -> None:
    grey = {**DETECTOR, "model_kwargs": {"resize_hw": [48, 64]}}
    (warning,) = told(uncorrected, **grey, white_balance="gray_world")
    assert warning.startswith("--white-balance gray_world does nothing: vision_pixel_mad_map reads images in grey")
    assert told(uncorrected, **grey, clahe=True) == []
    assert told(uncorrected, **grey, preprocessing_preset="illumination-contrast-balanced") == []
    assert told(uncorrected, **DETECTOR, white_balance="gray_world") == []


def test_flags_over_a_detector_that_was_fitted_without_them_are_told(first: Path, tmp_path: Path) -> None:
    write_boards(tmp_path)
    config = {"infer_config": first / "run/infer_config.json", "input": "in"}
    assert told(tmp_path, **config) == []
    (warning,) = told(tmp_path, **config, gamma=1.0)
    assert warning.startswith("--gamma: vision_pixel_mad_map was fitted on images that were corrected otherwise")


@pytest.mark.filterwarnings("ignore:.*does nothing without")
def test_a_preset_from_the_command_line_is_its_values(uncorrected: Path) -> None:
    name = "illumination-contrast-aggressive"
    done = infer_command(*flags({**DETECTOR, "preprocessing_preset": name}), cwd=uncorrected)
    assert done.rc == 0, done.stderr
    records = list(run_at(uncorrected, **DETECTOR, **ILLUMINATION_PRESETS[name]).records())
    assert [json.loads(line) for line in done.stdout.splitlines()] == records
