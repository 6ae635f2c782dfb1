"""Golden references in a run: read beside their inputs, wherever the chunks are worked on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray

import pyimgano_dask
from pyimgano_dask.dataflow.reading import GROUP_PIXELS, Reader
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.images.references import find_references
from tests.conftest import hashes_below, infer_command
from tests.dataflow.test_same_bytes import OTHERS, flags, where

MODEL = "vision_reference_diff_map"
SIZES_HW = ((48, 64), (56, 40), (64, 64))
N_BOARDS = 9
FLAW = 90
DETECTOR = {"model": MODEL, "reference_dir": "golden", "model_kwargs": {"tolerance_px": 0, "reduction": "max"}}
DEFECTS = {"defects": True, "pixel_threshold": 40.0, "batch_size": 2, "scheduler": "sync"}
Place = Callable[[str], Path]


def board(number: int) -> NDArray[np.uint8]:
    """A golden board, grey (H, W), of levels 40 to 140."""
    height, width = SIZES_HW[number % len(SIZES_HW)]
    noise = np.random.default_rng(number).random((height, width), dtype=np.float32)
    levels = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 40, 140, cv2.NORM_MINMAX)
    return np.asarray(np.rint(levels), dtype=np.uint8)


def flawed(number: int) -> NDArray[np.uint8]:
    """The same board with a brighter square of 6 x 6 pixels at (10, 12), a spot of 2 x 2, and more with its number."""
    image = board(number)
    image[12:18, 10:16] += np.uint8(FLAW)
    image[30:32, 30:32] += np.uint8(FLAW - 10)
    if number % 2:
        image[40:42, 5:30] += np.uint8(10 * number)
    return image


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


@pytest.fixture
def at(tmp_path: Path) -> Path:
    """A folder with `in/board_k.png`, and `golden/` that holds their references, some of both in colour."""
    write_boards(tmp_path)
    return tmp_path


def write_boards(folder: Path) -> None:
    for number in range(N_BOARDS):
        golden, image = board(number), flawed(number)
        if number % 3 == 1:
            golden = cv2.cvtColor(golden, cv2.COLOR_GRAY2BGR)
        if number % 3 == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        write_image(folder / f"golden/board_{number}.png", golden)
        write_image(folder / f"in/board_{number}.png", image)


def infer(place: Path, **settings: Any) -> list[dict[str, Any]]:
    """The records of a run in the folder `place`."""
    with chdir(place):
        return list(pyimgano_dask.infer(**{**DETECTOR, **DEFECTS, "input": "in", **settings}).records())


def maps(place: Path, **settings: Any) -> list[NDArray[np.float32]]:
    """The maps of a run in the folder `place`."""
    records = infer(place, include_maps=True, include_anomaly_map_values=True, **settings)
    return [np.array(record["anomaly_map_values"], np.float32) for record in records]


def difference(number: int) -> NDArray[np.float32]:
    return np.abs(flawed(number).astype(np.float32) - board(number))


class TestWhichImageIsCompared:
    def test_each_with_the_one_of_its_name_grey_or_colour(self, at: Path) -> None:
        for number, values in enumerate(maps(at)):
            np.testing.assert_array_equal(values, difference(number))

    def test_the_names_decide_and_not_the_order(self, at: Path) -> None:
        (at / "list.txt").write_text("".join(f"in/board_{number}.png\n" for number in (5, 0, 5, 8)))
        for number, values in zip((5, 0, 5, 8), maps(at, input="@list.txt"), strict=True):
            np.testing.assert_array_equal(values, difference(number))

    def test_in_nested_folders(self, at: Path) -> None:
        for number in range(N_BOARDS):
            place = at / f"golden/line{number % 2}"
            place.mkdir(exist_ok=True)
            (at / f"golden/board_{number}.png").rename(place / f"board_{number}.png")
        for number, values in enumerate(maps(at)):
            np.testing.assert_array_equal(values, difference(number))

    def test_one_for_all(self, at: Path) -> None:
        same_size = [number for number in range(N_BOARDS) if number % 3 == 0]
        found = maps(at, input=[f"in/board_{number}.png" for number in same_size], reference_dir="golden/board_0.png")
        for number, values in zip(same_size, found, strict=True):
            np.testing.assert_array_equal(values, np.abs(flawed(number).astype(np.float32) - board(0)))

    def test_one_of_another_size_is_brought_to_the_size_of_the_input(self, at: Path) -> None:
        write_image(at / "golden/board_0.png", cv2.resize(board(0), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST))
        (values,) = maps(at, input="in/board_0.png")
        np.testing.assert_allclose(values, difference(0), atol=1)

    def test_colour_is_compared_in_colour_where_the_detector_looks_at_it(self, at: Path) -> None:
        golden = cv2.cvtColor(board(0), cv2.COLOR_GRAY2BGR)
        image = golden.copy()
        image[5:9, 5:9, 0] += np.uint8(50)
        write_image(at / "golden/board_0.png", golden)
        write_image(at / "in/board_0.png", image)
        kwargs = {**DETECTOR["model_kwargs"], "color": "rgb", "channel_reduce": "max"}
        (values,) = maps(at, input="in/board_0.png", model_kwargs=kwargs)
        np.testing.assert_array_equal(values, (image - golden).max(axis=2))

    @pytest.mark.parametrize("spelled", ["file", "memory"])
    def test_in_a_folder_given_as_url(self, at: Path, spelled: str) -> None:
        url = (at / "golden").as_uri()
        if spelled == "memory":
            url = f"memory://{at.name}-golden"
            for path in (at / "golden").iterdir():
                with fsspec.open(f"{url}/{path.name}", "wb") as file:
                    file.write(path.read_bytes())
        assert infer(at, reference_dir=url) == infer(at)

    def test_by_path_object_and_from_a_config(self, at: Path) -> None:
        config = {"schema_version": 1, "model": {"name": MODEL, "reference_dir": "golden"}}
        config["model"]["model_kwargs"] = DETECTOR["model_kwargs"]
        (at / "config.json").write_text(json.dumps(config))
        with chdir(at):
            by_config = pyimgano_dask.infer(infer_config="config.json", input="in", **DEFECTS)
            os.rename("golden", "elsewhere")
            by_flag = pyimgano_dask.infer(
                infer_config="config.json", input="in", reference_dir=Path("elsewhere"), **DEFECTS
            )
        assert list(by_config.records()) == list(by_flag.records())
        assert by_config.n_errors == 0


class TestReferencesThatFail:
    def test_a_missing_one_costs_its_input_only(self, at: Path) -> None:
        expected = infer(at)
        (at / "golden/board_3.png").unlink()
        records = infer(at)
        error = records[3].pop("error")
        assert records[3] == {"index": 3, "input": "in/board_3.png"}
        assert (error["stage"], error["type"]) == ("read", "MissingReferenceError")
        assert "'in/board_3.png'" in error["message"]
        assert "'golden/board_3.png'" in error["message"]
        del records[3], expected[3]
        assert records == expected

    def test_a_missing_one_in_a_folder_given_as_url(self, at: Path) -> None:
        (at / "golden/board_3.png").unlink()
        records = infer(at, reference_dir=(at / "golden").as_uri())
        assert [record["index"] for record in records if "error" in record] == [3]
        assert records[3]["error"]["type"] == "MissingReferenceError"

    def test_a_damaged_one_costs_its_input_only(self, at: Path) -> None:
        data = (at / "golden/board_3.png").read_bytes()
        (at / "golden/board_3.png").write_bytes(data[: len(data) // 2])
        (at / "golden/board_4.png").write_bytes(b"no image")
        records = infer(at)
        assert [record["index"] for record in records if "error" in record] == [3, 4]
        for number in (3, 4):
            error = records[number]["error"]
            assert error["stage"] == "read"
            assert error["type"] != "MissingReferenceError"
            assert f"the reference 'golden/board_{number}.png'" in error["message"]

    def test_one_for_all_that_is_damaged_costs_every_input(self, at: Path) -> None:
        (at / "golden.png").write_bytes(b"no image")
        records = infer(at, reference_dir="golden.png")
        assert all("'golden.png'" in record["error"]["message"] for record in records)

    def test_one_that_is_too_large(self, at: Path) -> None:
        write_image(at / "golden/board_3.png", np.zeros((70, 70), np.uint8))
        records = infer(at, max_image_pixels=64 * 64)
        assert [record["index"] for record in records if "error" in record] == [3]
        assert records[3]["error"]["type"] == "ImageTooLargeError"
        assert "the reference 'golden/board_3.png'" in records[3]["error"]["message"]

    def test_the_fault_of_the_input_comes_first(self, at: Path) -> None:
        (at / "golden/board_3.png").unlink()
        (at / "in/board_3.png").write_bytes(b"no image")
        assert "reference" not in infer(at)[3]["error"]["message"]


class TestCalibration:
    def test_on_normal_images_and_their_references(self, at: Path) -> None:
        for number in range(4):
            image = board(number)
            image[0, 0] += np.uint8(number)
            write_image(at / f"train/board_{number}.png", image)
        with chdir(at):
            run = pyimgano_dask.infer(**DETECTOR, **DEFECTS, train_dir="train", calibration_quantile=0.5, input="in")
        assert run.thresholds.score == 1.5
        provenance = run.thresholds.score_provenance
        assert provenance is not None
        assert provenance["count"] == 4
        assert (provenance["source"], provenance["quantile"]) == ("train_dir", 0.5)

    def test_pixel_threshold(self, at: Path) -> None:
        for number in range(3):
            write_image(at / f"train/board_{number}.png", board(number) + np.uint8(7))
        settings = {key: value for key, value in DEFECTS.items() if key != "pixel_threshold"}
        with chdir(at):
            run = pyimgano_dask.infer(**DETECTOR, **settings, train_dir="train", input="in")
        assert run.thresholds.pixel == 7
        assert run.n_defective == N_BOARDS

    def test_a_normal_image_without_a_reference_is_left_out_with_a_warning(self, at: Path) -> None:
        for name in ("board_0.png", "board_1.png", "stray.png"):
            write_image(at / "train" / name, board(0 if name == "stray.png" else int(name[6])))
        with chdir(at):
            run = pyimgano_dask.infer(**DETECTOR, **DEFECTS, train_dir="train", input="in")
        warning, of_alike_scores = run.warnings
        assert "stray.png" in warning
        assert "no reference" in warning
        assert of_alike_scores.startswith("2 of 2 normal images share the highest score, 0, which is the threshold")
        assert run.thresholds.score == 0
        assert run.exit_code == 0

    def test_no_normal_image_with_a_reference(self, at: Path) -> None:
        write_image(at / "train/stray.png", board(0))
        with chdir(at), pytest.raises(ConfigError, match="no reference"):
            pyimgano_dask.infer(**DETECTOR, **DEFECTS, train_dir="train", input="in")


def test_a_reference_counts_to_the_pixels_a_task_holds(tmp_path: Path) -> None:
    side = int(GROUP_PIXELS**0.5)
    write_image(tmp_path / "in/a.png", np.zeros((side // 2, side), np.uint8))
    write_image(tmp_path / "in/b.png", np.zeros((8, 8), np.uint8))
    write_image(tmp_path / "golden/a.png", np.zeros((side // 2, side), np.uint8))
    write_image(tmp_path / "golden/b.png", np.zeros((8, 8), np.uint8))
    rows = list(enumerate(("in/a.png", "in/b.png")))
    references = find_references("golden", base_dir=str(tmp_path))
    sizes = {}
    for given in (None, references):
        reader = Reader(str(tmp_path), "gray", GROUP_PIXELS, references=given)
        sizes[given is None] = [len(loaded) for loaded, _ in reader.groups(rows)]
    assert sizes == {True: [2], False: [1, 1]}


def test_a_run_folder_knows_its_references(at: Path) -> None:
    infer(at, run_dir="run")
    with chdir(at):
        again = pyimgano_dask.infer(infer_config="run/infer_config.json", input="in", scheduler="sync", batch_size=2)
    first = infer(at)
    records = list(again.records())
    assert [record["score"] for record in records] == [record["score"] for record in first]
    assert [record["defects"]["regions"] for record in records] == [record["defects"]["regions"] for record in first]


EVERYTHING = {
    **DETECTOR,
    **DEFECTS,
    "input": "in",
    "defects_image_space": True,
    "explain_defects": "full",
    "defect_min_area": 5,
    "defect_open_ksize": 2,
    "roi_xyxy_norm": [0.05, 0.05, 0.95, 0.95],
    "defect_merge_nearby": True,
    "defect_merge_nearby_max_gap_px": 2,
    "defect_max_regions": 1,
    "save_jsonl": "out/records.jsonl",
    "save_masks": "out/masks",
    "save_overlays": "out/overlays",
}
SCALES = ({"overlay_scale": "image"}, {"overlay_scale": "run", "overlay_format": "jpg"})


@pytest.fixture(scope="module", params=SCALES, ids=["image png", "run jpg"])
def reference_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Where the command ran on one thread over good and bad inputs, and with which settings."""
    place = tmp_path_factory.mktemp("sync")
    settings = {**EVERYTHING, **request.param}
    spoil(place)
    done = infer_command(*flags(settings), cwd=place)
    assert done.rc == 3, done.stderr
    return place, settings


