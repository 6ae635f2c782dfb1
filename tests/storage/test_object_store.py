"""Whole files, sinks, listings and zarr stores on a real object store, also over a line that cuts bodies."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from pyimgano_dask.errors import ConfigError, InputError
from pyimgano_dask.storage.files import (
    check_writable,
    copy_into,
    is_file,
    join,
    kind_at,
    list_names,
    make_folder,
    open_binary,
    open_sink,
    read_file,
    remove_file,
    remove_folder_if_empty,
    write_atomic,
)
from pyimgano_dask.storage.jsonl import iter_records
from pyimgano_dask.storage.maps import encode_npy, read_npy
from pyimgano_dask.storage.zarr_store import count_rows, create_store, find_row, read_row, write_rows
from tests.object_store import Bucket, closed_port, cut_line, environment, reached_by

PART_BYTES = 50 << 20
"""What the client of the store sends at a time."""


@pytest.fixture(params=["local", "file", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that is not there yet: a path, or a URL of one of three kinds."""
    match request.param:
        case "local":
            return str(tmp_path / "place")
        case "file":
            return (tmp_path / "place").as_uri()
        case "memory":
            return f"memory://{tmp_path.name}-{os.getpid()}/place"
        case _:
            bucket: Bucket = request.getfixturevalue("bucket")
            return bucket.url("place")


class TestAlikeEverywhere:
    def test_what_is_written_is_there(self, place: str) -> None:
        make_folder(join(place, "maps"))
        write_atomic(join(place, "maps", "a.bin"), b"one", bytearray(b"two"), memoryview(b"three"))
        assert read_file(join(place, "maps", "a.bin")) == b"onetwothree"
        write_atomic(join(place, "maps", "a.bin"), b"")
        assert read_file(join(place, "maps", "a.bin")) == b""

    def test_names_are_those_of_now(self, place: str) -> None:
        assert list_names(place) == []
        for name in ("b", "a", "sub/c"):
            with open_sink(join(place, name)) as sink:
                sink.write(name.encode())
        assert list_names(place) == ["a", "b"]
        remove_file(join(place, "a"))
        remove_file(join(place, "a"))
        assert list_names(place) == ["b"]
        assert list_names(join(place, "b")) == []
        remove_folder_if_empty(join(place, "sub"))
        assert list_names(join(place, "sub")) == ["c"]

    def test_what_is_there(self, place: str) -> None:
        make_folder(place)
        write_atomic(join(place, "a"), b"1")
        assert (kind_at(join(place, "a")), kind_at(place), kind_at(join(place, "gone"))) == ("file", "folder", None)
        assert is_file(join(place, "a"))
        assert not is_file(place)
        with pytest.raises(FileNotFoundError):
            read_file(join(place, "gone"))
        with pytest.raises(FileNotFoundError), open_binary(join(place, "gone")):
            pass

    def test_a_sink_appears_whole_or_not_at_all(self, place: str) -> None:
        path = join(place, "run", "records.jsonl")
        with open_sink(path) as sink:
            sink.write(b"first\n")
            sink.flush()
        with pytest.raises(ZeroDivisionError):
            _fail_after_a_part(path)
        assert read_file(path) == b"first\n"
        assert list_names(join(place, "run")) == ["records.jsonl"]

    def test_an_empty_sink(self, place: str) -> None:
        with open_sink(join(place, "empty")):
            pass
        assert read_file(join(place, "empty")) == b""

    def test_files_are_joined(self, place: str) -> None:
        pieces = [os.urandom(n) for n in (0, 10, 1 << 20, (3 << 20) + 7, 5)]
        make_folder(place)
        for number, piece in enumerate(pieces):
            write_atomic(join(place, f"part-{number}"), piece)
        memory = io.BytesIO()
        with open_sink(join(place, "joined")) as sink:
            sink.write(b"<")
            for name in list_names(place):
                assert copy_into(join(place, name), sink) == copy_into(join(place, name), memory)
            sink.write(b">")
        assert memory.getvalue() == b"".join(pieces)
        assert read_file(join(place, "joined")) == b"<" + b"".join(pieces) + b">"
        with pytest.raises(FileNotFoundError):
            copy_into(join(place, "gone"), memory)


def _fail_after_a_part(path: str) -> None:
    with open_sink(path) as sink:
        sink.write(bytes(PART_BYTES + 1))
        sink.write(b"more")
        raise ZeroDivisionError


@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_joining_into_files_opened_in_any_way(tmp_path: Path, mode: str) -> None:
    (tmp_path / "part").write_bytes(data := os.urandom((5 << 20) + 3))
    for buffering in (-1, 0):
        with open(tmp_path / "joined", mode, buffering) as sink:
            sink.write(b"<")
            copy_into(str(tmp_path / "part"), sink)
            sink.write(b">")
        expected = (b"<" + data + b">") * (1 if mode == "wb" or buffering else 2)
        assert (tmp_path / "joined").read_bytes() == expected


