"""Flags, preflight and exit codes of `pyimgano-rescore`: exit 2 in words, with everything left as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyimgano_dask.cli.rescore import main
from pyimgano_dask.settings.commands import RESCORE, knobs_of
from tests.cli.command import Answer, command, everything_in
from tests.cli.conftest import Trained
from tests.conftest import hashes_below

N_INPUTS = 6


def rescore(*arguments: str, cwd: Path) -> Answer:
    return command(*arguments, cwd=cwd, module="rescore")


@pytest.fixture(scope="module")
def finished(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run left its run folder `run`, `maps`, and `records.jsonl`."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "images").symlink_to(trained.parts.test_dir)
    source = ("--infer-config", trained.infer_config, "--input", "images")
    answer = command(
        *source, "--save-maps", "maps", "--run-dir", "run", "--save-jsonl", "records.jsonl", "--keep-parts", cwd=folder
    )
    assert answer.code == 0, answer.stderr
    return folder


class Place:
    """A copy of the finished run, in the working folder; `refused` runs the command there."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys
        manifest = folder / "run/run.json"
        moved = {"base_dir": str(folder), "records": "records.jsonl"}
        self.manifest: dict[str, Any] = {**json.loads(manifest.read_text()), **moved}
        self.write_manifest(self.manifest)

    def write_manifest(self, manifest: object) -> None:
        (self.folder / "run/run.json").write_text(json.dumps(manifest))

    def edit_records(self, *lines: str) -> None:
        """Put these lines in the place of the first records."""
        records = self.folder / "records.jsonl"
        kept = records.read_text().splitlines()[len(lines) :]
        records.write_text("".join(f"{line}\n" for line in [*lines, *kept]))

    def refused(self, *arguments: str) -> list[str]:
        """Lines of standard error of a run that ends with 2 and leaves everything as it was."""
        before = everything_in(self.folder)
        code = main(list(arguments))
        printed = self._capsys.readouterr()
        assert code == 2, printed.err
        assert printed.out == ""
        assert everything_in(self.folder) == before
        lines = printed.err.splitlines()
        assert all(line.startswith("pyimgano-rescore: error: ") for line in lines)
        return [line.removeprefix("pyimgano-rescore: error: ") for line in lines]


