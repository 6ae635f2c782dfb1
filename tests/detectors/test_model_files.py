"""Files that detectors are made of: what was read is remembered, with its content."""

from __future__ import annotations

import os
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from pyimgano_dask.detectors.model_files import ModelFiles, ReadFile
from pyimgano_dask.errors import ConfigError

DATA = b"weights" * 1000


def test_what_was_read_is_remembered_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(DATA)
    files = ModelFiles(str(tmp_path))
    assert files.read("a.bin", "--checkpoint-path: the model 'm' keeps weights beside it") == DATA
    assert files.seen == {"a.bin": ReadFile("--checkpoint-path", sha256(DATA).hexdigest())}


def test_what_cannot_be_read_is_told_and_not_remembered(tmp_path: Path) -> None:
    files = ModelFiles(str(tmp_path))
    with pytest.raises(ConfigError, match=r"^weights_path: 'none.bin' cannot be read: "):
        files.read("none.bin", "weights_path")
    assert files.seen == {}


def noted(path: str, base_dir: Path) -> str:
    """The checksum of what a library may read."""
    files = ModelFiles(str(base_dir))
    files.note(path, "checkpoint_path")
    return files.seen[path].sha256


def test_of_what_a_library_may_read_that_which_is_there_is_noted(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(DATA)
    os.mkfifo(tmp_path / "pipe")
    files = ModelFiles(str(tmp_path))
    for text in ("a.bin", "pipe", "hog", "s3://bucket/a.bin", "owner/name"):
        files.note(text, "checkpoint_path")
    assert files.seen == {"a.bin": ReadFile("checkpoint_path", sha256(DATA).hexdigest())}


def test_a_folder_is_what_its_files_are_called_and_hold(tmp_path: Path) -> None:
    folder = tmp_path / "repo"
    (folder / "net").mkdir(parents=True)
    (folder / "net/layers.py").write_text("a")
    (folder / "hubconf.py").write_text("b")
    shutil.copytree(folder, tmp_path / "copy")
    first = noted("repo", tmp_path)
    assert noted("copy", tmp_path) == first
    for hidden in ("net/__pycache__/layers.pyc", ".git/HEAD", ".lock"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        (folder / hidden).write_text("left behind")
    os.mkfifo(folder / "pipe")
    assert noted("repo", tmp_path) == first
    (folder / "net/layers.py").write_text("c")
    changed = noted("repo", tmp_path)
    (folder / "net/layers.py").rename(folder / "net/other.py")
    assert len({first, changed, noted("repo", tmp_path)}) == 3


@pytest.mark.parametrize("path", ["a.bin", "folder"])
def test_what_a_library_may_read_and_cannot_is_told_in_words(path: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("a.bin", "folder/a.bin"):
        (tmp_path / name).symlink_to("/proc/self/mem")  # its first bytes can be read by nobody
    with pytest.raises(ConfigError, match=rf"^checkpoint_path: '{path}' cannot be read: "):
        ModelFiles(str(tmp_path)).note(path, "checkpoint_path")
