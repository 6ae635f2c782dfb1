"""A disk that fills up ends the run with 1, in words, and leaves no half result."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import command
from tests.cli.conftest import Trained


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
        ["--run-dir", "DISK/run", "--include-maps", "--include-anomaly-map-values"],
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