@pytest.fixture
def place(tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Place:
    folder = Path(shutil.copytree(finished, tmp_path / "place", symlinks=True))
    monkeypatch.chdir(folder)
    return Place(folder, capsys)


RUN = ("--from-run", "run")
MAPS = ("--maps", "maps", "--pixel-threshold", "5")


class TestHelp:
    def test_it_has_every_flag_and_fits_a_terminal(self, tmp_path: Path) -> None:
        answer = command("--help", cwd=tmp_path, module="rescore", env={"COLUMNS": "300"})
        assert (answer.code, answer.stderr) == (0, "")
        text = answer.stdout.decode()
        assert max(map(len, text.splitlines())) < 120
        offered = {word.rstrip(",") for word in text.split()}
        flags = {str(knob.flag) for knob in knobs_of(RESCORE)}
        flags |= {f"--no-{str(knob.flag)[2:]}" for knob in knobs_of(RESCORE) if knob.is_switch}
        assert (flags | {"--infer-config", "--infer-category", "--debug", "--version"}) - offered == set()
        assert "--model" not in offered
        assert "Exit codes: 0 every input done, 1 " in text

    @pytest.mark.parametrize("module", ["infer", "rescore"])
    def test_presets_are_named(self, module: str, tmp_path: Path) -> None:
        text = command("--help", cwd=tmp_path, module=module).stdout.decode()
        assert "--defects-preset NAME" in text
        assert "industrial-fp40" in text
        assert "industrial-defects-fp40" in text

    @pytest.mark.parametrize(
        "flag",
        ["--model", "--train-dir", "--reference-dir", "--save-maps", "--clahe", "--no-clahe", "--amp", "--list-models"],
    )
    def test_flags_of_infer_are_told_as_such(self, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert refusal(flag, capsys) == (
            f"pyimgano-rescore: error: unknown flag {flag}: it is one of pyimgano-infer, "
            "and stored maps cannot be changed by it (--help shows every flag)\n"
        )

    @pytest.mark.parametrize(
        ("flag", "meant"),
        [("--pixel-treshold", "--pixel-threshold"), ("--masks", "--save-masks"), ("--bogus", None), ("--quiet", None)],
    )
    def test_unknown_flags(self, flag: str, meant: str | None, capsys: pytest.CaptureFixture[str]) -> None:
        guess = "" if meant is None else f"; did you mean {meant}?"
        said = f"pyimgano-rescore: error: unknown flag {flag}{guess} (--help shows every flag)\n"
        assert refusal(flag, capsys) == said


def refusal(flag: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["--from-run", "run", flag, "x"])
    assert caught.value.code == 2
    return capsys.readouterr().err


class TestAnswers:
    @pytest.mark.parametrize("from_elsewhere", [False, True])
    def test_the_records_of_the_run_go_to_standard_output(
        self, finished: Path, tmp_path: Path, from_elsewhere: bool
    ) -> None:
        where = (tmp_path, str(finished / "run")) if from_elsewhere else (finished, "run")
        answer = rescore("--from-run", where[1], cwd=where[0])
        assert answer.code == 0, answer.stderr
        assert answer.stdout == (finished / "records.jsonl").read_bytes()

    def test_a_relative_run_is_found_from_another_folder(self, finished: Path, tmp_path: Path) -> None:
        answer = rescore("--from-run", os.path.relpath(finished / "run", tmp_path), cwd=tmp_path)
        assert answer.code == 0, answer.stderr
        assert answer.stdout == (finished / "records.jsonl").read_bytes()

    def test_nothing_is_left_behind(self, finished: Path, tmp_path: Path) -> None:
        before = hashes_below(finished)
        assert rescore("--from-run", str(finished / "run"), cwd=tmp_path).code == 0
        assert list(tmp_path.iterdir()) == []
        assert hashes_below(finished) == before

    def test_some_errors_end_with_3(self, place: Place) -> None:
        next((place.folder / "maps").iterdir()).unlink()
        answer = rescore(*RUN, cwd=place.folder)
        assert answer.code == 3
        assert sum("error" in record for record in answer.records) == 1
        assert "1 (their records say why)" in answer.stderr

    def test_the_summary_says_that_the_maps_were_stored(self, finished: Path) -> None:
        answer = rescore("--from-run", "run", "--explain-defects", cwd=finished)
        assert "stored maps" in answer.stderr
        assert f"{N_INPUTS} of {N_INPUTS}" in answer.stderr

    def test_an_infer_config_needs_no_checkpoint_here(self, place: Place) -> None:
        config = {"schema_version": 1, "checkpoint": {"path": "gone.npz"}, "defects": {"pixel_threshold": 5.0}}
        (place.folder / "config.json").write_text(json.dumps(config))
        answer = rescore("--maps", "maps", "--infer-config", "config.json", cwd=place.folder)
        assert answer.code == 0, answer.stderr
        assert "score" not in json.loads(answer.stdout.splitlines()[0])


class TestSource:
    def test_exactly_one(self, place: Place) -> None:
        for arguments in ((), (*RUN, *MAPS)):
            (line,) = place.refused(*arguments)
            assert "--from-run" in line
            assert "--maps" in line

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            ("gone", "no such file"),
            ("images", "no anomaly map is found"),
            ("records.jsonl", "not that of an anomaly map"),
            ("@gone.txt", "No such file"),
            ("gone/*.npy", "no anomaly map is found"),
            ("gone.zarr", "gone.zarr"),
        ],
    )
    def test_maps_that_are_not_there(self, place: Place, given: str, reason: str) -> None:
        (line,) = place.refused("--maps", given, "--pixel-threshold", "5")
        assert line.startswith("--maps: ")
        assert reason in line

    def test_maps_without_a_threshold(self, place: Place) -> None:
        (line,) = place.refused("--maps", "maps")
        assert "--pixel-threshold" in line
        assert "--infer-config" in line

    def test_one_image_a_map(self, place: Place) -> None:
        (line,) = place.refused(*MAPS, "--input", "images/good")
        assert f"3 images and --maps for {N_INPUTS} maps" in line

    def test_images_of_maps_that_are_not_there(self, place: Place) -> None:
        (line,) = place.refused(*MAPS, "--input", "gone")
        assert line.startswith("--input: input 'gone'")

    def test_image_space_needs_the_images(self, place: Place) -> None:
        (line,) = place.refused(*MAPS, "--defects-image-space")
        assert "--input" in line

    def test_a_run_knows_its_images(self, place: Place) -> None:
        (line,) = place.refused(*RUN, "--input", "images")
        assert line.startswith("--input: ")

    def test_defects_are_what_it_is_for(self, place: Place) -> None:
        (line,) = place.refused(*RUN, "--no-defects")
        assert line.startswith("--no-defects: ")


