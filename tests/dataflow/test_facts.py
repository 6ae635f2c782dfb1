"""What the plan of a run says of its detector: the content of its files, its device, its libraries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import chdir
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="backbones need torch")

import pyimgano_dask  # noqa: E402
from pyimgano_dask import ConfigError  # noqa: E402
from pyimgano_dask.dataflow.versions import package_versions  # noqa: E402
from pyimgano_dask.detectors.deep.resnet import ResNet, initialise  # noqa: E402
from pyimgano_dask.detectors.registry import find_detector_type  # noqa: E402
from pyimgano_dask.detectors.tiling import tiled  # noqa: E402
from pyimgano_dask.settings.tiling import TilingSettings  # noqa: E402

DEEP: dict[str, Any] = {
    "model": "vision_padim",
    "model_kwargs": {"image_size": 48, "d_reduced": 8, "weights_path": "weights.pth"},
    "train_dir": "set/train/good",
}
RUN: dict[str, Any] = {"input": "set/test/scratch", "scheduler": "sync", "run_dir": "run", "save_jsonl": "r.jsonl"}
PIXELS: dict[str, Any] = {"model": "vision_pixel_mad_map", "train_dir": "set/train/good"}


def write_weights(path: str, seed: int) -> None:
    net = ResNet("resnet18", ("layer1", "layer2", "layer3"))
    initialise(net, seed)
    torch.save(net.state_dict(), path)


def facts() -> dict[str, Any]:
    return dict(json.loads(Path("run/plan.json").read_text())["plan"])


@pytest.fixture
def place(workplace: Callable[[str], Path]) -> Iterator[Path]:
    with chdir(workplace("facts")):
        write_weights("weights.pth", 3)
        yield Path.cwd()


def test_other_weights_behind_the_same_name_are_another_plan(place: Path) -> None:
    pyimgano_dask.infer(**DEEP, **RUN)
    assert pyimgano_dask.infer(**DEEP, **RUN, resume=True).n_resumed == 4
    write_weights("weights.pth", 4)
    with pytest.raises(ConfigError, match=r"weights_path, content of 'weights.pth' \(sha256\): '\w+' then, '\w+' now"):
        pyimgano_dask.infer(**DEEP, **RUN, resume=True)
    write_weights("weights.pth", 3)
    assert pyimgano_dask.infer(**DEEP, **RUN, resume=True).n_resumed == 4


def test_another_model_file_behind_the_same_name_is_another_plan(place: Path) -> None:
    class Darkness(torch.nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1 - self.scale * x.mean(dim=1, keepdim=True)

    settings = {
        "model": "vision_torchscript",
        "checkpoint_path": "model.pt",
        "trust_model_file": True,
        "model_kwargs": {"input_hw": [32, 32]},
    }
    torch.jit.script(Darkness(0.5)).save("model.pt")
    pyimgano_dask.infer(**settings, **RUN)
    torch.jit.script(Darkness(0.25)).save("model.pt")
    with pytest.raises(ConfigError, match=r"--checkpoint-path, content of 'model.pt' \(sha256\)"):
        pyimgano_dask.infer(**settings, **RUN, resume=True)


@pytest.mark.parametrize("flag", ["save_jsonl", "profile_json"])
def test_no_output_is_written_over_weights_or_a_checkpoint(flag: str, place: Path) -> None:
    before = Path("weights.pth").read_bytes()
    with pytest.raises(ConfigError, match=r"--[a-z-]+: 'weights.pth' lies in what weights_path reads; name another"):
        pyimgano_dask.infer(**{**DEEP, **RUN, flag: "weights.pth"})
    assert Path("weights.pth").read_bytes() == before
    assert not Path("run").exists()

    pyimgano_dask.infer(**PIXELS, **RUN)
    again = {"model": "vision_pixel_mad_map", "checkpoint_path": "run/detector.npz", "input": "set/test/good"}
    with pytest.raises(ConfigError) as caught:
        pyimgano_dask.infer(**{**again, flag: "run/detector.npz"})
    assert str(caught.value).count("lies in what --checkpoint-path reads") == 1


def test_the_device_that_is_taken_is_a_fact_where_the_workers_are_here(place: Path) -> None:
    pyimgano_dask.infer(**DEEP, **RUN)
    here = "cuda" if torch.cuda.is_available() else "cpu"
    assert facts()["model.device"] == here
    assert pyimgano_dask.infer(**DEEP, **RUN, resume=True, device=here).n_resumed == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_two_spellings_of_a_device_are_one_fact(place: Path) -> None:
    pyimgano_dask.infer(**DEEP, **RUN, device="cuda")
    of_kwargs = {**DEEP, "model_kwargs": {**DEEP["model_kwargs"], "device": "cuda:0"}}
    assert pyimgano_dask.infer(**DEEP, **RUN, resume=True, device="cuda:0").n_resumed == 4
    assert pyimgano_dask.infer(**of_kwargs, **RUN, resume=True).n_resumed == 4


def test_the_device_is_one_fact_whichever_argument_names_it(place: Path) -> None:
    pyimgano_dask.infer(**DEEP, **RUN, device="cpu")
    of_kwargs = {**DEEP, "model_kwargs": {**DEEP["model_kwargs"], "device": "cpu"}}
    assert pyimgano_dask.infer(**of_kwargs, **RUN, resume=True).n_resumed == 4


@pytest.mark.cluster
def test_on_a_cluster_each_worker_takes_what_it_has_unless_told(place: Path, dask_cluster: Any) -> None:
    of_cluster = {**RUN, "scheduler": dask_cluster.address}
    pyimgano_dask.infer(**DEEP, **of_cluster)
    assert facts()["model.device"] == "that of each worker"
    with pytest.raises(ConfigError, match="--device: 'that of each worker' then, 'c"):
        pyimgano_dask.infer(**DEEP, **RUN, resume=True)
    pyimgano_dask.infer(**DEEP, **of_cluster, device="cpu", resume=False)
    assert pyimgano_dask.infer(**DEEP, **RUN, device="cpu", resume=True).n_resumed == 4


def test_versions_of_libraries_are_facts_of_the_detectors_that_use_them(place: Path) -> None:
    pyimgano_dask.infer(**PIXELS, **RUN)
    assert "version of numpy" in facts()
    assert not {"version of torch", "version of onnxruntime", "version of scikit-learn"} & set(facts())
    pyimgano_dask.infer(**DEEP, **RUN)
    assert facts()["version of torch"] == torch.__version__
    assert "version of onnxruntime" not in facts()


@pytest.mark.parametrize(
    ("model", "kwargs", "libraries"),
    [
        ("vision_pixel_mad_map", {}, set()),
        ("vision_autoencoder", {}, {"torch"}),
        ("vision_onnx", {}, {"onnxruntime"}),
        ("vision_padim", {}, {"torch"}),
        ("vision_padim", {"pretrained": True}, {"torch"}),
        ("vision_padim", {"backbone": "timm:resnet18", "pretrained": True}, {"torch", "timm"}),
        ("vision_padim", {"backbone": "timm:resnet18"}, {"torch", "timm"}),
        ("vision_patchcore", {"backbone": "torchvision:resnet18", "layers": ["layer1"]}, {"torch", "torchvision"}),
        ("vision_padim", {"backbone": "torchscript", "weights_path": "extractor.pt"}, {"torch"}),
    ],
)
def test_libraries_are_what_a_detector_computes_with(model: str, kwargs: dict[str, Any], libraries: set[str]) -> None:
    detector = find_detector_type(model).create(**kwargs)
    assert detector.libraries == libraries
    assert tiled(detector, TilingSettings(tile_size=64)).libraries == libraries


def test_versions_are_those_of_this_process_and_of_what_is_installed() -> None:
    found = package_versions({"torch", "numba", "no-such-library"})
    assert found["torch"] == version("torch")
    assert found["pyimgano-dask"] == pyimgano_dask.__version__
    assert "no-such-library" not in found
    assert set(found) - set(package_versions()) == {"torch"}
