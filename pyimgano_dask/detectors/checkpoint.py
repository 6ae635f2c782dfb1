"""Saving and loading a fitted detector: one .npz of plain arrays and a JSON header, never a pickle."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from typing import Any

import numpy as np

from pyimgano_dask.detectors.base import Detector
from pyimgano_dask.detectors.registry import find_detector_type
from pyimgano_dask.errors import ConfigError

HEADER = "detector.json"
FORMAT = 1

# What numpy and zipfile raise on files that are no archive, or a damaged one.
_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


def encode_detector(detector: Detector[Any]) -> bytes:
    """Bytes of a checkpoint; the same detector gives the same bytes."""
    header = {
        "format": FORMAT,
        "name": detector.name,
        "arguments": detector.arguments.model_dump(mode="json"),
    }
    encoded = np.frombuffer(json.dumps(header, sort_keys=True).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {HEADER: encoded, **detector.state()}
    np.savez(buffer, **arrays)  # weights and statistics hardly compress
    return buffer.getvalue()


def is_checkpoint(data: bytes) -> bool:
    """Whether these are the bytes of a checkpoint, and not those of another program's model file."""
    try:
        return HEADER + ".npy" in zipfile.ZipFile(io.BytesIO(data)).namelist()
    except _DAMAGE:
        return False


def decode_detector(data: bytes, source: str) -> Detector[Any]:
    """The fitted detector in a checkpoint's bytes; raises ConfigError naming `source` when they are not one."""
    try:
        if not is_checkpoint(data):
            raise ValueError(f"it is no archive that holds a {HEADER}")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            header = json.loads(arrays[HEADER].tobytes())
            state = {key: arrays[key] for key in arrays.files if key != HEADER}
    except _DAMAGE as error:
        raise ConfigError(
            f"checkpoint {source!r} is not a detector state (.npz) of this package: {_fault(error)}; "
            "a run with --run-dir leaves one there as detector.npz. A file of weights goes into --model-kwargs as "
            "weights_path"
        ) from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ConfigError(f"checkpoint {source!r} has another format; this version reads format {FORMAT}")
    arguments = header.get("arguments")
    if not isinstance(arguments, dict):
        raise ConfigError(f"checkpoint {source!r}: its arguments are no JSON object")
    try:
        return find_detector_type(str(header.get("name"))).create(**arguments).with_state(state)
    except ConfigError as error:
        raise ConfigError(f"checkpoint {source!r}: {error}") from None


def _fault(error: Exception) -> str:
    """What is wrong with a file, without numpy's advice to unpickle it."""
    return "it holds Python objects, which are not read" if "pickle" in str(error) else str(error)
