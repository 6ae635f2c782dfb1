"""Reading files of weights: state dicts of torch, and safetensors. Nothing in them is run."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

from pyimgano_dask.detectors.exported.formats import DAMAGED_ZIP, STATE_DICT, format_of
from pyimgano_dask.detectors.exported.runner import in_words
from pyimgano_dask.errors import ConfigError

# The kinds of numbers in a safetensors file that torch has, too.
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_LENGTH_BYTES = 8


def read_weights(data: bytes, path: str) -> Mapping[str, torch.Tensor]:
    """The tensors by name in the bytes of a file of weights; raises ConfigError naming `path` when it is none.

    In a file of torch they may lie under `state_dict` or `model`. A prefix `module.` is taken off the names.
    """
    tensors = _read_safetensors(data, path) if _is_safetensors(data) else _read_torch(data, path)
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def _read_torch(data: bytes, path: str) -> Mapping[str, torch.Tensor]:
    try:
        if format_of(data) == DAMAGED_ZIP:  # torch itself looks at no checksum
            raise ValueError(DAMAGED_ZIP)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make torch raise anything
        found = format_of(data)
        kind = "a state dict of torch that is cut short or damaged" if found == STATE_DICT else found
        raise ConfigError(
            f"weights_path: {path!r} is not a file of weights that can be read safely: it is {kind}. It "
            "must hold a state dict of tensors only, as torch.save(model.state_dict(), FILE) writes it, or be a "
            "safetensors file; pickled modules are never loaded"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ConfigError(f"weights_path: {path!r} holds no state dict (a mapping of names to tensors)")
    return {str(key): value for key, value in loaded.items()}


def _is_safetensors(data: bytes) -> bool:
    """Whether the bytes begin as such a file does: with the length of a header, and the brace that opens it.

    The length is a little-endian whole number of 8 bytes; no other format here begins with one and a brace.
    """
    return data[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"


def _read_safetensors(data: bytes, path: str) -> Mapping[str, torch.Tensor]:
    """The tensors in a safetensors file: a header in JSON says where each lies in the bytes that follow it."""
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    try:
        if start > len(data):
            raise ValueError(f"its header ends at byte {start} of {len(data)}")
        header = json.loads(data[_LENGTH_BYTES:start])
        header.pop("__metadata__", None)
        values = memoryview(data)[start:]
        ranges = sorted(entry["data_offsets"] for entry in header.values())
        if any(later[0] < earlier[1] for earlier, later in pairwise(ranges)):
            raise ValueError("its tensors overlap")
        return {name: _tensor(entry, values) for name, entry in header.items()}
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else in_words(error)
        raise ConfigError(
            f"weights_path: {path!r} is a safetensors file that is cut short or damaged, or of a kind that is not read "
            f"here ({said}); copy it again, or take a .pth file of torch.save(model.state_dict(), FILE)"
        ) from None


def _tensor(entry: Mapping[str, Any], values: memoryview) -> torch.Tensor:
    """The tensor that an entry of the header speaks of; raises ValueError, TypeError or KeyError when it cannot be."""
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"numbers of the kind {entry['dtype']}")
    dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    count = math.prod(shape)
    if not 0 <= begin <= end <= len(values) or end - begin != count * dtype.itemsize:
        raise ValueError(f"{count} numbers {entry['dtype']} at the bytes {begin} to {end} of {len(values)}")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(values[begin:end]), dtype=dtype).reshape(shape)
