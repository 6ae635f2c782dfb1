"""Where backbones come from, and every file that is none."""

from __future__ import annotations

import io
import pickle
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="backbones need torch")

from pyimgano_dask.detectors.deep.backbones import FeatureExtractor  # noqa: E402
from pyimgano_dask.detectors.deep.padim import Padim  # noqa: E402
from pyimgano_dask.detectors.deep.resnet import ResNet, initialise  # noqa: E402
from pyimgano_dask.detectors.deep.squares import resize_square  # noqa: E402
from pyimgano_dask.detectors.deep.stfpm import Stfpm  # noqa: E402
from pyimgano_dask.detectors.model_files import ModelFiles  # noqa: E402
from pyimgano_dask.errors import ConfigError, InputError  # noqa: E402
from tests.detectors.images import draw_images  # noqa: E402

LAYERS = ("layer1", "layer2")
SMALL: dict[str, Any] = {"image_size": 32, "d_reduced": 8, "layers": LAYERS}


class TwoScales(torch.nn.Module):
    """A feature extractor of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = torch.nn.Conv2d(3, 4, 3, 4, 1)
        self.coarse = torch.nn.Conv2d(4, 6, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        fine = self.fine(x)
        return {"fine": fine, "coarse": self.coarse(fine)}


class Ramped(torch.nn.Module):
    """An extractor without weights, which makes a tensor of its own for each batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x, 4) * torch.arange(1, 4, device=x.device).view(1, 3, 1, 1)


def net_of(seed: int, name: str = "resnet18", layers: tuple[str, ...] = ("layer1", "layer2", "layer3")) -> ResNet:
    net = ResNet(name, layers)
    initialise(net, seed)
    return net.eval()


