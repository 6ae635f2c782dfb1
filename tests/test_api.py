"""The run from Python is the run of the command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

import pyimgano_dask
from pyimgano_dask.synthesis import InspectionSet
from tests.conftest import hashes_below, infer_command

RESIZE = {"resize_hw": [64, 64]}


@pytest.fixture
def settings(parts: InspectionSet) -> dict[str, Any]:
    return {
        "model": "vision_pixel_mad_map",
        "model_kwargs": RESIZE,
        "train_dir": parts.train_dir,
        "input": parts.test_dir,
        "defects": True,
        "defect_min_area": 6,
        "scheduler": "sync",
    }


def test_python_and_the_command_leave_the_same_files(workplace: Callable[[str], Path]) -> None:
    by_command, by_python = workplace("command"), workplace("python")
    done = infer_command(
        *("--model", "vision_pixel_mad_map", "--model-kwargs", json.dumps(RESIZE), "--train-dir", "set/train/good"),
        *("--input", "set/test/pit", "@list.txt", "--defects", "--no-defect-fill-holes", "--defect-min-area", 6),
        *("--roi-xyxy-norm", 0.1, 0, 0.9, 1, "--defect-map-smoothing", "median", "--defect-map-smoothing-ksize", 3),
        *("--save-jsonl", "out/records.jsonl", "--save-masks", "out/masks", "--save-overlays", "out/overlays"),
        cwd=by_command,
    )
    assert done.rc == 3, done.stderr
    with chdir(by_python):
        run = pyimgano_dask.infer(
            model="vision_pixel_mad_map",
            model_kwargs=RESIZE,
            train_dir="set/train/good",
            input=["set/test/pit", "@list.txt"],
            defects=True,
            defect_fill_holes=False,
            defect_min_area=6,
            roi_xyxy_norm=(0.1, 0, 0.9, 1),
            defect_map_smoothing="median",
            defect_map_smoothing_ksize=3,
            save_jsonl="out/records.jsonl",
            save_masks="out/masks",
            save_overlays="out/overlays",
        )
    assert (run.exit_code, run.n_inputs, run.n_errors) == (3, 26, 2)
    assert hashes_below(by_python / "out") == hashes_below(by_command / "out")


def test_paths_may_be_path_objects(parts: InspectionSet, settings: dict[str, Any], tmp_path: Path) -> None:
    by_text = pyimgano_dask.infer(**settings, run_dir=str(tmp_path / "R"))
    as_paths = {**settings, "train_dir": Path(parts.train_dir), "input": Path(parts.test_dir)}
    by_path = pyimgano_dask.infer(**as_paths, save_jsonl=tmp_path / "records.jsonl", save_masks=tmp_path / "masks")
    listed = pyimgano_dask.infer(**{**settings, "input": [Path(path) for path in parts.test_good]})
    by_config = pyimgano_dask.infer(infer_config=tmp_path / "R" / "infer_config.json", input=Path(parts.test_dir))

    records = list(by_text.records())
    assert len(list((tmp_path / "masks").iterdir())) == 20
    assert [record["score"] for record in by_path.records()] == [record["score"] for record in records]
    assert [record["score"] for record in by_config.records()] == [record["score"] for record in records]
    assert [record["input"] for record in listed.records()] == list(parts.test_good)


@pytest.mark.parametrize("saved", [False, True])
def test_records_can_be_read_as_often_as_wanted(settings: dict[str, Any], tmp_path: Path, saved: bool) -> None:
    output = {"save_jsonl": tmp_path / "records.jsonl"} if saved else {}
    run = pyimgano_dask.infer(**settings, **output)
    first, second = list(run.records()), list(run.records())
    assert first == second
    assert [record["index"] for record in first] == list(range(20))
    assert sum(record["label"] for record in first) == run.n_anomalous
    assert sum(len(record["defects"]["regions"]) for record in first) == run.n_regions
    if saved:
        assert [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()] == first


def test_records_of_a_relative_file_are_found_from_another_folder(settings: dict[str, Any], tmp_path: Path) -> None:
    with chdir(tmp_path):
        run = pyimgano_dask.infer(**settings, save_jsonl="records.jsonl")
    assert len(list(run.records())) == 20


def test_runs_do_not_share_their_unsaved_records(parts: InspectionSet, settings: dict[str, Any]) -> None:
    runs = [pyimgano_dask.infer(**{**settings, "input": path}) for path in parts.test_good[:2]]
    assert [[record["input"] for record in run.records()] for run in runs] == [[path] for path in parts.test_good[:2]]


def test_python_prints_nothing(settings: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    pyimgano_dask.infer(**settings)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_an_unknown_keyword_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(pyimgano_dask.ConfigError, match=r"unknown setting defect_min_aera, tiles;"):
        pyimgano_dask.infer(**settings, defect_min_aera=3, tiles=2)


def test_faults_of_settings_name_the_flag_and_come_before_anything_is_written(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(pyimgano_dask.ConfigError) as caught:
        pyimgano_dask.infer(**{**settings, "defect_min_area": -1, "mask_format": "gif"}, save_jsonl=tmp_path / "o/r")
    assert "--defect-min-area" in str(caught.value)
    assert "--mask-format" in str(caught.value)
    assert not (tmp_path / "o").exists()


def test_a_config_that_is_not_there_is_a_config_error(parts: InspectionSet) -> None:
    with pytest.raises(pyimgano_dask.ConfigError, match="nowhere"):
        pyimgano_dask.infer(infer_config="nowhere.json", input=parts.test_dir)


def test_the_public_names_are_listed() -> None:
    assert {"infer", "rescore", "extract_defects", "Defects"} <= set(dir(pyimgano_dask))


def test_settings_that_do_nothing_are_warned_of(settings: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="--defect-hysteresis-low"):
        pyimgano_dask.infer(**settings, defect_hysteresis_low=2.0)


def test_a_script_without_its_guard_is_told_of_it(parts: InspectionSet, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import pyimgano_dask\n"
        f"pyimgano_dask.infer(model='vision_pixel_mad_map', train_dir={parts.train_dir!r}, input={parts.test_dir!r}, "
        "scheduler='local-cluster', workers=1)\n"
    )
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "RunError: the workers of a local cluster do not start" in done.stderr
    assert 'if __name__ == "__main__":' in done.stderr
