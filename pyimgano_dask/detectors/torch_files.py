"""Loading the model files of torch whose format can run code. Imports torch, so it is imported when one is loaded."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.export.passes import move_to_device_pass
from torch.jit._fuser import optimized_execution

from pyimgano_dask.detectors.foreign_prints import own_prints_discarded


def load_torchscript(data: bytes, device: torch.device) -> Any:
    """The module in a TorchScript file, in evaluation mode; raises what torch raises."""
    with own_prints_discarded():
        return torch.jit.load(io.BytesIO(data), map_location=device).eval()  # type: ignore[no-untyped-call]


def call_torchscript(module: Any, images: torch.Tensor) -> Any:
    """What a TorchScript module gives for images; raises what it raises. What it prints is discarded.

    It runs as it is written: torch's optimiser rewrites it after a few calls, and each call is to compute the same.
    """
    with own_prints_discarded(), optimized_execution(False):
        return module(images)


def load_program(data: bytes, device: torch.device) -> torch.export.ExportedProgram:
    """The program in a torch.export file, on this device; raises what torch raises.

    A program names the device that it was exported on wherever it makes a tensor, which `module().to(device)` leaves
    as it is.
    """
    with _silent("torch.export"):
        program = torch.export.load(io.BytesIO(data))
    placeholders = (node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder")
    if any(isinstance(value, torch.Tensor) and value.device != device for value in placeholders):
        return move_to_device_pass(program, device)
    return program


@contextmanager
def _silent(logger: str) -> Iterator[None]:
    """Drop what this logger says in the block: torch logs the traceback of a fault that it raises, too."""

    def drop(record: logging.LogRecord) -> bool:
        return False

    logging.getLogger(logger).addFilter(drop)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(drop)