def deeper(net: ResNet, depths: tuple[int, ...]) -> dict[str, Any]:
    """The state dict of a network with so many blocks a stage: those of `net`, and copies of the second of a stage."""
    state = {**net.state_dict(), "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    for stage, depth in enumerate(depths, start=1):
        second = {key: value for key, value in state.items() if key.startswith(f"layer{stage}.1.")}
        for block in range(depth):
            for key, value in second.items():
                state.setdefault(key.replace(".1.", f".{block}.", 1), value)
    return state


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def opened(path: Path, **arguments: Any) -> Padim:
    return Padim.create(**SMALL, weights_path=path.name, **arguments).opened(ModelFiles(str(path.parent)))


def refusal(path: Path, **arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        opened(path, **arguments)
    assert path.name in str(caught.value)
    return str(caught.value)


def features_of(detector: Padim) -> list[Any]:
    images = draw_images(1, "rgb", [(32, 32), (20, 50)])
    return [layer.numpy() for batch in detector.extractor.get().batches(images) for layer in batch]


@pytest.mark.parametrize("wrapped", ["plain", "state_dict", "model", "module.", "half"])
def test_a_file_of_weights_gives_the_features_of_its_network(tmp_path: Path, wrapped: str) -> None:
    net = net_of(7)
    state: Any = net.state_dict()
    state = {**state, "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    if wrapped == "half":
        net = net.half().float()
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    elif wrapped == "module.":
        state = {f"module.{key}": value for key, value in state.items()}
    elif wrapped != "plain":
        state = {wrapped: state}

    found = features_of(opened(saved(tmp_path / "w.pth", state)))

    mean, std = ([255 * value for value in values] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = []
    for image in draw_images(1, "rgb", [(32, 32), (20, 50)]):
        pixels = (resize_square(image, 32).astype(np.float32) - np.float32(mean)) / np.float32(std)
        with torch.inference_mode():
            expected += net(torch.from_numpy(pixels).permute(2, 0, 1)[None])[:2]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-3, atol=1e-3)


def test_weights_of_another_network_are_told_by_name_and_shape(tmp_path: Path) -> None:
    path = saved(tmp_path / "r50.pth", net_of(1, "resnet50").state_dict())
    message = refusal(path)
    assert "does not fit the backbone resnet18" in message
    assert "layer1.0.conv1.weight is (64, 64, 1, 1), expected (64, 64, 3, 3)" in message
    shallow = saved(tmp_path / "shallow.pth", net_of(1, layers=("layer1",)).state_dict())
    assert "it lacks layer2.0.conv1.weight" in refusal(shallow)


EVERY_STAGE = ("layer1", "layer2", "layer3", "layer4")
RESNET34, RESNET101 = (3, 4, 6, 3), (3, 4, 23, 3)


@pytest.mark.parametrize(
    ("backbone", "depths", "layers", "first"),
    [
        ("resnet18", RESNET34, ("layer1",), "layer1.2.conv1.weight, layer1.2.bn1.weight, layer1.2.bn1.bias …"),
        ("resnet18", (2, 2, 6, 2), ("layer3", "layer1"), "layer3.2.conv1.weight"),
        ("resnet50", RESNET101, ("layer3",), "layer3.6.conv1.weight"),
    ],
    ids=["resnet34", "later stage", "resnet101"],
)
def test_weights_of_a_deeper_network_are_refused_though_they_fit(
    tmp_path: Path, backbone: str, depths: tuple[int, ...], layers: tuple[str, ...], first: str
) -> None:
    state = deeper(net_of(1, backbone, EVERY_STAGE), depths)
    path = saved(tmp_path / "deep.pth", {f"module.{key}": value.half() for key, value in state.items()})
    for detector_type in (Padim, Stfpm):
        detector = detector_type.create(image_size=64, backbone=backbone, layers=layers, weights_path=path.name)
        with pytest.raises(ConfigError) as caught:
            detector.opened(ModelFiles(str(tmp_path)))
        assert f"'deep.pth' is of another network than the backbone {backbone}," in str(caught.value)
        assert f"no place for {first}" in str(caught.value)
        assert "name the network that the file is of with backbone" in str(caught.value)


def test_what_lies_beyond_the_stages_that_are_used_is_passed_over(tmp_path: Path) -> None:
    net = net_of(7)
    state = deeper(net_of(7), (2, 2, 6, 3))
    state |= {
        "projection.0.weight": torch.zeros(3),
        "classifier.weight": torch.zeros(3),
        "logit_scale": torch.zeros(()),
    }
    state |= {"layer1.5.bn1.num_batches_tracked": torch.tensor(3), "bn1.counted": torch.tensor(3)}
    assert "layer3.5.conv1.weight" in state
    found = features_of(opened(saved(tmp_path / "w.pth", state)))
    expected = features_of(opened(saved(tmp_path / "own.pth", net.state_dict())))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", net_of(1).state_dict())
    path.write_bytes(path.read_bytes()[:-5000])
    assert "not a file of weights that can be read safely" in refusal(path)


def test_a_pickled_module_is_refused_and_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "module.pth", torch.nn.Linear(2, 2))
    assert "pickled modules are never loaded" in refusal(path)

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"conv1.weight": Trap()}))
    assert "pickled modules are never loaded" in refusal(tmp_path / "trap.pth")
    assert "pickled modules are never loaded" in refusal(saved(tmp_path / "trap.pth", {"conv1.weight": Trap()}))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04" + bytes(50)])
def test_other_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    assert "not a file of weights" in refusal(tmp_path / "w.pth")


def test_a_list_is_no_state_dict(tmp_path: Path) -> None:
    assert "holds no state dict" in refusal(saved(tmp_path / "w.pth", [torch.zeros(3)]))
    assert "holds no state dict" in refusal(saved(tmp_path / "w.pth", {"conv1.weight": 5}))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = net_of(1).state_dict()
    state["layer1.0.conv1.weight"][3] = torch.nan
    assert "layer1.0.conv1.weight must hold finite numbers" in refusal(saved(tmp_path / "w.pth", state))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    assert "weights_path: 'gone.pth' cannot be read" in refusal(tmp_path / "gone.pth")


def test_without_a_library_pretrained_weights_are_told_where_to_come_from() -> None:
    pytest.importorskip("torch")
    for library in ("timm", "torchvision"):
        try:
            __import__(library)
        except (ImportError, RuntimeError):
            continue
        pytest.skip(f"{library} is installed")
    with pytest.raises(ConfigError, match=r"pretrained weights of resnet18 are not at hand.*weights_path"):
        Padim.create(**SMALL, pretrained=True).opened(ModelFiles())
    with pytest.raises(ConfigError, match="needs timm, which cannot be loaded here"):
        Padim.create(**{**SMALL, "layers": ["1"]}, backbone="timm:resnet18", pretrained=True).opened(ModelFiles())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (torch.zeros(64, 3, 7, 7).to_sparse(), "must be a dense array of floating-point numbers"),
        (torch.zeros(64, 3, 7, 7, device="meta"), "must be a dense array of floating-point numbers"),
        (torch.zeros(64, 3, 7, 7, dtype=torch.complex64), "must be a dense array of floating-point numbers"),
        (torch.zeros(64, 3, 7, 7, dtype=torch.bool), "must be a dense array of floating-point numbers"),
        (torch.quantize_per_tensor(torch.zeros(64, 3, 7, 7), 0.1, 0, torch.qint8), "must be a dense array"),
    ],
    ids=["sparse", "meta", "complex", "bool", "quantized"],
)
def test_tensors_that_are_no_plain_fractions_are_refused(tmp_path: Path, values: torch.Tensor, said: str) -> None:
    state = {**net_of(1).state_dict(), "conv1.weight": values}
    message = refusal(saved(tmp_path / "w.pth", state))
    assert "conv1.weight" in message or "not a file of weights that can be read safely" in message
    assert said in message or "read safely" in message


