import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyimgano_dask.errors import ConfigError, InputError, RunError
from pyimgano_dask.storage import zarr_store
from pyimgano_dask.storage.zarr_store import StoredDtype, count_rows, create_store, write_rows

N_INPUTS, BATCH_SIZE = 14, 4
MAX_PIXELS = 1000
read_row = partial(zarr_store.read_row, max_pixels=MAX_PIXELS)
find_row = partial(zarr_store.find_row, max_pixels=MAX_PIXELS)


def a_row(row: int, shape: tuple[int, int], dtype: StoredDtype = "float32") -> NDArray[Any]:
    values = np.random.default_rng(row).random(shape)
    return values.astype(np.float32) if dtype == "float32" else (values > 0.7).astype(np.uint8) * 255


def shape_of(row: int) -> tuple[int, int]:
    return (6, 5) if row % 3 else (4, 7)


def write_batch(path: str, start: int, dtype: StoredDtype = "float32") -> dict[int, str]:
    rows = range(start, min(start + BATCH_SIZE, N_INPUTS))
    return write_rows(
        path,
        {row: a_row(row, shape_of(row), dtype) for row in rows},
        start=start,
        n_inputs=N_INPUTS,
        batch_size=BATCH_SIZE,
        dtype=dtype,
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WRITES = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.storage.test_zarr_store import write_batch
print("ready", flush=True)
sys.stdin.readline()
for start in map(int, sys.argv[3:]):
    write_batch(sys.argv[2], start)
"""


def start_writer(root: Path, store: Path, *starts: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITES, str(root), str(store), *map(str, starts)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_round_trip_with_mixed_shapes_and_a_partial_last_batch(tmp_path: Path, dtype: StoredDtype) -> None:
    store = str(tmp_path / "maps.zarr")
    create_store(store)
    names: dict[int, str] = {}
    for start in (12, 0, 8, 4):
        names |= write_batch(store, start, dtype)
    assert sorted(names) == list(range(N_INPUTS))
    for row, name in names.items():
        expected = a_row(row, shape_of(row), dtype)
        read = read_row(store, name, row)
        assert read.dtype == expected.dtype
        np.testing.assert_array_equal(read, expected)


def test_layout_as_plain_zarr_sees_it(tmp_path: Path) -> None:
    store = str(tmp_path / "maps.zarr")
    create_store(store)
    write_batch(store, 0)
    group = zarr.open(store, mode="r")
    assert isinstance(group, zarr.Group)
    assert group.metadata.zarr_format == 3
    assert sorted(group.array_keys()) == ["4x7", "6x5"]
    array = group["6x5"]
    assert isinstance(array, zarr.Array)
    assert (array.shape, array.chunks, array.shards) == ((14, 6, 5), (1, 6, 5), (4, 6, 5))
    assert [type(codec).__name__ for codec in array.compressors] == ["ZstdCodec"]
    np.testing.assert_array_equal(array[1], a_row(1, (6, 5)))


def test_rows_never_written_read_zero(tmp_path: Path) -> None:
    store = str(tmp_path / "masks.zarr")
    create_store(store)
    rows = {5: a_row(5, (6, 5), "uint8")}
    names = write_rows(store, rows, start=4, n_inputs=N_INPUTS, batch_size=BATCH_SIZE, dtype="uint8")
    assert names == {5: "6x5"}
    whole = zarr.open_array(store, path="6x5", mode="r")[:]
    np.testing.assert_array_equal(whole[5], rows[5])  # type: ignore[index]
    assert np.count_nonzero(whole) == np.count_nonzero(rows[5])


def test_an_all_zero_row_is_readable(tmp_path: Path) -> None:
    store = str(tmp_path / "masks.zarr")
    create_store(store)
    names = write_rows(store, {0: np.zeros((3, 3), np.uint8)}, start=0, n_inputs=2, batch_size=1, dtype="uint8")
    assert not read_row(store, names[0], 0).any()


@given(n_inputs=st.integers(1, 9), batch_size=st.integers(1, 5), data=st.data())
def test_any_batching_reads_back(
    tmp_path_factory: pytest.TempPathFactory, n_inputs: int, batch_size: int, data: st.DataObject
) -> None:
    store = str(tmp_path_factory.mktemp("zarr") / "s.zarr")
    create_store(store)
    start = data.draw(st.sampled_from(range(0, n_inputs, batch_size)))
    stop = min(start + batch_size, n_inputs)
    shapes = data.draw(
        st.dictionaries(st.integers(start, stop - 1), st.sampled_from([(1, 1), (2, 3)]), max_size=batch_size)
    )
    rows = {row: a_row(row, shape) for row, shape in shapes.items()}
    names = write_rows(store, rows, start=start, n_inputs=n_inputs, batch_size=batch_size, dtype="float32")
    assert names == {row: f"{height}x{width}" for row, (height, width) in shapes.items()}
    for row, name in names.items():
        np.testing.assert_array_equal(read_row(store, name, row), rows[row])


def test_no_rows_create_nothing(tmp_path: Path) -> None:
    create_store(str(tmp_path))
    before = files_of(tmp_path)
    names = write_rows(str(tmp_path), {}, start=0, n_inputs=2, batch_size=2, dtype="uint8")
    assert (names, files_of(tmp_path)) == ({}, before)


def test_four_processes_create_the_same_arrays(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    reference, shared = tmp_path / "reference.zarr", tmp_path / "shared.zarr"
    create_store(str(reference))
    for start in (0, 4, 8, 12):
        write_batch(str(reference), start)

    create_store(str(shared))
    root = request.config.rootpath
    orders = [(0, 4, 8, 12), (4, 8), (8, 12), (12, 0)]
    writers = [start_writer(root, shared, *starts) for starts in orders]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert files_of(shared) == files_of(reference)
    for row in range(N_INPUTS):
        height, width = shape_of(row)
        np.testing.assert_array_equal(read_row(str(shared), f"{height}x{width}", row), a_row(row, (height, width)))


def test_writing_and_creating_again_changes_nothing(tmp_path: Path) -> None:
    create_store(str(tmp_path))
    write_batch(str(tmp_path), 12)
    before = files_of(tmp_path)
    create_store(str(tmp_path))
    write_batch(str(tmp_path), 12)
    assert files_of(tmp_path) == before


def test_a_store_of_another_run_is_refused(tmp_path: Path) -> None:
    create_store(str(tmp_path))
    write_batch(str(tmp_path), 0)
    before = files_of(tmp_path)
    rows = {1: a_row(1, (6, 5))}
    with pytest.raises(RunError, match=r"'6x5'.*shape \(14, 6, 5\).*shape \(15, 6, 5\)"):
        write_rows(str(tmp_path), rows, start=0, n_inputs=15, batch_size=4, dtype="float32")
    with pytest.raises(RunError, match=r"dtype float32.*dtype uint8"):
        write_rows(str(tmp_path), rows, start=0, n_inputs=14, batch_size=4, dtype="uint8")
    with pytest.raises(RunError, match=r"shards \(4, 6, 5\).*shards \(7, 6, 5\)"):
        write_rows(str(tmp_path), rows, start=0, n_inputs=14, batch_size=7, dtype="float32")
    assert files_of(tmp_path) == before


def test_an_fsspec_url_holds_the_same_files(tmp_path: Path) -> None:
    url = "memory://zarr-store/maps.zarr"
    for store in (url, f"file://{tmp_path}/maps.zarr"):
        create_store(store)
        write_batch(store, 12)
        np.testing.assert_array_equal(read_row(store, "6x5", 13), a_row(13, (6, 5)))
    memory = fsspec.filesystem("memory")
    remote = {
        os.path.relpath(name, "/zarr-store/maps.zarr"): memory.cat_file(name) for name in memory.find("/zarr-store")
    }
    assert remote == files_of(tmp_path / "maps.zarr")


def test_what_cannot_be_read_is_a_read_error(tmp_path: Path) -> None:
    create_store(str(tmp_path))
    write_batch(str(tmp_path), 0)
    for store, array, row in ((tmp_path / "none", "6x5", 0), (tmp_path, "9x9", 0), (tmp_path, "6x5", 14)):
        with pytest.raises(InputError, match=array) as caught:
            read_row(str(store), array, row)
        assert caught.value.stage == "read"
    shard = next((tmp_path / "6x5" / "c").rglob("0/0/0"))
    damaged = bytearray(shard.read_bytes())
    damaged[30] ^= 255
    shard.write_bytes(damaged)
    with pytest.raises(InputError, match="cannot read row 1"):
        read_row(str(tmp_path), "6x5", 1)


def test_a_new_run_starts_without_the_rows_of_the_last(tmp_path: Path) -> None:
    store = str(tmp_path / "masks.zarr")
    create_store(store)
    rows = {0: np.full((3, 4), 255, np.uint8)}
    write_rows(store, rows, start=0, n_inputs=5, batch_size=2, dtype="uint8")
    zarr.create_array(store, name="notes", shape=(1,), dtype="int8")
    create_store(store)
    assert sorted(zarr.open_group(store, mode="r").array_keys()) == ["notes"]
    write_rows(store, rows, start=0, n_inputs=9, batch_size=3, dtype="uint8")
    np.testing.assert_array_equal(read_row(store, "3x4", 0), rows[0])


def test_a_store_of_another_kind_is_refused(tmp_path: Path) -> None:
    store = str(tmp_path / "masks.zarr")
    zarr.create_array(store, shape=(1,), dtype="int8")
    with pytest.raises(RunError, match="not a zarr v3 group"):
        create_store(store)


def test_a_row_beyond_the_limit_of_pixels_is_refused(tmp_path: Path) -> None:
    create_store(str(tmp_path))
    write_batch(str(tmp_path), 0)
    assert zarr_store.read_row(str(tmp_path), "6x5", 1, max_pixels=30).shape == (6, 5)
    with pytest.raises(InputError, match="--max-image-pixels 29"):
        zarr_store.read_row(str(tmp_path), "6x5", 1, max_pixels=29)


def test_each_row_is_found_in_its_array(tmp_path: Path) -> None:
    store = str(tmp_path / "maps.zarr")
    create_store(store)
    names: dict[int, str] = {}
    for start in range(0, N_INPUTS, BATCH_SIZE):
        names |= write_batch(store, start)
    assert {row: find_row(store, row) for row in range(N_INPUTS)} == names
    assert count_rows(store) == N_INPUTS


def test_a_row_of_the_only_array_is_found_though_it_is_zero(tmp_path: Path) -> None:
    store = str(tmp_path / "maps.zarr")
    create_store(store)
    write_rows(store, {0: np.zeros((3, 3), np.float32)}, start=0, n_inputs=2, batch_size=1, dtype="float32")
    assert [find_row(store, row) for row in (0, 1)] == ["3x3", "3x3"]


def test_a_row_in_no_array_or_in_two_is_a_read_error(tmp_path: Path) -> None:
    store = str(tmp_path / "maps.zarr")
    create_store(store)
    for shape in ((3, 3), (4, 4)):
        rows = {0: np.ones(shape, np.float32)}
        write_rows(store, rows, start=0, n_inputs=2, batch_size=2, dtype="float32")
    for row, said in ((0, "2 arrays hold it: 3x3, 4x4"), (1, "it is zero in each array")):
        with pytest.raises(InputError, match=said) as caught:
            find_row(store, row)
        assert (caught.value.stage, caught.value.kind) == ("read", "MissingMapError")


def test_only_arrays_of_maps_are_counted(tmp_path: Path) -> None:
    store = str(tmp_path / "maps.zarr")
    create_store(store)
    write_batch(store, 0)
    zarr.create_array(store, name="notes", shape=(3,), dtype="int8")
    zarr.create_array(store, name="6x05", shape=(5, 6, 5), dtype="float32")
    zarr.create_group(store, path="9x9")
    assert count_rows(store) == N_INPUTS


@pytest.mark.parametrize(
    "kind", ["missing", "file", "empty folder", "no arrays", "array", "two counts", "0-d", "damaged"]
)
def test_what_is_no_store_of_maps_has_no_count(tmp_path: Path, kind: str) -> None:
    store = tmp_path / "maps.zarr"
    if kind == "file":
        store.write_bytes(b"zarr")
    elif kind == "empty folder":
        store.mkdir()
    elif kind == "array":
        zarr.create_array(str(store), shape=(3, 4, 4), dtype="float32")
    elif kind != "missing":
        create_store(str(store))
        shapes: dict[str, dict[str, tuple[int, ...]]] = {
            "two counts": {"4x4": (3, 4, 4), "2x2": (5, 2, 2)},
            "0-d": {"4x4": ()},
            "damaged": {"4x4": (3, 4, 4)},
        }
        for name, shape in shapes.get(kind, {}).items():
            zarr.create_array(str(store), name=name, shape=shape, dtype="float32")
        if kind == "damaged":
            (store / "4x4/zarr.json").write_text('{"zarr_format": 3')
    with pytest.raises(ConfigError, match=r"maps\.zarr"):
        count_rows(str(store))


@pytest.mark.parametrize("value", [0, 0.5])
def test_a_batch_of_maps_whose_file_is_gone_is_missing_also_where_it_was_zero(tmp_path: Path, value: float) -> None:
    store = str(tmp_path / "maps.zarr")
    create_store(store)
    rows = {row: np.full((4, 5), value, np.float32) for row in (0, 1)}
    write_rows(store, rows, start=0, n_inputs=2, batch_size=2, dtype="float32")
    np.testing.assert_array_equal(read_row(store, "4x5", 1), rows[1])
    (tmp_path / "maps.zarr/4x5/c/0/0/0").unlink()
    with pytest.raises(InputError, match="file of its batch is not there"):
        read_row(store, "4x5", 1)
