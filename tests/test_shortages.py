"""Telling faults of a machine that runs short from others."""

from __future__ import annotations

import errno
import os

import cv2
import numpy as np
import pytest

from pyimgano_dask.shortages import is_disk_full, is_out_of_memory


def raised_by_numpy() -> None:
    np.empty(1 << 60, np.uint8)


def raised_by_torch() -> None:
    pytest.importorskip("torch", reason="asks torch for memory").empty(1 << 60)


@pytest.mark.parametrize("ask", [raised_by_numpy, raised_by_torch])
def test_libraries_that_get_no_memory_are_understood(ask: object) -> None:
    assert callable(ask)
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        ask()
    assert is_out_of_memory(caught.value)


def test_a_failed_allocation_of_the_system_is_short_memory_and_no_full_disk() -> None:
    error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    assert is_out_of_memory(error)
    assert not is_disk_full(error)


def test_a_full_disk_is_no_short_memory() -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left") as caught:
        full.write(b"x")
    assert is_disk_full(caught.value)
    assert not is_out_of_memory(caught.value)


def test_a_fault_of_an_image_is_neither() -> None:
    with pytest.raises(cv2.error) as caught:
        cv2.resize(np.zeros((0, 0), np.uint8), (4, 4))
    assert not is_out_of_memory(caught.value)
    assert not is_disk_full(caught.value)
