"""A disk that fills up ends the run with 1, in words, and leaves no half result."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import command
from tests.cli.conftest import Trained
from tests.conftest import hashes_below


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 300 kB."""
    folder = tmp_path_factory.mktemp("disk")
    try:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("no mount command")
    if made.returncode:
        pytest.skip(f"may not mount a tmpfs: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    "flags",
    [
        ["--save-jsonl", "DISK/out.jsonl", "--include-maps", "--include-anomaly-map-values"],
        ["--save-maps", "DISK/maps"],
        ["--save-maps", "DISK/maps.zarr"],
    ],
    ids=lambda flags: flags[0] + flags[1].removeprefix("DISK"),
)
def test_a_full_disk_ends_the_run_in_words(
    trained: Trained, small_disk: Path, tmp_path: Path, flags: list[str]
) -> None:
    names = [flag.replace("DISK", str(small_disk)) for flag in flags]
    if "--save-jsonl" not in names:
        names += ["--save-jsonl", str(tmp_path / "out.jsonl")]
    repeated = [trained.parts.test_dir] * 8
    answer = command(*trained.source, *names, "--batch-size", "8", "--input", *repeated, cwd=tmp_path)
    assert answer.code == 1
    (line,) = (line for line in answer.stderr.splitlines() if ": warning: " not in line)
    assert line.startswith("pyimgano-infer: error: ")
    assert "No space left on device" in line
    left = [path for root in (small_disk, tmp_path) for path in root.rglob("*") if path.is_file()]
    assert [path for path in left if "jsonl" in path.name or path.name.startswith(".")] == []
    for path in left:
        path.unlink()


def test_after_space_is_made_the_run_goes_on(trained: Trained, small_disk: Path, tmp_path: Path) -> None:
    common = [*trained.source, "--batch-size", "2", "--input", *[trained.parts.test_dir] * 8]
    maps = ["--save-maps", str(small_disk / "maps")]
    resumable = [*common, *maps, "--run-dir", str(small_disk / "run"), "--keep-parts", "--resume"]

    answer = command(*resumable, "--save-jsonl", "records.jsonl", cwd=tmp_path)
    assert answer.code == 1
    first, second = answer.stderr.splitlines()
    assert "No space left on device" in first
    assert "--resume goes on" in second
    assert not (tmp_path / "records.jsonl").exists()
    done = {path.name: path.stat().st_ino for path in (small_disk / "run/parts").glob("part-*")}
    assert done

    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    answer = command(*resumable, "--save-jsonl", "records.jsonl", cwd=tmp_path)
    assert answer.code == 0, answer.stderr
    resumed = (tmp_path / "records.jsonl").read_bytes(), hashes_below(small_disk / "maps")
    after = {path.name: path.stat().st_ino for path in (small_disk / "run/parts").glob("part-*")}
    assert done.items() < after.items()

    assert command(*common, *maps, "--save-jsonl", "whole.jsonl", cwd=tmp_path).code == 0
    assert resumed == ((tmp_path / "whole.jsonl").read_bytes(), hashes_below(small_disk / "maps"))