class TestRunFolder:
    @pytest.mark.parametrize("given", ["gone", "maps", "records.jsonl", ""])
    def test_without_a_manifest(self, place: Place, given: str) -> None:
        (line,) = place.refused("--from-run", given)
        assert line.startswith("--from-run: ")
        assert "--run-dir" in line

    @pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '"run"', "\x00", "[" * 100_000])
    def test_with_a_manifest_that_is_no_json_object(self, place: Place, text: str) -> None:
        (place.folder / "run/run.json").write_text(text)
        (line,) = place.refused(*RUN)
        assert line.startswith("--from-run: ")
        assert "run.json" in line

    @pytest.mark.parametrize(
        "change",
        [
            {"format": 2},
            {"format": "1"},
            {"n_inputs": -1},
            {"n_inputs": "6"},
            {"n_inputs": True},
            {"base_dir": None},
            {"base_dir": 5},
            {"records": 5},
            {"settings": []},
            {"settings": None},
        ],
        ids=str,
    )
    def test_with_a_manifest_of_wrong_types_or_of_a_newer_format(self, place: Place, change: dict[str, Any]) -> None:
        place.write_manifest({**place.manifest, **change})
        (line,) = place.refused(*RUN)
        assert line.startswith("--from-run: ")
        assert "run.json" in line
        assert next(iter(change)) in line

    @pytest.mark.parametrize("key", ["base_dir", "n_inputs"])
    def test_with_a_manifest_that_lacks_something(self, place: Place, key: str) -> None:
        place.write_manifest({name: value for name, value in place.manifest.items() if name != key})
        (line,) = place.refused(*RUN)
        assert f"{key}: " in line

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"defects": {"min_area": "many"}}, "defects.min_area"),
            ({"defects": {"hysteresis": 3}}, "defects.hysteresis"),
            ({"defects": 5}, "defects"),
            ({"threshold": "high"}, "threshold"),
        ],
    )
    def test_with_settings_of_wrong_types(self, place: Place, settings: dict[str, Any], named: str) -> None:
        place.write_manifest({**place.manifest, "settings": {**place.manifest["settings"], **settings}})
        for given in ((), ("--pixel-threshold", "5")):
            (line,) = place.refused(*RUN, *given)
            assert named in line

    def test_without_its_records(self, place: Place) -> None:
        (place.folder / "records.jsonl").unlink()
        (line,) = place.refused(*RUN)
        assert line.startswith("--from-run: ")
        assert "records.jsonl" in line
        assert "--keep-parts" in line

    def test_without_its_shards(self, place: Place) -> None:
        place.write_manifest({**place.manifest, "records": None})
        shutil.rmtree(place.folder / "run/parts")
        (line,) = place.refused(*RUN)
        assert "standard output" in line
        assert "--keep-parts" in line

    def test_without_maps(self, place: Place, trained: Trained) -> None:
        source = ("--infer-config", trained.infer_config, "--input", "images", "--run-dir", "mapless")
        answer = command(*source, "--save-jsonl", "mapless.jsonl", cwd=place.folder)
        assert answer.code == 0, answer.stderr
        (line,) = place.refused("--from-run", "mapless")
        assert "--save-maps" in line

    @pytest.mark.parametrize(
        "line",
        [
            "{",
            "5",
            "[]",
            "{}",
            '{"index": 0, "input": 5, "score": 1.0}',
            '{"index": 0, "input": "a", "score": "high", "anomaly_map": {"path": "maps/a.npy"}}',
            '{"index": 0, "input": "a", "score": NaN}',
            '{"index": 0, "input": "a", "error": "lost"}',
            '{"index": 0, "input": "a", "error": {"stage": "read"}}',
            '{"index": 0, "input": "a", "score": 1.0, "anomaly_map": 5}',
            '{"index": 0, "input": "a", "score": 1.0, "anomaly_map": "path"}',
            '{"index": 0, "input": "a", "score": 1.0, "anomaly_map": {"path": 5}}',
        ],
    )
    @pytest.mark.parametrize("position", [0, 4])
    def test_with_a_record_that_infer_does_not_write(self, place: Place, line: str, position: int) -> None:
        records = (place.folder / "records.jsonl").read_text().splitlines()
        place.edit_records(*records[:position], line)
        (said,) = place.refused(*RUN, "--save-masks", "masks")
        assert "records.jsonl" in said

    def test_with_a_record_that_is_nested_too_deeply(self, place: Place) -> None:
        place.edit_records("[" * 100_000)
        (line,) = place.refused(*RUN)
        assert "records.jsonl" in line

    @pytest.mark.parametrize("cut", ["in a line", "between lines"])
    def test_with_records_that_are_cut_short(self, place: Place, cut: str) -> None:
        records = place.folder / "records.jsonl"
        lines = records.read_bytes().splitlines(keepends=True)
        records.write_bytes(b"".join(lines[:4]) + (lines[4][:100] if cut == "in a line" else b""))
        (line,) = place.refused(*RUN, "--save-masks", "masks")
        assert "records.jsonl" in line

    def test_with_more_records_than_the_run_had(self, place: Place) -> None:
        records = place.folder / "records.jsonl"
        records.write_bytes(records.read_bytes() * 2)
        (line,) = place.refused(*RUN)
        assert "records.jsonl" in line


