from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyimgano_dask.synthesis.__main__ import main

SMALL = ["--train", "3", "--good", "2", "--per-defect", "1"]


def files_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_module_runs_and_says_what_it_wrote(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pyimgano_dask.synthesis", str(tmp_path / "set"), *SMALL]
    done = subprocess.run([*command, "--size", "64x80", "96x64"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert str(tmp_path / "set") in rows[0]
    assert rows[1:] == [
        ["folder", "images", "masks"],
        ["train/good", "3", "-"],
        ["test/good", "2", "-"],
        ["test/scratch", "1", "1"],
        ["test/pit", "1", "1"],
        ["test/stain", "1", "1"],
        ["total", "8", "3"],
    ]
    assert len(files_below(tmp_path / "set")) == 11


def test_flags_reach_the_set(tmp_path: Path) -> None:
    small = [*SMALL, "--size", "64x64"]
    assert main([str(tmp_path / "a"), *small, "--suffix", ".jpg", "--grey"]) == 0
    assert main([str(tmp_path / "b"), *small, "--seed", "1"]) == 0
    assert main([str(tmp_path / "c"), *small, "--seed", "2"]) == 0
    assert "test/pit/000.jpg" in files_below(tmp_path / "a")
    first = Path("train", "good", "000.png")
    assert (tmp_path / "b" / first).read_bytes() != (tmp_path / "c" / first).read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "x"], "'x' is not an image size; write height x width in pixels, such as 240x320"),
        (["--size", "256x256", "0.5x3"], "'0.5x3' is not an image size"),
        (["--suffix", ".gif"], ".gif"),
        (["--train", "many"], "many"),
    ],
)
def test_unreadable_flag_exits_2_and_says_what_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "set"), *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--size", "8x8"],
            "Image size 8x8 (height x width) is out of range; both must be 64 to 4096 pixels.",
        ),
        (["--seed", "-1"], "seed is -1"),
        (["--good", "-3"], "n_good is -3"),
    ],
)
def test_value_out_of_range_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main([str(tmp_path / "set"), *flags]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not (tmp_path / "set").exists()


def test_unwritable_folder_exits_2_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("kept")
    for out_dir in (tmp_path / "file", tmp_path / "file" / "set"):
        assert main([str(out_dir), *SMALL]) == 2
        assert "Name a folder that can be written." in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"
