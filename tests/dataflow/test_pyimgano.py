"""Detectors of the published package pyimgano through whole runs, and the configs that it writes."""

from __future__ import annotations

import importlib.util
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import chdir
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import pyimgano_dask
from pyimgano_dask.errors import ConfigError, RunError
from tests.conftest import infer_command

pytest.importorskip("pyimgano.models", reason="needs the package pyimgano; .ci/pyimgano installs it")

Workplace = Callable[[str], Path]

HIST = {"feature_extractor": {"name": "color_hist", "kwargs": {}}}
KINDS: dict[str, dict[str, Any]] = {
    "vision_pixel_gaussian_map": {"resize_hw": [48, 48]},
    "vision_ecod": HIST,
    "vision_patchcore_lite": HIST,
    "vision_lmdd": {**HIST, "n_iter": 5},
}
MAPS = {"vision_pixel_gaussian_map"}
BAD = ["TruncatedImageError", "FileNotFoundError"]


@pytest.fixture
def place(workplace: Workplace) -> Iterator[Path]:
    """The working folder of a test."""
    folder = workplace("pyimgano")
    with chdir(folder):
        yield folder


def flags_of(model: str) -> dict[str, Any]:
    return {"model": f"pyimgano:{model}", "model_kwargs": KINDS[model], "train_dir": "set/train/good"}


def bytes_of(name: str, **given: Any) -> str:
    """Hash of the records of a run on all test images, torn and missing ones among them."""
    defects = {"defects": True} if str(given.get("model")).removeprefix("pyimgano:") in MAPS else {}
    settings = {"input": "@list.txt", "batch_size": 4, "progress": False, **defects, **given}
    run = pyimgano_dask.infer(**settings, save_jsonl=name)
    assert [record["error"]["type"] for record in run.records() if "error" in record] == BAD
    return sha256(Path(name).read_bytes()).hexdigest()


def without_provenance(name: str) -> list[dict[str, Any]]:
    """Records without where their pixel threshold came from, which is another place in a later run."""
    records = [json.loads(line) for line in Path(name).read_text().splitlines()]
    for record in records:
        record.get("defects", {}).pop("pixel_threshold_provenance", None)
    return records


@pytest.mark.cluster
@pytest.mark.parametrize("model", KINDS)
def test_two_workers_give_the_bytes_of_one(model: str, place: Path) -> None:
    one = bytes_of("one.jsonl", **flags_of(model), scheduler="sync")
    assert bytes_of("two.jsonl", **flags_of(model), scheduler="local-cluster", workers=2) == one
    assert bytes_of("threads.jsonl", **flags_of(model), scheduler="threads", workers=2) == one


@pytest.mark.parametrize("model", KINDS)
def test_a_saved_state_gives_the_same_records_and_a_resumed_run_the_same_bytes(model: str, place: Path) -> None:
    first = bytes_of("first.jsonl", **flags_of(model), scheduler="sync", run_dir="run")
    bytes_of("again.jsonl", infer_config="run/infer_config.json", scheduler="sync")
    assert without_provenance("again.jsonl") == without_provenance("first.jsonl")

    cut = {**flags_of(model), "scheduler": "sync", "run_dir": "cut"}
    with pytest.raises(RunError, match="max-errors"):
        bytes_of("resumed.jsonl", **cut, max_errors=1)
    assert Path("cut/detector.npz").exists()
    assert bytes_of("resumed.jsonl", **cut, resume=True) == first


def test_facts_are_what_the_detector_computes_with_whatever_lies_or_is_loaded_here(place: Path) -> None:
    if importlib.util.find_spec("torch") is not None:
        importlib.import_module("torch")
    Path("color_hist").write_text("a file that happens to have the name of an extractor")
    pyimgano_dask.infer(**flags_of("vision_ecod"), input="set/test/good", scheduler="sync", run_dir="run")
    facts = json.loads(Path("run/plan.json").read_text())["plan"]
    assert {"version of pyimgano", "version of scikit-learn", "version of scipy"} <= facts.keys()
    assert not {"version of torch", "version of torchvision", "version of onnxruntime"} & facts.keys()
    assert not [name for name in facts if "content of" in name]


