"""Where detectors compute: the argument `device`, and whether this process has what it names."""

from __future__ import annotations

import re
from typing import Any

from pyimgano_dask.detectors.extras import require
from pyimgano_dask.settings.knob import knob

DEVICES = re.compile(r"^(cpu|cuda(:\d+)?)$")

NO_DEVICE = "DeviceError"
"""The `kind` of an InputError that is this machine's fault: it lacks the device asked for."""


def device_knob() -> Any:
    """The argument `device` of a detector."""
    return knob(None, "cpu, cuda or cuda:N (default: cuda where there is one, else cpu).", pattern=DEVICES.pattern)


def device_here(device: str | None, extra: str) -> str:
    """The device that a detector of this extra computes on in this process when it is given `device`.

    `cuda` is the first of them, and its name for `cuda:0` too.
    """
    if device is None:
        return "cuda" if is_here("cuda", extra) else "cpu"
    return "cuda" if device == "cuda:0" else device


def is_here(device: str, extra: str) -> bool:
    """Whether the library of an extra (`torch`, `onnx`; `pyimgano` has torch's) finds this device in this process."""
    if device == "cpu":
        return True
    library = require("torch" if extra == "pyimgano" else extra, f"device {device}")
    if extra == "onnx":
        providers: list[str] = library.get_available_providers()
        return "CUDAExecutionProvider" in providers
    count: int = library.cuda.device_count()
    return int(device.partition(":")[2] or 0) < count
