"""Prints of foreign calls, discarded without those of other threads.

`sys.stdout` and `sys.stderr` belong to the process. While a foreign call is on its way records, a progress bar and the
program around the run may write to them, too.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

# Threads that were there when the call that is on its way began, other than its own; None without a call. Threads, and
# not their numbers, which later threads are given again.
_bystanders: frozenset[threading.Thread] | None = None


class _Null(io.RawIOBase):
    """Takes bytes and keeps none of them."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        return memoryview(data).nbytes


_nowhere = io.TextIOWrapper(io.BufferedWriter(_Null()), encoding="utf-8", write_through=True)


class _Divided:
    """A stream that is itself for bystanders, and nowhere for the threads of a foreign call.

    A call may keep it, in a handler of its log. Kept, it is nowhere during later calls and the stream between them.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        bystanders = _bystanders  # another thread may end its call meanwhile
        is_of_the_call = bystanders is not None and threading.current_thread() not in bystanders
        return getattr(_nowhere if is_of_the_call else self._stream, name)


@contextmanager
def prints_discarded() -> Iterator[None]:
    """Discard what the block prints in this thread, and in threads that are started meanwhile.

    One block at a time in a process; it may hold another one of the same thread.
    """
    global _bystanders
    if _bystanders is not None:
        yield
        return
    _bystanders = frozenset(threading.enumerate()) - {threading.current_thread()}
    try:
        with redirect_stdout(_Divided(sys.stdout)), redirect_stderr(_Divided(sys.stderr)):
            yield
    finally:
        _bystanders = None
