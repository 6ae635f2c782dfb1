"""What is found to be wrong before any work: exit 2, in words, and nothing is written or run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyimgano_dask.cli.infer import main
from tests.cli.command import CAN_BE_DENIED, command, everything_in
from tests.cli.conftest import MODEL, Trained

FILE_FLAGS = ("--save-jsonl", "--profile-json")


class Place:
    """A folder with one input image; `refused` runs the command there."""

    def __init__(self, folder: Path, trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.trained = trained
        self._capsys = capsys
        (folder / "images" / "sub").mkdir(parents=True)
        (folder / "part.png").write_bytes(Path(trained.parts.test_good[0]).read_bytes())
        (folder / "images" / "sub" / "one.png").write_bytes((folder / "part.png").read_bytes())
        (folder / "file").write_text("a file")
        (folder / "empty").mkdir()

    def refused(self, *arguments: str, source: Sequence[str] | None = None, given: str = "part.png") -> list[str]:
        """Lines of standard error of a run that ends with 2 and leaves everything as it was."""
        before = everything_in(self.folder)
        where = ["--input", given] if given else []
        code = main([*(self.trained.source if source is None else source), *where, *arguments])
        printed = self._capsys.readouterr()
        assert code == 2, printed.err
        assert printed.out == ""
        assert everything_in(self.folder) == before
        lines = printed.err.splitlines()
        assert all(line.startswith("pyimgano-infer: error: ") for line in lines)
        return [line.removeprefix("pyimgano-infer: error: ") for line in lines]


@pytest.fixture
def place(
    tmp_path: Path, trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, trained, capsys)


class TestInputs:
    def test_missing_altogether(self, place: Place) -> None:
        (line,) = place.refused(given="")
        assert line.startswith("--input is missing")

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            ("gone.png", "no such file"),
            ("gone", "no such file"),
            ("gone/*.png", "no image is found"),
            ("empty", "no image is found"),
            ("file", "not that of an image"),
            ("@gone.txt", "No such file"),
            ("@file.txt", "the list is empty"),
            ("", "the path is empty"),
            ("nowhere://x.png", "nowhere"),
        ],
    )
    def test_unusable(self, place: Place, given: str, reason: str) -> None:
        (place.folder / "file.txt").write_bytes(b"\r\n\n   \n")
        (line,) = place.refused("--input", given, given="part.png")
        assert line.startswith(f"--input: input {given!r}: ")
        assert reason in line

    def test_all_unusable_ones_are_named(self, place: Place) -> None:
        lines = place.refused("--input", "gone.png", "empty", "--input", "file")
        assert [line.split(":")[1] for line in lines] == [" input 'gone.png'", " input 'empty'", " input 'file'"]

    def test_training_images_alike(self, place: Place) -> None:
        for given in ("gone", "empty"):
            (line,) = place.refused("--train-dir", given, source=["--model", MODEL])
            assert line.startswith(f"--train-dir: input {given!r}: ")


class TestOutputs:
    @pytest.mark.parametrize("flag", ["--save-maps", "--save-masks", "--save-overlays", "--run-dir"])
    @pytest.mark.parametrize("path", ["file", "file/below"])
    def test_a_folder_that_is_a_file(self, place: Place, flag: str, path: str) -> None:
        (line,) = place.refused("--defects", "--pixel-threshold", "3", flag, path)
        assert line.startswith(f"{flag}: ")
        assert "is a file" in line

    @pytest.mark.parametrize("flag", ["--save-maps", "--save-masks", "--save-overlays", "--run-dir"])
    def test_a_folder_that_cannot_be(self, place: Place, flag: str) -> None:
        (line,) = place.refused("--defects", "--pixel-threshold", "3", flag, "/proc/pyimgano")
        assert line.startswith(f"{flag}: ")
        assert "'/proc/pyimgano'" in line

    @pytest.mark.parametrize("flag", FILE_FLAGS)
    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("empty", "folder"),
            ("/proc/out.jsonl", "cannot write"),
            ("file/out.jsonl", "is a file"),
        ],
    )
    def test_a_file_that_cannot_be_written(self, place: Place, flag: str, path: str, reason: str) -> None:
        (line,) = place.refused(flag, path)
        assert line.startswith(f"{flag}: ")
        assert reason in line

    @pytest.mark.parametrize("flag", FILE_FLAGS)
    def test_a_file_that_is_a_pipe_or_a_device(self, place: Place, flag: str) -> None:
        pipe = place.folder / "pipe"
        os.mkfifo(pipe)
        (line,) = place.refused(flag, "pipe")
        assert line.startswith(f"{flag}: 'pipe'")
        assert stat.S_ISFIFO(pipe.lstat().st_mode)

    @pytest.mark.parametrize("other", ["out.json", "./out.json", "link/../out.json"])
    def test_records_and_profile_in_one_file(self, place: Place, other: str) -> None:
        (place.folder / "link").symlink_to("images")
        (line,) = place.refused("--save-jsonl", "images/../out.json", "--profile-json", other)
        assert "--profile-json and --save-jsonl" in line

    @pytest.mark.parametrize(
        ("path", "fault"),
        [
            ("empty.html", "is a folder"),
            ("file/report.html", "/file' is a file"),
            ("pipe.html", "is a pipe or a device"),
            ("report.txt", "let it end in .html"),
        ],
    )
    def test_a_report_that_cannot_be_written(self, place: Place, path: str, fault: str) -> None:
        (place.folder / "empty.html").mkdir()
        os.mkfifo(place.folder / "pipe.html")
        (line,) = place.refused("--scheduler", "local-cluster", "--performance-report", path)
        assert line.startswith("--performance-report: ")
        assert fault in line

    def test_a_report_in_place_of_the_records(self, place: Place) -> None:
        files = ("--save-jsonl", "empty/../r.html", "--performance-report", "r.html")
        (line,) = place.refused("--scheduler", "local-cluster", *files)
        assert "the same file 'r.html'" in line

    @pytest.mark.parametrize(
        ("flags", "folders"),
        [
            (["--save-masks", "out", "--save-overlays", "out/"], ("--save-masks", "--save-overlays")),
            (["--save-masks", "out", "--save-overlays", "./x/../out"], ("--save-masks", "--save-overlays")),
            (["--save-masks", "out", "--mask-format", "npy", "--save-maps", "out"], ("--save-masks", "--save-maps")),
            (
                ["--save-masks", "o.zarr", "--mask-format", "zarr", "--save-maps", "o.zarr"],
                ("--save-masks", "--save-maps"),
            ),
        ],
    )
    def test_two_kinds_of_files_in_one_folder(self, place: Place, flags: list[str], folders: tuple[str, str]) -> None:
        (line,) = place.refused("--defects", "--pixel-threshold", "3", *flags)
        assert all(flag in line for flag in folders)
        assert "same" in line

    @pytest.mark.parametrize("folder", ["images", "images/", "images/sub/new", "link"])
    def test_pictures_among_the_inputs(self, place: Place, folder: str) -> None:
        (place.folder / "link").symlink_to("images")
        for flags in (["--save-overlays", folder], ["--defects", "--pixel-threshold", "3", "--save-masks", folder]):
            (line,) = place.refused(*flags, given="images")
            assert line.startswith(flags[-2])
            assert "--input" in line

    def test_pictures_among_the_training_images(self, place: Place) -> None:
        (line,) = place.refused("--train-dir", "images", "--save-overlays", "images/seen", source=["--model", MODEL])
        assert "--save-overlays" in line
        assert "--train-dir" in line

    def test_all_faults_are_told_at_once(self, place: Place) -> None:
        arguments = ["--defects", "--pixel-threshold", "3", "--save-masks", "file", "--save-overlays", "images/new"]
        lines = place.refused(*arguments, "--save-jsonl", "empty", given="images")
        assert sorted(line.partition(":")[0] for line in lines) == ["--save-jsonl", "--save-masks", "--save-overlays"]

    def test_masks_without_defects(self, place: Place) -> None:
        (line,) = place.refused("--save-masks", "out")
        assert "--save-masks needs --defects" in line

    @pytest.mark.skipif(not CAN_BE_DENIED, reason="root may write everywhere, and setpriv is not installed")
    def test_a_read_only_folder(self, place: Place, trained: Trained) -> None:
        locked = place.folder / "locked"
        locked.mkdir(mode=0o555)
        before = everything_in(place.folder)
        arguments = ["--defects", "--pixel-threshold", "3", "--save-masks", "locked", "--save-jsonl", "locked/o.jsonl"]
        answer = command(*trained.source, "--input", "part.png", *arguments, cwd=place.folder, may_be_denied=True)
        assert answer.code == 2
        assert [line.split(": ")[2] for line in answer.stderr.splitlines()] == ["--save-masks", "--save-jsonl"]
        assert answer.stderr.count("Permission denied") == 2
        assert everything_in(place.folder) == before


class TestThresholds:
    def test_no_pixel_threshold_names_the_three_ways(self, place: Place) -> None:
        (line,) = place.refused("--defects")
        assert all(way in line for way in ("--pixel-threshold T", "--train-dir", "--infer-config"))

    def test_a_strategy_alone_is_no_threshold(self, place: Place) -> None:
        for strategy in ("fixed", "infer_config"):
            (line,) = place.refused("--defects", "--pixel-threshold-strategy", strategy)
            assert "--pixel-threshold T" in line


class Trap:
    """Pickles into a call that makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("sprung",))


