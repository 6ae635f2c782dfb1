"""Every scheduler keeps the same promises: each chunk once, joins in order, faults in words, work bounded."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import cv2
import pytest

from pyimgano_dask.dataflow.plan import Chunk
from pyimgano_dask.dataflow.schedulers import Scheduler, open_scheduler
from pyimgano_dask.errors import ConfigError, RunError
from pyimgano_dask.synthesis import InspectionSet
from tests.conftest import DaskCluster, start_cluster, wait_until
from tests.dataflow import tasks

CLUSTER = pytest.mark.cluster
COUNTS = (0, 1, 2, 95, 96, 97, 200)
LOCAL = ("sync", "threads x1", "threads x2", "processes x2")
KINDS = (*LOCAL, pytest.param("local-cluster x2", marks=CLUSTER), pytest.param("address", marks=CLUSTER))
UNUSABLE = {"file": "none.json", "scheme": "carrier-pigeon://loft:1", "port": "tcp://127.0.0.1:port"}
# Chunks that may be read before their results are in: those of one local graph, or the window of two workers.
IN_FLIGHT = {"sync": 128, "threads": 128, "processes": 128, "local-cluster": 32, "address": 32}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def scheduler(kind: str, request: pytest.FixtureRequest) -> Iterator[Scheduler]:
    """One scheduler of this kind for all tests of the module, so that each also meets what the others left."""
    name, _, workers = kind.partition(" x")
    if name == "address":
        name = request.getfixturevalue("dask_cluster").address
    with open_scheduler(name, int(workers) if workers else None, n_inputs=1) as opened:
        yield opened


@pytest.mark.parametrize("count", COUNTS)
def test_every_result_comes_exactly_once_and_in_the_callers_thread(scheduler: Scheduler, count: int) -> None:
    seen: Counter[str] = Counter()
    threads = set()

    def on_result(result: str) -> None:
        seen[result] += 1
        threads.add(threading.get_ident())

    scheduler.run(tasks.name_of, tasks.chunks(count), "c", on_result)
    assert seen == Counter(f"c{index} " for index in range(count))
    assert threads <= {threading.get_ident()}


@pytest.mark.parametrize("count", [1, 200])
def test_a_reduction_joins_in_the_order_of_the_chunks(scheduler: Scheduler, count: int) -> None:
    joined = scheduler.reduce(tasks.name_of, tasks.concatenate, tasks.chunks(count), "c")
    assert joined == "".join(f"c{index} " for index in range(count))


def test_results_come_while_the_run_goes_on(scheduler: Scheduler, tmp_path: Path) -> None:
    n_done = []
    scheduler.run(
        tasks.leave_file, tasks.chunks(96), str(tmp_path), lambda _: n_done.append(len(list(tmp_path.iterdir())))
    )
    assert n_done[0] < 96 == n_done[-1]


def test_a_fault_of_a_task_surfaces_as_it_is(scheduler: Scheduler) -> None:
    with pytest.raises(LookupError, match="chunk 3 is odd"):
        scheduler.run(tasks.fail_at_three, tasks.chunks(20), None, lambda _: None)
    with pytest.raises(LookupError, match="chunk 3 is odd"):
        scheduler.reduce(tasks.fail_at_three, tasks.longest, tasks.chunks(20), None)


def test_a_fault_where_results_go_surfaces_as_it_is(scheduler: Scheduler) -> None:
    def full(_: object) -> None:
        raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError, match="nobody reads"):
        scheduler.run(tasks.name_of, tasks.chunks(20), "c", full)


def test_opencv_is_single_threaded_inside_a_task_and_as_before_after_it(scheduler: Scheduler) -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        seen: list[int] = []
        scheduler.run(tasks.opencv_threads, tasks.chunks(8), None, seen.append)
        assert seen == [1] * 8
        assert scheduler.reduce(tasks.opencv_threads, tasks.longest, tasks.chunks(8), None) == 1
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


def test_what_all_chunks_share_reaches_a_worker_once(scheduler: Scheduler, kind: str, tmp_path: Path) -> None:
    for verb in ("run", "reduce"):
        folder = tmp_path / verb
        folder.mkdir()
        common = tasks.CountsArrivals(str(folder))
        processes: list[int] = []
        if verb == "run":
            scheduler.run(tasks.use_counted, tasks.chunks(60), common, processes.append)
        else:
            processes.append(scheduler.reduce(tasks.use_counted, tasks.longest, tasks.chunks(60), common))
        arrivals = Counter(int(path.name.split("-")[0]) for path in folder.iterdir())
        if kind.startswith(("sync", "threads")):
            assert not arrivals
        else:
            assert set(processes) <= set(arrivals)
            assert set(arrivals.values()) == {1}
            assert len(arrivals) <= 2


def test_chunks_are_read_no_further_than_the_work_in_flight(scheduler: Scheduler, kind: str) -> None:
    n_read = 0
    ahead = []

    def counted() -> Iterator[Chunk]:
        nonlocal n_read
        for chunk in tasks.chunks(300):
            n_read += 1
            yield chunk

    scheduler.run(tasks.name_of, counted(), "c", lambda _: ahead.append(n_read - len(ahead)))
    assert len(ahead) == n_read == 300
    assert max(ahead) <= IN_FLIGHT[kind.partition(" ")[0]]


@pytest.mark.cluster
def test_a_cluster_waits_with_reading_while_its_first_chunks_run(dask_cluster: DaskCluster, tmp_path: Path) -> None:
    n_read = 0
    results: list[int] = []

    def counted() -> Iterator[Chunk]:
        nonlocal n_read
        for chunk in tasks.chunks(100):
            n_read += 1
            yield chunk

    with open_scheduler(dask_cluster.address, None, n_inputs=1) as scheduler:
        runs = threading.Thread(
            target=scheduler.run, args=(tasks.wait_for_release, counted(), str(tmp_path), results.append)
        )
        runs.start()
        try:
            wait_until(lambda: len(list(tmp_path.glob("begun-*"))) >= 2, "both workers have begun")
            read_meanwhile = n_read
        finally:
            (tmp_path / "release").touch()
            runs.join(timeout=60)
    assert not runs.is_alive()
    assert read_meanwhile <= IN_FLIGHT["address"]
    assert sorted(results) == list(range(100))


DEAD_PROCESS = r"worker process died.*--workers.*--batch-size"


def test_a_worker_process_that_dies_ends_a_run_in_words() -> None:
    with open_scheduler("processes", 2, n_inputs=1) as scheduler, pytest.raises(RunError, match=DEAD_PROCESS):
        scheduler.run(tasks.die_at_three, tasks.chunks(8), None, lambda _: None)


def test_a_worker_process_that_dies_ends_a_reduction_in_words() -> None:
    with open_scheduler("processes", 2, n_inputs=1) as scheduler, pytest.raises(RunError, match=DEAD_PROCESS):
        scheduler.reduce(tasks.die_at_three, tasks.longest, tasks.chunks(8), None)


@pytest.mark.cluster
def test_a_cluster_goes_on_without_a_killed_worker(tmp_path: Path) -> None:
    results: list[int] = []
    with open_scheduler("local-cluster", 2, n_inputs=1) as scheduler:
        scheduler.run(tasks.die_once, tasks.chunks(20), str(tmp_path), results.append)
    assert (tmp_path / "killed").exists()
    assert sorted(results) == list(range(20))


@pytest.mark.cluster
def test_a_cluster_whose_only_worker_was_killed_goes_on_or_ends_in_words(tmp_path: Path) -> None:
    results: list[int] = []
    ended_in_words = ""
    with open_scheduler("local-cluster", 1, n_inputs=1) as scheduler:
        try:
            scheduler.run(tasks.die_once, tasks.chunks(20), str(tmp_path), results.append)
        except RunError as error:
            ended_in_words = str(error)
    assert (tmp_path / "killed").exists()
    assert sorted(results) == list(range(20)) or ("run again" in ended_in_words and set(results) < set(range(20)))


@pytest.mark.cluster
def test_a_scheduler_that_dies_ends_the_run_in_words(tmp_path: Path) -> None:
    results: list[int] = []
    (tmp_path / "work").mkdir()
    with start_cluster(tmp_path, n_workers=1) as cluster:

        def kill_scheduler(result: int) -> None:
            results.append(result)
            cluster.kill_scheduler()

        with open_scheduler(cluster.address, None, n_inputs=1) as scheduler, pytest.raises(RunError, match="run again"):
            scheduler.run(tasks.leave_file, tasks.chunks(500), str(tmp_path / "work"), kill_scheduler)
    assert len(results) < 500
    assert set(results) <= set(range(500))


@pytest.mark.cluster
def test_a_fault_is_no_result_even_when_many_come_at_once(dask_cluster: DaskCluster, tmp_path: Path) -> None:
    results: list[int] = []

    def on_result(index: int) -> None:
        results.append(index)
        wait_until(lambda: len(list(tmp_path.iterdir())) == 8, "the whole window is done")

    with (
        open_scheduler(dask_cluster.address, None, n_inputs=1) as scheduler,
        pytest.raises(LookupError, match="chunk 6 is odd"),
    ):
        scheduler.run(tasks.leave_file_and_fail_at_six, tasks.chunks(8), str(tmp_path), on_result)
    assert set(results) <= set(range(8)) - {6}


@pytest.mark.parametrize(("n_inputs", "workers", "chosen"), [(8, 2, "threads × 2"), (10_000, 4, "threads × 4")])
def test_auto_takes_threads_for_short_lists_and_small_machines(n_inputs: int, workers: int, chosen: str) -> None:
    with open_scheduler("auto", workers, n_inputs) as scheduler:
        assert scheduler.describe() == chosen


@pytest.mark.cluster
def test_auto_takes_a_local_cluster_for_long_lists_on_many_cores() -> None:
    with open_scheduler("auto", 5, 257) as scheduler:
        assert re.fullmatch(r"cluster tcp://127\.0\.0\.1:\d+, 5 worker threads", scheduler.describe())


@pytest.mark.parametrize("text", ["not json", "{}", '{"address": 3}', "[]"])
def test_a_scheduler_file_without_an_address_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scheduler.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(path))), open_scheduler(str(path), None, n_inputs=1):
        pass


@pytest.fixture(scope="module", autouse=True)
def unanswered(parts: InspectionSet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen]]:
    """Commands sent to schedulers that are not there, begun with the module: they wait while its other tests run."""
    place = tmp_path_factory.mktemp("unanswered")
    flags = ("--model", "vision_pixel_mad_map", "--train-dir", parts.train_dir, "--input", parts.test_dir)
    with ExitStack() as stack:
        # A port that is bound and not listened at refuses every connection, and nobody else can take it.
        bound = stack.enter_context(socket.socket())
        bound.bind(("127.0.0.1", 0))
        started = {}
        for name, scheduler in {**UNUSABLE, "nobody": f"tcp://127.0.0.1:{bound.getsockname()[1]}"}.items():
            started[name] = subprocess.Popen(
                [sys.executable, "-m", "pyimgano_dask.cli.infer", *flags, "--scheduler", scheduler],
                cwd=place,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(started[name].communicate)
            stack.callback(started[name].kill)
        yield started


@pytest.mark.parametrize(("name", "shown"), [*UNUSABLE.items(), ("nobody", "tcp://127.0.0.1:")])
def test_a_scheduler_that_does_not_answer_is_a_fault_of_the_flags(
    unanswered: dict[str, subprocess.Popen], name: str, shown: str
) -> None:
    stdout, stderr = unanswered[name].communicate(timeout=25)
    assert (unanswered[name].returncode, stdout) == (2, "")
    assert re.match(r"pyimgano-infer: error: --scheduler: ", stderr)
    assert shown in stderr
    assert "Traceback" not in stderr
    assert len(stderr.splitlines()) == 1
