"""Paths, folders, names and whole-file writes, on the local disk or at any fsspec URL."""

from __future__ import annotations

import os
import re
import stat
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import fsspec

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.urls import file_name, is_url

Part = bytes | bytearray | memoryview

TEMP_PREFIX = ".tmp-"
"""First characters of a temporary file; a killed writer may leave one, and readers skip it as a dot file."""

MAX_NAME_BYTES = 240
"""Longest artifact name. File systems allow 255 bytes; the rest is room for suffixes added by other tools."""

_NOT_IN_A_NAME = re.compile("[\0/\ud800-\udc7f\udd00-\udfff]")


def resolve(path: str, base_dir: str) -> str:
    """Place a relative path under `base_dir`; absolute paths and URLs come back unchanged.

    `..` stays as written, because it may follow a symbolic link.

    >>> resolve("maps/a.npy", "/run")
    '/run/maps/a.npy'
    """
    if is_url(path) or os.path.isabs(path):
        return path
    if is_url(base_dir):
        return f"{base_dir.rstrip('/')}/{path}"
    return str(Path(os.path.abspath(base_dir), path))


def local_path(path: str) -> str | None:
    """The path on the local disk that `path` stands for (`file://` URLs included), None when it is remote."""
    if not is_url(path):
        return path
    if path.startswith(("file://", "local://")):
        return str(fsspec.core.url_to_fs(path)[1])
    return None


@contextmanager
def open_binary(path: str) -> Iterator[IO[bytes]]:
    """Open a local file or URL for reading bytes; closes it at the end of the `with` block.

    Raises OSError for what is no regular file, such as a pipe, which might never end.
    """
    local = local_path(path)
    if local is not None and not (stat.S_ISREG(mode := os.stat(local).st_mode) or stat.S_ISDIR(mode)):
        raise OSError(f"{path!r} is not a regular file (a pipe, a socket or a device)")
    with open(local, "rb") if local is not None else fsspec.open(path, "rb") as file:
        yield file


def is_file(path: str) -> bool:
    """Whether there is a file at a local path or URL."""
    local = local_path(path)
    if local is not None:
        return os.path.isfile(local)
    filesystem, remote = fsspec.core.url_to_fs(path)
    return bool(filesystem.isfile(remote))


def write_atomic(path: str, *parts: Part) -> None:
    """Write `parts`, one after the other, as the whole content of `path`.

    A reader sees the old file or the new one, never a half one, whoever else writes it at the same time: a
    local file is written beside its final name and renamed, an object is put in one request. The folder
    exists already. Data reaches the disk when the system flushes it (no fsync), so this guards against
    killed processes, not against power cuts.

    Raises OSError, with nothing left behind, when the file cannot be written.
    """
    local = local_path(path)
    if local is None:
        filesystem, remote = fsspec.core.url_to_fs(path)
        filesystem.pipe_file(remote, b"".join(parts))
        return
    temp = _temp_name(os.path.dirname(local))
    with ExitStack() as on_failure:
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        on_failure.callback(_remove_if_there, temp)
        with open(descriptor, "wb") as file:
            file.writelines(parts)
        os.replace(temp, local)
        on_failure.pop_all()


def make_folder(path: str) -> None:
    """Create a folder and its parents; fine when it exists."""
    local = local_path(path)
    if local is not None:
        os.makedirs(local, exist_ok=True)
    else:
        filesystem, remote = fsspec.core.url_to_fs(path)
        filesystem.makedirs(remote, exist_ok=True)


def check_writable(path: str) -> None:
    """Raise ConfigError unless files can be written into the folder `path`, which may not exist yet.

    Really tries: writes a probe file into the folder, or into its nearest existing parent, and removes it.
    """
    try:
        local = local_path(path)
        if local is not None:
            _probe_local(path, local)
        else:
            _probe_remote(path)
    except (OSError, ValueError, ImportError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot write to the folder {path!r}: {reason}. "
            "Name a folder that this user can write to, or change its permissions."
        ) from error


def artifact_name(index: int, input_path: str, suffix: str) -> str:
    """File name of an artifact of one input: `{index:06d}_{stem}{suffix}`.

    `stem` is the last part of a path or URL (its query dropped) without its suffix, cut so that the name
    takes at most 240 bytes; characters that no file name can hold become `_`.

    >>> artifact_name(7, "s3://line4/cam 1/plate.png?versionId=3", ".npy")
    '000007_plate.npy'
    """
    stem = os.path.splitext(file_name(input_path))[0]
    stem = _NOT_IN_A_NAME.sub("_", stem)
    room = MAX_NAME_BYTES - _size_in_bytes(f"{index:06d}_{suffix}")
    if _size_in_bytes(stem) > room:
        stem = stem[: bisect_right(list(accumulate(map(_size_in_bytes, stem))), room)]
    return f"{index:06d}_{stem}{suffix}"


def _size_in_bytes(name: str) -> int:
    return len(name.encode("utf-8", "surrogateescape"))


def _temp_name(folder: str) -> str:
    return os.path.join(folder, f"{TEMP_PREFIX}{os.getpid()}-{os.urandom(8).hex()}")


def _remove_if_there(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def _probe_local(path: str, local: str) -> None:
    folder = os.path.abspath(local)
    while not _exists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise ConfigError(
            f"cannot write to the folder {path!r}: {folder!r} is a file or a broken link. "
            "Name a folder, or a path that does not exist yet."
        )
    probe = _temp_name(folder)
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    os.unlink(probe)


def _exists(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _probe_remote(path: str) -> None:
    filesystem: Any
    filesystem, remote = fsspec.core.url_to_fs(path)
    if filesystem.isfile(remote):
        raise ConfigError(f"cannot write to the folder {path!r}: it is a file. Name a folder.")
    probe = f"{remote.rstrip('/')}/{os.path.basename(_temp_name(''))}"
    filesystem.pipe_file(probe, b"")
    filesystem.rm_file(probe)
