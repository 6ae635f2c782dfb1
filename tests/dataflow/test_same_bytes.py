"""The promise of the whole package: the same run leaves the same bytes, wherever and in any order of completion."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import zarr

import pyimgano_dask
from pyimgano_dask.dataflow.chunk import Job, Receipt, process_chunk
from pyimgano_dask.dataflow.inspection import RunSummary, Thresholds
from pyimgano_dask.dataflow.merge import OrderedMerge
from pyimgano_dask.dataflow.plan import chunked
from pyimgano_dask.dataflow.reading import Reader
from pyimgano_dask.dataflow.scheduler import Scheduler
from pyimgano_dask.dataflow.sources import DetectorSource
from pyimgano_dask.detectors.base import Detector
from pyimgano_dask.detectors.checkpoint import decode_detector
from pyimgano_dask.images.listing import InputList
from pyimgano_dask.settings.resolve import given_by_keyword, resolve
from pyimgano_dask.settings.run import InferSettings
from pyimgano_dask.storage.zarr_store import create_store
from pyimgano_dask.synthesis import InspectionSet, write_inspection_set
from tests.conftest import hashes_below, infer_command
from tests.dataflow.doubles import BIG_SIDE_PX, ShuffledScheduler, WaitsForOthers, none_is_lost, opened

Workplace = Callable[[str], Path]

CLUSTER = pytest.mark.cluster
OTHERS = (
    "threads x1",
    "threads x2",
    "processes x2",
    pytest.param("local-cluster x2", marks=CLUSTER),
    pytest.param("address", marks=CLUSTER),
    pytest.param("scheduler.json", marks=CLUSTER),
)
BATCH_SIZE = 2
TRAINING = {"model": "vision_pixel_mad_map", "train_dir": "set/train/good", "model_kwargs": {"resize_hw": [64, 64]}}
DEFECTS = {
    "input": "@list.txt",
    "defects": True,
    "defects_image_space": True,
    "defect_min_area": 4,
    "defect_merge_nearby": True,
    "defect_merge_nearby_max_gap_px": 3,
    "roi_xyxy_norm": [0.05, 0.05, 0.95, 0.95],
    "batch_size": BATCH_SIZE,
}
FILES = {
    "save_jsonl": "out/records.jsonl",
    "save_masks": "out/masks",
    "save_maps": "out/maps",
    "save_overlays": "out/overlays",
}
STORES = {
    "save_jsonl": "out/records.jsonl",
    "save_masks": "out/masks.zarr",
    "mask_format": "zarr",
    "save_maps": "out/maps.zarr",
}


def flags(settings: dict[str, Any]) -> Iterator[str]:
    """The command line that says the same as these keywords."""
    for name, value in settings.items():
        yield "--" + name.replace("_", "-")
        if isinstance(value, dict):
            yield json.dumps(value)
        elif isinstance(value, list):
            yield from map(str, value)
        elif value is not True:
            yield str(value)


def where(kind: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The settings that send a run to this kind of scheduler."""
    name, _, workers = kind.partition(" x")
    if name == "address":
        return {"scheduler": request.getfixturevalue("dask_cluster").address}
    if name == "scheduler.json":
        return {"scheduler": str(request.getfixturevalue("dask_cluster").scheduler_file)}
    return {"scheduler": name, **({"workers": int(workers)} if workers else {})}


def infer_at(place: Path, **settings: Any) -> RunSummary:
    with chdir(place):
        return pyimgano_dask.infer(**settings)


@pytest.fixture(scope="module")
def files_at(workplace: Workplace) -> Path:
    """Where the command ran on one thread, with masks, maps and overlays as files."""
    place = workplace("files")
    given = {**TRAINING, **DEFECTS, **FILES, "run_dir": "run", "scheduler": "sync"}
    done = infer_command(*flags(given), cwd=place, fresh=True)
    assert done.rc == 3, done.stderr
    return place


@pytest.fixture(scope="module")
def trained(files_at: Path) -> dict[str, Any]:
    """Settings that start from the detector and the thresholds of that run instead of training again."""
    return {"infer_config": str(files_at / "run" / "infer_config.json")}


@pytest.fixture(scope="module")
def stores_at(workplace: Workplace, trained: dict[str, Any]) -> Path:
    """Where the run was made on one thread, with masks and maps in zarr stores."""
    place = workplace("stores")
    assert infer_at(place, **trained, **DEFECTS, **STORES, scheduler="sync").n_errors == 2
    return place


