"""Native thread pools: inside a task OpenCV and BLAS use one thread, because the parallelism is Dask's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import cv2
from threadpoolctl import threadpool_limits


@cache
def limit_native_threads() -> None:
    """Limit OpenCV and BLAS to one thread in this process, for good. Meant for worker processes."""
    cv2.setNumThreads(1)
    threadpool_limits(1)


@contextmanager
def native_threads_limited() -> Iterator[None]:
    """Limit OpenCV and BLAS to one thread in this process while the block runs. Meant for the user's own process."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        cv2.setNumThreads(before)
