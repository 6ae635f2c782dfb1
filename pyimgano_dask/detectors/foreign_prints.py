"""Prints of foreign calls, discarded without those of other threads.

`sys.stdout` and `sys.stderr` belong to the process. While a foreign call is on its way records, a progress bar and the
program around the run may write to them, too.
"""

from __future__ import annotations

import io
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any

_lock = threading.Lock()
# How many calls each thread is in, and what puts the streams back that are there without any.
_callers: Counter[threading.Thread] = Counter()
_streams = ExitStack()
# Threads that were there when the call began that may start others, other than its own; None without such a call.
# Threads, and not their numbers, which later threads are given again.
_bystanders: frozenset[threading.Thread] | None = None


class _Null(io.RawIOBase):
    """Takes bytes and keeps none of them."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        return memoryview(data).nbytes


_nowhere = io.TextIOWrapper(io.BufferedWriter(_Null()), encoding="utf-8", write_through=True)


class _Divided:
    """A stream that is itself for bystanders, and nowhere for the threads of foreign calls.

    A call may keep it, in a handler of its log. Kept, it is nowhere during later calls and the stream between them.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(_nowhere if _is_of_a_call(threading.current_thread()) else self._stream, name)


def _is_of_a_call(thread: threading.Thread) -> bool:
    bystanders = _bystanders  # another thread may end its call meanwhile
    return thread in _callers or (bystanders is not None and thread not in bystanders)


@contextmanager
def own_prints_discarded() -> Iterator[None]:
    """Discard what the block prints in this thread; blocks of several threads may be open at a time."""
    thread = threading.current_thread()
    with _lock:
        if not _callers:
            _streams.enter_context(redirect_stdout(_Divided(sys.stdout)))
            _streams.enter_context(redirect_stderr(_Divided(sys.stderr)))
        _callers[thread] += 1
    try:
        yield
    finally:
        with _lock:
            _callers[thread] -= 1
            if not _callers[thread]:
                del _callers[thread]
            if not _callers:
                _streams.close()


@contextmanager
def prints_discarded() -> Iterator[None]:
    """Discard what the block prints in this thread, and in threads that are started meanwhile.

    One block at a time in a process; it may hold another one of the same thread.
    """
    global _bystanders
    with own_prints_discarded():
        if _bystanders is not None:
            yield
            return
        _bystanders = frozenset(threading.enumerate()) - {threading.current_thread()}
        try:
            yield
        finally:
            _bystanders = None