class TestOutputs:
    def test_the_run_folder_that_is_read(self, place: Place) -> None:
        (place.folder / "link").symlink_to("run")
        for given in ("run", "link", "./run/", str(place.folder / "run")):
            (line,) = place.refused(*RUN, "--run-dir", given)
            assert line.startswith("--run-dir: ")

    def test_the_records_that_are_read(self, place: Place) -> None:
        (place.folder / "link.jsonl").symlink_to("records.jsonl")
        shard = "run/parts/part-00000000.jsonl"
        assert (place.folder / shard).exists()
        for given in ("records.jsonl", "link.jsonl", "maps/../records.jsonl", "run/run.json", shard):
            for flag in ("--save-jsonl", "--profile-json"):
                (line,) = place.refused(*RUN, flag, given)
                assert line.startswith(f"{flag}: ")

    @pytest.mark.parametrize(
        ("source", "folder"),
        [(RUN, "maps"), (MAPS, "maps"), (MAPS, "maps/below"), (("--maps", "maps/*.npy", *MAPS[2:]), "maps")],
        ids=["run", "folder", "below the folder", "glob"],
    )
    def test_npy_masks_beside_the_maps(self, place: Place, source: tuple[str, ...], folder: str) -> None:
        (line,) = place.refused(*source, "--save-masks", folder, "--mask-format", "npy")
        assert line.startswith("--save-masks: ")

    @pytest.mark.parametrize("source", ["--from-run", "--maps"])
    def test_zarr_masks_into_the_store_of_the_maps(self, place: Place, source: str, trained: Trained) -> None:
        given = ("--infer-config", trained.infer_config, "--input", "images", "--save-jsonl", "r.jsonl")
        answer = command(*given, "--save-maps", "maps.zarr", "--run-dir", "zarr-run", cwd=place.folder)
        assert answer.code == 0, answer.stderr
        maps = ("--from-run", "zarr-run") if source == "--from-run" else ("--maps", "maps.zarr")
        (line,) = place.refused(
            *maps, "--pixel-threshold", "5", "--save-masks", "maps.zarr", "--mask-format", "zarr", "--batch-size", "2"
        )
        assert line.startswith("--save-masks: ")

    def test_records_over_a_map_that_is_read(self, place: Place) -> None:
        one = next((place.folder / "maps").iterdir()).relative_to(place.folder)
        for flag in ("--save-jsonl", "--profile-json"):
            (line,) = place.refused(*MAPS, flag, str(one))
            assert line.startswith(f"{flag}: ")

    def test_overlays_among_the_images_of_the_run(self, place: Place) -> None:
        folder = Path(json.loads((place.folder / "records.jsonl").read_text().splitlines()[0])["input"]).parent
        (line,) = place.refused(*RUN, "--save-overlays", str(folder))
        assert line.startswith("--save-overlays: ")

    def test_png_masks_may_lie_beside_the_maps(self, place: Place) -> None:
        assert main([*MAPS, "--save-masks", "maps", "--save-jsonl", "new.jsonl"]) == 0
        assert len(list((place.folder / "maps").iterdir())) == 2 * N_INPUTS

    @pytest.mark.parametrize("maps", ["maps", "other.zarr"])
    def test_maps_are_not_saved_again(self, place: Place, maps: str) -> None:
        (place.folder / "job.json").write_text(json.dumps({"schema_version": 1, "output": {"save_maps": maps}}))
        before = hashes_below(place.folder / "maps")
        main([*RUN, "--infer-config", "job.json", "--save-jsonl", "new.jsonl"])
        assert hashes_below(place.folder / "maps") == before
        assert not (place.folder / "other.zarr").exists()

    @pytest.mark.parametrize("flag", ["--save-masks", "--save-overlays", "--run-dir"])
    def test_a_folder_that_is_a_file(self, place: Place, flag: str) -> None:
        (line,) = place.refused(*RUN, flag, "records.jsonl")
        assert line.startswith(f"{flag}: ")


