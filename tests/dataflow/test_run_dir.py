"""What a run folder is good for: the next run needs no training images, and shards can be kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pyimgano_dask.synthesis import InspectionSet
from tests.conftest import infer_command

RUN_FILES = {"detector.npz", "infer_config.json", "plan.json", "run.json"}
DEFECTS = ("--defects", "--defect-min-area", 4, "--defect-border-ignore-px", 2)


@pytest.fixture(scope="module")
def first(parts: InspectionSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run with training images left its run folder `R` and its records."""
    place = tmp_path_factory.mktemp("first")
    done = infer_command(
        *("--model", "vision_pixel_gaussian_map", "--model-kwargs", '{"color": "rgb", "resize_hw": [64, 64]}'),
        *("--train-dir", parts.train_dir, "--input", parts.test_dir, *DEFECTS, "--contamination", 0.2),
        *("--batch-size", 3, "--run-dir", "R", "--keep-parts", "--save-jsonl", "records.jsonl"),
        cwd=place,
    )
    assert done.rc == 0, done.stderr
    return place


def records_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_provenance(record: dict[str, Any]) -> dict[str, Any]:
    defects = {key: value for key, value in record["defects"].items() if key != "pixel_threshold_provenance"}
    return {**record, "defects": defects}


def test_a_run_folder_holds_the_detector_the_config_and_the_kept_shards(first: Path) -> None:
    assert {path.name for path in (first / "R").iterdir()} == RUN_FILES | {"parts"}
    shards = sorted((first / "R/parts").iterdir())
    assert len(shards) == 7
    assert b"".join(shard.read_bytes() for shard in shards) == (first / "records.jsonl").read_bytes()


@pytest.mark.parametrize("moved", [False, True], ids=["in place", "moved"])
def test_the_config_of_a_run_gives_the_same_answers_without_training(
    first: Path, parts: InspectionSet, tmp_path: Path, moved: bool
) -> None:
    run_dir = Path(shutil.copytree(first / "R", tmp_path / "elsewhere")) if moved else first / "R"
    done = infer_command(
        *("--infer-config", run_dir / "infer_config.json", "--input", parts.test_dir, "--save-jsonl", "records.jsonl"),
        cwd=tmp_path,
    )
    assert done.rc == 0, done.stderr
    assert "warning" not in done.stderr
    ours, theirs = records_in(tmp_path / "records.jsonl"), records_in(first / "records.jsonl")
    assert {record["label"] for record in ours} == {0, 1}
    assert [without_provenance(record) for record in ours] == [without_provenance(record) for record in theirs]


def test_the_config_tells_where_its_thresholds_came_from(first: Path) -> None:
    config = json.loads((first / "R/infer_config.json").read_text())
    record = records_in(first / "records.jsonl")[0]
    assert config["schema_version"] == 1
    assert config["defects"]["pixel_threshold"] == record["defects"]["pixel_threshold"]
    of_record = record["defects"]["pixel_threshold_provenance"]
    assert config["pixel_threshold_provenance"] == {**of_record, "value": record["defects"]["pixel_threshold"]}
    assert (config["threshold_provenance"]["quantile"], config["threshold_provenance"]["count"]) == (0.8, 12)


def test_a_run_from_a_config_passes_everything_on_to_its_own_run_folder(
    first: Path, parts: InspectionSet, tmp_path: Path
) -> None:
    done = infer_command(
        *("--infer-config", first / "R/infer_config.json", "--input", parts.test_good[0], "--run-dir", "R2"),
        cwd=tmp_path,
    )
    assert done.rc == 0, done.stderr
    assert (tmp_path / "R2/detector.npz").read_bytes() == (first / "R/detector.npz").read_bytes()
    ours, theirs = (json.loads((path / "infer_config.json").read_text()) for path in (tmp_path / "R2", first / "R"))
    pixel_provenance = ours.pop("pixel_threshold_provenance")
    assert pixel_provenance.pop("origin") == theirs["pixel_threshold_provenance"]
    assert pixel_provenance == {**pixel_provenance, "source": "infer_config", "method": "fixed"}
    assert ours == {key: value for key, value in theirs.items() if key != "pixel_threshold_provenance"}


