"""Paths, folders, names and whole-file writes, on the local disk or at any fsspec URL."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, Literal

import fsspec

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.transfers import (
    ONCE,
    PAUSES_S,
    faults_are_oserrors,
    is_object_store,
    list_folder,
    open_filesystem,
    open_remote,
    open_upload,
    put_file,
    tried_again,
)
from pyimgano_dask.urls import file_name, is_url, join

Part = bytes | bytearray | memoryview

TEMP_PREFIX = ".tmp-"
"""First characters of a temporary file; a killed writer may leave one, and readers skip it as a dot file."""

MAX_NAME_BYTES = 240
"""Longest artifact name. File systems allow 255 bytes; the rest is room for suffixes added by other tools."""

COPY_BYTES = 1 << 20
"""Files are copied, and sinks written, this many bytes at a time."""

# What the kernel says to a copy that it cannot do between two files, such as to one that is opened for appending.
_NO_KERNEL_COPY = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.EBADF, errno.ENOTSOCK)

_LEFTOVER = re.compile(rf"{re.escape(TEMP_PREFIX)}\d+-[0-9a-f]{{16}}")

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
def open_binary(path: str) -> Iterator[BinaryIO]:
    """Open a local file or URL for reading bytes; closes it at the end of the `with` block.

    Raises OSError for what is no regular file, such as a pipe, which might never end.
    """
    local = local_path(path)
    if local is None:
        with open_remote(path) as remote:
            yield remote
        return
    if not (stat.S_ISREG(mode := os.stat(local).st_mode) or stat.S_ISDIR(mode)):
        raise OSError(f"{path!r} is not a regular file (a pipe, a socket or a device)")
    with open(local, "rb") as file:
        yield file


def read_file(path: str, *, pauses_s: Sequence[float] = PAUSES_S) -> bytes:
    """The whole content of a local file or URL; raises FileNotFoundError when it is not there, else OSError.

    `pauses_s` are the seconds before each further try of a URL (`tried_again`).
    """
    if local_path(path) is None:
        filesystem, remote = open_filesystem(path)
        return tried_again(lambda: bytes(filesystem.cat_file(remote)), pauses_s)
    with open_binary(path) as file:
        try:
            return file.read()
        except MemoryError:
            raise OSError(errno.ENOMEM, "it does not fit into the memory of this machine", path) from None


def is_file(path: str, *, pauses_s: Sequence[float] = PAUSES_S) -> bool:
    """Whether there is a file at a local path or URL; raises OSError when that cannot be known."""
    return kind_at(path, pauses_s=pauses_s) == "file"


def kind_at(path: str, *, pauses_s: Sequence[float] = PAUSES_S) -> Literal["file", "folder", "other"] | None:
    """What is at a local path or URL: a file, a folder, something else (a pipe, a device), or None for nothing.

    `pauses_s` are the seconds before each further try of a URL. Raises OSError when it cannot be known.
    """
    local = local_path(path)
    if local is not None:
        if os.path.isdir(local):
            return "folder"
        return "file" if os.path.isfile(local) else "other" if os.path.exists(local) else None
    filesystem, remote = open_filesystem(path)
    try:
        kind = tried_again(lambda: filesystem.info(remote), pauses_s)["type"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    return "file" if kind == "file" else "folder"


def stamp_of(path: str) -> str | None:
    """Size of a file, and for a local one when it was last written (ns since 1970); None when it is not there."""
    local = local_path(path)
    try:
        if local is not None:
            status = os.stat(local)
            return f"{status.st_size} bytes, {status.st_mtime_ns} ns"
        filesystem, remote = open_filesystem(path)
        return f"{tried_again(lambda: filesystem.size(remote))} bytes"
    except FileNotFoundError:
        return None


def list_names(folder: str) -> list[str]:
    """Names of the files directly in a folder, sorted, as they are now; none when the folder is not there."""
    local = local_path(folder)
    try:
        if local is not None:
            with os.scandir(local) as entries:
                return sorted(entry.name for entry in entries if _is_file(entry))
        filesystem, remote = open_filesystem(folder)
        found = tried_again(lambda: list_folder(filesystem, remote))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(file_name(entry["name"]) for entry in found if entry["type"] == "file")


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False  # a link that leads in a circle


def remove_file(path: str) -> None:
    """Remove a file; fine when it is not there."""
    local = local_path(path)
    with suppress(FileNotFoundError):
        if local is not None:
            os.unlink(local)
        else:
            filesystem, remote = open_filesystem(path)
            tried_again(lambda: filesystem.rm_file(remote))


def remove_folder_if_empty(path: str) -> None:
    """Remove a folder when nothing is in it, else leave it; object stores have no folders to remove."""
    local = local_path(path)
    with suppress(OSError):
        if local is not None:
            os.rmdir(local)
            return
        filesystem, remote = open_filesystem(path)
        if not is_object_store(filesystem):
            filesystem.rmdir(remote)


def remove_leftovers(folder: str) -> None:
    """Remove the temporary files of killed writers from a local folder; nothing may be written there meanwhile."""
    for name in list_names(folder) if local_path(folder) is not None else ():
        if _LEFTOVER.fullmatch(name):
            remove_file(join(folder, name))


def remove_leftovers_of(path: str) -> None:
    """Remove what killed `open_sink`s of this local path have left beside it; none may be open."""
    local = local_path(path)
    if local is None:
        return
    folder, name = os.path.split(local)
    for other in list_names(folder):
        if other.startswith(f"{TEMP_PREFIX}{_kin_of(name)}"):
            remove_file(os.path.join(folder, other))


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
        filesystem, remote = open_filesystem(path)
        data = b"".join(parts)
        tried_again(lambda: filesystem.pipe_file(remote, data))
        return
    with _replacing(local, buffering=io.DEFAULT_BUFFER_SIZE) as file:
        file.writelines(parts)


@contextmanager
def open_sink(path: str) -> Iterator[BinaryIO]:
    """Open a local path or URL for writing what appears whole, and only when the block ends well.

    The content goes out as it is written: to a temporary file beside a local path, in parts of an upload to an object
    store, and to a temporary file of this machine where a URL is no object store's. When the block or the end of the
    upload raises, `path` keeps what it had. Parents are created.

    Raises OSError when it cannot be written.
    """
    local = local_path(path)
    if local is not None:
        os.makedirs(os.path.dirname(os.path.abspath(local)), exist_ok=True)
        with _replacing(local, buffering=COPY_BYTES, kin=_kin_of(local)) as file:
            yield file
        return
    filesystem, remote = open_filesystem(path)
    if is_object_store(filesystem):
        with open_upload(path) as file:
            yield file
        return
    make_folder(path.rpartition("/")[0])
    with tempfile.TemporaryFile() as spool:
        yield spool
        tried_again(lambda: put_file(spool, filesystem, remote))


def copy_into(path: str, sink: BinaryIO) -> int:
    """Append the content of a local file or URL to an open sink; returns its number of bytes.

    Short files go through the buffer of the sink, so that many of them cost few writes; long ones from file to file
    in the kernel where both are open files of this machine. Raises OSError when it cannot be read or written.
    """
    local = local_path(path)
    if local is None:
        with open_remote(path) as remote:
            return sum(_write_all(sink, data) for data in iter(lambda: remote.read(COPY_BYTES), b""))
    descriptor = os.open(local, os.O_RDONLY | os.O_CLOEXEC)
    try:
        n_bytes = 0
        while data := os.read(descriptor, COPY_BYTES):
            n_bytes += _write_all(sink, data)
            if len(data) == COPY_BYTES:
                n_bytes += _copy_rest(descriptor, sink)
        return n_bytes
    finally:
        os.close(descriptor)


def _write_all(sink: BinaryIO, data: bytes) -> int:
    """Write all of `data`, also to a sink without a buffer, which may take less at a time."""
    written = sink.write(data)
    while written < len(data):
        written += sink.write(data[written:])
    return written


def _copy_rest(descriptor: int, sink: BinaryIO) -> int:
    """Copy from where an open file stands, in the kernel as far as that is possible; returns the bytes copied so."""
    try:
        target = sink.fileno()
    except (OSError, AttributeError):
        return 0
    sink.flush()
    n_bytes = 0
    try:
        while n_copied := os.sendfile(target, descriptor, None, 1 << 30):
            n_bytes += n_copied
    except OSError as error:
        if error.errno not in _NO_KERNEL_COPY:
            raise
    return n_bytes


def make_folder(path: str) -> None:
    """Create a folder and its parents; fine when it exists.

    In an object store folders come with their files, and nothing is created, so that a misspelt bucket stays an error.
    """
    local = local_path(path)
    if local is not None:
        os.makedirs(local, exist_ok=True)
        return
    filesystem, remote = open_filesystem(path)
    if not is_object_store(filesystem):
        tried_again(lambda: filesystem.makedirs(remote, exist_ok=True))


def check_writable(path: str) -> None:
    """Raise ConfigError unless files can be written into the folder `path`, which may not exist yet.

    Really tries: writes a probe file into the folder, or into its nearest existing parent, and removes it.
    """
    local = local_path(path)
    try:
        if local is not None:
            _probe_local(path, local)
        else:
            _probe_remote(path)
    except (OSError, ValueError, ImportError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        remedy = "Name a folder that this user can write to, or change its permissions."
        if local is None:
            remedy = "Check the address, the credentials and what they permit."
        raise ConfigError(f"cannot write to the folder {path!r}: {reason}. {remedy}") from error


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


@contextmanager
def _replacing(path: str, buffering: int, kin: str = "") -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place when the block ends well, and is removed when it does not."""
    temp = _temp_name(os.path.dirname(path), kin)
    with ExitStack() as on_failure:
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        on_failure.callback(_remove_if_there, temp)
        with open(descriptor, "wb", buffering) as file:
            yield file
        os.replace(temp, path)
        on_failure.pop_all()


def _kin_of(path: str) -> str:
    """What the temporary files of a sink have in common, and those of no other sink in its folder."""
    name = os.path.basename(path).encode("utf-8", "surrogateescape")
    return f"{hashlib.sha256(name).hexdigest()[:20]}-"


def _temp_name(folder: str, kin: str = "") -> str:
    return os.path.join(folder, f"{TEMP_PREFIX}{kin}{os.getpid()}-{os.urandom(8).hex()}")


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
    if kind_at(path, pauses_s=ONCE) == "file":
        raise ConfigError(f"cannot write to the folder {path!r}: it is a file. Name a folder.")
    filesystem, remote = open_filesystem(path)
    probe = f"{remote.rstrip('/')}/{os.path.basename(_temp_name(''))}"
    with faults_are_oserrors():
        filesystem.pipe_file(probe, b"")
        filesystem.rm_file(probe)