def test_the_run_is_worth_comparing(files_at: Path, stores_at: Path, input_list: Sequence[str]) -> None:
    records = [json.loads(line) for line in (files_at / "out/records.jsonl").read_text().splitlines()]
    assert [record["input"] for record in records] == [f"set/{path}" for path in input_list]
    assert [record["index"] for record in records] == list(range(22))
    assert [record["index"] for record in records if "error" in record] == [5, 11]
    assert len({tuple(record["anomaly_map"]["shape"]) for record in records if "error" not in record}) == 3
    assert sum(len(record["defects"]["regions"]) for record in records if "error" not in record) > 10
    for folder in ("masks", "maps", "overlays"):
        assert len(list((files_at / "out" / folder).iterdir())) == 20
    assert any(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).any() for path in (files_at / "out/masks").iterdir())
    assert {path.name for path in (stores_at / "out/masks.zarr").iterdir() if path.is_dir()} == {
        "64x80",
        "96x72",
        "200x240",
    }


@pytest.mark.parametrize("kind", OTHERS)
def test_files_are_the_same_on_every_scheduler(
    kind: str, files_at: Path, workplace: Workplace, request: pytest.FixtureRequest
) -> None:
    place = workplace("files")
    done = infer_command(*flags({**TRAINING, **DEFECTS, **FILES, **where(kind, request)}), cwd=place)
    assert done.rc == 3, done.stderr
    assert hashes_below(place / "out") == hashes_below(files_at / "out")


@pytest.mark.parametrize("kind", OTHERS)
def test_stores_are_the_same_on_every_scheduler(
    kind: str, stores_at: Path, trained: dict[str, Any], workplace: Workplace, request: pytest.FixtureRequest
) -> None:
    place = workplace("stores")
    assert infer_at(place, **trained, **DEFECTS, **STORES, **where(kind, request)).n_errors == 2
    assert hashes_below(place / "out") == hashes_below(stores_at / "out")


@pytest.mark.parametrize("kind", ["threads x2", "processes x2", pytest.param("local-cluster x2", marks=CLUSTER)])
def test_threads_inside_a_task_change_no_byte(
    kind: str, files_at: Path, workplace: Workplace, request: pytest.FixtureRequest
) -> None:
    place = workplace("threads")
    infer_at(place, **TRAINING, **DEFECTS, **FILES, **where(kind, request), threads_per_task=2)
    assert hashes_below(place / "out") == hashes_below(files_at / "out")


LARGE: dict[str, dict[str, Any]] = {
    "gaussian in colour": {
        "model": "vision_pixel_gaussian_map",
        "model_kwargs": {"color": "rgb", "resize_hw": [512, 512]},
        "train_dir": "train/good",
    },
    "bent references": {
        "model": "vision_reference_diff_map",
        "model_kwargs": {"registration": "local", "gain_grid": 4},
        "reference_dir": "train/good/000.png",
        "pixel_threshold": 12.0,
    },
    "shifted references": {
        "model": "vision_reference_diff_map",
        "model_kwargs": {"registration": "translation"},
        "reference_dir": "train/good/001.png",
        "pixel_threshold": 12.0,
    },
}


@pytest.mark.parametrize("name", LARGE)
def test_threads_inside_a_task_change_no_byte_of_large_images(name: str, tmp_path: Path) -> None:
    write_inspection_set(tmp_path, n_train=3, n_good=1, n_per_defect=1, sizes_hw=((600, 800), (1000, 700)))
    extraction = {
        "defects": True,
        "defect_map_smoothing": "gaussian",
        "defect_map_smoothing_sigma": 1.5,
        "defect_hysteresis": True,
        "defect_open_ksize": 2,
        "defect_close_ksize": 3,
        "defect_min_solidity": 0.1,
        "defect_fill_holes": True,
    }
    hashes = []
    for threads_per_task in (1, 2, 8):
        given = {**LARGE[name], **extraction, **FILES, "scheduler": "sync", "threads_per_task": threads_per_task}
        assert infer_at(tmp_path, input="test", **given).n_regions > 0
        hashes.append(hashes_below(tmp_path / "out"))
    assert hashes[0] == hashes[1] == hashes[2]


@pytest.mark.parametrize("output", [FILES, STORES], ids=["files", "stores"])
def test_a_second_run_into_the_same_folders_changes_nothing(
    output: dict[str, Any], trained: dict[str, Any], workplace: Workplace
) -> None:
    place = workplace("again")
    infer_at(place, **trained, **DEFECTS, **output, scheduler="sync")
    first = hashes_below(place / "out")
    infer_at(place, **trained, **DEFECTS, **output, scheduler="threads", workers=2)
    assert hashes_below(place / "out") == first


@pytest.mark.parametrize("batch_size", [1, 5, 0])
def test_the_batch_size_changes_no_byte_of_files(batch_size: int, files_at: Path, workplace: Workplace) -> None:
    place = workplace("batch")
    infer_at(place, **{**TRAINING, **DEFECTS, **FILES, "batch_size": batch_size}, scheduler="threads")
    assert hashes_below(place / "out") == hashes_below(files_at / "out")