class TestDetector:
    def test_neither_training_images_nor_a_checkpoint(self, place: Place) -> None:
        (line,) = place.refused(source=["--model", MODEL])
        assert "--train-dir" in line
        assert "--checkpoint-path" in line

    def test_a_device_that_no_worker_can_have(self, place: Place) -> None:
        torch = pytest.importorskip("torch", reason="vision_padim needs torch")
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        source = ["--model", "vision_padim", "--train-dir", "part.png"]
        (line,) = place.refused("--device", "cuda", "--scheduler", "threads", source=source)
        assert "--device cuda: torch finds no such device here; give --device cpu" in line

    def test_bad_arguments_are_all_named(self, place: Place) -> None:
        kwargs = '{"resize": 3, "topk": 7, "color": "blue"}'
        lines = place.refused("--model-kwargs", kwargs, source=["--model", MODEL])
        assert [line.partition(":")[0] for line in lines] == [
            "model_kwargs.resize",
            "model_kwargs.color",
            "model_kwargs.topk",
        ]

    @pytest.mark.parametrize("name", ["part.pkl", "part.npz"])
    def test_a_pickle_is_refused_and_never_run(self, place: Place, name: str) -> None:
        if name.endswith(".npz"):
            np.savez(place.folder / name, median=np.array([Trap()], dtype=object))
        else:
            (place.folder / name).write_bytes(pickle.dumps(Trap()))
        (line,) = place.refused("--checkpoint-path", name, source=["--model", MODEL])
        assert repr(name) in line
        assert not (place.folder / "sprung").exists()

    @pytest.mark.parametrize(
        ("name", "reason"), [("gone.npz", "No such file"), ("empty", "directory"), ("file", "npz")]
    )
    def test_a_checkpoint_that_is_none(self, place: Place, name: str, reason: str) -> None:
        (line,) = place.refused("--checkpoint-path", name, source=["--model", MODEL])
        assert repr(name) in line
        assert reason in line

    def test_a_damaged_checkpoint(self, place: Place, trained: Trained) -> None:
        data = bytearray(Path(trained.checkpoint).read_bytes())
        data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
        (place.folder / "worn.npz").write_bytes(data)
        (line,) = place.refused("--checkpoint-path", "worn.npz", source=["--model", MODEL])
        assert "'worn.npz'" in line

    def test_a_checkpoint_of_another_detector(self, place: Place, trained: Trained) -> None:
        source = ["--model", "vision_pixel_gaussian_map", "--checkpoint-path", trained.checkpoint]
        (line,) = place.refused(source=source)
        assert MODEL in line
        assert "vision_pixel_gaussian_map" in line

    def test_a_checkpoint_of_another_size(self, place: Place) -> None:
        (line,) = place.refused("--model-kwargs", '{"resize_hw": [32, 32]}')
        assert "(32, 32)" in line
        assert "(64, 64)" in line

    def test_a_checkpoint_with_another_checksum(self, place: Place, trained: Trained) -> None:
        config = {
            "schema_version": 1,
            "model": {"name": MODEL},
            "checkpoint": {"path": trained.checkpoint, "sha256": "0" * 64},
        }
        (place.folder / "c.json").write_text(json.dumps(config))
        (line,) = place.refused(source=["--infer-config", "c.json"])
        assert trained.checkpoint in line
        assert "sha256" in line


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--pixel-treshold", "--pixel-threshold"),
        ("--defect-min-aera=3", "--defect-min-area"),
        ("--no-defect", "--no-defects"),
        ("--masks", "--save-masks"),
        ("--config", "--infer-config"),
        ("--qqqqqq", None),
        ("--lr", None),
        ("--output", None),
        ("--dir", None),
    ],
)
def test_an_unknown_flag_is_answered_in_one_line_with_the_one_that_may_be_meant(
    word: str, meant: str | None, tmp_path: Path
) -> None:
    answer = command("--model", "m", word, "3", cwd=tmp_path)
    (line,) = answer.stderr.splitlines()
    assert answer.code == 2
    assert f"unknown flag {word.partition('=')[0]}" in line
    assert ("did you mean" in line) == (meant is not None)
    assert meant is None or f"did you mean {meant}?" in line


