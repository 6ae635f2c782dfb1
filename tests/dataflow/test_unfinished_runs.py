"""A run folder with an unfinished or a finished run in it: gone on with, refused in words, or done again."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import hashes_below, infer_command, run_python, wait_until
from tests.dataflow.resuming import (
    N_LISTS,
    RUN,
    TRAINING,
    Kept,
    cut_off,
    results,
    resume,
    settings_of,
    shards,
    started,
)
from tests.waiting import stop_group

Workplace = Callable[[str], Path]

WITHOUT_PARTS = tuple(flag for flag in RUN if flag != "--keep-parts")


@pytest.fixture(scope="module")
def unfinished(workplace: Workplace) -> Kept:
    """Where a run was cut off."""
    place = workplace("unfinished")
    cut_off(place, "sync", 12)
    return Kept.of(place)


@pytest.fixture(scope="module")
def finished(workplace: Workplace) -> Kept:
    """Where a run was made to its end, and kept no shards."""
    place = workplace("finished")
    assert infer_command(*WITHOUT_PARTS, cwd=place).rc == 3
    return Kept.of(place)


def harm_shards(place: Path) -> set[str]:
    """Damage a shard in each of the ways in which one can be damaged; returns their names."""
    paths = sorted((place / "run/parts").glob("part-*.jsonl"))
    assert len(paths) > 9
    contents = [path.read_bytes() for path in paths]
    harms: Sequence[Callable[[bytes], bytes]] = (
        lambda content: content[:-40],
        lambda content: b"",
        lambda content: contents[-1],
        lambda content: content[:-1],
        lambda content: content[:-1] + b"  \n",
        lambda content: bare(content, None),
        lambda content: bare(content, "x"),
    )
    for path, content, harm in zip(paths, contents, harms, strict=False):
        path.unlink()
        path.write_bytes(harm(content))
    gone = paths[len(harms)]
    gone.unlink()
    return {path.name for path in (*paths[: len(harms)], gone)}


def bare(content: bytes, error: str | None) -> bytes:
    """A shard whose first record has nothing but its index, its input, and where given an error that is a text."""
    first, second = map(json.loads, content.splitlines())
    less = {"index": first["index"], "input": first["input"], **({"error": error} if error else {})}
    return b"".join(json.dumps(record, sort_keys=True).encode() + b"\n" for record in (less, second))


class TestAnUnfinishedRun:
    """What becomes of a run folder in which a run was cut off."""

    @pytest.fixture
    def place(self, unfinished: Kept) -> Path:
        return unfinished.restored()

    def test_is_not_overwritten_unless_that_is_said(self, place: Path, whole: Path) -> None:
        left = shards(place)
        done = infer_command(*RUN, cwd=place)
        assert done.rc == 2
        assert f"holds an unfinished run, {len(left)} chunks of it done" in done.stderr
        assert "--resume" in done.stderr
        assert "--no-resume" in done.stderr
        assert shards(place) == left
        done = infer_command(*RUN, "--no-resume", cwd=place)
        assert done.rc == 3, done.stderr
        assert not left.items() & shards(place).items()
        assert results(place) == results(whole)

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (["--batch-size", "3"], "--batch-size: 2 then, 3 now"),
            (["--defect-min-area", "9"], "--defect-min-area: 0 then, 9 now"),
            (["--input", "set/test/good"], "--input (number): "),
            (["--overlay-format", "jpg"], "--overlay-format: 'png' then, 'jpg' now"),
            (["--model-kwargs", '{"resize_hw": [32, 32]}'], "then, [32, 32] now"),
        ],
        ids=lambda value: value[0] if isinstance(value, list) else None,
    )
    def test_is_not_gone_on_with_by_another_plan(self, place: Path, flags: Sequence[str], said: str) -> None:
        left = shards(place)
        done = resume(place, *flags)
        assert done.rc == 2
        assert "began with another plan" in done.stderr
        assert said in done.stderr
        assert shards(place) == left

    def test_is_gone_on_with_by_the_same_plan_told_otherwise(self, place: Path, whole: Path) -> None:
        done = resume(
            place, "--scheduler", "threads", "--workers", "1", "--retries", "0", "--save-jsonl", "out/other.jsonl"
        )
        assert done.rc == 3, done.stderr
        assert (place / "out/other.jsonl").read_bytes() == (whole / "out/records.jsonl").read_bytes()

    def test_does_damaged_chunks_again_and_no_other(self, place: Path, whole: Path) -> None:
        before = shards(place)
        harmed = harm_shards(place)
        assert len(harmed) == 8
        done = resume(place)
        assert done.rc == 3, done.stderr
        assert hashes_below(place / "run/parts") == hashes_below(whole / "run/parts")
        assert results(place) == results(whole)
        after = shards(place)
        assert {name for name in before if before[name] != after[name]} == harmed

    def test_needs_its_detector(self, place: Path) -> None:
        (place / "run/detector.npz").write_bytes(b"another one")
        done = resume(place)
        assert done.rc == 2
        assert "detector.npz is not the detector that the run" in done.stderr

    @pytest.mark.parametrize("content", ["", "{}", '{"format": 2, "plan": {}}', "[1]"])
    def test_needs_its_plan(self, place: Path, content: str) -> None:
        (place / "run/plan.json").write_text(content)
        done = resume(place)
        assert done.rc == 2
        assert "the plan in 'run' is damaged or of another version" in done.stderr

    def test_is_not_touched_while_it_is_at_work(self, place: Path) -> None:
        n_before = len(shards(place))
        with started(place, "--resume", "--scheduler", "sync") as run:
            wait_until(lambda: len(shards(place)) > n_before, "the run goes on")
            stop_group(run.pid)
            done = resume(place)
        assert done.rc == 2
        assert "another run is at work in" in done.stderr

    def test_is_counted_as_a_whole(self, place: Path, whole: Path) -> None:
        code = (
            "import json, pyimgano_dask, sys\n"
            "from pyimgano_dask.dataflow.tally import tally\n"
            "run = pyimgano_dask.infer(**json.loads(sys.argv[1]))\n"
            "assert run.tally == tally(run.records()), run.tally\n"
            "print(run.n_inputs, run.n_errors, len(run.waterfall), 0 < run.n_resumed < run.n_inputs)\n"
        )
        settings = {
            "model": "vision_pixel_mad_map",
            "model_kwargs": {"resize_hw": [64, 64]},
            "train_dir": "set/train/good",
            "input": ["@list.txt"] * N_LISTS,
            "defects": True,
            "explain_defects": "counts",
            "batch_size": 2,
            "save_masks": "out/masks",
            "save_maps": "out/maps.zarr",
            "save_overlays": "out/overlays",
            "save_jsonl": "out/records.jsonl",
            "run_dir": "run",
            "resume": True,
        }
        done = run_python("-c", code, json.dumps(settings), cwd=place)
        assert done.stdout.split() == [str(22 * N_LISTS), str(2 * N_LISTS), "2", "True"], done.stderr
        assert (place / "out/records.jsonl").read_bytes() == (whole / "out/records.jsonl").read_bytes()


class TestAFinishedRun:
    """`--resume` where nothing is left to do, or nothing was begun."""

    def test_is_not_done_again(self, finished: Kept) -> None:
        place, flags = finished.restored(), WITHOUT_PARTS
        before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
        done = infer_command(*flags, "--resume", cwd=place)
        assert done.rc == 3
        assert f"{22 * N_LISTS} of {22 * N_LISTS} (done by an earlier session)" in done.stderr
        assert "anomalous" in done.stderr
        assert {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()} == before

        (place / "out/records.jsonl").unlink()
        done = infer_command(*flags, "--resume", cwd=place)
        assert done.rc == 2
        assert "is finished, and its records are not in 'out/records.jsonl'" in done.stderr

    def test_is_told_from_another_one_of_the_same_length(self, whole: Path, finished: Kept) -> None:
        place, flags = finished.restored(), WITHOUT_PARTS
        (place / "other.jsonl").write_bytes((whole / "out/records.jsonl").read_bytes())
        done = infer_command(*flags, "--resume", "--save-jsonl", "other.jsonl", cwd=place)
        assert done.rc == 2
        assert "is finished, and its records are not in 'other.jsonl'" in done.stderr

    def test_gives_its_records_again_from_kept_shards(self, whole: Path, workplace: Workplace) -> None:
        place = workplace("kept")
        stdout_only = [flag for flag in RUN if flag not in ("--save-jsonl", "out/records.jsonl")]
        first = infer_command(*stdout_only, cwd=place)
        left = shards(place)
        again = infer_command(*stdout_only, "--resume", cwd=place)
        assert (again.rc, again.stdout) == (first.rc, first.stdout)
        assert shards(place) == left

    def test_begins_where_nothing_was_begun(self, whole: Path, workplace: Workplace) -> None:
        place = workplace("new")
        done = resume(place)
        assert done.rc == 3, done.stderr
        assert "resumed" not in done.stderr
        assert results(place) == results(whole)


def test_a_run_that_is_refused_leaves_the_folder_of_the_one_at_work(workplace: Workplace) -> None:
    place = workplace("held")
    (place / "run").mkdir()
    descriptor = os.open(place / "run", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        done = infer_command(*RUN, cwd=place)
    finally:
        os.close(descriptor)
    assert done.rc == 2
    assert "another run is at work in 'run'" in done.stderr
    assert (place / "run").is_dir()


@pytest.mark.parametrize("name", ["plan.json", "detector.npz", "infer_config.json", "run.json", "parts"])
def test_a_run_folder_with_something_else_in_it_is_told_before_any_work(name: str, workplace: Workplace) -> None:
    place = workplace("else")
    (place / "run").mkdir()
    (place / "run" / name).write_text("") if name == "parts" else (place / "run" / name).mkdir()
    done = infer_command(*RUN, cwd=place)
    assert done.rc == 2
    assert f"{name!r} in 'run' is no" in done.stderr


@pytest.mark.parametrize("run_dir", ["", "broken"])
def test_a_run_folder_that_cannot_be_is_told(run_dir: str, workplace: Workplace) -> None:
    place = workplace("broken")
    (place / "broken").symlink_to("nowhere")
    done = infer_command(*TRAINING, "--input", "@list.txt", "--run-dir", run_dir, cwd=place)
    assert done.rc == 2
    assert "--run-dir" in done.stderr


def test_resume_needs_a_run_folder(workplace: Workplace) -> None:
    done = infer_command(*TRAINING, "--input", "@list.txt", "--resume", cwd=workplace("none"))
    assert done.rc == 2
    assert "--resume needs --run-dir" in done.stderr


def test_the_plan_says_what_the_bytes_depend_on(whole: Path) -> None:
    plan = settings_of(whole)["plan"]
    assert plan["--input (number)"] == 22 * N_LISTS
    assert plan["dataflow.batch_size"] == 2
    assert {"version of numpy", "version of OpenCV", "version of pyimgano-dask", "version of zarr"} <= set(plan)
    assert not {"dataflow.scheduler", "dataflow.workers", "output.save_jsonl", "dataflow.retries"} & set(plan)
