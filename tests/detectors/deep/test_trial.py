"""Backbones that cannot be used are refused where they are opened; later, what they raise is a fault of the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="backbones need torch")

from pyimgano_dask.detectors.deep.padim import Padim  # noqa: E402
from pyimgano_dask.detectors.deep.patchcore import Patchcore  # noqa: E402
from pyimgano_dask.detectors.deep.resnet import ResNet, initialise  # noqa: E402
from pyimgano_dask.detectors.model_files import ModelFiles  # noqa: E402
from pyimgano_dask.errors import ConfigError, InputError  # noqa: E402
from tests.detectors.images import draw_images  # noqa: E402

SIZE = 32


class Grid(torch.nn.Module):
    """A feature extractor that works."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class OfOneSize(Grid):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.reshape(x.shape[0], 3, 48, 48))


class Tokens(Grid):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).flatten(2)


class ChannelsLast(Grid):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).permute(0, 2, 3, 1)


class OneForAll(Grid):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.conv(x), self.conv(x)])


class WholeNumbers(Grid):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).argmax(1, keepdim=True)


class NotATensor(Grid):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:  # type: ignore[override]
        return self.conv(x), None


class NotANumber(Grid):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) / 0


class Blind(Grid):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) * 0 + 3


class Forgetful(Grid):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(self.conv(x), 0.5, training=True)


class Growing(Grid):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if bool(x[0, 0, 0, 0] > 0) else self.conv(x)[:, :, 1:, 1:]


class GrowingInLight(Grid):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)[:, :, 1:, 1:] if bool((x > 2.6).any()) else self.conv(x)


class Noisy(Grid):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + 1e-5 * torch.rand(1)


class Sparse(Grid):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).to_sparse()


class NotANumberInLight(Grid):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) / 0 if bool((x > 2.6).any()) else self.conv(x)


class AfraidOfLight(Grid):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x > 2.6).any()):
            raise ValueError("that is too bright")
        return self.conv(x)


class HungryInLight(Grid):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1 << 50) if bool((x > 2.6).any()) else self.conv(x)


def script(path: Path, net: torch.nn.Module) -> Path:
    torch.jit.script(net.eval()).save(str(path))
    return path


def unopened(folder: Path) -> Padim:
    """A detector around the extractor in `net.pt` that has not been tried, as one of a checkpoint."""
    code = np.frombuffer((folder / "net.pt").read_bytes(), np.uint8)
    fitted = detector_of(script(folder / "sound.pt", Grid())).fit(draw_images(1, "rgb"))
    return fitted.with_state({**fitted.state(), "backbone/code": code})