def test_joining_into_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(data := os.urandom((5 << 20) + 3))
    code = "import sys; from pyimgano_dask.storage.files import copy_into; copy_into('part', sys.stdout.buffer)"
    for flags in ([], ["-u"]):
        done = subprocess.run([sys.executable, *flags, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, timeout=60)
        assert done.stdout == data


class TestUploads:
    def test_large_ones_go_in_parts(self, bucket: Bucket) -> None:
        data = os.urandom(1 << 20) * 60
        with open_sink(bucket.url("large")) as sink:
            for start in range(0, len(data), 7 << 20):
                sink.write(data[start : start + (7 << 20)])
        assert bucket.get("large") == data
        assert read_file(bucket.url("large")) == data

    def test_a_failed_one_leaves_no_parts(self, bucket: Bucket) -> None:
        with pytest.raises(ZeroDivisionError):
            _fail_after_a_part(bucket.url("large"))
        assert bucket.names() == []
        uploads = bucket.files.call_s3("list_multipart_uploads", Bucket=bucket.name)
        assert not uploads.get("Uploads")

    def test_no_bucket_is_made(self, bucket: Bucket) -> None:
        make_folder(f"s3://{bucket.name}-misspelt/run")
        with pytest.raises(FileNotFoundError), open_sink(f"s3://{bucket.name}-misspelt/run/a") as sink:
            sink.write(b"1")
        assert not bucket.files.exists(f"{bucket.name}-misspelt")


def test_names_that_another_process_wrote(bucket: Bucket) -> None:
    bucket.put("run/a", b"1")
    assert list_names(bucket.url("run")) == ["a"]
    bucket.put("run/b", b"1")
    assert list_names(bucket.url("run")) == ["a", "b"]
    bucket.put("run/", b"")
    assert list_names(bucket.url("run")) == ["a", "b"]


def test_many_threads_share_a_store(bucket: Bucket) -> None:
    def write_and_read(number: int) -> bytes:
        write_atomic(bucket.url(f"{number}"), b"%d" % number)
        return read_file(bucket.url(f"{number}"))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(write_and_read, range(40))) == [b"%d" % number for number in range(40)]


