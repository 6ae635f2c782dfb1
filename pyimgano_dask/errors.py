"""Errors a user meets. Each message says what is wrong, the value, what is allowed and what to do."""

from __future__ import annotations

from typing import Literal

Stage = Literal["read", "preprocess", "infer", "extract", "write"]


class PyimganoDaskError(Exception):
    """Base of every error raised on purpose; `exit_code` is what a command ends with."""

    exit_code = 1


class ConfigError(PyimganoDaskError):
    """A flag, a config or a file is unusable. Raised before any work and before anything is written."""

    exit_code = 2


class RunError(PyimganoDaskError):
    """The run could not finish (a full disk, a lost cluster)."""

    exit_code = 1


class Terminated(KeyboardInterrupt):
    """The system asks the process to end (SIGTERM); what is said of it, if anything, is where to go on."""


class InputError(PyimganoDaskError):
    """One input failed; the run goes on and the record of that input carries the error.

    `stage` is where it failed, `kind` the short class of the fault that goes into `error.type`.
    """

    def __init__(self, stage: Stage, kind: str, message: str) -> None:
        super().__init__(stage, kind, message)
        self.stage: Stage = stage
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message
