"""Which other files an ONNX model keeps its weights in, read off the protobuf without the package onnx.

ONNX stores large tensors in files beside the model (`TensorProto.external_data`: location, offset, length). Only the
messages on the way to a tensor are walked; field numbers are those of onnx.proto.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from pyimgano_dask.errors import ConfigError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BITS = 64

# Message → number of a field that holds a message → which one.
_FIELDS: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
_EXTERNAL_DATA, _KEY, _VALUE = 13, 1, 2

_ALLOWED = "external data must be a file in the folder of the model or below it, named by a relative path without '..'"


class DamagedProtobufError(ValueError):
    """Bytes that are no protobuf message, or end within one."""


@dataclass(frozen=True)
class ExternalTensor:
    """Where one tensor lies: the file's path relative to the model, and the bytes the file must have for it."""

    location: str
    end: int


def external_files(model: bytes) -> Mapping[str, int]:
    """The files a model needs beside it, by relative path, sorted, with the smallest size of each in bytes.

    Raises DamagedProtobufError for bytes that are no whole model, and ConfigError for a path that leaves the model's
    folder.
    """
    sizes: dict[str, int] = {}
    for tensor in _tensors(memoryview(model), "Model"):
        _check_location(tensor.location)
        sizes[tensor.location] = max(tensor.end, sizes.get(tensor.location, 0))
    return dict(sorted(sizes.items()))


def _check_location(location: str) -> None:
    path = PurePosixPath(location)
    if not location or path.is_absolute() or ".." in path.parts or set(location) & set("\\:*\0"):
        raise ConfigError(f"it keeps weights in {location!r}; {_ALLOWED}")


def check_links(model_path: str, data_path: str, location: str) -> None:
    """Raise ConfigError where symbolic links lead from a file of weights on the local disk out of the model's folder.

    That is the folder that the model is named in, or the one that its file really lies in: in caches both the model
    and its weights are links into one folder of blobs.
    """
    real = os.path.realpath(data_path)
    folders = os.path.realpath(os.path.dirname(model_path)), os.path.dirname(os.path.realpath(model_path))
    if not any(os.path.commonpath([real, folder]) == folder for folder in folders):
        raise ConfigError(f"it keeps weights in {location!r}, a link to {real!r}; {_ALLOWED}")


def _tensors(message: memoryview, kind: str) -> Iterator[ExternalTensor]:
    """All tensors below a message that are kept in files."""
    if kind == "Tensor":
        tensor = _external(message)
        if tensor is not None:
            yield tensor
        return
    inner = _FIELDS[kind]
    for number, value in _fields(message):
        if number in inner:
            yield from _tensors(_message(value), inner[number])


def _external(tensor: memoryview) -> ExternalTensor | None:
    entries: dict[str, str] = {}
    for number, value in _fields(tensor):
        if number == _EXTERNAL_DATA:
            entry = {part: bytes(_message(text)) for part, text in _fields(_message(value))}
            entries[_text(entry.get(_KEY, b""))] = _text(entry.get(_VALUE, b""))
    if not entries:
        return None
    try:
        end = int(entries.get("offset", "0")) + int(entries.get("length", "0"))
    except ValueError:
        raise DamagedProtobufError("the place of external data is no number") from None
    return ExternalTensor(entries.get("location", ""), end)


def _message(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise DamagedProtobufError("a number stands where a message should")
    return value


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise DamagedProtobufError("a text is not UTF-8") from None


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Number and value of each field; numbers of fixed size come as their bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire_type == _BYTES:
            length, at = _varint(message, at)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise DamagedProtobufError(f"there is no wire type {wire_type}")
        if number == 0 or at + length > len(message):
            raise DamagedProtobufError("a field reaches beyond the end")
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of variable length, and the place after it."""
    value = 0
    for shift in range(0, _MAX_VARINT_BITS + 6, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise DamagedProtobufError("a number has no end")
