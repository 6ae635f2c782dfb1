"""Runs of detectors on backbones: the same bytes everywhere, weights carried along, extractors that need trust."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="backbones need torch")

import pyimgano_dask  # noqa: E402
from pyimgano_dask import ConfigError  # noqa: E402
from pyimgano_dask.detectors.deep.resnet import ResNet, initialise  # noqa: E402
from tests.conftest import DaskCluster, hashes_below, infer_command  # noqa: E402
from tests.dataflow.test_amp import without_torch  # noqa: E402, F401

Workplace = Callable[[str], Path]

SMALL = {"image_size": 48, "weights_path": "weights.pth"}
MODELS: dict[str, dict[str, Any]] = {
    "vision_autoencoder": {"image_size": 32, "base_channels": 4, "latent_dim": 6, "epochs": 2},
    "vision_padim": {**SMALL, "d_reduced": 10},
    "vision_patchcore": {**SMALL, "coreset_sampling_ratio": 0.2},
    "vision_stfpm": {**SMALL, "image_size": 64, "layers": ["layer1"], "epochs": 1},
}
RUN: dict[str, Any] = {
    "input": "set/test/scratch",
    "train_dir": "set/train/good",
    "batch_size": 5,
    "defects": True,
    "save_jsonl": "out/records.jsonl",
    "save_maps": "out/maps",
}


class Grid(torch.nn.Module):
    """A feature extractor of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Vast(torch.nn.Module):
    """A feature extractor of as many places as pixels, and many channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1].expand(-1, 400, -1, -1)


class Choosy(Grid):
    """One that takes no white images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.min() > 1):
            raise ValueError("too bright")
        return self.conv(x)


