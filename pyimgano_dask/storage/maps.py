"""Anomaly maps as `.npy` files."""

from __future__ import annotations

import io
import math
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.errors import InputError
from pyimgano_dask.storage.files import open_binary

_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def encode_npy(array: NDArray[Any]) -> tuple[bytes, memoryview]:
    """Header and data of an `.npy` file (format 1.0, C order); np.load reads their concatenation.

    The data is a view of `array` when that is C-contiguous already, so `array` must not change before the
    data is written.
    """
    array = np.asarray(array, order="C")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue(), array.reshape(-1).view(np.uint8).data


def read_npy(path: str, *, max_pixels: int) -> NDArray[Any]:
    """Read an `.npy` file (local or URL); pickled objects are refused, and arrays of more than `max_pixels` values.

    The array is in C order. Raises InputError of stage `read` when the file cannot be opened or is not one whole
    `.npy` array; no memory is taken for more than the file holds.
    """
    try:
        with open_binary(path) as file:
            shape, is_fortran, dtype = _read_header(file)
            count = math.prod(shape)
            if count > max_pixels:
                raise InputError(
                    "read",
                    "MapTooLargeError",
                    f"{path!r} holds {count} values, more than --max-image-pixels {max_pixels}",
                )
            data = bytearray(file.read(count * dtype.itemsize + 1))
    except OSError as error:
        raise InputError("read", type(error).__name__, f"cannot open {path!r}: {error}") from error
    except ValueError as error:
        raise InputError("read", "ValueError", f"{path!r} is not a whole .npy array: {error}") from error
    if len(data) != count * dtype.itemsize:
        found = "more" if len(data) > count * dtype.itemsize else str(len(data))
        raise InputError(
            "read",
            "ValueError",
            f"{path!r} is not a whole .npy array: {dtype} of shape {shape} takes {count * dtype.itemsize} bytes, "
            f"it has {found}",
        )
    values = np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")
    return np.ascontiguousarray(values).reshape(shape)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the order is Fortran's, and dtype of the array that follows; ValueError for anything else."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADER_READERS:
        raise ValueError(f"format version {version} is not one of {', '.join(map(str, _HEADER_READERS))}")
    shape, is_fortran, dtype = _HEADER_READERS[version](file)
    if any(side < 0 for side in shape):
        raise ValueError(f"its shape {shape} is negative")
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never read")
    return shape, is_fortran, dtype
