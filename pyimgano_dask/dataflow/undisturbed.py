"""Starting worker processes without a signal that cuts the start short."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the end of the block, and keep SIGINT from processes started in it for good.

    A terminal interrupts all processes of a command at once; here only the one that was called decides what follows,
    and it can, because what it starts is never left half started. SIGTERM still ends the processes it is sent to. In a
    thread other than the main one nothing is held back: Python hands signals to the main thread alone.
    """
    # Started later, as Python does at need, the tracker would let the signals through again.
    resource_tracker.ensure_running()
    with _held_back():
        # Processes and threads inherit the mask, and so do the processes that those threads start.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _held_back() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    try:
        with ExitStack() as handlers:
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.signal(number, lambda number, frame: held.append(number))
                handlers.callback(signal.signal, number, before)
            yield
    finally:
        for held_number in held:
            signal.raise_signal(held_number)