def test_a_seed_counts_for_thresholds_where_a_saved_state_is_fitted_anew(place: Path) -> None:
    model = {"model": "pyimgano:vision_iforest", "model_kwargs": {**HIST, "n_estimators": 8}, "scheduler": "sync"}
    pyimgano_dask.infer(**model, train_dir="set/train/good", input="set/test/good", run_dir="run")
    for flags, named in (({}, []), ({"seed": 0}, []), ({"seed": 4}, ["--seed"]), ({"contamination": 0.2}, [])):
        again = {"infer_config": "run/infer_config.json", "input": "set/test/good", "scheduler": "sync", **flags}
        told = [line.split(" changes")[0] for line in pyimgano_dask.infer(**again).warnings if " changes " in line]
        assert told == named


def test_a_detector_without_maps_says_so_when_maps_are_asked_for(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"--defects: pyimgano:vision_ecod scores whole images"):
        pyimgano_dask.infer(**flags_of("vision_ecod"), input="@list.txt", defects=True)


def test_a_device_that_is_not_here_is_told_in_words(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"cuda:99|torch"):
        pyimgano_dask.infer(
            **{**flags_of("vision_ecod"), "model": "pyimgano:vision_torch_autoencoder", "model_kwargs": HIST},
            input="@list.txt",
            device="cuda:99",
        )


class TestConfigsOfPyimgano:
    @pytest.fixture
    def config(self, place: Path) -> Path:
        """As its workbench writes it, beside a checkpoint that would leave a file when it is unpickled."""

        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (Path(place / "unpickled"),)

        (place / "theirs/artifacts").mkdir(parents=True)
        (place / "theirs/model.pt").write_bytes(pickle.dumps(Trap()))
        path = place / "theirs/artifacts/infer_config.json"
        model = {
            "name": "vision_ecod",
            "preset": None,
            "device": "cpu",
            "pretrained": False,
            "contamination": 0.1,
            "model_kwargs": HIST,
            "checkpoint_path": None,
        }
        tiling = {"tile_size": None, "stride": None, "score_reduce": "max", "score_topk": 0.1, "map_reduce": "max"}
        config = {
            "schema_version": 1,
            "model": model,
            "adaptation": {"tiling": tiling, "postprocess": None, "save_maps": False},
            "defects": {"enabled": False, "pixel_threshold": None},
            "checkpoint": {"path": "model.pt"},
            "threshold": 12.5,
            "operator_contract": {"schema_version": 1},
            "pyimgano_version": "0.9.1",
        }
        path.write_text(json.dumps(config))
        return path

    def test_their_checkpoint_is_refused_with_the_remedy(self, config: Path, place: Path) -> None:
        done = infer_command("--infer-config", config, "--input", "set/test/good", cwd=place)
        assert done.rc == 2
        assert "unknown key operator_contract is ignored" in done.stderr
        assert "model.pt' is not read" in done.stderr
        assert "give --train-dir DIR beside the config to fit pyimgano:vision_ecod anew" in done.stderr
        assert not (place / "unpickled").exists()

    def test_with_training_images_it_is_fitted_anew(self, config: Path, place: Path) -> None:
        flags = {"train_dir": "set/train/good", "input": "set/test/good", "scheduler": "sync"}
        run = pyimgano_dask.infer(infer_config=str(config), **flags)
        assert any("is fitted anew on --train-dir" in warning for warning in run.warnings)
        named = pyimgano_dask.infer(model="pyimgano:vision_ecod", model_kwargs=HIST, **flags)
        assert list(run.records()) == list(named.records())
        assert not (place / "unpickled").exists()