class TestValues:
    @pytest.mark.parametrize(
        ("flag", "value"),
        [
            *(("--pixel-threshold", value) for value in ("nan", "inf", "1e999", "high", "")),
            *(("--defect-hysteresis-low", value) for value in ("nan", "inf")),
            *(("--defect-min-score-max", value) for value in ("nan", "inf")),
            ("--defect-open-ksize", "4096"),
            ("--defect-close-ksize", "-1"),
            ("--defect-map-smoothing-ksize", "99999"),
            ("--defect-border-ignore-px", "-1"),
            ("--defects-preset", "industrial-fp41"),
            ("--defects-preset", ""),
            ("--explain-defects", "everything"),
            ("--overlay-format", "gif"),
            *(
                ("--overlay-scale", value)
                for value in ("2,1", "1,1", "a,b", "1", "", ",", "1,", "nan,2", "1,inf", "1,2,3", "Run", "-1,-2")
            ),
        ],
    )
    @pytest.mark.parametrize("source", [RUN, MAPS[:2]], ids=["run", "maps"])
    def test_not_allowed(self, place: Place, source: tuple[str, ...], flag: str, value: str) -> None:
        (line,) = place.refused(*source, f"{flag}={value}")
        assert line.startswith(f"{flag}: ")
        if flag == "--defects-preset":
            assert "industrial-fp40, industrial-defects-fp40" in line

    @pytest.mark.parametrize("value", ["inf", "nan", "-inf", "1e400"])
    def test_infinities_of_a_config_are_refused(self, place: Place, value: str) -> None:
        number = {"inf": "Infinity", "nan": "NaN", "-inf": "-Infinity"}.get(value, value)
        text = f'{{"schema_version": 1, "defects": {{"pixel_threshold": {number}}}}}'
        (place.folder / "config.json").write_text(text)
        (line,) = place.refused(*RUN, "--infer-config", "config.json")
        assert "pixel_threshold" in line

    @pytest.mark.parametrize("block", [5, "off", None, [1]])
    def test_a_defects_block_that_is_no_object_is_refused(self, place: Place, block: object) -> None:
        (place.folder / "config.json").write_text(json.dumps({"schema_version": 1, "defects": block}))
        for source in (RUN, MAPS):
            (line,) = place.refused(*source, "--infer-config", "config.json")
            assert "config.json: defects" in line

    @pytest.mark.parametrize("arguments", [("--pixel-threshold", "-1e-3"), ("--pixel-threshold", "-.5")], ids=" ".join)
    def test_negative_thresholds(self, place: Place, arguments: tuple[str, str]) -> None:
        answer = rescore(*RUN, *arguments, cwd=place.folder)
        assert answer.code == 0, answer.stderr
        assert {record["defects"]["pixel_threshold"] for record in answer.records} == {float(arguments[1])}

    @pytest.mark.parametrize(
        ("arguments", "explained"),
        [
            (("--explain-defects",), True),
            (("--explain-defects", "--defect-min-area", "20"), True),
            (("--explain-defects", "counts"), True),
            (("--explain-defects", "full", "--defect-min-area", "20"), True),
            (("--explain-defects", "none"), False),
        ],
        ids=str,
    )
    def test_explanations_with_and_without_a_value(
        self, place: Place, arguments: tuple[str, ...], explained: bool
    ) -> None:
        answer = rescore(*RUN, *arguments, cwd=place.folder)
        assert answer.code == 0, answer.stderr
        assert ["suppressed" in record["defects"] for record in answer.records] == [explained] * N_INPUTS

    def test_low_above_high_is_swapped(self, place: Place) -> None:
        levels = ("--defect-hysteresis", "--defect-hysteresis-low", "{}", "--defect-hysteresis-high", "{}")
        right, swapped = (
            rescore(
                *RUN,
                *(word.format(number) for word, number in zip(levels, (0, 0, a, 0, b), strict=True)),
                cwd=place.folder,
            )
            for a, b in ((5, 9), (9, 5))
        )
        assert right.code == 0, right.stderr
        assert right.stdout == swapped.stdout

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--defect-border-ignore-px", "32"),
            ("--defect-border-ignore-px", "100000"),
            ("--roi-xyxy-norm", "0.5", "0.5", "0.5", "0.5"),
            ("--roi-xyxy-norm", "0", "0.5", "1", "0.5"),
            ("--roi-xyxy-norm", "2", "2", "3", "3"),
        ],
        ids=" ".join,
    )
    def test_nothing_is_found_where_nothing_is_looked_at(self, place: Place, arguments: tuple[str, ...]) -> None:
        answer = rescore(*RUN, *arguments, "--save-masks", "masks", "--mask-format", "npy", cwd=place.folder)
        assert answer.code == 0, answer.stderr
        assert [record["defects"]["regions"] for record in answer.records] == [[]] * N_INPUTS
        assert not any(np.load(path).any() for path in (place.folder / "masks").iterdir())

    @pytest.mark.parametrize("ksize", ["2", "64", "4095"])
    def test_even_kernels_and_those_larger_than_the_map_are_fine(self, place: Place, ksize: str) -> None:
        for flag in ("--defect-open-ksize", "--defect-close-ksize", "--defect-map-smoothing-ksize"):
            smoothing = ("--defect-map-smoothing", "box") if flag.endswith("smoothing-ksize") else ()
            answer = rescore(*RUN, *smoothing, flag, ksize, cwd=place.folder)
            assert answer.code == 0, answer.stderr


