"""Arguments of detectors on the features of a backbone."""

from __future__ import annotations

import re
from typing import Any

from pyimgano_dask.detectors.devices import device_knob
from pyimgano_dask.detectors.exported.formats import TORCH_EXPORT, TORCHSCRIPT
from pyimgano_dask.detectors.shared_knobs import contamination_knob, random_state_knob
from pyimgano_dask.settings.knob import Block, knob

RESNETS = ("resnet18", "resnet50", "wide_resnet50_2")
ALIASES = {"wide_resnet50": "wide_resnet50_2"}
FILES = {"torchscript": TORCHSCRIPT, "torch_export": TORCH_EXPORT}
NAME = re.compile(r"[A-Za-z0-9_.]+")  # of a library's own: timm also takes folders and addresses behind a colon
LIBRARIES = ("torchvision", "timm")


class BackboneArguments(Block):
    """Arguments of every detector on the features of a network."""

    contamination: float = contamination_knob()
    backbone: str = knob(
        "resnet18",
        "Network: resnet18, resnet50 or wide_resnet50_2; timm:NAME or torchvision:NAME where that library is "
        "installed; torchscript or torch_export for the feature extractor in weights_path.",
    )
    layers: tuple[str, ...] | None = knob(
        None,
        "Outputs of the network to use: layer1 to layer4 of a ResNet, stages of timm by number, nodes of torchvision, "
        "outputs of a file by name or number (default: those of the paper for a ResNet, else all).",
    )
    weights_path: str | None = knob(
        None,
        "File of weights: a state dict (.pth, .safetensors) with torchvision's names, for a network of timm with "
        "timm's; or the whole extractor for torchscript and torch_export.",
    )
    pretrained: bool = knob(
        False,
        "Without weights_path: take the ImageNet weights that torchvision or timm, where installed, knows of. "
        "Otherwise a ResNet starts from random weights.",
    )
    image_size: int = knob(224, "Side of the square that images are resized to, in pixels.", ge=16, le=4096)
    device: str | None = device_knob()
    random_state: int = random_state_knob()

    def model_post_init(self, context: Any, /) -> None:
        """Check what the types cannot say."""
        library, colon, name = self.backbone.partition(":")
        known = (
            bool(library in LIBRARIES and NAME.fullmatch(name)) if colon else self.architecture in (*RESNETS, *FILES)
        )
        if not known:
            raise ValueError(
                f"backbone {self.backbone!r} is unknown; it is one of {', '.join((*RESNETS, *FILES))}, timm:NAME or "
                "torchvision:NAME"
            )
        if self.backbone in FILES and self.weights_path is None:
            raise ValueError(f"backbone {self.backbone} needs weights_path, {FILES[self.backbone]}")
        if library == "torchvision" and self.layers is None:
            raise ValueError(f"backbone {self.backbone} needs layers, the names of its nodes to use, such as layer1")
        if self.layers is not None:
            self._check_layers(self.layers)

    def _check_layers(self, layers: tuple[str, ...]) -> None:
        stages = tuple(f"layer{number}" for number in range(1, 5))
        if not layers or len(set(layers)) < len(layers):
            raise ValueError(f"layers must name at least one output, each once, got {list(layers)}")
        if self.backbone.startswith("timm:") and not all(layer.isdecimal() for layer in layers):
            raise ValueError(f"layers of {self.backbone} are its stages by number from 0, got {', '.join(layers)}")
        if self.architecture in RESNETS and not set(layers) <= set(stages):
            raise ValueError(f"layers of {self.backbone} are {', '.join(stages)}, got {', '.join(layers)}")

    @property
    def architecture(self) -> str:
        """The backbone's own name where it has several."""
        return ALIASES.get(self.backbone, self.backbone)
