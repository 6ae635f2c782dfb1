"""Bytes of one input, from a local path or any fsspec URL."""

from __future__ import annotations

import os
import stat

from pyimgano_dask.errors import InputError
from pyimgano_dask.transfers import open_remote
from pyimgano_dask.urls import is_url

_KINDS = (FileNotFoundError, PermissionError, IsADirectoryError)

_PIECE_BYTES = 1 << 24


def read_bytes(path: str, *, base_dir: str, max_bytes: int) -> bytes:
    """The whole content of `path`: a file of at most `max_bytes` bytes.

    A relative local path resolves against `base_dir`. Raises InputError (stage "read") with kind
    FileNotFoundError, PermissionError, IsADirectoryError, ImageTooLargeError (more than `max_bytes`) or OSError
    (everything else, also a pipe or a device, an unknown URL scheme, and one without its fsspec package).
    """
    try:
        data = _read_url(path, max_bytes) if is_url(path) else _read_local(path, base_dir, max_bytes)
    except (OSError, ValueError, ImportError) as error:
        kind = next((k.__name__ for k in _KINDS if isinstance(error, k)), "OSError")
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError("read", kind, f"{path!r} cannot be read: {reason}") from error
    if len(data) > max_bytes:
        raise InputError(
            "read",
            "ImageTooLargeError",
            f"{path!r} holds more than {max_bytes} bytes, the most that an image of the allowed size takes; "
            f"raise --max-image-pixels if it is a real image",
        )
    return data


def _read_local(path: str, base_dir: str, max_bytes: int) -> bytes:
    full = os.path.join(base_dir, path)
    mode = os.stat(full).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError("it is not a regular file (a pipe, a socket or a device)")
    with open(full, "rb") as file:
        return file.read(min(max_bytes, os.fstat(file.fileno()).st_size) + 1)


def _read_url(url: str, max_bytes: int) -> bytes:
    pieces = []
    room = max_bytes + 1
    with open_remote(url) as file:
        while piece := file.read(min(room, _PIECE_BYTES)):
            pieces.append(piece)
            room -= len(piece)
    return b"".join(pieces)
