"""TorchScript and torch.export files, run by torch. Loading either can run code of its maker."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from pyimgano_dask.detectors.base import State
from pyimgano_dask.detectors.exported.detector import MODEL, NAMED_BY, ExportedModelDetector
from pyimgano_dask.detectors.exported.formats import TORCH_EXPORT, TORCHSCRIPT, check_format
from pyimgano_dask.detectors.exported.runner import Runner
from pyimgano_dask.detectors.model_files import ModelFiles
from pyimgano_dask.detectors.registry import register
from pyimgano_dask.errors import ConfigError


class TorchModelDetector(ExportedModelDetector):
    """Base of detectors whose model file is a zip archive of torch."""

    extra: ClassVar[str | None] = "torch"

    @property
    def runs_code(self) -> bool:
        return self.is_fitted

    @classmethod
    def _read(cls, path: str, files: ModelFiles) -> State:
        model = files.read(path, NAMED_BY)
        check_format(model, cls.format, f"{NAMED_BY}: {path!r}")
        files.check_trust(model, path, NAMED_BY, cls.format)
        return {MODEL: np.frombuffer(model, np.uint8)}

    @classmethod
    def _check_state(cls, state: State) -> None:
        if len(state) != 1:
            raise ConfigError(f"{cls.name}: the state must hold the model and nothing else, got {', '.join(state)}")
        check_format(state[MODEL].tobytes(), cls.format, f"{cls.name}: the model in the state")

    @classmethod
    def _pool_threads(cls) -> int:
        return 0


@register
class VisionTorchScript(TorchModelDetector):
    """The anomaly map and score of a TorchScript model."""

    name = "vision_torchscript"
    summary = "Runs a TorchScript model that gives an anomaly map and a score; its file can run code."
    tags = ("vision", "deep", "exported", "torchscript", "torch", "pixel_map")
    reference = "TorchScript (torch.jit), scripted or traced."
    model_file: ClassVar[str | None] = ".pt"
    format = TORCHSCRIPT

    @classmethod
    def _load(cls, state: State, device: str, threads: int) -> Runner:
        from pyimgano_dask.detectors.exported.torch_runners import TorchScriptRunner

        return TorchScriptRunner(state[MODEL].tobytes(), device)


@register
class VisionTorchExport(TorchModelDetector):
    """The anomaly map and score of a program that torch.export saved."""

    name = "vision_torch_export"
    summary = "Runs a torch.export program (.pt2) that gives an anomaly map and a score; its file can run code."
    tags = ("vision", "deep", "exported", "torch_export", "torch", "pixel_map")
    reference = "torch.export, an ahead-of-time graph of ATen operators."
    model_file: ClassVar[str | None] = ".pt2"
    format = TORCH_EXPORT

    @classmethod
    def _load(cls, state: State, device: str, threads: int) -> Runner:
        from pyimgano_dask.detectors.exported.torch_runners import TorchExportRunner

        return TorchExportRunner(state[MODEL].tobytes(), device)
