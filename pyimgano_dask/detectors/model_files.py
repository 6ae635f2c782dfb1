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
    SHA-256 is `trusted_sha256`. `seen` holds, by path, what has been read so far.
    """

    base_dir: str = "."
    trusts_code: bool = False
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
        """Take note of a file that a library will read by itself; what is no file here is its own affair."""
        if not is_url(path) and os.path.isfile(resolve(path, self.base_dir)):
            with open(resolve(path, self.base_dir), "rb") as file:
                self.seen[path] = ReadFile(named_by, hashlib.file_digest(file, "sha256").hexdigest())

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
            raise ConfigError(
                f"{named_by}: {path!r} is {what}, which can run code of its maker when it is loaded; give "
                "--trust-model-file if you trust it, or name it in an infer config with checkpoint.sha256 "
                f"({sha256})"
            )
