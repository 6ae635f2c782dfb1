"""Files of weights and models that a detector is given: reading them, and trusting those that can run code."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.storage.files import read_file, resolve
from pyimgano_dask.transfers import ONCE
from pyimgano_dask.urls import is_url


@dataclass(frozen=True)
class ReadFile:
    """A file that a detector was made of: the flag or the argument that names it, and the SHA-256 of its content."""

    named_by: str
    sha256: str


@dataclass(frozen=True)
class ModelFiles:
    """Where model files are read from and which of them may run code.

    Relative paths start at `base_dir`. A file whose format can carry code is read when `trusts_code`, or when its
    SHA-256 is `trusted_sha256`, which a config can give where `takes_sha256`. `seen` holds, by path, what has been read
    so far.
    """

    base_dir: str = "."
    trusts_code: bool = False
    takes_sha256: bool = False
    trusted_sha256: str | None = None
    seen: dict[str, ReadFile] = field(default_factory=dict, compare=False, repr=False)

    def read(self, path: str, named_by: str) -> bytes:
        """The bytes of a file whose format carries data only; raises ConfigError that begins with `named_by`.

        That is the flag or the argument, with what else is to be said of it behind a colon.
        """
        try:
            data = read_file(resolve(path, self.base_dir), pauses_s=ONCE)
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(f"{named_by}: {path!r} cannot be read: {error}") from None
        self.seen[path] = ReadFile(named_by.partition(":")[0], hashlib.sha256(data).hexdigest())
        return data

    def note(self, path: str, named_by: str) -> None:
        """Take note of a file or a folder that a library will read by itself; what is neither here is its own affair.

        Raises ConfigError that begins with `named_by` where it cannot be read.
        """
        place = resolve(path, self.base_dir)
        if is_url(path) or not (os.path.isfile(place) or os.path.isdir(place)):
            return
        try:
            sha256 = _sha256_of_folder(place) if os.path.isdir(place) else _sha256_of_file(place)
        except OSError as error:
            raise ConfigError(f"{named_by}: {path!r} cannot be read: {error}") from None
        self.seen[path] = ReadFile(named_by, sha256)

    def read_code(self, path: str, named_by: str, what: str) -> bytes:
        """The bytes of a file that can run code, if it is trusted. `what` names its format, with its article."""
        data = self.read(path, named_by)
        self.check_trust(data, path, named_by, what)
        return data

    def check_trust(self, data: bytes, path: str, named_by: str, what: str) -> None:
        """Raise ConfigError unless these bytes may run code."""
        if self.trusts_code:
            return
        sha256 = hashlib.sha256(data).hexdigest()
        if self.trusted_sha256 is None or sha256 != self.trusted_sha256.lower():
            in_config = f", or name it in an infer config with checkpoint.sha256 ({sha256})"
            raise ConfigError(
                f"{named_by}: {path!r} is {what}, which can run code of its maker when it is loaded; give "
                f"--trust-model-file if you trust it{in_config if self.takes_sha256 else ''}"
            )


def _sha256_of_file(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_folder(folder: str) -> str:
    """Of the names and the content of the files in it, without hidden ones and what Python compiles."""
    digest = hashlib.sha256()
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for path in (os.path.join(parent, name) for name in sorted(files) if not name.startswith(".")):
            if os.path.isfile(path):
                line = f"{os.path.relpath(path, folder)}\0{_sha256_of_file(path)}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _raise(error: OSError) -> None:
    raise error