def test_a_number_that_was_changed_by_hand_has_no_origin(first: Path, parts: InspectionSet, tmp_path: Path) -> None:
    shutil.copytree(first / "R", tmp_path / "R")
    path = tmp_path / "R/infer_config.json"
    config = json.loads(path.read_text())
    config["defects"]["pixel_threshold"] = 123.0
    path.write_text(json.dumps(config))
    done = infer_command("--infer-config", path, "--input", parts.test_good[0], "--run-dir", "R2", cwd=tmp_path)
    assert done.rc == 0, done.stderr
    told = json.loads((tmp_path / "R2/infer_config.json").read_text())["pixel_threshold_provenance"]
    assert told == {"method": "fixed", "source": "infer_config", "value": 123.0}


def test_shards_are_gone_unless_they_are_kept(first: Path, parts: InspectionSet, tmp_path: Path) -> None:
    source = ("--infer-config", first / "R/infer_config.json", "--input", parts.test_dir, "--batch-size", 3)
    done = infer_command(*source, "--save-jsonl", "out/records.jsonl", "--run-dir", "R", cwd=tmp_path)
    assert done.rc == 0, done.stderr
    done = infer_command(*source, "--save-jsonl", "out/records.jsonl", cwd=tmp_path)
    assert done.rc == 0, done.stderr
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"out/records.jsonl", *(f"R/{name}" for name in RUN_FILES)}
    assert not list(tmp_path.glob("out/.*"))


def test_shards_of_an_earlier_and_longer_run_do_not_stay(first: Path, parts: InspectionSet, tmp_path: Path) -> None:
    source = ("--infer-config", first / "R/infer_config.json", "--batch-size", 1, "--run-dir", "R", "--keep-parts")
    for inputs in (parts.test_dir, parts.test_good[0]):
        done = infer_command(*source, "--input", inputs, "--save-jsonl", "records.jsonl", cwd=tmp_path)
        assert done.rc == 0, done.stderr
    (shard,) = (tmp_path / "R/parts").iterdir()
    assert shard.read_bytes() == (tmp_path / "records.jsonl").read_bytes()


def test_a_folder_of_the_users_own_that_is_called_parts_stays(
    first: Path, parts: InspectionSet, tmp_path: Path
) -> None:
    (tmp_path / "R/parts").mkdir(parents=True)
    (tmp_path / "R/parts/bolt.png").write_bytes(b"mine")
    (tmp_path / "R/parts/part-00000099.jsonl").write_bytes(b"a shard of an earlier run")
    source = ("--infer-config", first / "R/infer_config.json", "--input", parts.test_dir)
    done = infer_command(*source, "--save-jsonl", "R/parts/records.jsonl", "--run-dir", "R", cwd=tmp_path)
    assert done.rc == 0, done.stderr
    assert {path.name for path in (tmp_path / "R/parts").iterdir()} == {"bolt.png", "records.jsonl"}


def test_a_config_does_not_stay_beside_the_detector_of_another_run_that_failed(
    first: Path, parts: InspectionSet, tmp_path: Path
) -> None:
    run_dir = Path(shutil.copytree(first / "R", tmp_path / "R"))
    (tmp_path / "torn.png").write_bytes(b"torn")
    (tmp_path / "list.txt").write_text("torn.png\n")
    train = ("--model", "vision_pixel_gaussian_map", "--train-dir", parts.train_good[0], "--run-dir", "R")
    done = infer_command(*train, "--input", "@list.txt", "--max-errors", 1, "--save-jsonl", "r.jsonl", cwd=tmp_path)
    assert done.rc == 1, done.stderr
    assert (run_dir / "detector.npz").read_bytes() != (first / "R/detector.npz").read_bytes()
    assert not (run_dir / "infer_config.json").exists()
