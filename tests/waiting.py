"""Waiting for what another process does; imports next to nothing, because workers import it too."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

WAIT_TIMEOUT_S = 60


def wait_until(is_so: Callable[[], bool], what: str, timeout_s: float = WAIT_TIMEOUT_S) -> None:
    """Return once `is_so()`; fail the test with `what` when it is not so in time."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.01)


def stop_group(pid: int) -> None:
    """Stop (SIGSTOP) the process group that `pid` leads, and return once each thread of the leader has stopped.

    The signal alone is not enough: one thread takes it, and until that one gets a processor the others go on.
    """
    os.killpg(pid, signal.SIGSTOP)
    wait_until(lambda: _thread_states(pid) == {"T"}, f"all threads of process {pid} have stopped")


def _thread_states(pid: int) -> set[str]:
    """The states of a process's threads, one letter each (proc(5))."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return {stat.rpartition(")")[2].split()[0] for stat in stats}
