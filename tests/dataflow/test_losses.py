"""Workers that die, tasks that fail, networks that are cut: the bytes are the same, and what is lost is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from pyimgano_dask.dataflow.scheduler import Loss, Scheduler
from pyimgano_dask.errors import RunError
from tests.cluster import DaskCluster, start_cluster
from tests.conftest import ROOT, hashes_below, run_python, wait_until
from tests.dataflow import tasks
from tests.dataflow.doubles import BIG_SIDE_PX, Hazard, inspect_at, none_is_lost, opened

CLUSTER = pytest.mark.cluster
KINDS = ("sync", "threads", "processes", pytest.param("local-cluster", marks=CLUSTER))
IN_PROCESSES = ("processes", pytest.param("local-cluster", marks=CLUSTER))
N_IMAGES, CULPRIT = 14, 5
OUTPUT = {
    "save_jsonl": "out/records.jsonl",
    "save_masks": "out/masks",
    "save_maps": "out/maps.zarr",
    "save_overlays": "out/overlays",
    "batch_size": 2,
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with 14 images in `in/`, of which number 5 is big, and an empty folder `met/`."""
    rng = np.random.default_rng(7)
    (tmp_path / "in").mkdir()
    (tmp_path / "met").mkdir()
    for index in range(N_IMAGES):
        side = BIG_SIDE_PX if index == CULPRIT else 32
        cv2.imwrite(str(tmp_path / f"in/{index:02d}.png"), rng.integers(0, 256, (side, side), np.uint8))
    return tmp_path


@pytest.fixture
def inputs() -> Sequence[str]:
    return [f"in/{index:02d}.png" for index in range(N_IMAGES)]


@pytest.fixture
def expected(place: Path, inputs: Sequence[str]) -> dict[str, str]:
    """What the run leaves when nothing goes wrong."""
    with opened("sync") as scheduler:
        inspect_at(place, Hazard.create(folder=str(place / "met")), scheduler, inputs, **OUTPUT)
    hashes = hashes_below(place / "out")
    assert len(hashes) > 3 * N_IMAGES // 2
    (place / "out").rename(place / "expected")
    for marker in (place / "met").iterdir():
        marker.unlink()
    return hashes


@pytest.fixture(scope="module", params=KINDS)
def patient(request: pytest.FixtureRequest) -> Iterator[Scheduler]:
    """A scheduler of each kind that tries a chunk two more times."""
    with opened(request.param, 2, retries=2) as scheduler:
        yield scheduler


def test_a_task_that_fails_is_tried_again(patient: Scheduler, tmp_path: Path) -> None:
    results: list[int] = []
    patient.run(tasks.fail_twice_at_three, tasks.chunks(20), str(tmp_path), results.append, none_is_lost)
    assert sorted(results) == list(range(20))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_task_that_always_fails_is_given_up_after_the_retries(patient: Scheduler) -> None:
    lost: list[tuple[int, Loss]] = []
    results: list[int] = []
    patient.run(
        tasks.fail_at_three,
        tasks.chunks(9),
        None,
        results.append,
        lambda chunk, loss: lost.append((chunk.index, loss)),
    )
    assert sorted(results) == [0, 1, 2, 4, 5, 6, 7, 8]
    ((index, loss),) = lost
    assert (index, loss.kind, loss.message) == (
        3,
        "LookupError",
        "the chunk of input 3 failed 3 times: LookupError: chunk 3 is odd",
    )


@pytest.mark.parametrize("kind", IN_PROCESSES)
def test_workers_that_die_as_often_as_chunks_are_tried_again_cost_nothing(
    kind: str, place: Path, inputs: Sequence[str], expected: dict[str, str]
) -> None:
    detector = Hazard.create(folder=str(place / "met"), deaths=2)
    with opened(kind, 2, retries=2) as scheduler:
        run = inspect_at(place, detector, scheduler, inputs, **OUTPUT)
    assert run.n_errors == 0
    assert len(list((place / "met").iterdir())) >= 3
    assert hashes_below(place / "out") == expected


