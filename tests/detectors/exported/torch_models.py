"""Small TorchScript and torch.export files: the map is a weighted mean of the channels."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.detectors.exported.answers import WEIGHTS


class Brightness(torch.nn.Module):
    """Score, label, map and mask, as a tuple; the size is free."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.from_numpy(WEIGHTS).reshape(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        anomaly_map = (images * self.weights).sum(1, keepdim=True)
        score = anomaly_map.amax((1, 2, 3))
        return score, score > 0.5, anomaly_map, anomaly_map > 0.5


class NamedBrightness(Brightness):
    """The map and the score by name, and a second map that is a mask in float."""

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        anomaly_map = (images * self.weights).sum(1)
        score = anomaly_map.amax((1, 2))[:, None]
        return {"pred_mask": (anomaly_map > 0.5).float(), "anomaly_map": anomaly_map, "pred_score": score}


class NotANumber(torch.nn.Module):
    """Gives NaN for a black image."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        anomaly_map = images.mean(1) / images.amax((1, 2, 3)).reshape(-1, 1, 1)
        return anomaly_map.amax((1, 2)), anomaly_map


class TwoInputs(torch.nn.Module):
    """Takes more than images."""

    def forward(self, images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return images * weights


class FixedSize(torch.nn.Module):
    """Takes images of 8 x 8 only."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.reshape(images.shape[0], 3, 8, 8).mean(1)


def save_script(path: Path, module: torch.nn.Module | None = None) -> Path:
    torch.jit.script(module or Brightness()).save(str(path))
    return path


def save_traced(path: Path, example: torch.Tensor) -> Path:
    torch.jit.trace(Brightness(), example).save(str(path))
    return path


def save_export(path: Path, shape: tuple[int, ...] = (1, 3, 16, 20), module: torch.nn.Module | None = None) -> Path:
    torch.export.save(torch.export.export(module or Brightness(), (torch.zeros(shape),)), path)
    return path
