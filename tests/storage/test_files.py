import os
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.storage.files import (
    artifact_name,
    check_writable,
    local_path,
    make_folder,
    open_binary,
    open_sink,
    remove_leftovers,
    remove_leftovers_of,
    resolve,
    write_atomic,
)

KEEPS_REWRITING = """
import sys
from pyimgano_dask.storage.files import write_atomic

path, size = sys.argv[1], int(sys.argv[2])
for round in range(10**9):
    letter = b"ab"[round % 2 : round % 2 + 1]
    write_atomic(path, letter * size, letter * size)
    if round == 3:
        print("started", flush=True)
"""

READS_IN_LITTLE_MEMORY = """
import resource, sys
from pyimgano_dask.storage.files import read_file

resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
try:
    read_file(sys.argv[1])
except OSError as error:
    print(error, end="")
"""


@pytest.mark.parametrize(
    ("path", "base", "expected"),
    [
        ("maps/a.npy", "/run", "/run/maps/a.npy"),
        ("./a.npy", "/run", "/run/a.npy"),
        ("../a.npy", "/run", "/run/../a.npy"),
        ("/else/a.npy", "/run", "/else/a.npy"),
        ("s3://b/a.npy", "/run", "s3://b/a.npy"),
        ("a.npy", "s3://b/run/", "s3://b/run/a.npy"),
    ],
)
def test_resolve(path: str, base: str, expected: str) -> None:
    assert resolve(path, base) == expected


def test_resolve_makes_a_relative_base_absolute(tmp_path: Path) -> None:
    assert resolve("a.npy", os.path.relpath(tmp_path)) == str(tmp_path / "a.npy")


def test_local_path() -> None:
    assert local_path("a/b") == "a/b"
    assert local_path("file:///a/b") == "/a/b"
    assert local_path("s3://a/b") is None


