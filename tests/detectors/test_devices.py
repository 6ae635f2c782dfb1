"""Where detectors compute, and what it is called."""

from __future__ import annotations

import pytest

from pyimgano_dask.detectors.devices import device_here


@pytest.mark.parametrize(
    ("given", "name"), [("cpu", "cpu"), ("cuda", "cuda"), ("cuda:0", "cuda"), ("cuda:1", "cuda:1")]
)
def test_a_device_has_one_name(given: str, name: str) -> None:
    assert device_here(given, "torch") == name
