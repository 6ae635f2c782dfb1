"""What every transfer from and to a fsspec URL shares: one way to reach it, one rule for trying again."""

from __future__ import annotations

import errno
import io
import shutil
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, TypeVar, cast

import fsspec

from pyimgano_dask.errors import PyimganoDaskError

T = TypeVar("T")

PAUSES_S = (0.2, 1.0, 3.0)
"""Seconds before the second, third and fourth try of a transfer."""

ONCE: tuple[float, ...] = ()
"""For what is asked before a run begins: whoever waits for that should not wait for a server that does not answer."""

_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError, ssl.SSLError)
_TRANSIENT_ERRNOS = (
    errno.EBUSY,
    errno.EREMOTEIO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENETRESET,
    errno.EHOSTUNREACH,
)
_TRANSIENT_STATUS = (408, 429)

# Faults of a connection that are no OSError, by name, because their packages are optional.
_TRANSIENT_NAMES = frozenset(
    {
        # botocore
        *("HTTPClientError", "IncompleteReadError", "ResponseParserError"),
        *("EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError"),
        # aiohttp
        *("ClientPayloadError", "ClientConnectionError"),
        # http.client and urllib3
        *("IncompleteRead", "ProtocolError"),
        # azure
        *("ServiceRequestError", "ServiceResponseError"),
    }
)

_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})

# What is said in words already, and what Python, zarr and fsspec raise for other reasons than a transfer.
_NO_FAULT_OF_A_TRANSFER = (
    *(PyimganoDaskError, OSError, ValueError, TypeError, LookupError),
    *(ImportError, RuntimeError),
)