@pytest.mark.parametrize("kind", IN_PROCESSES)
def test_a_chunk_that_kills_every_worker_becomes_error_records(
    kind: str, place: Path, inputs: Sequence[str], expected: dict[str, str]
) -> None:
    detector = Hazard.create(folder=str(place / "met"), deaths=1000)
    with opened(kind, 2, retries=1) as scheduler:
        run = inspect_at(place, detector, scheduler, inputs, **OUTPUT)
    records = [json.loads(line) for line in (place / "out/records.jsonl").read_text().splitlines()]
    assert [record["index"] for record in records] == list(range(N_IMAGES))
    failed = [record for record in records if "error" in record]
    assert [record["input"] for record in failed] == ["in/04.png", "in/05.png"]
    for record in failed:
        assert (record["error"]["stage"], record["error"]["type"]) == ("infer", "WorkerDiedError")
        assert (
            "each time it worked on the chunk of inputs 4 to 5, at last with no other chunk about"
            in record["error"]["message"]
        )
    assert (run.n_errors, run.exit_code) == (2, 3)
    assert [error[1] for error in run.errors] == ["in/04.png", "in/05.png"]
    # Everybody else, also those that were on the dying workers, has what it has without the culprit.
    whole = [json.loads(line) for line in (place / "expected/records.jsonl").read_text().splitlines()]
    assert [record for record in records if "error" not in record] == [
        record for record in whole if record["index"] not in (4, 5)
    ]
    assert len(list((place / "met").iterdir())) >= 3


def test_training_images_that_kill_their_workers_end_the_run_in_words() -> None:
    with opened("processes", 2, retries=1) as scheduler, pytest.raises(RunError, match=r"died 2 times.*--batch-size"):
        scheduler.reduce(tasks.die_at_three, tasks.longest, tasks.chunks(8), None)


@pytest.mark.parametrize("kind", IN_PROCESSES)
def test_a_reduction_goes_on_after_a_worker_died(kind: str, tmp_path: Path) -> None:
    with opened(kind, 2, retries=1) as scheduler:
        assert scheduler.reduce(tasks.die_once, tasks.longest, tasks.chunks(8), str(tmp_path)) == 7
    assert (tmp_path / "killed").exists()


