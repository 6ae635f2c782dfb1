"""`--amp`: torch's inference mode, and mixed precision on CUDA. Loads torch only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

from pyimgano_dask.detectors.base import Detector


def device_of(detector: Detector[Any]) -> str | None:
    """The device that a detector was told to use, None where it has no such argument or was told nothing."""
    return getattr(detector.arguments, "device", None)


@contextmanager
def mixed_precision(device: str | None) -> Iterator[None]:
    """Run the block without gradients, and with CUDA autocast unless `device` is another; as it is without torch.

    Autocast lets each CUDA operation compute in float16 or float32, whichever torch holds safe for it
    (Micikevicius et al., Mixed Precision Training, ICLR 2018); operations on the CPU are not touched.
    """
    torch, _ = _torch()
    if torch is None:
        yield
        return
    on_cuda = _may_use_cuda(device) and torch.cuda.is_available()
    with torch.inference_mode(), torch.autocast("cuda") if on_cuda else nullcontext():
        yield


def missing_for_amp(device: str | None) -> str | None:
    """What this process lacks for all that `mixed_precision` does for `device`, in words; None when nothing."""
    torch, fault = _torch()
    if torch is None:
        return (
            f"torch cannot be loaded where the chunks run ({fault}); detectors ran without it. "
            "Install pyimgano-dask[torch] there, or give --no-amp"
        )
    if not torch.cuda.is_available():
        return (
            "CUDA is not available where the chunks run; detectors ran in torch's inference mode, "
            "in full precision. Use workers with a GPU, or give --no-amp"
        )
    if not _may_use_cuda(device):
        return (
            f"the detector's device is {device}, so it ran in torch's inference mode, in full precision. "
            "Give --device cuda or --no-amp"
        )
    return None


def _may_use_cuda(device: str | None) -> bool:
    return device is None or not device.startswith("cpu")


@cache
def _torch() -> tuple[Any, str | None]:
    """The module and None, or None and why there is none."""
    try:
        return importlib.import_module("torch"), None
    except (ImportError, OSError) as error:
        return None, str(error)
