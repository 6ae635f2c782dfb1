"""Checkpoints are plain arrays: nothing in them is ever run, and damage is told in words."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyimgano_dask.detectors.base import Detector
from pyimgano_dask.detectors.checkpoint import HEADER, decode_detector, encode_detector
from pyimgano_dask.errors import ConfigError
from tests.detectors.images import RESIZE_HW, draw_images, make


@pytest.fixture(scope="module")
def detector() -> Detector[Any]:
    return make("vision_pixel_mad_map", "gray").fit(draw_images(1, "gray"))


@pytest.fixture(scope="module")
def checkpoint(detector: Detector[Any]) -> bytes:
    return encode_detector(detector)


def npz(header: object, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    encoded = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    np.savez_compressed(buffer, **{HEADER: encoded, **arrays})
    return buffer.getvalue()


class Trap:
    """Pickles into a call that makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    with pytest.raises(ConfigError, match=r"'part\.pkl'") as refusal:
        decode_detector(pickle.dumps(Trap(trap)), "part.pkl")
    assert "pickle" not in str(refusal.value), "nothing is said that could be taken for advice to unpickle it"

    header = {"format": 1, "name": "vision_pixel_mad_map", "arguments": {}}
    with pytest.raises(ConfigError, match=r"'part\.npz'.*: it holds Python objects, which are not read;"):
        decode_detector(npz(header, median=np.array([Trap(trap)], dtype=object)), "part.npz")

    assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(trap)))
    assert trap.exists(), "the trap works"


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"hello", b"\x93NUMPY\x01\x00"], ids=repr)
def test_other_files_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"'x\.bin'"):
        decode_detector(data, "x.bin")


def test_a_plain_array_is_refused_by_name() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    with pytest.raises(ConfigError, match=r"'x\.npy'"):
        decode_detector(buffer.getvalue(), "x.npy")


def test_the_format_and_the_detector_are_checked(detector: Detector[Any]) -> None:
    state = detector.state()
    with pytest.raises(ConfigError, match="another format"):
        decode_detector(npz({"format": 99, "name": detector.name, "arguments": {}}, **state), "x")
    with pytest.raises(ConfigError, match="another format"):
        decode_detector(npz(["format", 1], **state), "x")
    with pytest.raises(ConfigError, match="unknown detector 'nope'"):
        decode_detector(npz({"format": 1, "name": "nope", "arguments": {}}, **state), "x")
    with pytest.raises(ConfigError, match="resize_hw"):
        decode_detector(npz({"format": 1, "name": detector.name, "arguments": {"resize_hw": 3}}, **state), "x")


@pytest.mark.parametrize("arguments", [None, [1], "text", 5])
def test_arguments_that_are_no_object_are_refused(detector: Detector[Any], arguments: object) -> None:
    header = {"format": 1, "name": detector.name, "arguments": arguments}
    with pytest.raises(ConfigError):
        decode_detector(npz(header, **detector.state()), "x")


@pytest.mark.parametrize("dtype", ["U3", "complex64", "M8[s]"])
def test_arrays_of_another_kind_are_refused(detector: Detector[Any], dtype: str) -> None:
    header = {"format": 1, "name": detector.name, "arguments": {"resize_hw": RESIZE_HW}}
    with pytest.raises(ConfigError):
        decode_detector(npz(header, **{key: np.zeros(RESIZE_HW, dtype=dtype) for key in detector.state()}), "x")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_damage_is_told_in_words(checkpoint: bytes, place: float, bit: int, cut: bool) -> None:
    damaged = bytearray(checkpoint)
    position = int(place * len(damaged))
    damaged[position] ^= 1 << bit
    if cut:
        del damaged[position:]
    try:
        decode_detector(bytes(damaged), "worn.npz")
    except ConfigError as error:
        assert "worn.npz" in str(error)  # noqa: PT017 - a flip in unused bytes of the archive may go unnoticed