def test_variances_below_zero_are_refused(tmp_path: Path) -> None:
    state = net_of(1).state_dict()
    state["bn1.running_var"][3] = -1
    assert "bn1.running_var holds variances below 0" in refusal(saved(tmp_path / "w.pth", state))


@pytest.mark.parametrize("kind", ["torchscript", "torch_export"])
class TestAnExtractorInAFile:
    @pytest.fixture
    def path(self, kind: str, tmp_path: Path) -> Path:
        net = TwoScales().eval()
        example = torch.zeros(1, 3, 32, 32)
        if kind == "torchscript":
            torch.jit.script(net).save(str(tmp_path / "extractor.pt"))
        else:
            torch.export.save(torch.export.export(net, (example,)), str(tmp_path / "extractor.pt"))
        return tmp_path / "extractor.pt"

    def test_runs_only_when_it_is_trusted(self, kind: str, path: Path) -> None:
        detector = Padim.create(image_size=32, backbone=kind, weights_path=path.name)
        folder = str(path.parent)
        with pytest.raises(ConfigError, match="--trust-model-file"):
            detector.opened(ModelFiles(folder))
        with pytest.raises(ConfigError, match="--trust-model-file"):
            detector.opened(ModelFiles(folder, trusted_sha256="0" * 64))
        digest = sha256(path.read_bytes()).hexdigest()
        for files in (ModelFiles(folder, trusts_code=True), ModelFiles(folder, trusted_sha256=digest)):
            trusted = detector.opened(files).fit(draw_images(1, "rgb"))
            assert trusted.runs_code
            assert np.isfinite(trusted.predict(draw_images(2, "rgb")).scores).all()

    @pytest.mark.parametrize(("layers", "channels"), [(None, [4, 6]), (["coarse"], [6]), (["coarse", "fine"], [6, 4])])
    def test_its_outputs_are_picked_by_name(self, kind: str, path: Path, layers: Any, channels: list[int]) -> None:
        detector = Padim.create(image_size=32, backbone=kind, weights_path=path.name, layers=layers)
        opened = detector.opened(ModelFiles(str(path.parent), trusts_code=True))
        (batch,) = opened.extractor.get().batches(draw_images(1, "rgb", [(32, 32)]))
        assert [layer.shape[1] for layer in batch] == channels

    def test_an_output_that_it_has_not_is_told(self, kind: str, path: Path) -> None:
        detector = Padim.create(image_size=32, backbone=kind, weights_path=path.name, layers=["middle"])
        with pytest.raises(ConfigError, match=r"'extractor.pt': .*no output middle; it has (fine|coarse)"):
            detector.opened(ModelFiles(str(path.parent), trusts_code=True))

    def test_outputs_without_names_are_not_renamed(self, kind: str, path: Path) -> None:
        class Row(TwoScales):
            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
                fine = self.fine(x)
                return fine, self.coarse(fine)

        row = path.parent / "row.pt"
        if kind == "torchscript":
            torch.jit.trace(Row().eval(), torch.zeros(1, 3, 32, 32)).save(str(row))
        else:
            torch.export.save(torch.export.export(Row().eval(), (torch.zeros(1, 3, 32, 32),)), str(row))
        given = {"image_size": 32, "backbone": kind, "weights_path": "row.pt"}
        files = ModelFiles(str(path.parent), trusts_code=True)
        swapped = Padim.create(**given, layers=["1", "0"]).opened(files)
        (batch,) = swapped.extractor.get().batches(draw_images(1, "rgb", [(32, 32)]))
        assert [layer.shape[1] for layer in batch] == [6, 4]
        with pytest.raises(ConfigError, match=r"weights_path: 'row.pt': .*no output 5, 9; it has 0, 1"):
            Padim.create(**given, layers=["5", "9"]).opened(files)

    def test_other_files_are_refused(self, kind: str, path: Path) -> None:
        for content in (b"", b"nothing", path.read_bytes()[:900], pickle.dumps({})):
            (path.parent / "odd.pt").write_bytes(content)
            detector = Padim.create(backbone=kind, weights_path="odd.pt")
            with pytest.raises(ConfigError, match=r"odd.pt'(: the extractor cannot be loaded as| is) .*torch"):
                detector.opened(ModelFiles(str(path.parent), trusts_code=True))


