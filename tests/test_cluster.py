"""The bench of clusters does what its names say: tests of losses are only as good as the losses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cluster import make_tls, start_cluster
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster


def test_workers_join_stop_and_are_killed(tmp_path: Path) -> None:
    with start_cluster(tmp_path, 1, env={"COLOUR": "red"}, nthreads=2) as cluster:
        assert cluster.add_worker(resources="GPU=1", nthreads=1, env={"COLOUR": "blue"}) == 1
        addresses = cluster.worker_addresses()
        with cluster.client() as client:
            info = client.scheduler_info()["workers"]
            colours = client.run(os.getenv, "COLOUR")
        assert [info[addresses[number]]["nthreads"] for number in (0, 1)] == [2, 1]
        assert [info[addresses[number]]["resources"] for number in (0, 1)] == [{}, {"GPU": 1}]
        assert [colours[addresses[number]] for number in (0, 1)] == ["red", "blue"]
        cluster.kill_worker(0)
        wait_until(lambda: set(cluster.worker_addresses()) == {1}, "the killed worker is gone")
        cluster.stop_worker(1)
        wait_until(lambda: cluster.worker_addresses() == {}, "the stopped worker is gone")
        assert cluster.workers[1].wait(30) == 0
    assert [process.poll() is None for process in cluster.processes] == [False] * 3


def test_a_paused_worker_answers_once_it_is_resumed(tmp_path: Path) -> None:
    with start_cluster(tmp_path, 1) as cluster, cluster.client() as client:
        cluster.pause_worker(0)
        answer = client.submit(os.getpid, pure=False)
        assert client.run_on_scheduler(os.getpid) == cluster.processes[0].pid
        assert not answer.done()
        cluster.resume_worker(0)
        assert answer.result(timeout=30) == cluster.workers[0].pid


def test_a_nanny_starts_another_worker_and_goes_with_a_power_cut(tmp_path: Path) -> None:
    with start_cluster(tmp_path, 1, nanny=True, memory_limit="1GB") as cluster:
        before = cluster.worker_addresses()[0]
        cluster.kill_worker_below_nanny(0)
        wait_until(lambda: cluster.worker_addresses().get(0, before) != before, "the nanny has started another")
        with cluster.client() as client:
            (info,) = client.scheduler_info()["workers"].values()
        assert info["memory_limit"] == 10**9
        cluster.kill_worker(0)
        wait_until(lambda: cluster.worker_addresses() == {}, "worker and nanny are gone")


def test_a_hidden_folder_is_empty_for_the_worker_alone(tmp_path: Path) -> None:
    hidden = tmp_path / "of-the-client"
    hidden.mkdir()
    (hidden / "image.png").touch()
    with start_cluster(tmp_path / "cluster", 1, hidden=hidden) as cluster, cluster.client() as client:
        assert client.submit(os.listdir, str(hidden)).result(timeout=30) == []
        cluster.add_worker(hidden=None)
        listed = client.run(os.listdir, str(hidden))
        assert listed[cluster.worker_addresses()[1]] == ["image.png"]


def test_a_cluster_with_certificates_is_reached_with_them(tmp_path: Path) -> None:
    files = make_tls(tmp_path / "tls")
    with start_cluster(tmp_path / "cluster", 1, tls=files) as cluster:
        assert cluster.address.startswith("tls://")
        assert set(cluster.worker_addresses()) == {0}
