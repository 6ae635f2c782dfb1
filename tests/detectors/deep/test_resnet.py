"""Residual networks: torchvision's names and sizes, folding, and weights drawn from a seed."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="residual networks need torch")

from pyimgano_dask.detectors.deep.resnet import STAGES, ResNet, fused, initialise, output_shapes  # noqa: E402

# Parameters of the published networks without their last, fully connected layer.
PARAMETERS = {"resnet18": 11_176_512, "resnet50": 23_508_032, "wide_resnet50_2": 66_834_240}
CHANNELS = {
    "resnet18": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "wide_resnet50_2": (256, 512, 1024, 2048),
}


def randomised(name: str, layers: tuple[str, ...]) -> ResNet:
    """A network whose normalisation is not the identity."""
    net = ResNet(name, layers)
    initialise(net, 1)
    generator = torch.Generator().manual_seed(2)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.uniform_(0.5, 1.5, generator=generator)
            for values in (module.bias.data, module.running_mean):
                values.normal_(0, 0.2, generator=generator)
    return net.eval()


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_are_those_of_the_published_networks(name: str) -> None:
    with torch.device("meta"):
        net = ResNet(name, STAGES)
        outputs = net(torch.empty(2, 3, 65, 97))
    assert sum(parameter.numel() for parameter in net.parameters()) == PARAMETERS[name]
    steps = (4, 8, 16, 32)
    expected = [(2, c, -(-65 // s), -(-97 // s)) for c, s in zip(CHANNELS[name], steps, strict=True)]
    assert [tuple(output.shape) for output in outputs] == expected


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("resnet18", "conv1.weight", (64, 3, 7, 7)),
        ("resnet18", "bn1.running_var", (64,)),
        ("resnet18", "layer2.0.downsample.0.weight", (128, 64, 1, 1)),
        ("resnet18", "layer2.0.downsample.1.bias", (128,)),
        ("resnet18", "layer4.1.conv2.weight", (512, 512, 3, 3)),
        ("resnet50", "layer1.0.downsample.0.weight", (256, 64, 1, 1)),
        ("resnet50", "layer3.5.conv3.weight", (1024, 256, 1, 1)),
        ("wide_resnet50_2", "layer1.0.conv2.weight", (128, 128, 3, 3)),
        ("wide_resnet50_2", "layer4.2.bn3.weight", (2048,)),
    ],
)
def test_parameters_have_the_names_and_shapes_of_published_weight_files(
    name: str, key: str, shape: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        assert tuple(ResNet(name, STAGES).state_dict()[key].shape) == shape


def test_stages_after_the_last_layer_are_left_out() -> None:
    net = ResNet("resnet18", ("layer2",))
    assert not any(key.startswith(("layer3", "layer4", "fc")) for key in net.state_dict())
    (output,) = net(torch.zeros(1, 3, 32, 32))
    assert output.shape == (1, 128, 4, 4)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_folded_normalisation_changes_only_the_rounding(name: str) -> None:
    net = randomised(name, ("layer1", "layer2"))
    x = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        before = net(x)
        after = fused(net)(x)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_drawn_weights_depend_on_the_seed_alone() -> None:
    nets = [ResNet("resnet18", ("layer1",)) for _ in range(3)]
    state = torch.random.get_rng_state()
    for net, seed in zip(nets, (5, 5, 6), strict=True):
        initialise(net, seed)
    assert torch.equal(torch.random.get_rng_state(), state)
    first, same, other = (net.conv1.weight for net in nets)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert float(first.std()) == pytest.approx(np.sqrt(2 / (64 * 49)), rel=0.02)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2"])
@pytest.mark.parametrize("size", [16, 33, 100])
def test_the_shapes_of_outputs_are_known_without_running_it(name: str, size: int) -> None:
    layers = ("layer3", "layer1", "layer4")
    with torch.device("meta"):
        outputs = ResNet(name, layers).eval()(torch.empty(1, 3, size, size))
    assert [tuple(output.shape[1:]) for output in outputs] == output_shapes(name, layers, size)