def detector_of(path: Path) -> Padim:
    detector = Padim.create(image_size=SIZE, backbone="torchscript", weights_path=path.name, d_reduced=4, device="cpu")
    return detector.opened(ModelFiles(str(path.parent), trusts_code=True))


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (OfOneSize(), r"cannot be used with images of 32 x 32 pixels: the backbone fails: .*change image_size"),
        (Tokens(), r"must be \(N, C, h, w\) with N = 1 here, got the shapes \(1, 5, 64\)"),
        (OneForAll(), r"with N = 1 here, got the shapes \(2, 5, 8, 8\)"),
        (ChannelsLast(), r"the shapes \(1, 8, 8, 5\), with the channels last"),
        (WholeNumbers(), r"tensors of floating-point numbers, got a tensor of torch.int64"),
        (NotATensor(), r"outputs of a backbone must be tensors, got a NoneType"),
        (NotANumber(), r"features of a plain image are not finite"),
        (Blind(), r"the same features for two different images"),
        (Forgetful(), r"other features for the same image when it is asked again"),
        (Noisy(), r"other features for the same image when it is asked again"),
        (Sparse(), r"dense tensors of floating-point numbers, got a tensor of torch.float32, torch.sparse_coo"),
        (Growing(), r"for one image and others for the next"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_an_extractor_that_cannot_be_used_is_refused(tmp_path: Path, net: torch.nn.Module, said: str) -> None:
    path = script(tmp_path / "net.pt", net)
    with pytest.raises(ConfigError, match=rf"^weights_path: 'net.pt': .*{said}"):
        detector_of(path)


def test_a_program_of_another_size_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(Grid().eval(), (torch.zeros(1, 3, 48, 48),))
    torch.export.save(program, str(tmp_path / "net.pt2"))
    detector = Padim.create(image_size=SIZE, backbone="torch_export", weights_path="net.pt2", device="cpu")
    with pytest.raises(ConfigError, match=r"'net.pt2': it cannot be used with images of 32 x 32 pixels"):
        detector.opened(ModelFiles(str(tmp_path), trusts_code=True))


def test_what_an_extractor_raises_later_is_a_fault_of_the_image(tmp_path: Path) -> None:
    detector = detector_of(script(tmp_path / "net.pt", AfraidOfLight())).fit(draw_images(1, "rgb"))
    with pytest.raises(InputError, match=r"the backbone fails: .*that is too bright") as caught:
        detector.predict([np.full((20, 20, 3), 255, np.uint8)])
    assert (caught.value.stage, caught.value.kind) == ("infer", "BackboneError")
    with pytest.raises(InputError, match="that is too bright"):
        detector.accumulate([np.full((20, 20, 3), 255, np.uint8)])
    assert np.isfinite(detector.predict(draw_images(2, "rgb")).scores).all()


def test_memory_that_is_short_is_no_fault_of_the_image(tmp_path: Path) -> None:
    detector = detector_of(script(tmp_path / "net.pt", HungryInLight())).fit(draw_images(1, "rgb"))
    with pytest.raises(MemoryError, match=r"the backbone fails: .*can't allocate memory"):
        detector.accumulate([np.full((20, 20, 3), 255, np.uint8)])


@pytest.mark.parametrize("net", [GrowingInLight(), NotANumberInLight()], ids=["another grid", "not finite"])
@pytest.mark.parametrize("detector_type", [Padim, Patchcore])
def test_a_normal_image_with_other_features_is_a_fault_of_the_image(
    tmp_path: Path, net: torch.nn.Module, detector_type: type[Padim | Patchcore]
) -> None:
    kwargs = {"image_size": SIZE, "backbone": "torchscript", "weights_path": script(tmp_path / "net.pt", net).name}
    detector = detector_type.create(**kwargs, device="cpu").opened(ModelFiles(str(tmp_path), trusts_code=True))
    with pytest.raises(InputError, match="the backbone gives features") as caught:
        detector.accumulate([*draw_images(1, "rgb"), np.full((20, 20, 3), 255, np.uint8)])
    assert caught.value.kind == "BackboneError"


@pytest.mark.parametrize("in_one_batch", [True, False])
def test_a_grid_that_changes_from_image_to_image_ends_fitting_in_words(tmp_path: Path, in_one_batch: bool) -> None:
    script(tmp_path / "net.pt", GrowingInLight())
    detector = unopened(tmp_path)
    images = [*draw_images(1, "rgb"), np.full((20, 20, 3), 255, np.uint8)]
    batches = [images] if in_one_batch else [images[:1], images[1:]]
    with pytest.raises(ConfigError, match=r"one image a grid of \(., .\) places and another one \(., .\)"):
        detector.merge([detector.accumulate(batch) for batch in batches])


@pytest.mark.parametrize(("factor", "said"), [(0.0, "same features for two different images"), (1e30, "not finite")])
def test_weights_that_see_nothing_are_refused(tmp_path: Path, factor: float, said: str) -> None:
    net = ResNet("resnet18", ("layer1", "layer2"))
    initialise(net, 1)
    torch.save({key: value * factor for key, value in net.state_dict().items()}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=rf"weights_path: 'w.pth': .*{said}"):
        Padim.create(layers=("layer1", "layer2"), weights_path="w.pth").opened(ModelFiles(str(tmp_path)))


def test_a_state_is_tried_once_it_is_trusted(tmp_path: Path) -> None:
    fitted = detector_of(script(tmp_path / "net.pt", Grid())).fit(draw_images(1, "rgb"))
    assert fitted.with_state(fitted.state()).check() == ()
    for content, said in ((b"nothing", "cannot be loaded as a TorchScript file"), (None, "when it is asked again")):
        data = content or script(tmp_path / "other.pt", Forgetful()).read_bytes()
        unread = fitted.with_state({**fitted.state(), "backbone/code": np.frombuffer(data, np.uint8)})
        with pytest.raises(ConfigError, match=f"vision_padim: the backbone in the state: .*{said}"):
            unread.check()


def test_a_state_of_nothing_but_zeros_is_refused() -> None:
    fitted = Patchcore.create(image_size=SIZE).fit(draw_images(1, "rgb"))
    state: dict[str, Any] = {
        key: value * 0 if key.startswith("backbone/") else value for key, value in fitted.state().items()
    }
    with pytest.raises(ConfigError, match=r"vision_patchcore: the backbone in the state: .*same features"):
        fitted.with_state(state).check()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_backbone_is_tried_on_the_cpu_where_its_device_is_missing(tmp_path: Path) -> None:
    path = script(tmp_path / "net.pt", Grid())
    given: dict[str, Any] = {"image_size": SIZE, "backbone": "torchscript", "device": "cuda"}
    files = ModelFiles(str(tmp_path), trusts_code=True)
    Padim.create(**given, weights_path=path.name).opened(files)
    script(tmp_path / "blind.pt", Blind())
    with pytest.raises(ConfigError, match="same features for two different images"):
        Padim.create(**given, weights_path="blind.pt").opened(files)