class TestCutBodies:
    """A body is cut as often as it may be, or one client's tries of an upload (`AWS_MAX_ATTEMPTS`) more than once."""

    MORE = 3

    @pytest.fixture(autouse=True)
    def tries_of_the_client(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")

    def test_a_read_is_made_again(self, bucket: Bucket) -> None:
        url = bucket.put("a.bin", data := os.urandom(300_000))
        readers: list[Callable[[], bytes]] = [lambda: read_file(url), lambda: _streamed(url)]
        for read in readers:
            with cut_line(bucket.store, "GET", r"/a\.bin", self.MORE) as line, reached_by(line.env):
                assert read() == data
                assert line.cuts.done == self.MORE

    def test_a_write_is_made_again(self, bucket: Bucket) -> None:
        data = os.urandom(300_000)
        with cut_line(bucket.store, "PUT", r"/a\.bin", self.MORE) as line, reached_by(line.env):
            write_atomic(bucket.url("a.bin"), data)
            assert line.cuts.done == self.MORE
        assert bucket.get("a.bin") == data

    def test_records_are_read_on_where_they_stood(self, bucket: Bucket) -> None:
        lines = b"".join(b'{"index": %d}\n' % index for index in range(9000))
        url = bucket.put("run.jsonl", lines)
        with cut_line(bucket.store, "GET", r"/run\.jsonl", self.MORE) as line, reached_by(line.env):
            assert [record["index"] for record in iter_records(url)] == list(range(9000))

    def test_rows_of_a_zarr_store(self, bucket: Bucket) -> None:
        url = bucket.url("maps.zarr")
        rows = {row: np.random.default_rng(row).random((64, 80), np.float32) for row in range(2)}
        create_store(url)
        with cut_line(bucket.store, "PUT", r"/c/0/0/0", self.MORE) as line, reached_by(line.env):
            write_rows(url, rows, start=0, n_inputs=2, batch_size=2, dtype="float32")
            assert line.cuts.done == self.MORE
        with cut_line(bucket.store, "GET", r"/c/0/0/0", self.MORE) as line, reached_by(line.env):
            np.testing.assert_array_equal(read_row(url, "64x80", 1, max_pixels=1 << 20), rows[1])
            assert line.cuts.done == self.MORE

    def test_a_line_that_never_heals(self, bucket: Bucket) -> None:
        url = bucket.put("a.bin", os.urandom(300_000))
        with (
            cut_line(bucket.store, "GET", r"/a\.bin", -1) as line,
            reached_by(line.env),
            pytest.raises(OSError, match="payload is not completed"),
        ):
            read_file(url)
        with (
            cut_line(bucket.store, "PUT", r"/a\.bin", -1) as line,
            reached_by(line.env),
            pytest.raises(OSError, match=r"closed|Could not connect"),
        ):
            write_atomic(url, b"new" * 100_000)
        assert len(bucket.get("a.bin")) == 300_000


def _streamed(url: str) -> bytes:
    with open_binary(url) as file:
        return b"".join(iter(lambda: file.read(70_000), b""))


class TestWords:
    def test_a_missing_bucket(self, bucket: Bucket) -> None:
        with pytest.raises(ConfigError, match=r"bucket does not exist.*Check the address"):
            check_writable(f"s3://{bucket.name}-gone/maps")

    def test_nothing_listens(self) -> None:
        env = environment(f"http://127.0.0.1:{closed_port()}")
        with reached_by(env), pytest.raises(ConfigError, match="Could not connect to the endpoint"):
            check_writable("s3://line4/maps")

    def test_no_credentials(self, bucket: Bucket) -> None:
        with reached_by(bucket.store.env), pytest.MonkeyPatch.context() as patch:
            patch.delenv("AWS_ACCESS_KEY_ID")
            patch.delenv("AWS_SECRET_ACCESS_KEY")
            with pytest.raises(ConfigError, match="Unable to locate credentials"):
                check_writable(bucket.url("maps"))

    def test_a_scheme_without_its_package(self) -> None:
        with pytest.raises(ConfigError, match="gcsfs"):
            check_writable("gs://line4/maps")

    def test_a_file_where_a_folder_is_wanted(self, bucket: Bucket) -> None:
        with pytest.raises(ConfigError, match="it is a file"):
            check_writable(bucket.put("maps", b"1"))
        check_writable(bucket.url("other", "maps"))
        assert bucket.names() == ["maps"]


class TestZarrStores:
    @pytest.mark.parametrize("dtype", ["uint8", "float32"])
    def test_the_same_files_as_on_the_disk(self, bucket: Bucket, tmp_path: Path, dtype: str) -> None:
        values = np.random.default_rng(3).integers(0, 255, (5, 8, 6)).astype(dtype)
        for store in (bucket.url("of.zarr"), str(tmp_path / "of.zarr")):
            create_store(store)
            for start in (0, 2, 4):
                rows = {row: values[row] for row in range(start, min(start + 2, 5))}
                names = write_rows(store, rows, start=start, n_inputs=5, batch_size=2, dtype=dtype)  # type: ignore[arg-type]
                assert set(names.values()) == {"8x6"}
            np.testing.assert_array_equal(read_row(store, "8x6", 3, max_pixels=99), values[3])
            assert (find_row(store, 4, max_pixels=99), count_rows(store)) == ("8x6", 5)
        local = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert {name: bucket.get(name) for name in bucket.names()} == local
        opened = zarr.open_array(bucket.url("of.zarr"), path="8x6", mode="r")
        np.testing.assert_array_equal(opened[:], values)

    def test_an_earlier_run_is_removed(self, bucket: Bucket) -> None:
        url = bucket.url("maps.zarr")
        for _ in range(2):
            create_store(url)
            assert bucket.names() == ["maps.zarr/zarr.json"]
            write_rows(url, {0: np.ones((4, 4), np.float32)}, start=0, n_inputs=1, batch_size=1, dtype="float32")
            assert len(bucket.names()) == 3

    def test_a_batch_of_maps_that_is_gone(self, bucket: Bucket) -> None:
        url = bucket.url("maps.zarr")
        create_store(url)
        write_rows(url, {0: np.ones((4, 4), np.float32)}, start=0, n_inputs=2, batch_size=1, dtype="float32")
        with pytest.raises(InputError, match="the file of its batch is not there"):
            read_row(url, "4x4", 1, max_pixels=99)

    def test_arrays_that_another_process_wrote(self, bucket: Bucket) -> None:
        url = bucket.url("maps.zarr")
        create_store(url)
        with pytest.raises(ConfigError, match="no array"):
            count_rows(url)
        code = (
            "import sys, numpy as np; from pyimgano_dask.storage.zarr_store import write_rows;"
            "rows = {0: np.ones((4, 4), np.float32)};"
            "write_rows(sys.argv[1], rows, start=0, n_inputs=1, batch_size=1, dtype='float32')"
        )
        subprocess.run([sys.executable, "-c", code, url], check=True, timeout=60)
        assert count_rows(url) == 1


def test_maps_as_files(bucket: Bucket) -> None:
    values = np.random.default_rng(0).random((30, 40), np.float32)
    write_atomic(bucket.url("maps", "a.npy"), *encode_npy(values))
    np.testing.assert_array_equal(read_npy(bucket.url("maps", "a.npy"), max_pixels=1200), values)
