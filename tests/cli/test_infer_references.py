"""`--reference-dir` of `pyimgano-infer`: what is refused before any work, and what costs one input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from pyimgano_dask.cli.infer import main
from pyimgano_dask.detectors.registry import detector_types
from tests.cli.command import command, everything_in
from tests.cli.conftest import MODEL, Trained
from tests.conftest import ROOT, run_python

COMPARING = "vision_reference_diff_map"


def write_image(path: Path, level: int, size: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((size, size), 100, np.uint8)
    image[8:16, 8:16] = level
    assert cv2.imwrite(str(path), image)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with three images in `in/` and their references in `golden/`."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "c.png"):
        write_image(tmp_path / "in" / name, 180)
        write_image(tmp_path / "golden" / name, 100)
    return tmp_path


class TestRefused:
    def refused(self, place: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        """The one line of standard error of a run that ends with 2 and leaves everything as it was."""
        before = everything_in(place)
        assert main([*arguments, "--input", "in"]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert everything_in(place) == before
        (line,) = printed.err.splitlines()
        return line.removeprefix("pyimgano-infer: error: ")

    def test_none_for_a_detector_that_needs_one(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        line = self.refused(place, capsys, "--model", COMPARING)
        assert COMPARING in line
        assert "give --reference-dir DIR" in line

    def test_one_for_a_detector_that_needs_none(
        self, place: Path, capsys: pytest.CaptureFixture[str], trained: Trained
    ) -> None:
        line = self.refused(place, capsys, *trained.source, "--reference-dir", "golden")
        assert line.startswith("--reference-dir: ")
        assert MODEL in line

    @pytest.mark.parametrize(
        ("given", "reason"),
        [("gone", "no such file"), ("empty", "no image is found"), ("notes.txt", "not that of an image")],
    )
    def test_nothing_there(self, place: Path, capsys: pytest.CaptureFixture[str], given: str, reason: str) -> None:
        (place / "empty").mkdir()
        (place / "notes.txt").write_text("golden is on the other disk")
        line = self.refused(place, capsys, "--model", COMPARING, "--reference-dir", given)
        assert line.startswith(f"--reference-dir: input {given!r}: ")
        assert reason in line

    @pytest.mark.parametrize("twin", ["golden/sub/b.png", "golden/a/b.png"])
    def test_a_name_twice(self, place: Path, capsys: pytest.CaptureFixture[str], twin: str) -> None:
        write_image(place / twin, 100)
        line = self.refused(place, capsys, "--model", COMPARING, "--reference-dir", "golden")
        assert line.startswith("--reference-dir: 'golden' holds two references of the same name")
        assert "'golden/b.png'" in line
        assert repr(twin) in line

    @pytest.mark.parametrize("folder", ["golden", "golden/new", "link"])
    def test_pictures_among_the_references(self, place: Path, capsys: pytest.CaptureFixture[str], folder: str) -> None:
        (place / "link").symlink_to("golden")
        given = ["--model", COMPARING, "--reference-dir", "golden", "--defects", "--pixel-threshold", "9"]
        for flags in (
            ["--save-overlays", folder],
            ["--save-overlays", folder, "--overlay-format", "jpg"],
            ["--save-masks", folder],
        ):
            line = self.refused(place, capsys, *given, *flags)
            assert line.startswith(flags[0])
            assert "--reference-dir" in line


def test_maps_may_lie_beside_the_references(place: Path) -> None:
    answer = command(
        *("--model", COMPARING, "--reference-dir", "golden", "--input", "in", "--save-maps", "golden"), cwd=place
    )
    assert answer.code == 0, answer.stderr
    assert len(list((place / "golden").glob("*.npy"))) == 3


def test_a_missing_reference_is_an_error_record_and_exit_3(place: Path) -> None:
    (place / "golden/b.png").unlink()
    answer = command("--model", COMPARING, "--reference-dir", "golden", "--input", "in", cwd=place)
    assert answer.code == 3
    scored, failed, last = answer.records
    assert scored["score"] == last["score"] > 0
    assert (failed["error"]["stage"], failed["error"]["type"]) == ("read", "MissingReferenceError")
    assert "'golden/b.png'" in failed["error"]["message"]
    assert "in/b.png" in answer.stderr


def test_one_image_for_all(place: Path) -> None:
    answer = command("--model", COMPARING, "--reference-dir", "golden/c.png", "--input", "in", cwd=place)
    assert answer.code == 0, answer.stderr
    assert len({record["score"] for record in answer.records}) == 1


def test_the_hint_for_a_detector_that_needs_none_finds_those_that_do(
    place: Path, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*trained.source, "--reference-dir", "golden", "--input", "in"]) == 2
    hint = re.search(r"\((--list-models[^)]*)\)", capsys.readouterr().err)
    assert hint is not None
    assert main([*hint[1].split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        name for name, detector_type in detector_types().items() if detector_type.needs_reference
    ]


def test_a_job_file_names_the_references(place: Path) -> None:
    job = {
        "schema_version": 1,
        "model": {"name": COMPARING, "reference_dir": "golden"},
        "inputs": {"input": ["in"]},
        "output": {"save_jsonl": "job.jsonl"},
    }
    (place / "job.json").write_text(json.dumps(job))
    done = run_python(str(ROOT / "jobs/infer.py"), "--config", "job.json", cwd=place)
    assert done.rc == 0, done.stderr
    by_flags = command("--model", COMPARING, "--reference-dir", "golden", "--input", "in", cwd=place)
    assert (place / "job.jsonl").read_bytes() == by_flags.stdout


def test_a_normal_image_that_the_detector_cannot_take_is_named(place: Path) -> None:
    for folder in ("train", "golden"):
        assert cv2.imwrite(str(place / f"{folder}.png"), np.zeros((1, 33000), np.uint8))
    answer = command(
        *("--model", COMPARING, "--model-kwargs", '{"registration": "local"}', "--reference-dir", "golden.png"),
        *("--train-dir", "train.png", "--input", "in"),
        cwd=place,
    )
    assert answer.code in (1, 2)
    assert "train.png" in answer.stderr
