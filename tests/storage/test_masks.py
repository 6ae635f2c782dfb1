import hashlib
import io
import subprocess
import sys
import zipfile
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from PIL import Image

from pyimgano_dask.errors import InputError
from pyimgano_dask.storage.masks import MaskFormat, decode_mask, encode_mask

FORMATS: tuple[MaskFormat, ...] = get_args(MaskFormat)

masks = npst.arrays(
    np.uint8,
    npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40),
    elements=st.sampled_from([0, 255]),
)

HASHES = """
import hashlib
import numpy as np
from pyimgano_dask.storage.masks import encode_mask

mask = (np.random.default_rng(0).random((64, 48)) > 0.9).astype(np.uint8) * 255
for fmt in ("png", "npy", "npz"):
    print(hashlib.sha256(encode_mask(mask, fmt)).hexdigest())
"""


@pytest.mark.parametrize("fmt", FORMATS)
@given(mask=masks)
def test_round_trip(fmt: MaskFormat, mask: NDArray[np.uint8]) -> None:
    for given_mask in (mask, mask.T, mask[:, ::2]):
        decoded = decode_mask(encode_mask(given_mask, fmt), fmt)
        assert decoded.dtype == np.uint8
        np.testing.assert_array_equal(decoded, given_mask)


def test_other_readers_see_0_and_255() -> None:
    mask = np.zeros((5, 7), np.uint8)
    mask[1:3, 2:6] = 255
    with Image.open(io.BytesIO(encode_mask(mask, "png"))) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), mask)
    np.testing.assert_array_equal(np.load(io.BytesIO(encode_mask(mask, "npy"))), mask)
    with np.load(io.BytesIO(encode_mask(mask, "npz"))) as archive:
        assert archive.files == ["mask"]
        np.testing.assert_array_equal(archive["mask"], mask)


@pytest.mark.parametrize("fmt", ["png", "npz"])
def test_a_mask_of_few_defects_is_small(fmt: MaskFormat) -> None:
    mask = np.zeros((512, 512), np.uint8)
    mask[100:160, 300:420] = 255
    assert len(encode_mask(mask, fmt)) < 2000


def test_the_same_bytes_in_every_process() -> None:
    mask = (np.random.default_rng(0).random((64, 48)) > 0.9).astype(np.uint8) * 255
    here = [hashlib.sha256(encode_mask(mask, fmt)).hexdigest() for fmt in FORMATS]
    there = subprocess.run([sys.executable, "-c", HASHES], capture_output=True, text=True, check=True)
    assert there.stdout.split() == here


def test_an_npz_carries_no_time_of_writing() -> None:
    with zipfile.ZipFile(io.BytesIO(encode_mask(np.zeros((3, 3), np.uint8), "npz"))) as archive:
        assert [member.date_time for member in archive.infolist()] == [(1980, 1, 1, 0, 0, 0)]


@pytest.mark.parametrize("fmt", FORMATS)
def test_damaged_masks_are_read_errors(fmt: MaskFormat) -> None:
    whole = encode_mask(np.full((30, 30), 255, np.uint8), fmt)
    for data in (b"", b"not a mask", whole[: len(whole) // 3]):
        with pytest.raises(InputError, match=f"not a whole {fmt} mask") as caught:
            decode_mask(data, fmt)
        assert caught.value.stage == "read"


def test_an_array_that_is_no_mask_is_refused() -> None:
    data = io.BytesIO()
    np.save(data, np.zeros((2, 3), np.float32))
    with pytest.raises(InputError, match=r"float32 of shape \(2, 3\)"):
        decode_mask(data.getvalue(), "npy")
