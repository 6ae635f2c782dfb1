"""Networks of timm and torchvision: the features that their own code gives, from files of whole networks."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="backbones need torch")

from pyimgano_dask.detectors.checkpoint import decode_detector, encode_detector  # noqa: E402
from pyimgano_dask.detectors.deep.libraries import named_as_wanted, pretrained_weights  # noqa: E402
from pyimgano_dask.detectors.deep.padim import Padim  # noqa: E402
from pyimgano_dask.detectors.model_files import ModelFiles  # noqa: E402
from pyimgano_dask.errors import ConfigError  # noqa: E402
from tests.detectors.images import draw_images  # noqa: E402

PRINTING_TIMM = """
import torch

def create_model(name, pretrained=False, **options):
    print("Downloading", name)
    return torch.nn.Conv2d(3, 4, 1)
"""

READING_TORCHVISION = """
import types
import torch

def get_model_weights(name):
    def get_state_dict(progress, check_hash, weights_only):
        return torch.load("kept.pth", weights_only=weights_only)
    return types.SimpleNamespace(DEFAULT=types.SimpleNamespace(get_state_dict=get_state_dict))
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[Callable[[str, str], None]]:
    """Puts a library of this name and source text where Python finds it first, until the test ends."""
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in ("timm", "torchvision")}
    for name in kept:
        del sys.modules[name]
    sys.path.insert(0, str(tmp_path))

    def put(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()

    yield put
    sys.path.remove(str(tmp_path))
    for name in ("timm", "torchvision", "torchvision.models"):
        sys.modules.pop(name, None)
    sys.modules.update(kept)


def library(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)


def opened(tmp_path: Path, whole: Any, backbone: str, layers: tuple[str, ...], size: int) -> Padim:
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    detector = Padim.create(
        backbone=backbone, layers=layers, image_size=size, weights_path="w.pth", d_reduced=4, device="cpu"
    )
    return detector.opened(ModelFiles(str(tmp_path)))


def whole_network(name: str) -> Any:
    where, _, model = name.partition(":")
    if where == "timm":
        return library("timm").create_model(model, pretrained=False)
    return library("torchvision").models.get_model(model, weights=None)


def features_of(detector: Padim) -> list[Any]:
    (layers,) = detector.extractor.get().batches(draw_images(1, "rgb", [(50, 40)]))
    return layers


def input_of(detector: Padim) -> Any:
    return detector.extractor.get().normalised(draw_images(1, "rgb", [(50, 40)]))


def test_arrays_of_a_whole_network_of_timm_are_found_under_the_names_of_its_extractor() -> None:
    whole = {"stages.0.conv_dw.weight": 1, "stem.weight": 2, "head.fc.weight": 3}
    assert named_as_wanted(whole, ["stages_0.conv_dw.weight", "stem.weight"]).items() >= {
        ("stages_0.conv_dw.weight", 1),
        ("stem.weight", 2),
    }
    for prefix in ("model.", "body."):
        wanted = [f"{prefix}stages.0.conv_dw.weight", f"{prefix}stem.weight"]
        found = named_as_wanted(whole, wanted)
        assert [found[name] for name in wanted] == [1, 2]
    assert named_as_wanted({"model.weight": 1, "weight": 2}, ["model.weight"])["model.weight"] == 1


def test_what_a_library_says_while_it_fetches_stays_off_standard_output(
    stand_in: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in("timm", PRINTING_TIMM)
    assert pretrained_weights("timm:some_net").keys() == {"weight", "bias"}
    said = capsys.readouterr()
    assert said.out == ""
    assert "Downloading some_net" in said.err


@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_a_library_that_cannot_be_loaded_is_named(name: str, stand_in: Callable[[str, str], None]) -> None:
    stand_in(name, "raise ImportError('it is broken')")
    with pytest.raises(ConfigError, match=rf"backbone {name}:NAME needs {name}, which .* here \(it is broken\)"):
        Padim.create(backbone=f"{name}:resnet18", layers=["1"], pretrained=True).opened(ModelFiles())


@pytest.mark.parametrize(
    ("model", "layers", "size"),
    [
        ("resnet18", ("1", "2"), 32),
        ("convnext_atto", ("0", "1"), 32),
        ("densenet121", ("1",), 32),
        ("efficientnet_b0", ("1", "2"), 32),
        ("mobilenetv3_small_100", ("1", "2"), 32),
        ("vit_tiny_patch16_224", ("3", "7"), 224),
        ("swin_tiny_patch4_window7_224", ("0", "1"), 224),
    ],
)
def test_a_network_of_timm_gives_timm_s_own_features(
    tmp_path: Path, model: str, layers: tuple[str, ...], size: int
) -> None:
    timm = library("timm")
    whole = timm.create_model(model, pretrained=False)
    detector = opened(tmp_path, whole, f"timm:{model}", layers, size)
    theirs = timm.create_model(
        model,
        pretrained=True,
        features_only=True,
        pretrained_cfg_overlay={"state_dict": whole.state_dict()},
        out_indices=[int(layer) for layer in layers],
    ).eval()
    with torch.inference_mode():
        expected = theirs(input_of(detector))
    if str(getattr(theirs, "output_fmt", "NCHW")).endswith("NHWC"):
        expected = [layer.permute(0, 3, 1, 2) for layer in expected]
    for one, other in zip(features_of(detector), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    fitted = detector.fit(draw_images(1, "rgb", [(50, 40)]))
    again = decode_detector(encode_detector(fitted), "here")
    again.check()
    images = draw_images(2, "rgb", [(30, 30)])
    np.testing.assert_array_equal(again.predict(images).scores, fitted.predict(images).scores)


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        ("convnext_tiny", ("features.1", "features.3")),
        ("mobilenet_v3_small", ("features.3",)),
        ("efficientnet_b0", ("features.2", "features.3")),
        ("swin_t", ("features.0.0", "features.1", "features.3")),
    ],
)
def test_a_network_of_torchvision_gives_torchvision_s_own_features(
    tmp_path: Path, model: str, layers: tuple[str, ...]
) -> None:
    models = library("torchvision").models
    whole = models.get_model(model, weights=None).eval()
    detector = opened(tmp_path, whole, f"torchvision:{model}", layers, 64)
    seen: dict[str, Any] = {}
    for layer in layers:
        whole.get_submodule(layer).register_forward_hook(
            lambda module, inputs, value, key=layer: seen.update({key: value})
        )
    with torch.inference_mode():
        whole(input_of(detector))
    for layer, found in zip(layers, features_of(detector), strict=True):
        is_last = model == "swin_t" and layer != "features.0.0"
        torch.testing.assert_close(
            found, seen[layer].permute(0, 3, 1, 2) if is_last else seen[layer], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    ("backbone", "layers", "said"),
    [
        ("torchvision:fcos_resnet50_fpn", ("backbone",), "no classification network"),
        ("torchvision:resnet18", ("nowhere", "layer1"), r"it has no nowhere; there are conv1, bn1, .*, layer4, .* fc$"),
        ("torchvision:resnet18", ("layer1.7.relu",), r"it has no layer1\.7\.relu; there are layer1\.0, layer1\.1$"),
        (
            "torchvision:mobilenet_v2",
            ("features.99",),
            r"it has no features\.99; there are features\.0, .*features\.18$",
        ),
        ("timm:resnet18", ("9", "1"), "it has no 9; there are 0, 1, 2, 3, 4$"),
        ("timm:convnext_atto", ("1", "7"), "it has no 7; there are 0, 1, 2, 3$"),
        ("timm:vit_tiny_patch16_224", ("12",), "it has no 12; there are 0, 1, 2, .*, 11$"),
        ("timm:vit_small_patch16_36x1_224", ("36",), "it has no 36; there are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …, 35$"),
        ("timm:no_such_net", ("1",), "layers .*: Unknown model"),
    ],
)
def test_what_a_library_has_not_is_told_before_anything_is_fetched(
    backbone: str, layers: tuple[str, ...], said: str
) -> None:
    library(backbone.partition(":")[0])
    with pytest.raises(ConfigError, match=rf"backbone '{backbone}' .*{said}") as caught:
        Padim.create(backbone=backbone, layers=layers, pretrained=True).opened(ModelFiles())
    assert len(str(caught.value).partition("there are ")[2].split(", ")) <= 12


@pytest.mark.parametrize(
    ("backbone", "layers", "other", "first"),
    [
        ("resnet18", ("layer1",), "torchvision:resnet34", r"layer1\.2\.conv1\.weight"),
        ("resnet50", ("layer3",), "torchvision:resnet101", r"layer3\.6\.conv1\.weight"),
        ("resnet18", ("layer1",), "timm:seresnet18", r"layer1\.0\.se\.fc1\.weight"),
        ("torchvision:resnet18", ("layer1",), "torchvision:resnet34", r"layer1\.2\.conv1\.weight"),
        ("torchvision:resnet18", ("layer1.0.relu",), "torchvision:resnet34", r"layer1\.2\.conv1\.weight"),
        ("timm:resnet18", ("1",), "torchvision:resnet34", r"layer1\.2\.conv1\.weight"),
        ("timm:efficientnet_b0", ("1",), "timm:efficientnet_b1", r"blocks\.0\.1\.conv_dw\.weight"),
        ("timm:convnext_tiny", ("2",), "timm:convnext_small", r"stages\.2\.blocks\.9\.gamma"),
    ],
)
def test_weights_of_a_larger_network_are_refused_though_they_fit(
    tmp_path: Path, backbone: str, layers: tuple[str, ...], other: str, first: str
) -> None:
    with pytest.raises(
        ConfigError, match=rf"is of another network than the backbone {backbone}, .* no place for {first}"
    ):
        opened(tmp_path, whole_network(other), backbone, layers, 64)


@pytest.mark.parametrize(
    ("backbone", "layers", "other"),
    [
        ("torchvision:convnext_tiny", ("features.3",), "torchvision:convnext_small"),
        ("timm:convnext_tiny", ("1",), "timm:convnext_small"),
        ("torchvision:googlenet", ("inception3a",), "torchvision:googlenet"),
    ],
)
def test_networks_that_differ_only_in_what_is_not_used_fit(
    tmp_path: Path, backbone: str, layers: tuple[str, ...], other: str
) -> None:
    assert len(features_of(opened(tmp_path, whole_network(other), backbone, layers, 64))) == 1


def test_tokens_and_wrong_sizes_are_refused_before_the_run(tmp_path: Path) -> None:
    timm = library("timm")
    whole = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    with pytest.raises(ConfigError, match=r"cannot be used with images of 64 x 64 pixels: .*change image_size"):
        opened(tmp_path, whole, "timm:vit_tiny_patch16_224", ("3",), 64)
    models = library("torchvision").models
    whole = models.vit_b_32(weights=None)
    with pytest.raises(ConfigError, match=r"outputs of a backbone must be \(N, C, h, w\)"):
        opened(tmp_path, whole, "torchvision:vit_b_32", ("encoder.layers.encoder_layer_0",), 224)


def test_nothing_is_fetched_unless_it_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"backbone timm:resnet18 needs weights: .* weights_path .*--pretrained"):
        Padim.create(backbone="timm:resnet18").opened(ModelFiles())


@pytest.mark.parametrize("fault", ["EOFError('it ends')", "pickle.UnpicklingError('it ends')"])
def test_a_damaged_file_that_a_library_keeps_is_told(stand_in: Callable[[str, str], None], fault: str) -> None:
    stand_in("timm", f"import pickle\ndef create_model(name, pretrained): raise {fault}")
    with pytest.raises(ConfigError, match=r"pretrained weights of timm:some_net are not at hand .*it ends"):
        pretrained_weights("timm:some_net")


def test_files_that_torchvision_keeps_are_read_as_weights_alone(
    stand_in: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision").mkdir()
    stand_in("torchvision/__init__", "")
    stand_in("torchvision/models", READING_TORCHVISION)
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(2)}, "kept.pth")
    assert pretrained_weights("torchvision:some_net").keys() == {"weight"}
    torch.save(torch.nn.Conv2d(1, 1, 1), "kept.pth")
    with pytest.raises(ConfigError, match="pretrained weights of torchvision:some_net are not at hand"):
        pretrained_weights("torchvision:some_net")
