"""Files of weights and models that a detector is given: reading them, and trusting those that can run code."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.storage.files import read_file, resolve
from pyimgano_dask.transfers import ONCE


@dataclass(frozen=True)
class ModelFiles:
    """Where model files are read from and which of them may run code.

    Relative paths start at `base_dir`. A file whose format can carry code is read when `trusts_code`, or when its
    SHA-256 is `trusted_sha256`.
    """

    base_dir: str = "."
    trusts_code: bool = False
    trusted_sha256: str | None = None

    def read(self, path: str, named_by: str) -> bytes:
        """The bytes of a file whose format carries data only; raises ConfigError naming `named_by`."""
        try:
            return read_file(resolve(path, self.base_dir), pauses_s=ONCE)
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(f"{named_by}: {path!r} cannot be read: {error}") from None

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
