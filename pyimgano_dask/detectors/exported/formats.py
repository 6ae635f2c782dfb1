"""What kind of model file some bytes are, told from the bytes alone: nothing of them is loaded or run."""

from __future__ import annotations

import io
import pickletools
import zipfile
import zlib
from collections.abc import Iterator

from pyimgano_dask.errors import ConfigError

ONNX = "an ONNX model"
TORCHSCRIPT = "a TorchScript file"
TORCH_EXPORT = "a torch.export file (.pt2)"
STATE_DICT = "a pickled state dict of torch, which holds weights without the model they belong to"
PICKLED_MODULE = (
    "a pickle of torch that holds more than weights, such as a whole module (anomalib's ExportType.TORCH), which is "
    "never loaded here because unpickling runs any code"
)
OPENVINO = "an OpenVINO model"
DAMAGED_ZIP = "a zip archive that is cut short or damaged"
OTHER_ZIP = "a zip archive that holds no model of a known format"
EMPTY = "empty"
UNKNOWN = "of no known model format, or damaged"

_READ_BY = {ONNX: "vision_onnx", TORCHSCRIPT: "vision_torchscript", TORCH_EXPORT: "vision_torch_export"}
_INSTEAD = (
    "export the model as ONNX (anomalib: ExportType.ONNX) for vision_onnx, with torch.jit for vision_torchscript, or "
    "with torch.export for vision_torch_export"
)
_IR_VERSION_FIELD = b"\x08"  # field 1 of the protobuf ModelProto, which every writer puts first
_PICKLE = b"\x80"
_ZIP = b"PK\x03\x04"
# The modules whose names stand in the pickle of a state dict: containers and tensors.
_OF_STATE_DICTS = ("collections", "torch", "torch._utils", "torch.storage", "torch._tensor", "torch.nn.parameter")


def format_of(data: bytes) -> str:
    """The format of a model file, in words; one of the constants of this module."""
    if not data:
        return EMPTY
    if data.startswith(_ZIP):
        return _format_of_zip(data)
    if data.startswith(_PICKLE):
        return _format_of_pickle(data)
    if data.startswith(_IR_VERSION_FIELD):
        return ONNX
    if data.lstrip()[:5] == b"<?xml" and b"<net " in data[:4096]:
        return OPENVINO
    return UNKNOWN


def check_format(data: bytes, wanted: str, what: str) -> None:
    """Raise ConfigError unless `data` is a file of the format `wanted`; `what` names the file."""
    found = format_of(data)
    if found == wanted:
        return
    said = f"{what} is {found}; {_READ_BY[wanted]} runs {wanted}"
    if found in _READ_BY:
        raise ConfigError(f"{said}; use --model {_READ_BY[found]}")
    if found in (DAMAGED_ZIP, UNKNOWN, EMPTY):
        raise ConfigError(f"{said}; copy or export it again")
    raise ConfigError(f"{said}; {_INSTEAD}")


def _format_of_zip(data: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if archive.testzip() is not None:  # torch itself looks at few of the checksums
                return DAMAGED_ZIP
            names = archive.namelist()
            inner = [name.partition("/")[2] or name for name in names]
            if any(name.startswith("code/") for name in inner) and "constants.pkl" in inner:
                return TORCHSCRIPT
            if any(name.startswith("models/") and name.endswith(".json") for name in inner):
                return TORCH_EXPORT
            if "serialized_exported_program.json" in names:  # torch before 2.8
                return TORCH_EXPORT
            if "data.pkl" in inner:
                return _format_of_pickle(archive.read(names[inner.index("data.pkl")]))
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, NotImplementedError, RuntimeError):
        return DAMAGED_ZIP
    return OTHER_ZIP


def _format_of_pickle(pickled: bytes) -> str:
    try:
        modules = set(_modules_named(pickled))
    except ValueError:  # what pickletools raises on a damaged pickle
        return PICKLED_MODULE
    return STATE_DICT if modules and modules <= set(_OF_STATE_DICTS) else PICKLED_MODULE


def _modules_named(pickled: bytes) -> Iterator[str]:
    """Modules of the classes that the pickles in these bytes name, one after the other; nothing is unpickled.

    Before the zip format torch wrote several pickles one after the other; the object is in one of them.
    """
    stream = io.BytesIO(pickled)
    while stream.read(1) == _PICKLE:
        stream.seek(-1, io.SEEK_CUR)
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "GLOBAL" and isinstance(argument, str):
                yield argument.partition(" ")[0]
            elif opcode.name == "STACK_GLOBAL":
                yield "a name that is worked out"
