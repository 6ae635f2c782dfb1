"""Native thread pools: a task uses so many threads of OpenCV, BLAS and torch, because the parallelism is Dask's."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
from threadpoolctl import threadpool_limits

# What was set last, and how many modules were loaded then: a new one may have brought a pool of its own.
_State = tuple[int, int]
_of_the_process: _State | None = None
_of_this_thread = threading.local()
_torch_default: int | None = None


def limit_native_threads(count: int) -> None:
    """Let OpenCV, BLAS and torch (where it is loaded) use `count` threads for what this thread does next.

    Meant for the start of each task: it costs nothing where the limit stands already. OpenCV and BLAS have one limit a
    process, OpenMP and torch one for each thread that calls them. Of tasks with different limits that run in one
    process at the same time, the last to begin decides for OpenCV and BLAS.
    """
    global _of_the_process, _torch_default
    state = (count, len(sys.modules))
    if _of_the_process == state and getattr(_of_this_thread, "state", None) == state:
        return
    torch = _loaded_torch()
    if torch is not None and _torch_default is None:
        _torch_default = torch.get_num_threads()
    cv2.setNumThreads(count)
    threadpool_limits(count)
    with threadpool_limits():
        pass  # threadpoolctl reserves OpenBLAS for the first thread that sets it, until that thread leaves a block.
    if torch is not None:
        torch.set_num_threads(count)
    _of_the_process = _of_this_thread.state = state


@contextmanager
def native_threads_as_before() -> Iterator[None]:
    """Put the limits of this process back after the block. For the user's own process, in which tasks run."""
    global _of_the_process
    opencv, torch = cv2.getNumThreads(), _loaded_torch()
    torch_threads = None if torch is None else torch.get_num_threads()
    with threadpool_limits():
        try:
            yield
        finally:
            _of_the_process = None
            cv2.setNumThreads(opencv)
            if (torch := _loaded_torch()) is not None and (threads := torch_threads or _torch_default):
                torch.set_num_threads(threads)


def _loaded_torch() -> Any:
    """The module, None where nothing has loaded it, or a thread is about to."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "set_num_threads") else None
