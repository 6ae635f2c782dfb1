"""What a machine without the package pyimgano says of names that need it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.conftest import ROOT, Ended, infer_command
from tests.detectors.images import draw_images

REMEDY = "pip install 'pyimgano-dask[pyimgano]'"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with one image, and a `pyimgano` in `without/` that cannot be imported."""
    import cv2

    assert cv2.imwrite(str(tmp_path / "a.png"), draw_images(1, "gray", [(16, 20)])[0])
    (tmp_path / "without").mkdir()
    (tmp_path / "without/pyimgano.py").write_text("raise ModuleNotFoundError(\"No module named 'pyimgano'\")\n")
    return tmp_path


def run_at(place: Path, *flags: object) -> Ended:
    path = os.pathsep.join((str(place / "without"), str(ROOT)))
    return infer_command(*flags, cwd=place, env={"PYTHONPATH": path})


def test_a_name_with_the_prefix_is_answered_with_the_remedy(place: Path) -> None:
    done = run_at(place, "--model", "pyimgano:vision_ecod", "--input", "a.png", "--train-dir", "a.png")
    assert (done.rc, done.stdout) == (2, "")
    assert "pyimgano:vision_ecod needs pyimgano" in done.stderr
    assert REMEDY in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_config_of_pyimgano_is_answered_with_the_remedy(place: Path) -> None:
    (place / "infer_config.json").write_text(json.dumps({"schema_version": 1, "model": {"name": "vision_ecod"}}))
    done = run_at(place, "--infer-config", "infer_config.json", "--input", "a.png", "--train-dir", "a.png")
    assert done.rc == 2
    assert "model.name: 'vision_ecod' is none of " in done.stderr
    assert REMEDY in done.stderr


def test_models_are_listed_without_it(place: Path) -> None:
    done = run_at(place, "--list-models")
    assert done.rc == 0
    assert "vision_pixel_mad_map" in done.stdout.splitlines()
    assert done.stderr == ""
    done = run_at(place, "--list-models", "--tags", "pyimgano")
    assert done.rc == 2
    assert REMEDY in done.stderr
