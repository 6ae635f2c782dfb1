"""Waiting for what another process does; imports nothing, because workers import it too."""

from __future__ import annotations

import time
from collections.abc import Callable

WAIT_TIMEOUT_S = 60


def wait_until(is_so: Callable[[], bool], what: str, timeout_s: float = WAIT_TIMEOUT_S) -> None:
    """Return once `is_so()`; fail the test with `what` when it is not so in time."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.01)
