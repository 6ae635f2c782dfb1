"""Masks and maps of a whole run in one zarr v3 store: an array `{H}x{W}` per shape, a row per input.

A chunk is one row and a shard is one batch, so that no two tasks write the same file. Rows never written read
as 0; a row block of masks that are all zero takes no file at all, one of maps always does. Every call opens what
it needs: nothing is kept between calls, and any process may make any of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec
from zarr.errors import ContainsArrayError, ContainsGroupError
from zarr.storage import FsspecStore

from pyimgano_dask.errors import ConfigError, InputError, RunError
from pyimgano_dask.storage.files import is_file, local_path
from pyimgano_dask.transfers import client_options, faults_are_oserrors, settle, tried_again

StoredDtype = Literal["uint8", "float32"]

_LEFTOVER = re.compile(r"\.[0-9a-f]{32}\.partial$")
_ARRAY_NAME = re.compile(r"[1-9]\d*x[1-9]\d*")

# Level 1: a batch of 32 maps of 640x640 takes 0.16 s and 12.6 MB, level 3 0.24 s and 12.5 MB, level 6 0.36 s
# and 12.3 MB; masks are tiny at every level. The checksum (4 bytes a row) costs nothing measurable and lets a
# reader notice a damaged row.
_COMPRESSOR = ZstdCodec(level=1, checksum=True)


def create_store(path: str, *, anew: bool = True) -> None:
    """Create the store, a zarr v3 group without rows; done once, before any `write_rows`.

    Rows of an earlier run are removed if it is made `anew`; anything else in the group is left alone. Raises RunError
    when `path` holds another kind of zarr store.
    """
    try:
        tried_again(lambda: _create(path, anew))
    except (ContainsArrayError, ContainsGroupError, FileNotFoundError) as error:
        raise RunError(f"{path!r} is not a zarr v3 group ({error}); name a new store or remove this one") from error
    except OSError as error:
        raise RunError(f"the store {path!r} cannot be created: {error}; make room or access and run again") from error


def _create(path: str, anew: bool) -> None:
    group = zarr.open_group(_store(path), mode="a", zarr_format=3)
    for name in _names_in(group) if anew else ():
        del group[name]


def remove_leftovers_of_store(path: str) -> None:
    """Remove the temporary files of killed writers from a local store; nothing may be written there meanwhile."""
    local = local_path(path)
    if local is not None:
        for file in Path(local).rglob("*.partial"):
            if _LEFTOVER.search(file.name):
                file.unlink(missing_ok=True)


def write_rows(
    path: str,
    rows: Mapping[int, NDArray[Any]],
    *,
    start: int,
    n_inputs: int,
    batch_size: int,
    dtype: StoredDtype,
) -> dict[int, str]:
    """Write the rows of one batch.

    `rows` maps the input's index to its (H, W) array of `dtype`. All indices lie in
    [start, min(start + batch_size, n_inputs)), where `start` is a multiple of `batch_size`. The batch's whole
    row block of each shape is written at once: rows of the block that are not in `rows` become 0. Writing a
    batch twice, or twice at the same time, gives the same files.

    Returns the array name of each row. Raises RunError when the store holds an array of that name laid out
    for another run, OSError when it cannot be written.
    """
    stop = min(start + batch_size, n_inputs)
    names: dict[int, str] = {}
    for height, width in sorted({array.shape for array in rows.values()}):
        block = np.zeros((stop - start, height, width), dtype)
        for row, array in rows.items():
            if array.shape == (height, width):
                block[row - start] = array
                names[row] = f"{height}x{width}"
        tried_again(partial(_write_block, path, block, start=start, n_inputs=n_inputs, batch_size=batch_size))
    return names


def _write_block(path: str, block: NDArray[Any], *, start: int, n_inputs: int, batch_size: int) -> None:
    height, width = block.shape[1:]
    shape, shards = (n_inputs, height, width), (batch_size, height, width)
    _open_or_create(path, shape, shards=shards, dtype=str(block.dtype))[start : start + len(block)] = block


def read_row(path: str, array: str, row: int, *, max_pixels: int) -> NDArray[Any]:
    """Read one row, (H, W), of the array named `{H}x{W}`; zeros when only other rows of its batch were written.

    Raises InputError of stage `read` when the store, the array, the row or the file of its batch is missing, the row is
    damaged or has more than `max_pixels` pixels. Batches of maps always have a file, those of masks only where one
    of their masks is not all zero.
    """
    try:
        values = tried_again(lambda: _read_row(path, array, row, max_pixels))
    except (OSError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            "read", type(error).__name__, f"cannot read row {row} of array {array!r} in {path!r}: {error}"
        ) from error
    return np.asarray(values)


def _read_row(path: str, array: str, row: int, max_pixels: int) -> Any:
    stored = zarr.open_array(_store(path), path=array, mode="r", zarr_format=3)
    if math.prod(stored.shape[1:]) > max_pixels:
        raise ValueError(f"its rows have shape {stored.shape[1:]}, more pixels than --max-image-pixels {max_pixels}")
    if _lacks_its_file(path, stored, row):
        raise FileNotFoundError("the file of its batch is not there")
    return stored[row]


def _lacks_its_file(path: str, stored: zarr.Array[Any], row: int) -> bool:
    """Whether a row of maps, laid out as `write_rows` does, has no file: its batch was never written, or is gone."""
    shard = stored.shards or stored.chunks
    if stored.dtype != np.float32 or stored.shape[1:] != shard[1:] or not 0 <= row < stored.shape[0]:
        return False
    place = "/".join(map(str, (row // shard[0], *(0 for _ in shard[1:]))))
    return not is_file(f"{path.rstrip('/')}/{stored.basename}/c/{place}")


def find_row(path: str, row: int, *, max_pixels: int) -> str:
    """Name of the array that holds a row: the only one there is, or the only one where the row is not all zero.

    Raises InputError of stage `read` when no array or several may hold it.
    """
    names, written = tried_again(lambda: _written_arrays(path, row))
    if len(names) == 1:
        return names[0]
    holding = [name for name in written if read_row(path, name, row, max_pixels=max_pixels).any()]
    if len(holding) == 1:
        return holding[0]
    said = f"{len(holding)} arrays hold it: {', '.join(holding)}" if holding else "it is zero in each array"
    raise InputError(
        "read",
        "MissingMapError",
        f"row {row} of {path!r} belongs to no single array of {', '.join(names)}: {said}. "
        "The input may have failed; --from-run knows which map is whose",
    )


def _written_arrays(path: str, row: int) -> tuple[list[str], list[str]]:
    """All arrays of a store, and those that may hold a row where there are several."""
    group = zarr.open_group(_store(path), mode="r", zarr_format=3)
    names = _names_in(group)
    if len(names) == 1:
        return names, names
    return names, [name for name in names if not _lacks_its_file(path, _array(group, name), row)]


def count_rows(path: str) -> int:
    """Rows of a store, the same in all its arrays. Raises ConfigError when it has none or is no store of maps."""
    try:
        with faults_are_oserrors():
            group = zarr.open_group(_store(path), mode="r", zarr_format=3)
            counts = {int(_array(group, name).shape[0]) for name in _names_in(group)}
    except (OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{path!r} is not a zarr v3 store of maps: {error}") from None
    if len(counts) != 1:
        found = "no array HEIGHTxWIDTH" if not counts else f"arrays of {', '.join(map(str, sorted(counts)))} rows"
        raise ConfigError(f"{path!r} is not a store written by --save-maps: it has {found}")
    return counts.pop()


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array


def _names_in(group: zarr.Group) -> list[str]:
    return sorted(name for name in group.array_keys() if _ARRAY_NAME.fullmatch(name))


def _store(path: str) -> str | Store:
    """The path as zarr takes it: `file://` URLs go through the local store, whose writes are atomic."""
    local = local_path(path)
    if local is not None:
        return local
    store = FsspecStore.from_url(path, storage_options=client_options(path))
    settle(store.fs)
    return store


def _open_or_create(
    path: str, shape: tuple[int, int, int], *, shards: tuple[int, int, int], dtype: str
) -> zarr.Array[Any]:
    """The array of one map shape. Tasks that create it at the same time write the same metadata."""
    name = f"{shape[1]}x{shape[2]}"
    chunks = (1, *shape[1:])
    config: Any = {"write_empty_chunks": dtype == "float32"}
    try:
        return zarr.create_array(
            _store(path),
            name=name,
            shape=shape,
            chunks=chunks,
            shards=shards,
            dtype=dtype,
            filters=None,
            compressors=_COMPRESSOR,
            fill_value=0,
            config=config,
        )
    except ContainsArrayError:
        array = zarr.open_array(_store(path), path=name, mode="r+", zarr_format=3).with_config(config)
    found = (array.shape, array.chunks, array.shards, str(array.dtype))
    if found != (shape, chunks, shards, dtype):
        raise RunError(
            f"the array {name!r} in the store {path!r} has shape {array.shape}, shards {array.shards} and "
            f"dtype {array.dtype}; this run needs shape {shape}, shards {shards} and dtype {dtype}. It comes "
            "from another run: name a new store or remove this one."
        )
    return array