def test_the_batch_size_changes_the_layout_of_stores_and_no_value(
    stores_at: Path, trained: dict[str, Any], workplace: Workplace
) -> None:
    place = workplace("batch")
    infer_at(place, **{**trained, **DEFECTS, **STORES, "batch_size": 5}, scheduler="threads")
    assert (place / "out/records.jsonl").read_bytes() == (stores_at / "out/records.jsonl").read_bytes()
    for store in ("masks.zarr", "maps.zarr"):
        ours, theirs = (zarr.open_group(folder / "out" / store, mode="r") for folder in (place, stores_at))
        assert set(ours) == set(theirs) == {"64x80", "96x72", "200x240"}
        for name in ours:
            assert (ours[name].shards[0], theirs[name].shards[0]) == (5, BATCH_SIZE)
            np.testing.assert_array_equal(ours[name][:], theirs[name][:])


def inspect_by_pieces(
    scheduler: Scheduler, settings: InferSettings, thresholds: Thresholds, detector: Detector[Any], place: Path
) -> list[int]:
    """The inspecting half of a run on any scheduler; returns the chunks in the order their receipts came."""
    output = settings.output
    inputs = InputList(settings.inputs.input, base_dir=str(place))
    parts_dir = place / "parts"
    parts_dir.mkdir()
    for folder in filter(None, (output.save_masks, output.save_maps, output.save_overlays)):
        (place / folder).mkdir(parents=True)
        if folder.endswith(".zarr"):
            create_store(str(place / folder))
    reader = Reader(str(place), detector.color, settings.inputs.max_image_pixels, output.save_overlays is not None)
    job = Job(
        settings=settings,
        source=DetectorSource(reader, detector),
        score_threshold=thresholds.score,
        pixel_threshold=thresholds.pixel,
        pixel_threshold_provenance=thresholds.pixel_provenance,
        base_dir=str(place),
        parts_dir=str(parts_dir),
        n_inputs=inputs.count(),
    )
    arrivals: list[int] = []
    with (place / "out/records.jsonl").open("wb") as sink:
        merge = OrderedMerge(str(parts_dir), sink)

        def on_receipt(receipt: Receipt) -> None:
            arrivals.append(receipt.index)
            merge.add(receipt.index)

        scheduler.run(process_chunk, chunked(inputs, settings.dataflow.chunk_size), job, on_receipt, none_is_lost)
    return arrivals


@pytest.mark.parametrize("output", [FILES, STORES], ids=["files", "stores"])
def test_shuffled_completion_changes_no_byte(
    output: dict[str, Any], trained: dict[str, Any], files_at: Path, workplace: Workplace
) -> None:
    expected = workplace("ordered")
    summary = infer_at(expected, **trained, **DEFECTS, **output, scheduler="sync")
    detector = decode_detector((files_at / "run/detector.npz").read_bytes(), "detector.npz")
    for seed in range(3):
        place = workplace("shuffled")
        arrivals = inspect_by_pieces(ShuffledScheduler(seed), summary.settings, summary.thresholds, detector, place)
        assert arrivals != sorted(arrivals)
        assert hashes_below(place / "out") == hashes_below(expected / "out")


@pytest.mark.parametrize("kind", ["threads x2", "processes x2", pytest.param("address", marks=CLUSTER)])
def test_a_slow_chunk_is_overtaken_and_still_comes_first(
    kind: str, workplace: Workplace, parts: InspectionSet, input_list: Sequence[str], request: pytest.FixtureRequest
) -> None:
    given = {"input": "@list.txt", "defects": True, "pixel_threshold": 0.7, "batch_size": 1, **FILES}
    settings = resolve(given_by_keyword(given)).settings
    thresholds = Thresholds(score=100.0, pixel=0.7, pixel_provenance={"method": "fixed"})

    # One big image, at the very front, and then the small ones.
    images = {path: cv2.imread(os.path.join(parts.root, path)) for path in input_list}
    small = [path for path, image in images.items() if image is None or max(image.shape) < BIG_SIDE_PX]
    big = next(path for path in input_list if path not in small)

    def inspect(name: str, others: int, scheduler: Scheduler) -> tuple[Path, list[int]]:
        place = workplace(name)
        (place / "list.txt").write_text("".join(f"set/{path}\n" for path in (big, *small)))
        detector = WaitsForOthers.create(folder=str(place / "parts"), others=others)
        return place, inspect_by_pieces(scheduler, settings, thresholds, detector, place)

    with opened("sync", None, len(small)) as scheduler:
        expected, _ = inspect("in-turn", 0, scheduler)
    there = where(kind, request)
    with opened(there["scheduler"], there.get("workers"), len(small)) as scheduler:
        place, arrivals = inspect("overtaken", 3, scheduler)
    assert arrivals.index(0) >= 2
    assert hashes_below(place / "out") == hashes_below(expected / "out")
