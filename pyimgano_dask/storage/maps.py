"""Anomaly maps as `.npy` files."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.errors import InputError
from pyimgano_dask.storage.files import open_binary


def encode_npy(array: NDArray[Any]) -> tuple[bytes, memoryview]:
    """Header and data of an `.npy` file (format 1.0, C order); np.load reads their concatenation.

    The data is a view of `array` when that is C-contiguous already, so `array` must not change before the
    data is written.
    """
    array = np.asarray(array, order="C")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue(), array.reshape(-1).view(np.uint8).data


def read_npy(path: str) -> NDArray[Any]:
    """Read an `.npy` file (local or URL); pickled objects are refused.

    Raises InputError of stage `read` when the file cannot be opened or is not a whole `.npy` array.
    """
    try:
        with open_binary(path) as file:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise InputError("read", type(error).__name__, f"cannot open {path!r}: {error}") from error
    except ValueError as error:
        raise InputError("read", "ValueError", f"{path!r} is not a whole .npy array: {error}") from error
    return array