def test_what_is_odd_about_a_config_is_said_before_what_is_wrong(tmp_path: Path) -> None:
    config = {"schema_version": 1, "defects": {"enabeld": True, "image_space": True}}
    (tmp_path / "c.json").write_text(json.dumps(config))
    answer = command("--infer-config", "c.json", "--input", "x.png", cwd=tmp_path)
    first, *rest = answer.stderr.splitlines()
    assert answer.code == 2
    assert "warning" in first
    assert "defects.enabeld" in first
    assert any("error" in line for line in rest)


@pytest.mark.parametrize("flag", FILE_FLAGS)
@pytest.mark.parametrize("name", ["run.json", "infer_config.json", "detector.npz"])
def test_nothing_is_written_where_the_run_itself_writes(flag: str, name: str, trained: Trained, tmp_path: Path) -> None:
    source = ("--infer-config", trained.infer_config, "--input", trained.parts.test_dir)
    answer = command(*source, "--run-dir", "R", flag, f"R/{name}", cwd=tmp_path)
    assert answer.code == 2
    assert f"{flag}: the run itself writes" in answer.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", FILE_FLAGS)
def test_nothing_is_written_over_an_image_that_is_read(flag: str, trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.parts.test_dir, tmp_path / "in")
    image = next((tmp_path / "in").rglob("*.png"))
    before = image.read_bytes()
    source = ("--infer-config", trained.infer_config, "--input", "in")
    answer = command(*source, flag, str(image), cwd=tmp_path)
    assert answer.code == 2
    assert f"{flag}: " in answer.stderr
    assert image.read_bytes() == before


@pytest.mark.parametrize("inputs", ["images/*.png", "@list.txt", "images/good.png"])
@pytest.mark.parametrize("target", ["images/good.png", "list.txt", "config.json"])
def test_no_file_that_is_read_is_written_over(trained: Trained, tmp_path: Path, inputs: str, target: str) -> None:
    (tmp_path / "images").mkdir()
    shutil.copy(trained.parts.test_good[0], tmp_path / "images/good.png")
    (tmp_path / "list.txt").write_text("images/good.png\n")
    config = json.loads(Path(trained.infer_config).read_text())
    config["checkpoint"]["path"] = str(Path(trained.infer_config).parent / "detector.npz")
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = (tmp_path / target).read_bytes()
    flags = ["--infer-config", "config.json", "--input", inputs, "--profile-json", target, "--save-jsonl", "r.jsonl"]
    answer = command(*flags, cwd=tmp_path)
    is_read = target != "list.txt" or inputs == "@list.txt"
    assert answer.code == (2 if is_read else 0), answer.stderr
    assert ((tmp_path / target).read_bytes() == before) == is_read
