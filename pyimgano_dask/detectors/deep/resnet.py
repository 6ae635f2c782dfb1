"""Residual networks up to a stage, as feature extractors (He et al., Deep Residual Learning, CVPR 2016).

ResNet-50's stride lies on the 3 x 3 convolution; wide ResNet-50-2 has twice the channels there (Zagoruyko and
Komodakis, Wide Residual Networks, BMVC 2016). The names of parameters are those of torchvision's models, so that files
of their weights can be loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

STAGES = ("layer1", "layer2", "layer3", "layer4")
STEM_CHANNELS = 64


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, channels_in: int, planes: int, stride: int, base_width: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels_in, planes, 3, stride)
        self.bn1: nn.Module = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3)
        self.bn2: nn.Module = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels_in, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += shortcut
        answer: Tensor = self.relu(y)
        return answer


class Bottleneck(nn.Module):
    """A 3 x 3 convolution between two 1 x 1 convolutions around a shortcut."""

    expansion = 4

    def __init__(self, channels_in: int, planes: int, stride: int, base_width: int) -> None:
        super().__init__()
        width = planes * base_width // 64
        self.conv1 = _conv(channels_in, width, 1)
        self.bn1: nn.Module = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2: nn.Module = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, planes * self.expansion, 1)
        self.bn3: nn.Module = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels_in, planes * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += shortcut
        answer: Tensor = self.relu(y)
        return answer


@dataclass(frozen=True)
class Architecture:
    """Kind of block, blocks a stage, and the width of bottlenecks (64 is that of ResNet-50)."""

    block: Callable[[int, int, int, int], nn.Module]
    depths: tuple[int, int, int, int]
    expansion: int
    base_width: int = 64


ARCHITECTURES: Mapping[str, Architecture] = {
    "resnet18": Architecture(BasicBlock, (2, 2, 2, 2), BasicBlock.expansion),
    "resnet50": Architecture(Bottleneck, (3, 4, 6, 3), Bottleneck.expansion),
    "wide_resnet50_2": Architecture(Bottleneck, (3, 4, 6, 3), Bottleneck.expansion, base_width=128),
}


class ResNet(nn.Module):
    """The stages of a residual network up to the last one asked for.

    `forward` takes float (N, 3, H, W) and gives the output of each stage in `layers`, in their order: float
    (N, C, ceil(H / s), ceil(W / s)) with s = 4, 8, 16, 32 for layer1 … layer4. H and W are at least 1.
    """

    def __init__(self, name: str, layers: tuple[str, ...]) -> None:
        super().__init__()
        architecture = ARCHITECTURES[name]
        self.layers = layers
        self.conv1 = _conv(3, STEM_CHANNELS, 7, 2)
        self.bn1: nn.Module = nn.BatchNorm2d(STEM_CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = STEM_CHANNELS
        self.stages = STAGES[: max(STAGES.index(layer) for layer in layers) + 1]
        for number, stage in enumerate(self.stages):
            planes = STEM_CHANNELS * 2**number
            blocks = []
            for block in range(architecture.depths[number]):
                stride = 2 if number > 0 and block == 0 else 1
                blocks.append(architecture.block(channels, planes, stride, architecture.base_width))
                channels = planes * architecture.expansion
            self.add_module(stage, nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        outputs = {}
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
            outputs[stage] = x
        return [outputs[layer] for layer in self.layers]


def output_shapes(name: str, layers: tuple[str, ...], size: int) -> list[tuple[int, int, int]]:
    """(C, h, w) of what `ResNet(name, layers)` gives for an image of `size` x `size` pixels."""
    shapes = []
    for layer in layers:
        stage = STAGES.index(layer)
        side = math.ceil(size / 2 ** (stage + 2))
        shapes.append((STEM_CHANNELS * 2**stage * ARCHITECTURES[name].expansion, side, side))
    return shapes


def initialise(net: nn.Module, seed: int) -> None:
    """Draw weights as He et al. (Delving Deep into Rectifiers, ICCV 2015) do: normal, variance 2 / fan-out.

    Batch normalisations begin as the identity. The same seed gives the same weights, whatever else draws at random in
    the process.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[:, 0].numel()
            with torch.no_grad():
                module.weight.normal_(0, math.sqrt(2 / fan_out), generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def fused(net: nn.Module) -> nn.Module:
    """The network with each batch normalisation folded into the convolution before it, in evaluation mode.

    Changes `net` itself, and its answers by rounding only.
    """
    net.eval()
    for parent in list(net.modules()):
        children = dict(parent.named_children())
        pairs = [(f"conv{n}", f"bn{n}") for n in (1, 2, 3)] + [("0", "1")]
        for conv_name, norm_name in pairs:
            conv, norm = children.get(conv_name), children.get(norm_name)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    return net


def _conv(channels_in: int, channels_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, size, stride, size // 2, bias=False)


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(_conv(channels_in, channels_out, 1, stride), nn.BatchNorm2d(channels_out))