def test_a_program_exported_on_another_device_gives_its_features_here(tmp_path: Path) -> None:
    program = torch.export.export(Ramped().eval(), (torch.zeros(1, 3, 32, 32, device="meta"),))
    program.example_inputs = None  # those have no values on this device
    torch.export.save(program, str(tmp_path / "ramped.pt2"))
    detector = Padim.create(image_size=32, backbone="torch_export", weights_path="ramped.pt2", device="cpu")
    opened = detector.opened(ModelFiles(str(tmp_path), trusts_code=True))
    images = draw_images(1, "rgb", [(32, 32)])
    (layers,) = opened.extractor.get().batches(images)
    expected = Ramped()(opened.extractor.get().normalised(images))
    np.testing.assert_allclose(layers[0].numpy(), expected.numpy(), rtol=1e-5)


def test_a_checkpoint_needs_no_file_of_weights(tmp_path: Path) -> None:
    from pyimgano_dask.detectors.checkpoint import decode_detector, encode_detector

    path = saved(tmp_path / "w.pth", net_of(7).state_dict())
    detector = opened(path).fit(draw_images(1, "rgb"))
    data = encode_detector(detector)
    path.unlink()
    again = decode_detector(data, "here")
    images = draw_images(2, "rgb")
    np.testing.assert_array_equal(again.predict(images).scores, detector.predict(images).scores)


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "mps", "CPU", "cuda:0:1"])
def test_a_device_that_is_none_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device: {device!r}"):
        Padim.create(**SMALL, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_process_without_the_device_says_so_for_each_image() -> None:
    with pytest.raises(InputError, match=r"the device is cuda, which is not there.*--device cpu"):
        Padim.create(**SMALL, device="cuda").accumulate(draw_images(1, "rgb"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"backbone": "torchvision:resnet34"}, "torchvision:resnet34 needs layers"),
        ({"backbone": "timm:resnet34", "layers": ["layer1"]}, "stages by number from 0, got layer1"),
        ({"backbone": "torchscript"}, "torchscript needs weights_path, a TorchScript file"),
    ],
)
def test_what_a_backbone_needs_is_said_with_the_arguments(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Padim.create(**arguments)


@pytest.mark.parametrize(("library", "layers"), [("torchvision", LAYERS), ("timm", ("1", "2"))])
def test_networks_of_libraries_give_the_features_of_the_same_network_here(
    tmp_path: Path, library: str, layers: tuple[str, ...]
) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed", exc_type=ImportError)
    path = saved(tmp_path / "w.pth", net_of(7, layers=("layer1", "layer2", "layer3", "layer4")).state_dict())
    own = opened(path)
    theirs = Padim.create(image_size=32, backbone=f"{library}:resnet18", layers=layers, weights_path=path.name).opened(
        ModelFiles(str(tmp_path))
    )
    for one, other in zip(features_of(theirs), features_of(own), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_an_extractor_is_the_same_for_any_batch() -> None:
    detector = Padim.create(**SMALL)
    extractor = detector.extractor.get()
    assert isinstance(extractor, FeatureExtractor)
    images = draw_images(1, "rgb")
    together = [[layer.numpy() for layer in batch] for batch in extractor.batches(images)]
    alone = [[layer.numpy() for layer in batch] for image in images for batch in extractor.batches([image])]
    for one, other in zip(together, alone, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_bytes_buffer_of_weights_is_read_once_and_carried(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(net_of(3).state_dict(), buffer)
    (tmp_path / "w.pth").write_bytes(buffer.getvalue())
    detector = opened(tmp_path / "w.pth")
    (tmp_path / "w.pth").unlink()
    again = pickle.loads(pickle.dumps(detector))
    for one, other in zip(features_of(again), features_of(detector), strict=True):
        assert np.array_equal(one, other)