def spoil(place: Path) -> None:
    """Boards, one of which has no reference, one a damaged one, and one is damaged itself."""
    write_boards(place)
    (place / "golden/board_2.png").unlink()
    (place / "golden/board_5.png").write_bytes(b"no image")
    (place / "in/board_6.png").write_bytes(b"no image")


def test_the_run_is_worth_comparing(reference_run: tuple[Path, dict[str, Any]]) -> None:
    place, settings = reference_run
    records = [json.loads(line) for line in (place / "out/records.jsonl").read_text().splitlines()]
    assert [record["index"] for record in records if "error" in record] == [2, 5, 6]
    ledgers = [record["defects"]["suppressed"] for record in records if "error" not in record]
    assert {entry["control"] for ledger in ledgers for entry in ledger["dropped"]} >= {"min_area", "max_regions"}
    assert all(ledger["reported"]["components"] == 1 for ledger in ledgers)
    suffix = settings.get("overlay_format", "png")
    assert len(list((place / "out/overlays").glob(f"*.{suffix}"))) == len(list((place / "out/overlays").iterdir())) == 6
    assert sorted(path.name for path in place.iterdir()) == ["golden", "in", "out"]
    assert sorted(path.name for path in (place / "out").iterdir()) == ["masks", "overlays", "records.jsonl"]


@pytest.mark.parametrize("kind", OTHERS)
def test_the_same_bytes_on_every_scheduler(
    kind: str, reference_run: tuple[Path, dict[str, Any]], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place, settings = reference_run
    spoil(tmp_path)
    done = infer_command(*flags({**settings, **where(kind, request)}), cwd=tmp_path)
    assert done.rc == 3, done.stderr
    assert hashes_below(tmp_path / "out") == hashes_below(place / "out")


@pytest.mark.parametrize("batch_size", [1, 4, 0])
def test_the_same_bytes_for_every_batch_size(
    batch_size: int, reference_run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    place, settings = reference_run
    spoil(tmp_path)
    infer(tmp_path, **{**settings, "batch_size": batch_size})
    assert hashes_below(tmp_path / "out") == hashes_below(place / "out")