class CutShortError(OSError):
    """A file ended before its size was reached."""


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it.

    The instance is made in the process that asks and kept by fsspec, one for all its threads; only URLs travel between
    processes. Raises ImportError when the scheme needs a package that is not installed, ValueError for an unknown one.
    """
    filesystem, path = fsspec.core.url_to_fs(url, **client_options(url))
    settle(filesystem)
    return filesystem, path


def client_options(url: str) -> dict[str, Any]:
    """What fsspec is told beside a URL: listings of s3 are not kept, because other processes write too."""
    return {scheme: {"use_listings_cache": False} for scheme in ("s3", "s3a") if f"{scheme}://" in url}


def settle(filesystem: Any) -> None:
    """Have the client of a store forget what it listed, and leave trying again to `tried_again`.

    s3fs tries all again that botocore has tried five times; with a third rule above them a write that cannot succeed
    would take minutes.
    """
    filesystem.invalidate_cache()
    if hasattr(filesystem, "retries"):
        filesystem.retries = 1


def canonical(url: str) -> str:
    """One spelling of a URL for all that lead to the same place, without a slash at its end.

    A chained URL, and one that no installed file system understands, stays as it is.

    >>> canonical("memory://line4/run/")
    'memory:///line4/run'
    """
    if "::" in url:
        return url
    try:
        filesystem, path = open_filesystem(url)
    except (OSError, ValueError, ImportError):
        return url
    return str(filesystem.unstrip_protocol(path)).rstrip("/")


def list_folder(filesystem: Any, folder: str) -> list[dict[str, Any]]:
    """What lies directly in a folder, as fsspec tells it (`name`, `type`), asked anew.

    Object stores may list a folder's own placeholder among its children; it is left out.
    """
    filesystem.invalidate_cache(folder)
    entries = filesystem.ls(folder, detail=True)
    return [entry for entry in entries if entry["name"].rstrip("/") != folder.rstrip("/")]


def is_object_store(filesystem: Any) -> bool:
    """Whether a file system keeps objects by name: no folders, and an upload shows when it is complete, not before."""
    protocol = filesystem.protocol
    return not _OBJECT_STORES.isdisjoint((protocol,) if isinstance(protocol, str) else protocol)


def tried_again(transfer: Callable[[], T], pauses_s: Sequence[float] = PAUSES_S) -> T:
    """The result of a transfer that may be made twice, tried again while its faults are transient (`is_transient`).

    `pauses_s` are the seconds before each further try, `ONCE` for none.

    Raises OSError when it fails for good, whatever the client of the store raised (`faults_are_oserrors`).
    """
    pauses = iter(pauses_s)
    while True:
        try:
            with faults_are_oserrors():
                return transfer()
        except OSError as error:
            pause_s = next(pauses, None)
            if pause_s is None or not is_transient(error):
                raise
        time.sleep(pause_s)


@contextmanager
def faults_are_oserrors() -> Iterator[None]:
    """Let what is an error of a store's client alone leave the block as an OSError; Python's own errors pass."""
    try:
        yield
    except _NO_FAULT_OF_A_TRANSFER:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: a cut connection, a timeout, an overloaded or failing server.

    Missing files, missing permissions and refused credentials stay as they are. An error counts as what caused it,
    because clients wrap: fsspec calls a file missing whose web server failed.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if not isinstance(link, _FINAL) and _is_transient_itself(link):
            return True
        link = link.__cause__
    return False


def _is_transient_itself(error: BaseException) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError, CutShortError)):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS:
        return True
    if _TRANSIENT_NAMES.intersection(base.__name__ for base in type(error).__mro__):
        return True
    status = _http_status(error)
    return status is not None and (status >= 500 or status in _TRANSIENT_STATUS)


@contextmanager
def open_remote(url: str) -> Iterator[BinaryIO]:
    """Open a URL for reading. Reads that fail for a moment are made again from where they stood.

    Raises FileNotFoundError when it is not there, OSError when it cannot be read, also when it ends too early.
    """
    filesystem, path = open_filesystem(url)
    file = tried_again(lambda: filesystem.open(path, "rb"))
    try:
        with io.BufferedReader(_SteadyReader(file), 1 << 20) as reader:
            yield reader
    finally:
        file.close()


@contextmanager
def open_upload(url: str) -> Iterator[BinaryIO]:
    """Write an object of an object store part by part; it appears when the block ends well, else nothing does.

    Raises OSError when it cannot be written.
    """
    # A part that has left the hand cannot be tried again from here, so this instance keeps the tries of its client.
    filesystem, path = fsspec.core.url_to_fs(url, skip_instance_cache=True)
    with faults_are_oserrors():
        file = filesystem.open(path, "wb")
    try:
        yield cast(BinaryIO, _Upload(file))
        with faults_are_oserrors():
            file.close()
    except BaseException:
        with suppress(Exception):
            file.discard()
        # An fsspec file that is not marked as closed is committed when it is collected.
        file.closed = True
        raise


def put_file(source: BinaryIO, filesystem: Any, path: str) -> None:
    """Write a whole open file to a path, from its start; nothing is left when that fails."""
    source.seek(0)
    try:
        with filesystem.open(path, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except BaseException:
        with suppress(Exception):
            filesystem.rm_file(path)
        raise


class _Upload(io.RawIOBase):
    """The writing end of an fsspec file, with OSError for whatever its store raises."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with faults_are_oserrors():
            return int(self._file.write(data))


class _SteadyReader(io.RawIOBase):
    """An fsspec file, read from its start to its end."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = tried_again(lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        data = tried_again(lambda: self._read(-1))
        self._position += len(data)
        return data

    def _read(self, n_bytes: int) -> bytes:
        if self._file.tell() != self._position:
            self._file.seek(self._position)
        data: bytes = self._file.read(n_bytes)
        size = getattr(self._file, "size", None)
        reached = self._position + len(data)
        if isinstance(size, int) and reached < size and (not data or n_bytes < 0):
            raise CutShortError(f"it ends after {reached} of {size} bytes")
        return data


def _http_status(error: BaseException) -> int | None:
    """The status a server answered with, wherever the clients of botocore, aiohttp, gcsfs and azure put it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status: Any = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = (getattr(error, name, None) for name in ("status", "status_code", "code"))
        status = next((value for value in found if value is not None), None)
    return status if isinstance(status, int) else None
