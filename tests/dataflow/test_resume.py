"""A run that was cut off goes on: the same bytes, finished chunks done once, another plan refused."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import start_cluster
from tests.conftest import Ended, hashes_below, infer_command, run_python, wait_until

Workplace = Callable[[str], Path]

CLUSTER = pytest.mark.cluster
KINDS = (
    "sync",
    "threads",
    "processes",
    pytest.param("local-cluster", marks=CLUSTER),
    pytest.param("address", marks=CLUSTER),
)
N_LISTS = 5
N_CHUNKS = 11 * N_LISTS
TRAINING = (
    "--model",
    "vision_pixel_mad_map",
    "--model-kwargs",
    '{"resize_hw": [64, 64]}',
    "--train-dir",
    "set/train/good",
)
RUN = (
    *TRAINING,
    *("--input", *["@list.txt"] * N_LISTS, "--defects", "--explain-defects", "--batch-size", "2"),
    *("--save-masks", "out/masks", "--save-maps", "out/maps.zarr", "--save-overlays", "out/overlays"),
    *("--save-jsonl", "out/records.jsonl", "--run-dir", "run", "--keep-parts", "--workers", "2"),
)


@pytest.fixture(scope="module")
def whole(workplace: Workplace) -> Path:
    """Where the run was made without a break."""
    place = workplace("whole")
    done = infer_command(*RUN, "--scheduler", "sync", cwd=place)
    assert done.rc == 3, done.stderr
    return place


def results(place: Path) -> dict[str, str]:
    """Hashes of what the run leaves, without the half files of killed workers: nothing reads them."""
    found = hashes_below(place / "out")
    return {path: found[path] for path in found if not path.endswith(".partial") and "/.tmp-" not in path}


def shards(place: Path) -> dict[str, tuple[int, int]]:
    """Which shards are there, each with its inode and time of writing: one that is written again has others."""
    stats = {path.name: path.stat() for path in (place / "run/parts").glob("part-*.jsonl")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


@contextmanager
def started(place: Path, *flags: object) -> Iterator[subprocess.Popen[bytes]]:
    """The command on its way; with all it has started, it is gone at the end of the block."""
    command = [sys.executable, "-m", "pyimgano_dask.cli.infer", *map(str, (*RUN, *flags))]
    with subprocess.Popen(
        command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def scheduler_of(kind: str, request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue("dask_cluster").address if kind == "address" else kind


def cut_off(place: Path, scheduler: str, after: int) -> dict[str, int]:
    """Kill a run once `after` chunks are done; returns the shards it leaves."""
    with started(place, "--scheduler", scheduler) as process:
        wait_until(lambda: len(shards(place)) >= after or process.poll() is not None, f"{after} chunks are done")
        assert process.poll() is None, process.stderr and process.stderr.read()
    left = shards(place)
    assert after <= len(left) < N_CHUNKS
    assert not (place / "out/records.jsonl").exists()
    return left


def resume(place: Path, *flags: object) -> Ended:
    return infer_command(*RUN, "--resume", *flags, cwd=place)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_client_goes_on(kind: str, whole: Path, workplace: Workplace, request: pytest.FixtureRequest) -> None:
    place = workplace("killed")
    scheduler = scheduler_of(kind, request)
    after = random.Random(kind).randint(2, N_CHUNKS // 2)
    cut_off(place, scheduler, after)
    # Tasks that a cluster is at when its client dies still leave their shards.
    left = shards(place)
    done = resume(place, "--scheduler", scheduler)
    assert done.rc == 3, done.stderr
    assert "resumed" in done.stderr
    assert results(place) == results(whole)
    assert hashes_below(place / "run/parts") == hashes_below(whole / "run/parts")
    if kind != "address":
        assert left.items() <= shards(place).items()


def test_a_run_may_be_killed_again_and_again_and_go_on_elsewhere(whole: Path, workplace: Workplace) -> None:
    place = workplace("again")
    done_before: dict[str, int] = {}
    for scheduler, after in (("threads", 5), ("processes", 20), ("sync", 35)):
        with started(place, "--resume", "--scheduler", scheduler):
            wait_until(lambda after=after: len(shards(place)) >= after, f"{after} chunks are done")
        assert done_before.items() <= shards(place).items()
        done_before = shards(place)
    done = resume(place, "--scheduler", "threads")
    assert done.rc == 3, done.stderr
    assert results(place) == results(whole)
    assert done_before.items() <= shards(place).items()


@CLUSTER
def test_a_killed_scheduler_ends_the_run_in_words_and_another_one_goes_on(
    whole: Path, workplace: Workplace, tmp_path: Path
) -> None:
    place = workplace("scheduler")
    with start_cluster(tmp_path / "first", 2) as cluster, started(place, "--scheduler", cluster.address) as process:
        wait_until(lambda: len(shards(place)) >= 10, "ten chunks are done")
        cluster.kill_scheduler()
        assert process.stderr is not None
        stderr = process.stderr.read().decode()
        assert process.wait(timeout=60) == 1
    assert "the cluster was lost" in stderr
    assert "--resume goes on" in stderr
    assert "Traceback" not in stderr
    with start_cluster(tmp_path / "second", 2) as cluster:
        done = resume(place, "--scheduler", cluster.address)
    assert done.rc == 3, done.stderr
    assert results(place) == results(whole)


@CLUSTER
def test_workers_that_are_killed_at_random_change_no_byte(whole: Path, workplace: Workplace, tmp_path: Path) -> None:
    place = workplace("workers")
    chance = random.Random(4)
    with (
        start_cluster(tmp_path / "cluster", 2, nanny=True) as cluster,
        started(place, "--scheduler", cluster.address, "--retries", "10") as process,
    ):
        for after in sorted(chance.sample(range(5, N_CHUNKS - 5), 4)):
            wait_until(lambda after=after: len(shards(place)) >= after or process.poll() is not None, "chunks are done")
            wait_until(lambda: cluster.kill_any_worker(chance), "a worker is killed")
        assert process.stderr is not None
        stderr = process.stderr.read().decode()
        assert process.wait(timeout=120) == 3, stderr
    assert results(place) == results(whole)


class TestAnUnfinishedRun:
    """What becomes of a run folder in which a run was cut off."""

    @pytest.fixture
    def place(self, workplace: Workplace) -> Path:
        place = workplace("unfinished")
        cut_off(place, "sync", 5)
        return place

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

    @pytest.mark.parametrize("harm", ["cut", "empty", "other", "gone", "no newline", "spaces", "less", "odd error"])
    def test_does_a_damaged_chunk_again(self, place: Path, whole: Path, harm: str) -> None:
        victim = place / "run/parts/part-00000002.jsonl"
        content = victim.read_bytes()
        victim.unlink()
        if harm != "gone":
            other = (place / "run/parts/part-00000001.jsonl").read_bytes()
            first, second = map(json.loads, content.splitlines())
            less = {"index": first["index"], "input": first["input"]}
            harmed = {
                "cut": content[:-40],
                "empty": b"",
                "other": other,
                "no newline": content[:-1],
                "spaces": content[:-1] + b"  \n",
                "less": b"".join(json.dumps(record).encode() + b"\n" for record in (less, second)),
                "odd error": b"".join(
                    json.dumps(record, sort_keys=True).encode() + b"\n" for record in ({**less, "error": "x"}, second)
                ),
            }
            victim.write_bytes(harmed[harm])
        done = resume(place)
        assert done.rc == 3, done.stderr
        assert results(place) == results(whole)
        assert hashes_below(place / "run/parts") == hashes_below(whole / "run/parts")

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
        with started(place, "--resume", "--scheduler", "sync") as process:
            n_before = len(shards(place))
            wait_until(lambda: len(shards(place)) > n_before, "the run goes on")
            os.killpg(process.pid, signal.SIGSTOP)
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

    def test_is_not_done_again(self, workplace: Workplace) -> None:
        place = workplace("finished")
        flags = [flag for flag in RUN if flag != "--keep-parts"]
        assert infer_command(*flags, cwd=place).rc == 3
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

    def test_is_told_from_another_one_of_the_same_length(self, whole: Path, workplace: Workplace) -> None:
        place = workplace("other")
        flags = [flag for flag in RUN if flag != "--keep-parts"]
        assert infer_command(*flags, cwd=place).rc == 3
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


def test_a_store_keeps_no_rows_of_an_earlier_run_when_the_first_session_ended_before_it_was_made(
    workplace: Workplace,
) -> None:
    place = workplace("rows")
    one = [flag if flag != "@list.txt" else "set/test/good" for flag in RUN if flag not in ("--run-dir", "run")]
    assert infer_command(*one, cwd=place).rc == 0
    (place / "out/records.jsonl").unlink()
    cut_off(place, "sync", 5)
    plan = json.loads((place / "run/plan.json").read_text())
    (place / "run/plan.json").write_text(json.dumps({**plan, "outputs_are_ready": False}))
    for shard in (place / "run/parts").glob("part-*"):
        shard.unlink()
    expected = workplace("rows")
    assert infer_command(*RUN, cwd=expected).rc == 3
    assert resume(place).rc == 3
    stores = [hashes_below(folder / "out/maps.zarr") for folder in (place, expected)]
    assert stores[0] == stores[1]


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


def test_the_first_pass_of_overlays_on_one_scale_goes_on_too(workplace: Workplace) -> None:
    scale = ("--overlay-scale", "run")
    expected = workplace("scale")
    assert infer_command(*RUN, *scale, cwd=expected).rc == 3
    place = workplace("scale")
    spool = place / "run/parts/.spool"

    def spooled() -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in spool.glob("scores-*")}

    with started(place, *scale, "--scheduler", "sync"):
        wait_until(lambda: len(spooled()) >= 20, "twenty chunks are looked at")
    left = spooled()
    with started(place, *scale, "--scheduler", "sync", "--resume"):
        wait_until(lambda: len(shards(place)) >= 10, "ten chunks are done in the second pass")
        assert left.items() <= spooled().items()
    done = resume(place, *scale)
    assert done.rc == 3, done.stderr
    assert results(place) == results(expected)
    assert not spool.exists()


def test_a_run_stops_at_too_many_errors_and_goes_on_with_more_patience(whole: Path, workplace: Workplace) -> None:
    place = workplace("errors")
    done = infer_command(*RUN, "--max-errors", "3", "--scheduler", "sync", cwd=place)
    assert done.rc == 1
    assert "stopped at --max-errors 3 (error records: 3)" in done.stderr
    assert "'set/torn/torn.png'" in done.stderr
    assert 0 < len(shards(place)) < N_CHUNKS
    done = resume(place, "--max-errors", "100")
    assert done.rc == 3, done.stderr
    assert results(place) == results(whole)


def test_a_rescoring_goes_on_too(whole: Path, workplace: Workplace) -> None:
    flags = ("--from-run", whole / "run", "--defect-min-area", "3", "--batch-size", "2", "--save-masks", "masks")
    outputs = ("--save-jsonl", "records.jsonl", "--run-dir", "run", "--keep-parts", "--scheduler", "sync")
    command = ("-m", "pyimgano_dask.cli.rescore", *map(str, (*flags, *outputs)))
    expected, place = workplace("rescored"), workplace("rescored")
    assert run_python(*command, cwd=expected).rc == 3
    with subprocess.Popen([sys.executable, *command], cwd=place, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: len(shards(place)) >= 5, "five chunks are done")
        process.kill()
    left = shards(place)
    done = run_python(*command, "--resume", cwd=place)
    assert done.rc == 3, done.stderr
    assert left.items() <= shards(place).items()
    for folder in ("masks", "run/parts"):
        assert hashes_below(place / folder) == hashes_below(expected / folder)
    assert (place / "records.jsonl").read_bytes() == (expected / "records.jsonl").read_bytes()


def test_a_rescoring_is_not_gone_on_with_when_its_threshold_comes_from_elsewhere(
    whole: Path, workplace: Workplace
) -> None:
    place = workplace("rescored")
    threshold = settings_of(whole)["training"]["pixel_threshold"]
    flags = ("--from-run", whole / "run", "--batch-size", "2", "--save-jsonl", "r.jsonl", "--run-dir", "run")
    command = ("-m", "pyimgano_dask.cli.rescore", *map(str, (*flags, "--keep-parts")))
    assert run_python(*command, cwd=place).rc == 3
    done = run_python(*command, "--resume", "--pixel-threshold", repr(threshold), cwd=place)
    assert done.rc == 2
    assert "pixel threshold from" in done.stderr


def test_names_of_any_bytes_do_not_keep_a_run_from_going_on(workplace: Workplace) -> None:
    place = workplace("bytes")
    masks = os.fsdecode(b"out/m\xff")
    flags = [masks if flag == "out/masks" else flag for flag in RUN]
    with started(place, "--save-masks", masks, "--scheduler", "sync"):
        wait_until(lambda: len(shards(place)) >= 5, "five chunks are done")
    done = infer_command(*flags, "--resume", cwd=place)
    assert done.rc == 3, done.stderr
    assert "resumed" in done.stderr


def test_a_run_that_is_asked_to_end_says_where_to_go_on(workplace: Workplace) -> None:
    with started(workplace("terminated"), "--scheduler", "sync") as process:
        place = Path(str(process.args and os.readlink(f"/proc/{process.pid}/cwd")))
        wait_until(lambda: len(shards(place)) >= 5, "five chunks are done")
        process.terminate()
        assert process.stderr is not None
        stderr = process.stderr.read().decode()
        assert process.wait(timeout=60) == 143
    assert "terminated: what is done is kept in" in stderr


def settings_of(place: Path) -> dict[str, Any]:
    return dict(json.loads((place / "run/plan.json").read_text()))


def test_a_profile_counts_what_this_session_has_done(workplace: Workplace) -> None:
    place = workplace("profile")
    cut_off(place, "sync", 5)
    done = resume(place, "--profile-json", "profile.json", "--scheduler", "sync")
    assert done.rc == 3, done.stderr
    told = json.loads((place / "profile.json").read_text())
    assert told["counts"]["inputs"] == 22 * N_LISTS
    assert 0 < told["counts"]["processed"] <= 22 * N_LISTS - 10
    (worker,) = told["workers"]["processes"]
    assert 2 * worker["chunks"] == told["counts"]["processed"]
    read = told["stages"]["read"]
    assert read["per_image_ms"] == pytest.approx(1000 * read["seconds"] / told["counts"]["processed"])


def test_the_plan_says_what_the_bytes_depend_on(whole: Path) -> None:
    plan = settings_of(whole)["plan"]
    assert plan["--input (number)"] == 22 * N_LISTS
    assert plan["dataflow.batch_size"] == 2
    assert {"version of numpy", "version of OpenCV", "version of pyimgano-dask", "version of zarr"} <= set(plan)
    assert not {"dataflow.scheduler", "dataflow.workers", "output.save_jsonl", "dataflow.retries"} & set(plan)
