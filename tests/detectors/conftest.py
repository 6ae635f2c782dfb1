"""Detectors compute in tests as in the tasks of a run: with one native thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyimgano_dask.dataflow.native import limit_native_threads, native_threads_as_before


@pytest.fixture(autouse=True)
def one_native_thread() -> Iterator[None]:
    with native_threads_as_before():
        limit_native_threads(1)
        yield