class TestStandardOutput:
    def test_a_reader_that_leaves_ends_the_run_in_words(self, finished: Path, tmp_path: Path) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        words = [sys.executable, "-m", "pyimgano_dask.cli.rescore", "--from-run", str(finished / "run")]
        try:
            done = subprocess.run(words, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, timeout=120, check=False)
        finally:
            os.close(writer)
        assert done.returncode == 1
        assert done.stderr == b"pyimgano-rescore: error: standard output was closed before all records were written\n"
        assert list(tmp_path.iterdir()) == []


def test_a_pipe_among_the_maps_is_an_error_record(place: Place) -> None:
    os.mkfifo(place.folder / "maps/zz.npy")
    answer = rescore(*MAPS, "--save-jsonl", "new.jsonl", cwd=place.folder)
    assert answer.code == 3
    *_, last = map(json.loads, (place.folder / "new.jsonl").read_text().splitlines())
    assert last["error"]["stage"] == "read"
    assert "not a regular file" in last["error"]["message"]


def test_smoothing_beyond_the_range_of_a_float_is_an_error_record(place: Place) -> None:
    np.save(place.folder / "maps/zz.npy", np.full((9, 9), 3.4e38, np.float32))
    smoothing = ("--defect-map-smoothing", "gaussian", "--defect-map-smoothing-sigma", "2")
    answer = rescore(*MAPS, *smoothing, "--save-jsonl", "new.jsonl", cwd=place.folder)
    assert answer.code == 3
    *others, last = map(json.loads, (place.folder / "new.jsonl").read_text().splitlines())
    assert (last["error"]["stage"], last["error"]["type"]) == ("extract", "NonFiniteMapError")
    assert not any("error" in record for record in others)


def test_a_request_to_terminate_leaves_nothing_temporary_behind(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    for number in range(300):
        (tmp_path / f"maps/{number:03d}.npy").symlink_to(next((finished / "maps").iterdir()))
    program = [sys.executable, "-m", "pyimgano_dask.cli.rescore", "--maps", "maps", "--pixel-threshold", "0"]
    with subprocess.Popen(
        [*program, "--scheduler", "sync", "--batch-size", "1"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline()
        running.terminate()
        running.stdout.read()
        assert running.wait(60) == 128 + signal.SIGTERM
    assert {path.name for path in tmp_path.iterdir()} == {"maps"}
