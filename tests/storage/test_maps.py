import io
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from pyimgano_dask.errors import InputError
from pyimgano_dask.storage import maps
from pyimgano_dask.storage.files import write_atomic
from pyimgano_dask.storage.maps import encode_npy

MAX_PIXELS = 1000
read_npy = partial(maps.read_npy, max_pixels=MAX_PIXELS)

arrays = npst.arrays(
    st.sampled_from(["<f4", ">f4", "u1", "<f8"]),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
)


@given(array=arrays)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, array: NDArray[Any]) -> None:
    path = tmp_path_factory.mktemp("maps") / "a.npy"
    for given_array in (array, array.T, array[..., ::2] if array.ndim else array):
        write_atomic(str(path), *encode_npy(given_array))
        for read in (np.load(path), read_npy(str(path))):
            assert read.dtype == given_array.dtype
            np.testing.assert_array_equal(read, given_array)


@given(array=arrays)
def test_same_bytes_as_numpy_for_c_order(array: NDArray[Any]) -> None:
    expected = io.BytesIO()
    np.save(expected, np.asarray(array, order="C"))
    assert b"".join(encode_npy(array)) == expected.getvalue()


def test_data_is_not_copied() -> None:
    array = np.zeros((4, 5), np.float32)
    _, data = encode_npy(array)
    array[0, 0] = 1
    assert bytes(data[:4]) == np.float32(1).tobytes()


def test_read_from_a_url() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_atomic("memory://maps/a.npy", *encode_npy(array))
    np.testing.assert_array_equal(read_npy("memory://maps/a.npy"), array)


def test_missing_file_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.npy") as caught:
        read_npy(str(tmp_path / "none.npy"))
    assert (caught.value.stage, caught.value.kind) == ("read", "FileNotFoundError")


def damaged() -> dict[str, bytes]:
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    whole = b"".join(encode_npy(np.ones((8, 8), np.float32)))
    return {
        "empty": b"",
        "not npy": b"PNG",
        "header only": whole[:40],
        "cut": whole[:-1],
        "pickle": pickled.getvalue(),
    }


@pytest.mark.parametrize("kind", ["empty", "not npy", "header only", "cut", "pickle"])
@pytest.mark.parametrize("folder", ["local", "memory://maps"])
def test_damaged_files_are_read_errors(tmp_path: Path, kind: str, folder: str) -> None:
    path = f"{tmp_path}/a.npy" if folder == "local" else f"{folder}/damaged.npy"
    write_atomic(path, damaged()[kind])
    with pytest.raises(InputError, match="is not a whole"):
        read_npy(path)


def claiming(shape: tuple[int, ...], version: tuple[int, int] = (1, 0)) -> bytes:
    """An .npy file whose header promises float32 of this shape, with 8 bytes of data."""
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    writers = {(1, 0): np.lib.format.write_array_header_1_0, (2, 0): np.lib.format.write_array_header_2_0}
    writers[version](file, header)
    return file.getvalue() + bytes(8)


@pytest.mark.parametrize("shape", [(2**31, 2**31), (2**63, 2**63), (10**30,)], ids=str)
def test_a_header_that_claims_too_much_is_refused_before_memory_is_taken(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(claiming(shape))
    with pytest.raises(InputError, match=f"--max-image-pixels {MAX_PIXELS}") as caught:
        read_npy(str(path))
    assert (caught.value.stage, caught.value.kind) == ("read", "MapTooLargeError")


@pytest.mark.parametrize("shape", [(-1, 4), (3, 1), (-2, -1)], ids=str)
def test_a_header_that_fits_no_data_is_a_read_error(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(claiming(shape))
    with pytest.raises(InputError) as caught:
        read_npy(str(path))
    assert caught.value.stage == "read"


def test_the_limit_of_pixels_is_inclusive(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    write_atomic(str(path), *encode_npy(np.ones((MAX_PIXELS, 1), np.float32)))
    assert read_npy(str(path)).shape == (MAX_PIXELS, 1)
    with pytest.raises(InputError, match="1000 values, more than --max-image-pixels 999"):
        maps.read_npy(str(path), max_pixels=MAX_PIXELS - 1)


@pytest.mark.parametrize("more", [b"\0", bytes(1 << 20)], ids=["a byte", "a megabyte"])
def test_trailing_bytes_are_a_read_error(tmp_path: Path, more: bytes) -> None:
    path = tmp_path / "a.npy"
    write_atomic(str(path), *encode_npy(np.ones((8, 8), np.float32)), more)
    with pytest.raises(InputError, match="it has more"):
        read_npy(str(path))


def test_format_2_is_read_and_later_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(claiming((2,), (2, 0)))
    np.testing.assert_array_equal(read_npy(str(path)), [0, 0])
    path.write_bytes(claiming((2,)).replace(b"NUMPY\x01", b"NUMPY\x09", 1))
    with pytest.raises(InputError, match="is not a whole"):
        read_npy(str(path))


@given(data=st.binary(max_size=300))
def test_any_bytes_are_an_array_or_a_read_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("maps") / "a.npy"
    for content in (data, b"\x93NUMPY\x01\x00" + data, claiming((2,))[:10] + data):
        path.write_bytes(content)
        with suppress(InputError):
            read_npy(str(path))
