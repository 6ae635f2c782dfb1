"""Inside a task OpenCV, BLAS and torch use as many threads as the run says, whatever the process did before."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import pytest
from dask.system import CPU_COUNT
from threadpoolctl import threadpool_info

from pyimgano_dask.dataflow.native import limit_native_threads, native_threads_as_before
from tests.conftest import ROOT
from tests.dataflow import tasks
from tests.dataflow.doubles import none_is_lost, opened

CLUSTER = pytest.mark.cluster
KINDS = (
    "sync",
    "threads",
    "processes",
    pytest.param("local-cluster", marks=CLUSTER),
    pytest.param("address", marks=CLUSTER),
)


def threads_of_tasks(name: str, threads_per_task: int) -> list[list[int]]:
    seen: list[list[int]] = []
    with opened(name, 2, threads_per_task=threads_per_task) as scheduler:
        scheduler.run(tasks.native_threads, tasks.chunks(8), None, seen.append, none_is_lost)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_every_run_has_its_own_number_of_threads(kind: str, request: pytest.FixtureRequest) -> None:
    name = request.getfixturevalue("dask_cluster").address if kind == "address" else kind
    for threads_per_task in (3, 1, 2, 2):
        seen = threads_of_tasks(name, threads_per_task)
        assert len(seen) == 8
        assert {number for numbers in seen for number in numbers} == {threads_per_task}
        assert all(len(numbers) >= 2 for numbers in seen)


@pytest.mark.parametrize("kind", ["sync", "threads"])
def test_this_process_is_as_before_after_a_run(kind: str) -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(5)
    try:
        limits = [library["num_threads"] for library in threadpool_info()]
        threads_of_tasks(kind, 3)
        assert cv2.getNumThreads() == 5
        assert [library["num_threads"] for library in threadpool_info()] == limits
    finally:
        cv2.setNumThreads(before)


def test_threads_of_one_process_that_work_for_different_runs_take_turns() -> None:
    with native_threads_as_before(), ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:

        def in_task(pool: ThreadPoolExecutor, count: int) -> set[int]:
            def task() -> set[int]:
                limit_native_threads(count)
                return set(tasks.native_threads(next(tasks.chunks(1)), None))

            return pool.submit(task).result()

        for _ in range(2):
            assert in_task(one, 2) == {2}
            assert in_task(other, 3) == {3}
        assert threading.active_count() > 2


TORCH_IS_LOADED_BY_A_TASK = """
import sys
import cv2
from pyimgano_dask.dataflow.native import limit_native_threads, native_threads_as_before

with native_threads_as_before():
    limit_native_threads(3)
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(7)
    limit_native_threads(3)
    print(torch.get_num_threads())
print(torch.get_num_threads())
"""


def test_torch_that_a_task_loads_is_limited_from_the_next_one_on_and_free_after_the_run() -> None:
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-c", TORCH_IS_LOADED_BY_A_TASK], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["3", "7"], done.stderr


@pytest.mark.parametrize(("threads_per_task", "workers"), [(1, CPU_COUNT), (2, max(1, CPU_COUNT // 2)), (10**3, 1)])
def test_workers_and_their_threads_share_the_cores(threads_per_task: int, workers: int) -> None:
    with opened("threads", threads_per_task=threads_per_task) as scheduler:
        assert scheduler.n_workers == workers
    with opened("threads", 5, threads_per_task=threads_per_task) as scheduler:
        assert scheduler.n_workers == 5
