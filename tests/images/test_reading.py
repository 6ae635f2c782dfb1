"""Bytes of local files and fsspec URLs, and the kind of error when they cannot be had."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pyimgano_dask.errors import InputError
from pyimgano_dask.images.reading import read_bytes


def fault_of(path: str, base_dir: Path, max_bytes: int = 100) -> str:
    with pytest.raises(InputError) as caught:
        read_bytes(path, base_dir=str(base_dir), max_bytes=max_bytes)
    assert caught.value.stage == "read"
    assert repr(path) in caught.value.message
    return caught.value.kind


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    fs.pipe("/read-bytes/a.png", b"remote")
    yield fs
    fs.rm("/read-bytes", recursive=True)


@pytest.mark.parametrize(
    "name", ["a.png", "with space.png", "süß.png", "new\nline.png", os.fsdecode(b"\xff.png"), "#1.png"]
)
def test_relative_path_is_below_the_base(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"local")
    assert read_bytes(name, base_dir=str(tmp_path), max_bytes=100) == b"local"
    assert read_bytes(str(tmp_path / name), base_dir="/nowhere", max_bytes=100) == b"local"


def test_urls(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    (tmp_path / "a.png").write_bytes(b"local")
    assert read_bytes(f"file://{tmp_path}/a.png", base_dir="/nowhere", max_bytes=100) == b"local"
    assert read_bytes("memory://read-bytes/a.png", base_dir="/nowhere", max_bytes=100) == b"remote"


def test_empty_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert read_bytes("a.png", base_dir=str(tmp_path), max_bytes=100) == b""


def test_limit_is_the_largest_allowed_size(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    (tmp_path / "a.png").write_bytes(b"123456")
    for path in ("a.png", "memory://read-bytes/a.png"):
        assert len(read_bytes(path, base_dir=str(tmp_path), max_bytes=6)) == 6
        assert fault_of(path, tmp_path, max_bytes=5) == "ImageTooLargeError"


def test_missing_file_is_named(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    (tmp_path / "file").touch()
    for path in ("gone.png", "memory://read-bytes/gone.png", f"file://{tmp_path}/gone.png"):
        assert fault_of(path, tmp_path) == "FileNotFoundError"
    assert fault_of("file/a.png", tmp_path) == "OSError"
    assert fault_of("nul\0.png", tmp_path) == "OSError"


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    assert fault_of("folder.png", tmp_path) == "IsADirectoryError"


def test_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert fault_of("pipe.png", tmp_path) == "OSError"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch(mode=0)
    assert fault_of("a.png", tmp_path) == "PermissionError"


def test_unknown_scheme(tmp_path: Path) -> None:
    assert fault_of("nosuchscheme://a.png", tmp_path) == "OSError"
