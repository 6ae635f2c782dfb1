"""How far a detector is with the training of its network: told to whoever asked in this thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

EpochDone = Callable[[int, int], None]
"""Called with the number of epochs that are done, from 1, and of all."""

_listener: ContextVar[EpochDone | None] = ContextVar("listener", default=None)


@contextmanager
def epochs_told_to(listener: EpochDone) -> Iterator[None]:
    """Call `listener` after each epoch that the block trains in this thread."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell_epoch(n_done: int, n_epochs: int) -> None:
    """Say that another epoch is done; nobody need be listening."""
    listener = _listener.get()
    if listener is not None:
        listener(n_done, n_epochs)
