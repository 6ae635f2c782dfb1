"""Workers with a resource infer, the others do the rest; the bytes are the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyimgano_dask.dataflow.scheduler import Chain
from pyimgano_dask.errors import ConfigError
from tests.cluster import DaskCluster, start_cluster
from tests.conftest import hashes_below, infer_command
from tests.dataflow import tasks
from tests.dataflow.doubles import none_is_lost, opened

pytestmark = pytest.mark.cluster
Workplace = Callable[[str], Path]
TRAINING = (
    "--model",
    "vision_pixel_mad_map",
    "--model-kwargs",
    '{"resize_hw": [64, 64]}',
    "--train-dir",
    "set/train/good",
)
RUN = (
    *(*TRAINING, "--input", "@list.txt", "--defects", "--explain-defects", "--batch-size", 2),
    *("--save-masks", "out/masks", "--save-maps", "out/maps.zarr", "--save-overlays", "out/overlays"),
    *("--save-jsonl", "out/records.jsonl"),
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """One worker with the resource `GPU`, and one without."""
    with start_cluster(tmp_path_factory.mktemp("mixed"), 1) as cluster:
        cluster.add_worker(resources="GPU=1")
        yield cluster


@pytest.fixture(scope="module")
def processes(mixed: DaskCluster) -> tuple[int, int]:
    """The process without the resource, and the one with it."""
    return mixed.workers[0].pid, mixed.workers[1].pid


def test_each_half_of_a_chain_runs_where_it_belongs(mixed: DaskCluster, processes: tuple[int, int]) -> None:
    without, with_gpu = processes
    seen: Counter[tuple[int, int]] = Counter()
    chain = Chain(tasks.begin_here, tasks.end_here, tasks.as_it_is)
    with opened(mixed.address, gpu_resource="GPU") as scheduler:
        scheduler.run(chain, tasks.chunks(40), None, lambda pair: seen.update([pair]), none_is_lost)
        trained_by = scheduler.reduce(tasks.process_of, tasks.longest, tasks.chunks(8), None)
    assert seen == Counter({(with_gpu, without): 40})
    assert trained_by == with_gpu


def test_one_kind_of_worker_does_both_where_there_is_no_other(tmp_path: Path) -> None:
    chain = Chain(tasks.begin_here, tasks.end_here, tasks.as_it_is)
    seen: set[tuple[int, int]] = set()
    with (
        start_cluster(tmp_path, 1, resources="GPU=1") as cluster,
        opened(cluster.address, gpu_resource="GPU") as scheduler,
    ):
        scheduler.run(chain, tasks.chunks(10), None, seen.add, none_is_lost)
        (pid,) = {process.pid for process in cluster.workers}
    assert seen == {(pid, pid)}


@pytest.mark.parametrize("scale", ["image", "run"])
def test_the_bytes_are_those_of_one_process(scale: str, mixed: DaskCluster, workplace: Workplace) -> None:
    here, there = workplace("here"), workplace("there")
    assert infer_command(*RUN, "--overlay-scale", scale, "--scheduler", "sync", cwd=here, fresh=True).rc == 3
    flags = ("--overlay-scale", scale, "--scheduler", mixed.address, "--gpu-resource", "GPU", "--profile")
    done = infer_command(*RUN, *flags, cwd=there)
    assert done.rc == 3, done.stderr
    assert hashes_below(there / "out") == hashes_below(here / "out")


def test_a_fault_in_the_first_half_costs_its_chunk(mixed: DaskCluster) -> None:
    lost: list[int] = []
    seen: list[tuple[int, int]] = []
    chain = Chain(tasks.fail_at_three, tasks.end_here, tasks.as_it_is)
    with opened(mixed.address, gpu_resource="GPU", retries=1) as scheduler:
        scheduler.run(chain, tasks.chunks(6), None, seen.append, lambda chunk, loss: lost.append(chunk.index))
    assert lost == [3]
    assert len(seen) == 5


def test_a_resource_that_no_worker_has_is_a_fault_of_the_flags(mixed: DaskCluster, workplace: Workplace) -> None:
    with (
        pytest.raises(ConfigError, match="no worker has the resource 'TPU'"),
        opened(mixed.address, gpu_resource="TPU"),
    ):
        pass
    done = infer_command(*RUN, "--scheduler", "threads", "--gpu-resource", "GPU", cwd=workplace("local"))
    assert done.rc == 2
    assert "--gpu-resource needs --scheduler" in done.stderr
