"""Models that torch runs. Imports torch, so it is imported when a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export.graph_signature import InputKind

from pyimgano_dask.detectors.exported.inputs import ModelInput
from pyimgano_dask.detectors.exported.outputs import Output, in_kind
from pyimgano_dask.detectors.exported.runner import DeviceMissingError, Runner
from pyimgano_dask.detectors.torch_files import call_torchscript, load_program, load_torchscript
from pyimgano_dask.errors import ConfigError


def _device(name: str) -> torch.device:
    """The device of this name; raises DeviceMissingError where there is none."""
    device = torch.device(name)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise DeviceMissingError(f"torch finds {count} CUDA devices")
    return device


class TorchScriptRunner(Runner):
    """A TorchScript module. Its file says nothing of the size or the batch of its input."""

    def __init__(self, data: bytes, device: str) -> None:
        self._device = _device(device)
        self._module = module = load_torchscript(data, self._device)
        taken = [item for item in module.forward.schema.arguments[1:] if not item.has_default_value()]
        if len(taken) != 1 or not isinstance(taken[0].type, torch.TensorType):
            found = ", ".join(f"{item.name}: {item.type}" for item in taken)
            raise ConfigError(
                f"its forward must take one tensor, the images, but takes {len(taken)}: {found or 'none'}"
            )

    @property
    def input(self) -> ModelInput:
        return ModelInput()

    def run(self, batch: NDArray[np.generic]) -> Sequence[Output]:
        with torch.inference_mode():
            return list(_outputs(call_torchscript(self._module, torch.from_numpy(batch).to(self._device))))


class TorchExportRunner(Runner):
    """A program of torch.export."""

    def __init__(self, data: bytes, device: str) -> None:
        self._device = _device(device)
        program = load_program(data, self._device)
        user_inputs = [item.arg for item in program.graph_signature.input_specs if item.kind is InputKind.USER_INPUT]
        values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
        tensors = [value for item in user_inputs if isinstance(value := values.get(item.name), torch.Tensor)]
        if len(user_inputs) != 1 or len(tensors) != 1:
            raise ConfigError(
                f"it must take one input, a tensor of images, but takes {len(user_inputs)}: "
                + (", ".join(item.name for item in user_inputs) or "none")
            )
        (images,) = tensors
        self._input = ModelInput(
            tuple(size if isinstance(size, int) else None for size in images.shape),
            str(images.dtype).removeprefix("torch."),
        )
        self._module = program.module()

    @property
    def input(self) -> ModelInput:
        return self._input

    def run(self, batch: NDArray[np.generic]) -> Sequence[Output]:
        with torch.inference_mode():
            return list(_outputs(self._module(torch.from_numpy(batch).to(self._device))))


def _outputs(answer: Any) -> Iterator[Output]:
    """The tensors of what a module returns; what is none keeps its position."""
    pairs: list[tuple[str | None, Any]]
    if isinstance(answer, Mapping):
        pairs = [(str(name), value) for name, value in answer.items()]
    elif hasattr(answer, "_fields"):
        pairs = list(zip(answer._fields, answer, strict=True))
    else:
        values = answer if isinstance(answer, tuple | list) else [answer]
        pairs = [(None, value) for value in values]
    for name, value in pairs:
        is_tensor = isinstance(value, torch.Tensor)
        yield Output(name, _array(value)) if is_tensor else Output.of_another_kind(name, in_kind(value))


def _array(tensor: torch.Tensor) -> NDArray[np.generic]:
    """As numpy has it; fractions become float32, because it lacks some types of torch."""
    values = tensor.float() if tensor.is_floating_point() else tensor
    return np.asarray(values.cpu().numpy())
