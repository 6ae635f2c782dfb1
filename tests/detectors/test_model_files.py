"""Files that detectors are made of: what was read is remembered, with its content."""

from __future__ import annotations

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


def test_of_what_a_library_may_read_files_alone_are_noted(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(DATA)
    (tmp_path / "folder").mkdir()
    files = ModelFiles(str(tmp_path))
    for text in ("a.bin", "folder", "hog", "", "s3://bucket/a.bin", "owner/name"):
        files.note(text, "feature_extractor")
    assert files.seen == {"a.bin": ReadFile("feature_extractor", sha256(DATA).hexdigest())}