@pytest.fixture(scope="module")
def nannied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A scheduler that gives a silent worker up after two seconds, and two workers that are restarted when they die."""
    ttl = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "2s"}
    with start_cluster(tmp_path_factory.mktemp("nannied"), 2, nanny=True, scheduler_env=ttl) as cluster:
        yield cluster


@CLUSTER
def test_the_last_holder_of_what_all_chunks_need_may_die(nannied: DaskCluster, tmp_path: Path) -> None:
    results: Counter[int] = Counter()

    def on_result(index: int) -> None:
        results[index] += 1
        if sum(results.values()) == 10:
            for number in range(2):
                nannied.kill_worker_below_nanny(number)

    with opened(nannied.address) as scheduler:
        scheduler.run(tasks.leave_file, tasks.chunks(300), str(tmp_path), on_result, none_is_lost)
    assert results == Counter(range(300))


@CLUSTER
def test_workers_join_and_leave_during_a_run(tmp_path: Path) -> None:
    seen: Counter[int] = Counter()
    (tmp_path / "met").mkdir()
    with start_cluster(tmp_path / "cluster", 1) as cluster, opened(cluster.address) as scheduler:

        def on_result(process: int) -> None:
            seen[process] += 1
            if sum(seen.values()) == 3:
                cluster.add_worker()
            if len(seen) == 2 and cluster.workers[0].poll() is None and seen[process] == 10:
                cluster.stop_worker(0)

        common = str(tmp_path / "met")
        scheduler.run(tasks.wait_for_two_workers, tasks.chunks(200), common, on_result, none_is_lost)
        wait_until(lambda: cluster.workers[0].poll() is not None, "the first worker has left")
    assert sum(seen.values()) == 200
    assert len(seen) == 2


@CLUSTER
def test_a_cluster_may_shrink_with_more_in_flight_than_it_then_takes(tmp_path: Path) -> None:
    seen: Counter[int] = Counter()
    with start_cluster(tmp_path / "cluster", 4) as cluster, opened(cluster.address) as scheduler:

        def on_result(index: int) -> None:
            seen[index] += 1
            if sum(seen.values()) == 3:
                for number in (1, 2, 3):
                    cluster.kill_worker(number)
                (tmp_path / "release").touch()

        scheduler.run(tasks.wait_for_release_from_four, tasks.chunks(200), str(tmp_path), on_result, none_is_lost)
    assert seen == Counter(range(200))


def test_worker_processes_end_with_a_client_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from tests.dataflow import tasks\n"
        "from tests.dataflow.doubles import none_is_lost, opened\n"
        "if __name__ == '__main__':\n"
        "    with opened('processes', 2) as scheduler:\n"
        "        args = (tasks.wait_for_release, tasks.chunks(4), sys.argv[1], print, none_is_lost)\n"
        "        scheduler.run(*args)\n"
    )
    script = tmp_path / "client.py"
    script.write_text(code)
    (tmp_path / "met").mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, str(script), str(tmp_path / "met")], env=env) as client:
        wait_until(lambda: len(list((tmp_path / "met").iterdir())) >= 2, "both processes work")
        workers = [
            child for child in psutil.Process(client.pid).children() if "spawn_main" in " ".join(child.cmdline())
        ]
        assert len(workers) >= 2
        client.kill()
    wait_until(lambda: all(map(has_ended, workers)), "the worker processes have ended")


def has_ended(process: psutil.Process) -> bool:
    """Also of one that its new parent has not looked at yet; not every container's first process ever does."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("common_size", [1, 10**6])
def test_a_script_without_a_guard_is_told_instead_of_losing_every_input(common_size: int, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "from tests.dataflow import tasks\n"
        "from tests.dataflow.doubles import none_is_lost, opened\n"
        "with opened('processes', 2) as scheduler:\n"
        f"    scheduler.run(tasks.name_of, tasks.chunks(4), 'c' * {common_size}, print, none_is_lost)\n"
    )
    done = run_python("script.py", cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert done.rc == 1
    assert "RunError: worker processes do not start" in done.stderr


@CLUSTER
def test_a_worker_behind_a_cut_network_does_no_harm(
    tmp_path: Path, place: Path, inputs: Sequence[str], expected: dict[str, str]
) -> None:
    ttl = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "2s"}
    detector = Hazard.create(folder=str(place / "met"), waits=1)
    with start_cluster(tmp_path / "cluster", 2, scheduler_env=ttl) as cluster, opened(cluster.address) as scheduler:
        pids = {cluster.workers[number].pid: number for number in range(2)}

        def cut_the_network() -> int:
            wait_until(lambda: any((place / "met").glob("met-*")), "a worker has met the big image")
            (marker,) = (place / "met").glob("met-*")
            number = pids[int(marker.name.split("-")[1])]
            cluster.pause_worker(number)
            (place / "met/release").touch()
            return number

        paused: list[int] = []
        cutter = threading.Thread(target=lambda: paused.append(cut_the_network()))
        cutter.start()
        run = inspect_at(place, detector, scheduler, inputs, **OUTPUT, run_dir="run", keep_parts=True)
        cutter.join(timeout=60)
        assert run.n_errors == 0
        assert hashes_below(place / "out") == expected
        parts = hashes_below(place / "run/parts")
        assert not (place / "met/released").exists()

        cluster.resume_worker(paused[0])
        wait_until((place / "met/released").exists, "the worker that was given up goes on with its chunk")
        wait_until(lambda: cluster.workers[paused[0]].poll() is not None, "it has ended", timeout_s=120)
        assert hashes_below(place / "out") == expected
        assert hashes_below(place / "run/parts") == parts
