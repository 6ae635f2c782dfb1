"""Flags, sources, discovery and exit codes of `pyimgano-infer`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyimgano_dask.cli.infer import main
from pyimgano_dask.detectors.registry import detector_types
from pyimgano_dask.settings.commands import INFER, knobs_of
from pyimgano_dask.version import __version__
from tests.cli.command import command
from tests.cli.conftest import MODEL, Trained


def shown_on_a_terminal(*flags: str, columns: int, cwd: Path) -> str:
    """What the command prints where standard output is a terminal of this width."""
    screen, terminal = os.openpty()
    argv = [sys.executable, "-m", "pyimgano_dask.cli.infer", *flags]
    with subprocess.Popen(argv, cwd=cwd, stdout=terminal, env={**os.environ, "COLUMNS": str(columns)}) as process:
        os.close(terminal)
        shown = b""
        while piece := _read(screen):
            shown += piece
    os.close(screen)
    assert process.returncode == 0
    return shown.decode()


def _read(screen: int) -> bytes:
    try:
        return os.read(screen, 4096)
    except OSError:  # how Linux says that nobody has the terminal open any more
        return b""


class TestHelp:
    def test_it_has_every_flag_and_fits_a_terminal(self, tmp_path: Path) -> None:
        answer = command("--help", cwd=tmp_path, env={"COLUMNS": "300"})
        assert answer.code == 0
        assert answer.stderr == ""
        text = answer.stdout.decode()
        assert max(map(len, text.splitlines())) < 120
        offered = {word.rstrip(",") for word in text.split()}
        flags = {str(knob.flag) for knob in knobs_of(INFER)}
        flags |= {f"--no-{str(knob.flag)[2:]}" for knob in knobs_of(INFER) if knob.is_switch}
        flags |= {"--infer-config", "--infer-category", "--list-models", "--model-info", "--tags", "--json", "--debug"}
        assert flags - offered == set()
        assert "Exit codes: 0 every input done, 1 " in text

    def test_no_flag_is_cut_at_80_columns(self, tmp_path: Path) -> None:
        text = command("--help", cwd=tmp_path, env={"COLUMNS": "80"}).stdout.decode()
        assert text.index("Score images") < 500, "the forms of a line are few"
        assert max(map(len, text.splitlines())) <= 80
        named = {word.strip("().,;:") for knob in knobs_of(INFER) for word in knob.help.split() if "--" in word}
        assert {word for word in named if word not in text} == set()

    def test_without_a_terminal_it_has_80_columns(self, tmp_path: Path) -> None:
        bare, narrow = (command("--help", cwd=tmp_path, env={"COLUMNS": columns}).stdout for columns in ("", "80"))
        assert bare == narrow

    def test_it_can_be_read_on_a_terminal_that_knows_ascii_only(self, tmp_path: Path) -> None:
        answer = command("--help", cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
        assert answer.code == 0
        assert b"--input" in answer.stdout

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["--version"])
        assert caught.value.code == 0
        assert capsys.readouterr().out == f"pyimgano-dask {__version__}\n"


class TestDiscovery:
    def test_models_are_listed_one_a_line(self, tmp_path: Path) -> None:
        answer = command("--list-models", cwd=tmp_path)
        assert (answer.code, answer.stderr) == (0, "")
        assert answer.stdout.decode().splitlines() == list(detector_types())

    def test_models_are_listed_as_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--list-models", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == list(detector_types())

    def test_models_are_chosen_by_all_their_tags(self, capsys: pytest.CaptureFixture[str]) -> None:
        for tags, wanted in (("robust, vision", [MODEL]), ("gaussian,robust", []), ("", list(detector_types()))):
            assert main(["--list-models", "--json", "--tags", tags]) == 0
            assert json.loads(capsys.readouterr().out) == wanted

    @pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
    def test_tags_that_no_detector_has_together_are_told(
        self, flags: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["--list-models", "--tags", "robust,gaussian", *flags]) == 0
        printed = capsys.readouterr()
        assert printed.out == ("[]\n" if flags else "")
        assert printed.err == "no detector has all of these tags: gaussian, robust\n"

    def test_a_tag_that_no_detector_has_is_answered_with_the_known_ones(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["--list-models", "--tags", "robust,nonsense"]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "--tags: no detector has the tag nonsense; known are " in printed.err
        assert all(tag in printed.err for detector in detector_types().values() for tag in detector.tags)

    def test_on_a_terminal_each_model_has_its_summary(self, tmp_path: Path) -> None:
        shown = shown_on_a_terminal("--list-models", columns=80, cwd=tmp_path)
        assert max(map(len, shown.splitlines())) <= 80
        said = " ".join(shown.split())
        for name, detector in detector_types().items():
            assert f"{name} {' '.join(detector.summary.split())}" in said
        assert shown_on_a_terminal("--list-models", "--json", columns=80, cwd=tmp_path).startswith("[")

    @pytest.mark.parametrize("flags", [["--list-models"], ["--model-info", MODEL], ["--model-info", MODEL, "--json"]])
    def test_a_reader_that_has_seen_enough_ends_it_quietly(self, flags: list[str], tmp_path: Path) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        answer = command(*flags, cwd=tmp_path, stdout=writer)
        os.close(writer)
        assert (answer.code, answer.stderr) == (0, "")

    def test_a_model_is_explained(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--model-info", MODEL]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"{MODEL}\n")
        assert "\nneeds   training images (--train-dir)\n" in text
        assert "\n  max_train_images = 128  (a whole number ≥ 1)\n" in text
        assert '\n  reduction = "topk_mean"  (one of max, mean, topk_mean)\n' in text

    @pytest.mark.parametrize("name", detector_types())
    def test_an_explanation_fits_the_terminal_and_is_one_line_an_argument_without(
        self, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        texts = {}
        for columns in ("", "80"):
            monkeypatch.setenv("COLUMNS", columns)
            assert main(["--model-info", name]) == 0
            texts[columns] = capsys.readouterr().out
        assert max(map(len, texts["80"].splitlines())) <= 80
        assert texts["80"].split() == texts[""].split()
        for argument, field in detector_types()[name].arguments_type.model_fields.items():
            at = texts[""].index(f"\n  {argument} = ")
            assert texts[""][at:].splitlines()[2].strip() == field.description

    def test_an_explanation_can_be_read_where_only_ascii_is_known(self, tmp_path: Path) -> None:
        answer = command("--model-info", MODEL, cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
        assert (answer.code, answer.stderr) == (0, "")
        assert b"max_train_images = 128" in answer.stdout

    @pytest.mark.parametrize(
        ("name", "wanted"),
        [
            ("vision_patchcore", {"extra": "torch", "training_images": "required", "weights_file": "optional"}),
            ("vision_onnx", {"extra": "onnx", "training_images": "for thresholds", "model_file": ".onnx"}),
            ("vision_reference_diff_map", {"training_images": "for thresholds", "reference_images": "required"}),
            (MODEL, {"training_images": "required"}),
        ],
    )
    def test_what_a_model_needs_is_told(
        self, name: str, wanted: dict[str, str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["--model-info", name, "--json"]) == 0
        needs = json.loads(capsys.readouterr().out)["needs"]
        assert {what: value for what, value in needs.items() if value is not None} == wanted

    @pytest.mark.parametrize("name", detector_types())
    def test_a_model_is_explained_as_json(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--model-info", name, "--json"]) == 0
        explained = json.loads(capsys.readouterr().out)
        assert explained["name"] == name
        assert set(explained["arguments"]) == set(detector_types()[name].arguments_type.model_fields)

    def test_an_unknown_model_is_answered_with_the_known_ones(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--model-info", "vision_pixel_mda_map"]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "'vision_pixel_mda_map'" in printed.err
        assert all(name in printed.err for name in detector_types())


class TestSource:
    @pytest.mark.parametrize(
        "argv",
        [
            [],
            ["--input", "x.png"],
            ["--model", MODEL, "--infer-config", "c.json"],
            ["--model", MODEL, "--list-models"],
            ["--model", MODEL, "--save-json", "out.jsonl"],
            ["--model", MODEL, "--roi-xyxy-norm", "0", "0", "1"],
            ["--model"],
        ],
        ids=" ".join,
    )
    def test_flags_that_make_no_sense_end_with_2(self, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 2
        assert "pyimgano-infer: error: " in capsys.readouterr().err

    def test_an_unknown_detector_is_answered_with_the_known_ones(self, trained: Trained, tmp_path: Path) -> None:
        answer = command("--model", "nope", "--input", trained.parts.test_dir, cwd=tmp_path)
        assert answer.code == 2
        assert answer.stdout == b""
        (line,) = answer.stderr.splitlines()
        assert line.startswith("pyimgano-infer: error: ")
        assert "'nope'" in line
        assert MODEL in line

    def test_an_infer_config_brings_detector_and_thresholds(self, trained: Trained, tmp_path: Path) -> None:
        arguments = ["--infer-config", trained.infer_config, "--input", trained.parts.test_dir]
        answer = command(*arguments, "--batch-size", "3", cwd=tmp_path)
        assert answer.code == 0
        first, again = trained.answer.records, answer.records
        for key in ("score", "label", "anomaly_map"):
            assert [record[key] for record in again] == [record[key] for record in first]
        for record, before in zip(again, first, strict=True):
            assert record["defects"]["regions"] == before["defects"]["regions"]
            assert record["defects"]["pixel_threshold_provenance"]["source"] == "infer_config"

    def test_a_flag_wins_over_the_infer_config(self, trained: Trained, tmp_path: Path) -> None:
        arguments = ["--infer-config", trained.infer_config, "--input", trained.parts.test_good[0]]
        answer = command(*arguments, "--no-defects", "--no-include-maps", cwd=tmp_path)
        assert answer.code == 0
        assert set(answer.records[0]) == {"index", "input", "score", "label"}

    def test_a_category_needs_a_config(self, trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*trained.source, "--input", trained.parts.test_good[0], "--infer-category", "bolt"]) == 2
        assert "--infer-category" in capsys.readouterr().err


class TestUrls:
    def test_they_work_for_what_is_read(self, trained: Trained, tmp_path: Path) -> None:
        run, images = trained.run_dir.as_uri(), Path(trained.parts.test_dir).as_uri()
        arguments = ["--model", MODEL, "--checkpoint-path", f"{run}/detector.npz", "--input", images]
        answer = command(*arguments, cwd=tmp_path)
        assert answer.code == 0, answer.stderr
        assert [r["score"] for r in answer.records] == [r["score"] for r in trained.answer.records]

    def test_they_work_for_an_infer_config(self, trained: Trained, tmp_path: Path) -> None:
        config = Path(trained.infer_config).as_uri()
        answer = command("--infer-config", config, "--input", trained.parts.test_good[0], cwd=tmp_path)
        assert answer.code == 0, answer.stderr

    def test_they_work_for_artifacts(self, trained: Trained, tmp_path: Path) -> None:
        out = tmp_path.as_uri()
        arguments = ["--input", trained.parts.test_good[0], "--defects", "--pixel-threshold", "3"]
        arguments += ["--save-masks", f"{out}/masks", "--save-maps", f"{out}/maps", "--save-overlays", f"{out}/seen"]
        answer = command(*trained.source, *arguments, cwd=tmp_path)
        assert answer.code == 0, answer.stderr
        assert {path.parent.name for path in tmp_path.rglob("*") if path.is_file()} == {"masks", "maps", "seen"}

    def test_they_work_for_records_and_the_run_folder(self, trained: Trained, tmp_path: Path) -> None:
        out = tmp_path.as_uri()
        arguments = ["--save-jsonl", f"{out}/new/o.jsonl", "--run-dir", f"{out}/run", "--keep-parts"]
        answer = command(*trained.source, "--input", trained.parts.test_good[0], *arguments, cwd=tmp_path)
        assert answer.code == 0, answer.stderr
        (shard,) = (tmp_path / "run/parts").iterdir()
        assert (tmp_path / "new/o.jsonl").read_bytes() == shard.read_bytes()


def test_records_tell_scores_labels_and_defects(trained: Trained) -> None:
    answer = trained.answer
    assert answer.code == 0, answer.stderr
    config = json.loads(Path(trained.infer_config).read_text())
    records = answer.records
    assert [record["input"] for record in records] == sorted(
        str(p) for p in Path(trained.parts.test_dir).rglob("*.png")
    )
    labels = [record["label"] for record in records]
    assert labels == [int(record["score"] >= config["threshold"]) for record in records]
    assert set(labels) == {0, 1}, "the parts show both"
    for record in records:
        height, width = record["anomaly_map"]["shape"]
        assert (height, width) in {(64, 64), (64, 80)}
        assert record["defects"]["pixel_threshold"] == config["defects"]["pixel_threshold"]
        assert record["defects"]["space"] == {"type": "anomaly_map", "shape": [height, width]}


def test_the_summary_goes_to_standard_error(trained: Trained) -> None:
    assert MODEL in trained.answer.stderr
    assert "6 of 6" in trained.answer.stderr


def test_a_summary_in_a_pipe_has_whole_paths(trained: Trained, tmp_path: Path) -> None:
    path = f"{'a-long-name-of-a-folder/' * 6}results.jsonl"
    answer = command(
        *trained.source, "--input", trained.parts.test_dir, "--save-jsonl", path, cwd=tmp_path, env={"COLUMNS": ""}
    )
    assert answer.code == 0, answer.stderr
    assert path in answer.stderr


class TestDebug:
    def test_it_shows_the_traceback_and_keeps_the_exit_code(self, trained: Trained, tmp_path: Path) -> None:
        answer = command(*trained.source, "--input", "none.png", "--debug", cwd=tmp_path)
        assert "Traceback (most recent call last)" in answer.stderr
        assert "none.png" in answer.stderr
        assert answer.code == 2


class TestStandardOutput:
    def test_a_reader_that_leaves_ends_the_run_in_words(self, trained: Trained, tmp_path: Path) -> None:
        arguments = [
            sys.executable,
            "-m",
            "pyimgano_dask.cli.infer",
            *trained.source,
            "--input",
            trained.parts.test_dir,
        ]
        reader, writer = os.pipe()
        os.close(reader)
        try:
            done = subprocess.run(
                arguments, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, timeout=120, check=False
            )
        finally:
            os.close(writer)
        assert done.returncode == 1
        assert done.stderr == b"pyimgano-infer: error: standard output was closed before all records were written\n"
        assert list(tmp_path.iterdir()) == []

    def test_it_may_be_full(self, trained: Trained, tmp_path: Path) -> None:
        with open("/dev/full", "wb") as full:
            answer = command(*trained.source, "--input", trained.parts.test_dir, cwd=tmp_path, stdout=full)
        assert answer.code == 1
        (line,) = answer.stderr.splitlines()
        assert "standard output" in line
        assert "No space left" in line
        assert list(tmp_path.iterdir()) == []
