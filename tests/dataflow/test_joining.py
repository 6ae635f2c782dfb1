"""Workers that join and leave while a run goes on: the same bytes, each chunk done once or again, none lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyimgano_dask.dataflow.run import run
from pyimgano_dask.settings.resolve import given_by_keyword, resolve
from tests.cluster import DaskCluster, start_cluster
from tests.conftest import hashes_below
from tests.dataflow import tasks
from tests.dataflow.doubles import none_is_lost, opened

pytestmark = pytest.mark.cluster

Workplace = Callable[[str], Path]

SETTINGS = {
    "model": "vision_pixel_mad_map",
    "train_dir": "set/train/good",
    "model_kwargs": {"resize_hw": [64, 64]},
    "input": "@list.txt",
    "defects": True,
    "defect_min_area": 4,
    "batch_size": 1,
    "save_jsonl": "out/records.jsonl",
    "save_masks": "out/masks",
    "save_overlays": "out/overlays",
}


class ChangesWorkers:
    """Progress of a run that, at its fourth input, gets a second worker and is left by its first one."""

    def __init__(self, cluster: DaskCluster, leave: Callable[[DaskCluster, int], None]) -> None:
        self._cluster = cluster
        self._leave = leave
        self._phase = ""
        self._done = 0

    def phase(self, name: str, total: int | None = None) -> None:
        self._phase = name

    def advance(self, steps: int) -> None:
        self._done += steps if self._phase == "inspecting" else 0
        if self._done == 4:
            self._cluster.add_worker()
            self._leave(self._cluster, 0)


@pytest.mark.parametrize("leave", [DaskCluster.retire_worker, DaskCluster.stop_worker], ids=["retired", "stopped"])
@pytest.mark.parametrize("nanny", [False, True], ids=["bare", "nanny"])
def test_a_run_that_changes_its_workers_leaves_the_same_bytes(
    workplace: Workplace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nanny: bool,
    leave: Callable[[DaskCluster, int], None],
) -> None:
    alone, changing = workplace("alone"), workplace("changing")
    monkeypatch.chdir(alone)
    with open(os.devnull, "wb") as nowhere:
        run(resolve(given_by_keyword({**SETTINGS, "scheduler": "sync"})), nowhere)
        monkeypatch.chdir(changing)
        with start_cluster(tmp_path, 1, nanny=nanny) as cluster:
            there = resolve(given_by_keyword({**SETTINGS, "scheduler": cluster.address}))
            summary = run(there, nowhere, ChangesWorkers(cluster, leave))
            assert set(cluster.worker_addresses()) == {1}
    assert (summary.n_inputs, summary.n_errors) == (22, 2)
    assert hashes_below(changing / "out") == hashes_below(alone / "out")


def test_a_worker_that_joins_gets_work_beside_the_first(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    workers: list[int] = []
    with start_cluster(tmp_path / "cluster", 1) as cluster, opened(cluster.address) as scheduler:

        def on_result(pid: int) -> None:
            if not workers:
                cluster.add_worker()
            workers.append(pid)

        scheduler.run(tasks.wait_for_two_workers, tasks.chunks(30), str(tmp_path / "work"), on_result, none_is_lost)
        assert set(workers) == {process.pid for process in cluster.workers}
    assert len(workers) == 30
