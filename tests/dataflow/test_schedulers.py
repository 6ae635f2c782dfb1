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
from pyimgano_dask.dataflow.scheduler import Loss, Scheduler
from pyimgano_dask.errors import ConfigError, RunError
from pyimgano_dask.synthesis import InspectionSet
from tests.conftest import DaskCluster, start_cluster, wait_until
from tests.dataflow import tasks
from tests.dataflow.doubles import none_is_lost, opened

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
    with opened(name, int(workers) if workers else None) as scheduler:
        yield scheduler


@pytest.mark.parametrize("count", COUNTS)
def test_every_result_comes_exactly_once_and_in_the_callers_thread(scheduler: Scheduler, count: int) -> None:
    seen: Counter[str] = Counter()
    threads = set()

    def on_result(result: str) -> None:
        seen[result] += 1
        threads.add(threading.get_ident())

    scheduler.run(tasks.name_of, tasks.chunks(count), "c", on_result, none_is_lost)
    assert seen == Counter(f"c{index} " for index in range(count))
    assert threads <= {threading.get_ident()}


@pytest.mark.parametrize("count", [1, 19, 200])
def test_one_worker_takes_chunks_in_their_order(count: int) -> None:
    seen: list[str] = []
    with opened("sync") as scheduler:
        scheduler.run(tasks.name_of, tasks.chunks(count), "c", seen.append, none_is_lost)
    assert seen == [f"c{index} " for index in range(count)]


def test_two_chunks_are_enough_for_two_processes(tmp_path: Path) -> None:
    seen: set[int] = set()
    with opened("processes", 2) as scheduler:
        scheduler.run(tasks.wait_for_two_processes, tasks.chunks(2), str(tmp_path), seen.add, none_is_lost)
    assert len(seen) == 2


@pytest.mark.parametrize("count", [1, 200])
def test_a_reduction_joins_in_the_order_of_the_chunks(scheduler: Scheduler, count: int) -> None:
    joined = scheduler.reduce(tasks.name_of, tasks.concatenate, tasks.chunks(count), "c")
    assert joined == "".join(f"c{index} " for index in range(count))


def test_results_come_while_the_run_goes_on(scheduler: Scheduler, tmp_path: Path) -> None:
    n_done = []
    scheduler.run(
        tasks.leave_file,
        tasks.chunks(96),
        str(tmp_path),
        lambda _: n_done.append(len(list(tmp_path.iterdir()))),
        none_is_lost,
    )
    assert n_done[0] < 96 == n_done[-1]


def test_a_fault_of_a_task_costs_its_chunk(scheduler: Scheduler) -> None:
    results: list[int] = []
    lost: list[tuple[int, Loss]] = []
    scheduler.run(
        tasks.fail_at_three,
        tasks.chunks(20),
        None,
        results.append,
        lambda chunk, loss: lost.append((chunk.index, loss)),
    )
    assert sorted(results) == [index for index in range(20) if index != 3]
    ((index, loss),) = lost
    assert (index, loss.kind) == (3, "LookupError")
    assert loss.message == "the chunk of input 3 failed once: LookupError: chunk 3 is odd"


def test_what_ends_the_run_is_raised(scheduler: Scheduler) -> None:
    with pytest.raises(RunError, match="the disk is full at 3"):
        scheduler.run(tasks.end_the_run_at_three, tasks.chunks(20), None, lambda _: None, none_is_lost)


def test_a_fault_of_a_task_surfaces_from_a_reduction_as_it_is(scheduler: Scheduler) -> None:
    with pytest.raises(LookupError, match="chunk 3 is odd"):
        scheduler.reduce(tasks.fail_at_three, tasks.longest, tasks.chunks(20), None)


def test_a_fault_where_results_go_surfaces_as_it_is(scheduler: Scheduler) -> None:
    def full(_: object) -> None:
        raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError, match="nobody reads"):
        scheduler.run(tasks.name_of, tasks.chunks(20), "c", full, none_is_lost)


def test_opencv_is_single_threaded_inside_a_task_and_as_before_after_it(scheduler: Scheduler) -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        seen: list[int] = []
        scheduler.run(tasks.opencv_threads, tasks.chunks(8), None, seen.append, none_is_lost)
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
            scheduler.run(tasks.use_counted, tasks.chunks(60), common, processes.append, none_is_lost)
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

    scheduler.run(tasks.name_of, counted(), "c", lambda _: ahead.append(n_read - len(ahead)), none_is_lost)
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

    with opened(dask_cluster.address, None) as scheduler:
        runs = threading.Thread(
            target=scheduler.run, args=(tasks.wait_for_release, counted(), str(tmp_path), results.append, none_is_lost)
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


@pytest.mark.cluster
def test_a_scheduler_that_dies_ends_the_run_in_words(tmp_path: Path) -> None:
    results: list[int] = []
    (tmp_path / "work").mkdir()
    with start_cluster(tmp_path, n_workers=1) as cluster:

        def kill_scheduler(result: int) -> None:
            results.append(result)
            cluster.kill_scheduler()

        with opened(cluster.address, None) as scheduler, pytest.raises(RunError, match="run again"):
            scheduler.run(tasks.leave_file, tasks.chunks(500), str(tmp_path / "work"), kill_scheduler, none_is_lost)
    assert len(results) < 500
    assert set(results) <= set(range(500))


@pytest.mark.parametrize(("n_inputs", "workers", "chosen"), [(8, 2, "threads × 2"), (10_000, 4, "threads × 4")])
def test_auto_takes_threads_for_short_lists_and_small_machines(n_inputs: int, workers: int, chosen: str) -> None:
    with opened("auto", workers, n_inputs) as scheduler:
        assert scheduler.describe() == chosen


@pytest.mark.cluster
def test_auto_takes_a_local_cluster_for_long_lists_on_many_cores() -> None:
    with opened("auto", 5, 257) as scheduler:
        assert re.fullmatch(r"cluster tcp://127\.0\.0\.1:\d+, 5 worker threads", scheduler.describe())


@pytest.mark.parametrize("text", ["not json", "{}", '{"address": 3}', "[]"])
def test_a_scheduler_file_without_an_address_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scheduler.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(path))), opened(str(path)):
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