class Hungry(Grid):
    """One that asks for more memory than there is for white images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1 << 50) if bool(x.min() > 1) else self.conv(x)


@pytest.fixture
def place(workplace: Workplace) -> Iterator[Path]:
    """A folder, in which the test works, with the inspection set, weights, and an extractor in TorchScript."""
    place = workplace("deep")
    net = ResNet("resnet18", ("layer1", "layer2", "layer3"))
    initialise(net, 3)
    torch.save(net.state_dict(), place / "weights.pth")
    torch.jit.script(Grid()).save(str(place / "extractor.pt"))
    with chdir(place):
        yield place


def outputs_of(place: Path, **settings: Any) -> dict[str, str]:
    """Hashes of all files that a run leaves."""
    pyimgano_dask.infer(**{**RUN, **settings})
    hashes = hashes_below(place / "out")
    shutil.rmtree(place / "out")
    return hashes


@pytest.mark.cluster
@pytest.mark.parametrize("model", MODELS)
def test_bytes_are_the_same_on_any_scheduler(model: str, place: Path, dask_cluster: DaskCluster) -> None:
    settings = {"model": model, "model_kwargs": MODELS[model]}
    alone = outputs_of(place, scheduler="sync", **settings)
    assert len(alone) > 4
    assert outputs_of(place, scheduler="threads", workers=2, **settings) == alone
    assert outputs_of(place, scheduler=dask_cluster.address, **settings) == alone


@pytest.mark.parametrize("model", MODELS)
def test_a_run_folder_needs_no_weights_and_gives_the_same_answers(model: str, place: Path) -> None:
    fitted = outputs_of(place, model=model, model_kwargs=MODELS[model], run_dir="run")
    (place / "weights.pth").unlink()
    config = {"train_dir": None, "infer_config": "run/infer_config.json"}
    again = outputs_of(place, **config)
    assert {name: sha for name, sha in again.items() if name != "records.jsonl"} == {
        name: sha for name, sha in fitted.items() if name != "records.jsonl"
    }


def test_random_weights_are_warned_of(place: Path) -> None:
    kwargs = {"image_size": 48, "d_reduced": 5}
    random = pyimgano_dask.infer(**RUN, model="vision_padim", model_kwargs=kwargs)
    assert any("vision_padim works with random weights" in warning for warning in random.warnings)
    learned = pyimgano_dask.infer(**RUN, model="vision_padim", model_kwargs={**kwargs, "weights_path": "weights.pth"})
    assert not any("random weights" in warning for warning in learned.warnings)


def test_tiles_and_seeds_reach_a_detector_on_a_backbone(place: Path) -> None:
    settings = {"model": "vision_patchcore", "model_kwargs": {"image_size": 48, "coreset_sampling_ratio": 0.2}}
    whole = outputs_of(place, **settings)
    tiled = outputs_of(place, **settings, tile_size=64, tile_stride=48)
    seeded = outputs_of(place, **settings, seed=5)
    assert len({run["records.jsonl"] for run in (whole, tiled, seeded)}) == 3


def test_threads_of_a_task_are_part_of_the_plan_where_a_network_rounds_by_them(place: Path) -> None:
    networks = {"model": "vision_patchcore", "model_kwargs": MODELS["vision_patchcore"], "run_dir": "run"}
    outputs_of(place, **networks)
    with pytest.raises(ConfigError, match="--threads-per-task: 1 then, 2 now"):
        outputs_of(place, **networks, resume=True, threads_per_task=2)
    pixels = {**RUN, "model": "vision_pixel_mad_map", "run_dir": "pixels"}
    pyimgano_dask.infer(**pixels)
    assert pyimgano_dask.infer(**pixels, resume=True, threads_per_task=2).n_errors == 0


def test_an_extractor_runs_only_when_it_is_trusted(place: Path) -> None:
    settings = {
        "model": "vision_padim",
        "model_kwargs": {"backbone": "torchscript", "weights_path": "extractor.pt", "image_size": 48},
    }
    with pytest.raises(ConfigError, match=r"weights_path: 'extractor.pt' .*--trust-model-file"):
        outputs_of(place, **settings)
    assert not (place / "out").exists()
    outputs_of(place, **settings, trust_model_file=True, run_dir="run")
    (place / "extractor.pt").unlink()

    config = json.loads((place / "run/infer_config.json").read_text())
    assert "trust_model_file" not in config["model"]
    outputs_of(place, train_dir=None, infer_config="run/infer_config.json")
    with pytest.raises(ConfigError, match=r"detector.npz' is a detector around a model with code.*--trust-model-file"):
        outputs_of(place, model="vision_padim", checkpoint_path="run/detector.npz")
    outputs_of(place, model="vision_padim", checkpoint_path="run/detector.npz", trust_model_file=True)


def test_a_checkpoint_cannot_smuggle_code_past_its_own_arguments(place: Path) -> None:
    networks = {"model": "vision_padim", "model_kwargs": {"image_size": 48, "d_reduced": 8}}
    outputs_of(place, **networks, run_dir="run")
    with np.load("run/detector.npz") as arrays:
        state = dict(arrays)
    code = np.frombuffer((place / "extractor.pt").read_bytes(), np.uint8)
    np.savez("smuggler.npz", **state, **{"backbone/code": code})
    swap = {"backbone": "torchscript", "weights_path": "nowhere.pt", "layers": None}

    with pytest.raises(ConfigError, match="holds code, which the backbone resnet18 has no place for"):
        outputs_of(place, model="vision_padim", checkpoint_path="smuggler.npz", train_dir=None, model_kwargs=swap)
    with pytest.raises(ConfigError, match="--trust-model-file"):
        outputs_of(place, model="vision_padim", checkpoint_path="run/detector.npz", train_dir=None, model_kwargs=swap)
    with pytest.raises(ConfigError, match="holds code, which the backbone resnet18 has no place for"):
        outputs_of(place, model="vision_padim", checkpoint_path="smuggler.npz", train_dir=None)


def test_the_checksum_of_a_config_vouches_for_its_checkpoint_alone(place: Path) -> None:
    config = {
        "schema_version": 1,
        "model": {"name": "vision_padim", "model_kwargs": {"backbone": "torchscript", "weights_path": "extractor.pt"}},
        "checkpoint": {"sha256": sha256((place / "extractor.pt").read_bytes()).hexdigest()},
    }
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"weights_path: 'extractor.pt' .*--trust-model-file if you trust it$"):
        outputs_of(place, infer_config="config.json")


@pytest.mark.parametrize(
    ("model", "kwargs", "changed"),
    [
        ("vision_padim", {"image_size": 48, "d_reduced": 8}, {"layers": ["layer1"]}),
        ("vision_padim", {"image_size": 48, "d_reduced": 8}, {"weights_path": "weights.pth"}),
        ("vision_patchcore", {"image_size": 48}, {"image_size": 64}),
        ("vision_texture_padim", {"grid_hw": [2, 2]}, {"light": "linear"}),
    ],
)
def test_what_a_state_was_learned_with_cannot_be_changed_afterwards(
    place: Path, model: str, kwargs: dict[str, Any], changed: dict[str, Any]
) -> None:
    outputs_of(place, model=model, model_kwargs=kwargs, run_dir="run")
    saved = {"model": model, "checkpoint_path": "run/detector.npz", "train_dir": None, "pixel_threshold": 3}
    outputs_of(place, **saved, model_kwargs={"contamination": 0.2})
    (name,) = changed
    with pytest.raises(ConfigError, match=rf"model_kwargs.{name}: .* was fitted with .*--train-dir"):
        outputs_of(place, **saved, model_kwargs=changed)


def test_without_torch_the_extra_is_named(place: Path, without_torch: Path) -> None:  # noqa: F811
    done = infer_command(
        *("--model", "vision_padim", "--train-dir", "set/train/good", "--input", "set/test/scratch"),
        cwd=place,
        env={"PYTHONPATH": f"{without_torch}:{Path(pyimgano_dask.__file__).parents[1]}"},
    )
    assert done.rc == 2
    assert "vision_padim needs torch" in done.stderr
    assert "pip install 'pyimgano-dask[torch]'" in done.stderr


def test_weights_of_another_backbone_end_the_run_before_it_begins(place: Path) -> None:
    done = infer_command(
        *("--model", "vision_padim", "--train-dir", "set/train/good", "--input", "set/test/scratch"),
        *("--model-kwargs", '{"backbone": "resnet50", "weights_path": "weights.pth"}'),
        *("--run-dir", "run"),
        cwd=place,
    )
    assert done.rc == 2
    assert "weights_path 'weights.pth' does not fit the backbone resnet50" in done.stderr
    assert not (place / "run").exists()


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_sums_that_no_machine_holds_end_the_run(place: Path, scheduler: str) -> None:
    torch.jit.script(Vast()).save(str(place / "vast.pt"))
    done = infer_command(
        *("--model", "vision_padim", "--train-dir", "set/train/good", "--input", "set/test/scratch"),
        *("--model-kwargs", '{"backbone": "torchscript", "weights_path": "vast.pt", "d_reduced": 400}'),
        *("--trust-model-file", "--scheduler", scheduler, "--workers", "2", "--save-jsonl", "records.jsonl"),
        cwd=place,
    )
    assert done.rc == 2
    assert "30.1 GiB, and 4 GiB are allowed: 400 channels at 224 x 224 places" in done.stderr
    assert "d_reduced (400)" in done.stderr
    assert not (place / "records.jsonl").exists()


def test_a_training_image_that_a_backbone_cannot_take_is_left_out_and_named(place: Path) -> None:
    torch.jit.script(Choosy()).save(str(place / "choosy.pt"))
    kwargs = {"backbone": "torchscript", "weights_path": "choosy.pt", "image_size": 48, "d_reduced": 4}
    settings = {"model": "vision_padim", "model_kwargs": kwargs, "trust_model_file": True}
    alone = outputs_of(place, **settings)
    shutil.copytree("set/train/good", "normal")
    for name in ("005-white", "zzz-white"):
        cv2.imwrite(f"normal/{name}.png", np.full((60, 60, 3), 255, np.uint8))
    summary = pyimgano_dask.infer(**{**RUN, "train_dir": "normal"}, **settings)
    assert hashes_below(place / "out") == alone
    (warning,) = (warning for warning in summary.warnings if "left out" in warning)
    assert "2 training images were left out" in warning
    assert "normal/005-white.png: the backbone fails" in warning
    assert "too bright" in warning


def test_a_backbone_that_takes_no_training_image_ends_the_run(place: Path) -> None:
    torch.jit.script(Choosy()).save(str(place / "choosy.pt"))
    kwargs = {"backbone": "torchscript", "weights_path": "choosy.pt", "image_size": 48}
    (place / "white").mkdir()
    cv2.imwrite("white/0.png", np.full((60, 60, 3), 255, np.uint8))
    with pytest.raises(ConfigError, match=r"--train-dir: none of its images can be used:\n.*white/0.png: .*too bright"):
        pyimgano_dask.infer(
            **{**RUN, "train_dir": "white"}, model="vision_padim", model_kwargs=kwargs, trust_model_file=True
        )
    assert not (place / "out").exists()


def test_memory_that_is_short_ends_the_run_instead_of_leaving_an_image_out(place: Path) -> None:
    torch.jit.script(Hungry()).save(str(place / "hungry.pt"))
    (place / "white").mkdir()
    cv2.imwrite("white/0.png", np.full((60, 60, 3), 255, np.uint8))
    kwargs = '{"backbone": "torchscript", "weights_path": "hungry.pt", "image_size": 48}'
    done = infer_command(
        *("--model", "vision_padim", "--train-dir", "white", "--input", "set/test/scratch", "--trust-model-file"),
        *("--model-kwargs", kwargs, "--scheduler", "threads", "--workers", "2", "--save-jsonl", "records.jsonl"),
        cwd=place,
    )
    assert done.rc == 1
    assert "pyimgano-infer: error: out of memory: the backbone fails: " in done.stderr
    assert "run again with fewer --workers" in done.stderr
