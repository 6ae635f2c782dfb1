"""Whole runs around exported models: the same bytes everywhere, trust through configs, resuming, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import chdir
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="vision_onnx runs on onnxruntime")
pytest.importorskip("onnx", reason="the tests make ONNX files")
pytest.importorskip("torch", reason="TorchScript files run on torch")

import torch
from onnx import helper

import pyimgano_dask
from pyimgano_dask import ConfigError, RunError
from pyimgano_dask.synthesis import InspectionSet
from tests.conftest import hashes_below, infer_command
from tests.detectors.exported.onnx_models import save_model
from tests.detectors.exported.torch_models import save_script

N_INPUTS = 7  # no multiple of the chunk, nor of the model's batch
OUTPUTS = {"save_jsonl": "out/records.jsonl", "save_maps": "out/maps", "save_masks": "out/masks"}
ONNX = {"model": "vision_onnx", "checkpoint_path": "model.onnx"}
SCRIPT = {"model": "vision_torchscript", "checkpoint_path": "model.pt", "model_kwargs": {"input_hw": [32, 40]}}
CHUNKS = {"input": "images", "batch_size": 3, "defects": True, "pixel_threshold": 0.6}


@pytest.fixture
def place(tmp_path: Path, parts: InspectionSet) -> Iterator[Path]:
    """A folder, in which the test works, with images of several sizes, a black one, and two models."""
    save_model(
        tmp_path / "model.onnx",
        shape=(2, 3, 32, 40),
        external="model.onnx.data",
        before=[helper.make_node("Log", ["images"], ["logarithm"]), helper.make_node("Exp", ["logarithm"], ["pixels"])],
    )
    save_script(tmp_path / "model.pt")
    (tmp_path / "images").mkdir()
    test = Path(parts.root) / "test"
    some = sorted(test.glob("pit/*.png")) + sorted(test.glob("scratch/*.png"))
    for number, image in enumerate(some[: N_INPUTS - 1]):
        (tmp_path / "images" / f"{number}.png").write_bytes(image.read_bytes())
    (tmp_path / "images" / "torn.png").write_bytes(some[0].read_bytes()[:200])
    (tmp_path / "train").symlink_to(Path(parts.root) / "train" / "good")
    with chdir(tmp_path):
        yield tmp_path


def records_in(place: Path, name: str = "out/records.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / name).read_text().splitlines()]


def outputs_of(place: Path, **settings: Any) -> dict[str, str]:
    """Hashes of all files that a run leaves."""
    with chdir(place):
        pyimgano_dask.infer(**CHUNKS, **OUTPUTS, **settings)
    hashes = hashes_below(place / "out")
    for path in sorted((place / "out").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    return hashes


@pytest.mark.parametrize("model", [ONNX, {**SCRIPT, "trust_model_file": True}], ids=["onnx", "torchscript"])
def test_one_worker_and_two_leave_the_same_bytes(model: dict[str, Any], place: Path) -> None:
    one = outputs_of(place, **model, scheduler="sync")
    assert len(one) == 1 + 2 * (N_INPUTS - 1)
    assert outputs_of(place, **model, scheduler="processes", workers=2) == one


def test_threads_share_a_model_and_leave_the_same_bytes(place: Path) -> None:
    for model in (ONNX, {**SCRIPT, "trust_model_file": True}):
        one = outputs_of(place, **model, scheduler="sync")
        assert outputs_of(place, **model, scheduler="threads", workers=2) == one


@pytest.mark.cluster
def test_clusters_leave_the_same_bytes(place: Path, dask_cluster: Any) -> None:
    one = outputs_of(place, **ONNX, scheduler="sync")
    assert outputs_of(place, **ONNX, scheduler=dask_cluster.address) == one
    assert outputs_of(place, **ONNX, scheduler="local-cluster", workers=2) == one


def test_what_a_run_says(place: Path) -> None:
    run = pyimgano_dask.infer(**CHUNKS, **OUTPUTS, **ONNX, train_dir="train", scheduler="sync")
    records = records_in(place)
    assert (run.n_inputs, run.n_errors) == (N_INPUTS, 1)
    assert records[-1]["error"]["stage"] == "read"
    for record in records[:-1]:
        image = cv2.imread(record["input"])
        assert record["anomaly_map"]["shape"] == list(image.shape[:2])
        assert record["label"] == int(record["score"] >= run.thresholds.score)
    assert run.thresholds.score_provenance["count"] == 12


@pytest.mark.parametrize("defects", [True, False])
def test_a_map_that_is_not_finite_is_an_error_record(defects: bool, place: Path) -> None:
    save_model(
        place / "model.onnx",
        shape=(2, 3, 32, 40),
        before=[helper.make_node("Log", ["images"], ["logarithm"]), helper.make_node("Neg", ["logarithm"], ["pixels"])],
    )
    cv2.imwrite("images/3.png", np.zeros((9, 9, 3), np.uint8))
    settings = {**CHUNKS, "defects": defects, "include_maps": True}
    run = pyimgano_dask.infer(**settings, **ONNX, save_jsonl="records.jsonl", scheduler="sync")
    assert run.n_errors == 2
    error = records_in(place, "records.jsonl")[3]["error"]
    assert (error["stage"], error["type"]) == ("infer", "NonFiniteMapError")
    assert "1280 of 1280 values of the model's anomaly map are NaN or infinite" in error["message"]


@pytest.mark.parametrize("amp", [True, False])
def test_tiles_and_amp(amp: bool, place: Path) -> None:
    settings = {**CHUNKS, **OUTPUTS, "tile_size": 40, "tile_stride": 30, "amp": amp, "scheduler": "sync"}
    for model in (ONNX, {**SCRIPT, "trust_model_file": True}):
        assert pyimgano_dask.infer(**settings, **model).n_errors == 1
        assert all(record["score"] > 0.2 for record in records_in(place)[:-1])


class TestTrust:
    @pytest.fixture
    def config(self, place: Path) -> Path:
        """The config that a trusted run leaves."""
        pyimgano_dask.infer(**CHUNKS, **SCRIPT, trust_model_file=True, run_dir="run", save_jsonl="a.jsonl")
        (place / "model.pt").unlink()
        return place / "run" / "infer_config.json"

    def test_the_config_of_a_run_vouches_for_its_model(self, config: Path, place: Path) -> None:
        assert "trust_model_file" not in json.loads(config.read_text())["model"]
        pyimgano_dask.infer(infer_config=str(config), **CHUNKS, save_jsonl="b.jsonl")
        assert (place / "b.jsonl").read_bytes() == (place / "a.jsonl").read_bytes()

    def test_the_same_state_without_the_config_needs_trust(self, config: Path) -> None:
        state = {"model": SCRIPT["model"], "checkpoint_path": "run/detector.npz"}
        with pytest.raises(ConfigError, match=r"a detector around a model with code.*--trust-model-file"):
            pyimgano_dask.infer(**CHUNKS, **state)
        assert pyimgano_dask.infer(**CHUNKS, **state, trust_model_file=True, save_jsonl="b.jsonl").n_errors == 1

    def test_a_config_vouches_for_no_other_model(self, config: Path, place: Path) -> None:
        (place / "run" / "detector.npz").write_bytes((place / "run" / "detector.npz").read_bytes() + b" ")
        with pytest.raises(ConfigError, match=r"checkpoint.sha256"):
            pyimgano_dask.infer(infer_config=str(config), **CHUNKS)

    def test_a_config_may_vouch_for_the_model_file_itself(self, place: Path) -> None:
        config = {
            "schema_version": 1,
            "model": {"name": SCRIPT["model"], "model_kwargs": SCRIPT["model_kwargs"]},
            "checkpoint": {"path": "model.pt", "sha256": sha256((place / "model.pt").read_bytes()).hexdigest()},
        }
        (place / "config.json").write_text(json.dumps(config))
        assert pyimgano_dask.infer(infer_config="config.json", **CHUNKS, save_jsonl="b.jsonl").n_errors == 1

    def test_an_onnx_state_needs_none(self, place: Path) -> None:
        pyimgano_dask.infer(**CHUNKS, **ONNX, run_dir="run", save_jsonl="a.jsonl")
        (place / "model.onnx.data").unlink()
        state = {"model": ONNX["model"], "checkpoint_path": "run/detector.npz"}
        pyimgano_dask.infer(**CHUNKS, **state, save_jsonl="b.jsonl")
        assert (place / "b.jsonl").read_bytes() == (place / "a.jsonl").read_bytes()

    def test_arguments_that_do_not_fit_a_state_are_told_before_the_run(self, config: Path) -> None:
        with pytest.raises(ConfigError, match=r"--checkpoint-path: .*map_output: there is no output 7"):
            pyimgano_dask.infer(infer_config=str(config), **CHUNKS, model_kwargs={"map_output": 7})


def test_a_run_that_was_cut_off_goes_on(place: Path) -> None:
    settings = {**CHUNKS, **SCRIPT, "trust_model_file": True, "scheduler": "sync"}
    pyimgano_dask.infer(**settings, save_jsonl="whole.jsonl")
    with pytest.raises(RunError, match="max-errors"):
        pyimgano_dask.infer(**settings, save_jsonl="again.jsonl", run_dir="run", max_errors=1)
    pyimgano_dask.infer(**settings, save_jsonl="again.jsonl", run_dir="run", resume=True)
    assert (place / "again.jsonl").read_bytes() == (place / "whole.jsonl").read_bytes()


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (lambda path: torch.save({"model": torch.nn.ReLU()}, path), "ExportType.TORCH"),
    "text": (lambda path: path.write_text("a model"), "of no known model format"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "missing": (lambda path: None, "No such file"),
    "archive": (lambda path: np.savez(path.open("wb"), a=1), "a zip archive that holds no model"),
}


@pytest.mark.parametrize("kind", REFUSALS)
@pytest.mark.parametrize("name", ["vision_onnx", "vision_torchscript", "vision_torch_export"])
def test_files_that_are_no_models_are_told(name: str, kind: str, place: Path) -> None:
    write, reason = REFUSALS[kind]
    write(place / "file")
    with pytest.raises(ConfigError, match=reason):
        pyimgano_dask.infer(model=name, checkpoint_path="file", trust_model_file=True, input="images")


def test_the_command_ends_with_two(place: Path) -> None:
    done = infer_command(
        "--model", "vision_torchscript", "--checkpoint-path", "model.pt", "--input", "images", cwd=place
    )
    assert (done.rc, done.stdout) == (2, "")
    assert "give --trust-model-file if you trust it" in done.stderr


def test_without_a_model_file_the_run_says_which_it_needs(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"vision_onnx runs a model file: give it \(.onnx\) with --checkpoint-path"):
        pyimgano_dask.infer(model="vision_onnx", input="images")


def test_an_answer_that_cannot_be_used_is_a_fault_of_the_model(place: Path) -> None:
    class OfTheLight(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            anomaly_map = x.mean(1, keepdim=True)
            return anomaly_map if bool(x.min() < 0.9) else anomaly_map[:, :, 1:]

    torch.jit.script(OfTheLight()).save(str(place / "of_the_light.pt"))
    cv2.imwrite(str(place / "white.png"), np.full((20, 20, 3), 255, np.uint8))
    with chdir(place):
        pyimgano_dask.infer(
            model="vision_torchscript",
            checkpoint_path="of_the_light.pt",
            trust_model_file=True,
            input="white.png",
            save_jsonl="out/records.jsonl",
        )
    (record,) = records_in(place)
    assert (record["error"]["stage"], record["error"]["type"]) == ("infer", "ModelError")
    assert "it gives a map of 255 x 256 for an input of 256 x 256" in record["error"]["message"]


@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes"])
def test_what_a_model_prints_is_not_among_the_records(scheduler: str, place: Path) -> None:
    class Talks(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            print("talk")
            return x.mean(1, keepdim=True)

    torch.jit.script(Talks()).save(str(place / "talks.pt"))
    done = infer_command(
        *("--model", "vision_torchscript", "--checkpoint-path", "talks.pt", "--trust-model-file", "--input", "train"),
        *("--scheduler", scheduler, "--batch-size", 3),
        cwd=place,
    )
    assert done.rc == 0, done.stderr
    assert len([json.loads(line)["input"] for line in done.stdout.splitlines()]) == len(
        list((place / "train").iterdir())
    )
    assert "talk" not in done.stderr


@pytest.mark.parametrize("model", ["vision_onnx", "vision_torchscript", "vision_torch_export"])
def test_training_images_do_not_take_the_place_of_a_model_file(model: str, place: Path) -> None:
    with chdir(place), pytest.raises(ConfigError, match=rf"{model} runs a model file: give it \(\.\w+\) with"):
        pyimgano_dask.infer(model=model, train_dir="train", input="train", save_jsonl="records.jsonl")
    assert not (place / "records.jsonl").exists()