@given(parts=st.lists(st.binary(max_size=64), max_size=4))
def test_write_joins_the_parts(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("parts")
    for path in (str(folder / "local"), f"file://{folder}/by-url", "memory://parts/remote"):
        write_atomic(path, *[memoryview(part) for part in parts])
        with open_binary(path) as file:
            assert file.read() == b"".join(parts)


def test_write_replaces_and_leaves_only_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    write_atomic(str(path), b"a longer first version")
    write_atomic(str(path), b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["a.npy"]


def test_write_takes_the_longest_name_and_the_umask_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    write_atomic(str(path), b"x")
    assert path.stat().st_mode == plain.stat().st_mode


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomic(str(tmp_path / "taken"), b"x")
    with pytest.raises(TypeError):
        write_atomic(str(tmp_path / "a"), b"x", "text")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == ["taken"]


def test_write_into_a_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(str(tmp_path / "none" / "a"), b"x")


def test_readers_and_a_killed_writer_never_leave_a_half_file(tmp_path: Path) -> None:
    path, size = tmp_path / "a.bin", 3_000_000
    command = [sys.executable, "-c", KEEPS_REWRITING, str(path), str(size)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"started\n"
    while_written = [path.read_bytes() for _ in range(20)]
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    whole = {b"a" * 2 * size, b"b" * 2 * size}
    assert set(while_written) <= whole
    assert path.read_bytes() in whole
    assert all(name == "a.bin" or name.startswith(".") for name in os.listdir(tmp_path))


def test_make_folder_twice(tmp_path: Path) -> None:
    for path in (str(tmp_path / "a" / "b"), "memory://folders/a/b"):
        make_folder(path)
        make_folder(path)
    assert (tmp_path / "a" / "b").is_dir()
    assert fsspec.filesystem("memory").isdir("/folders/a/b")


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    check_writable(str(tmp_path))
    check_writable(str(tmp_path / "not" / "yet"))
    check_writable("memory://probed/folder")
    assert os.listdir(tmp_path) == []
    assert fsspec.filesystem("memory").find("/probed") == []


def test_check_writable_refuses_files_and_broken_links(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    write_atomic("memory://refused/file", b"")
    for path in (
        str(tmp_path / "file"),
        str(tmp_path / "file" / "below" / "it"),
        str(tmp_path / "link" / "below"),
        "memory://refused/file",
    ):
        with pytest.raises(ConfigError, match="is a file"):
            check_writable(path)
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("path", ["/proc/maps", "/proc", "bad\0name", "/" + "n" * 300, "nosuchscheme://a/b"])
def test_check_writable_refuses_what_cannot_be_written(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_writable(path)
    assert repr(path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
def test_check_writable_refuses_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(ConfigError, match="Permission denied"):
        check_writable(str(tmp_path / "new"))


def test_a_file_that_memory_cannot_hold_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.touch()
    os.truncate(path, 4 << 30)
    command = [sys.executable, "-c", READS_IN_LITTLE_MEMORY, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"[Errno 12] it does not fit into the memory of this machine: {str(path)!r}"


@pytest.mark.parametrize(
    ("input_path", "expected"),
    [
        ("/data/plate.png", "000007_plate.npy"),
        ("plate.tar.gz", "000007_plate.tar.npy"),
        ("/data/.hidden", "000007_.hidden.npy"),
        ("/data/Blech Nr 3 ü 部品\n.png", "000007_Blech Nr 3 ü 部品\n.npy"),
        ("/data/what?.png", "000007_what?.npy"),
        ("s3://line4/cam 1/plate.png?versionId=a/b.c", "000007_plate.npy"),
        ("zip://inner/plate.png::s3://line4/day.zip", "000007_plate.npy"),
        ("simplecache::s3://line4/plate.png", "000007_plate.npy"),
        ("/data/cut\0\ud800.png", "000007_cut__.npy"),
        ("/data/maps.zarr/", "000007_maps.npy"),
        ("", "000007_.npy"),
    ],
)
def test_artifact_name(input_path: str, expected: str) -> None:
    assert artifact_name(7, input_path, ".npy") == expected


def test_artifact_name_counts_bytes_of_undecodable_names() -> None:
    name = artifact_name(1, os.fsdecode(b"/data/" + b"\xff" * 400 + b".png"), "_overlay.png")
    assert os.fsencode(name) == b"000001_" + b"\xff" * (240 - 7 - 12) + b"_overlay.png"


@given(input_path=st.text(), index=st.integers(0, 10**8))
def test_artifact_name_is_always_a_file_name(
    tmp_path_factory: pytest.TempPathFactory, input_path: str, index: int
) -> None:
    name = artifact_name(index, input_path * 3, ".png")
    assert name.startswith(f"{index:06d}_")
    assert name.endswith(".png")
    assert len(os.fsencode(name)) <= 240
    path = tmp_path_factory.mktemp("names") / name
    write_atomic(str(path), b"x")
    assert os.listdir(path.parent) == [name]


def test_artifact_name_cuts_between_characters() -> None:
    name = artifact_name(0, "é" * 300 + ".png", ".png")
    assert name == "000000_" + "é" * ((240 - 7 - 4) // 2) + ".png"


def test_what_killed_writers_leave_is_removed_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from pyimgano_dask.storage.files import open_sink\n"
        "with open_sink(sys.argv[1]) as sink:\n"
        "    sink.write(b'half')\n"
        "    sink.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for name in ("records.jsonl", "records.jsonl-2"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
    (tmp_path / "kept.png").write_bytes(b"whole")
    assert len(list(tmp_path.iterdir())) == 3

    remove_leftovers_of(str(tmp_path / "records.jsonl"))
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers_of(str(tmp_path / "records.jsonl-2"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept.png"]
    (tmp_path / ".tmp-123-0123456789abcdef").write_bytes(b"half")
    (tmp_path / ".tmp-mine").write_bytes(b"whole")
    (tmp_path / "loop").symlink_to("loop")
    remove_leftovers(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"kept.png", ".tmp-mine", "loop"}
    remove_leftovers(str(tmp_path / "not there"))


def test_a_sink_of_the_longest_name_opens(tmp_path: Path) -> None:
    with open_sink(str(tmp_path / ("é" * 120 + ".jsonl"))) as sink:
        sink.write(b"x")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"x"]
