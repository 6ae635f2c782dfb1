"""What a fault costs: one input, or the whole run."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from pyimgano_dask.errors import ConfigError, InputError, RunError, Stage
from pyimgano_dask.shortages import is_disk_full

CANNOT_WRITE = "results cannot be written"
REMEDY = "make room or access and run again"


@contextmanager
def faults_are_the_inputs(stage: Stage, what: str) -> Iterator[None]:
    """Whatever goes wrong with one input becomes its error record; only a full or read-only disk ends the run.

    Everything is caught, because detectors are foreign code and one bad image must never end a run.
    """
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:
        is_read_only = isinstance(error, OSError) and error.errno == errno.EROFS
        if is_read_only or is_disk_full(error):
            raise RunError(f"{CANNOT_WRITE}: {error}; {REMEDY}") from error
        raise InputError(stage, type(error).__name__, f"{what}: {error}") from error


@contextmanager
def shard_faults_end_the_run() -> Iterator[None]:
    """Without its shard a chunk is lost, whatever the reason."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{CANNOT_WRITE}: {error}; {REMEDY}") from error


@contextmanager
def flag_named(flag: str) -> Iterator[None]:
    """Put the flag before each line of a ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError("\n".join(f"{flag}: {line}" for line in str(error).splitlines())) from None
