"""The tests' own way to run commands: a fork is like a fresh process, and apart from all others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyimgano_dask.synthesis import InspectionSet
from tests.commands import infer_command, run_module

FLAGS = ("--model", "vision_pixel_mad_map", "--train-dir", "set/train/good", "--defects", "--no-progress")


@pytest.fixture
def place(tmp_path: Path, parts: InspectionSet) -> Path:
    (tmp_path / "set").symlink_to(parts.root)
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "rc"),
    [
        (("--input", "set/test/good"), 0),
        (("--input", "set/test/good", "none.png"), 2),
        (("--bogus",), 2),
    ],
    ids=["a run", "a refusal", "an unknown flag"],
)
def test_a_fork_answers_as_a_fresh_process_does(flags: tuple[str, ...], rc: int, place: Path) -> None:
    fork, fresh = (infer_command(*FLAGS, *flags, cwd=place, fresh=is_fresh) for is_fresh in (False, True))
    assert (fork.rc, fork.stdout) == (fresh.rc, fresh.stdout)
    assert fork.rc == rc
    if rc:
        assert fork.stderr == fresh.stderr
    else:
        assert len(fork.stderr.splitlines()) == len(fresh.stderr.splitlines()) > 1


SHOW = """
import atexit, os, sys
atexit.register(print, "the end", file=sys.stderr)
print(os.getcwd(), os.environ.get("OF_THE_TEST"), sys.argv[1:], __name__, __spec__.name, hasattr(sys, "mark"))
sys.mark = "seen by this process only"
os.environ["OF_THE_TEST"] = "another"
sys.exit(7)
"""


def test_a_fork_has_its_own_folder_environment_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "show.py").write_text(SHOW)
    monkeypatch.syspath_prepend(tmp_path)
    for value in ("one", "two"):
        monkeypatch.setenv("OF_THE_TEST", value)
        rc, stdout, stderr = run_module("show", "a", value, cwd=tmp_path)
        assert (rc, stderr.decode()) == (7, "the end\n")
        assert stdout.decode() == f"{tmp_path} {value} ['a', '{value}'] __main__ show False\n"
    assert os.environ["OF_THE_TEST"] == "two"


def test_a_fork_has_the_package_and_the_kernels_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loaded.py").write_text(
        "import sys\n"
        "from pyimgano_dask.defects.kernels import only_labels\n"
        "names = ('tests.preloaded', 'pyimgano_dask.cli.infer')\n"
        "print(*(name in sys.modules for name in names), len(only_labels.signatures))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rc, stdout, stderr = run_module("loaded", cwd=tmp_path)
    assert (rc, stdout.decode()) == (0, "True False 1\n"), stderr
