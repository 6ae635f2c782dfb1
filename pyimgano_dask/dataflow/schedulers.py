"""The scheduler that a run asks for by name, ready for work."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext

from dask.system import CPU_COUNT

from pyimgano_dask.dataflow.clusters import connect
from pyimgano_dask.dataflow.local_schedulers import LocalScheduler
from pyimgano_dask.dataflow.report import performance_report_at
from pyimgano_dask.dataflow.scheduler import Scheduler
from pyimgano_dask.dataflow.versions import check_versions
from pyimgano_dask.settings.run import DataflowSettings
from pyimgano_dask.storage.files import resolve

SHORT_LIST = 256
MANY_CORES = 4


@contextmanager
def open_scheduler(
    flow: DataflowSettings, n_inputs: int, base_dir: str, libraries: Collection[str] = ()
) -> Iterator[Scheduler]:
    """The scheduler that the settings name, ready for work and shut down at the end of the block.

    `auto` decides by the number of inputs and cores. Where nothing is said there are as many workers as the cores can
    feed with the native threads of a task. On a cluster Dask's performance report of the block goes to the file that
    the settings name, below `base_dir`, and the versions of the packages that bytes depend on are compared,
    `libraries` of the detector among them. Raises ConfigError when a cluster cannot be reached, runs another version of
    this package or lacks the workers it needs, RunError when it has none.
    """
    name, count = flow.scheduler, flow.workers or max(1, CPU_COUNT // flow.threads_per_task)
    if name == "auto":
        name = "threads" if n_inputs <= SHORT_LIST or count <= MANY_CORES else "local-cluster"
    if name in ("threads", "sync", "processes"):
        yield LocalScheduler(name, count, flow.retries, flow.threads_per_task)
        return
    from pyimgano_dask.dataflow.cluster_scheduler import ClusterScheduler

    with connect(name, count, tls=flow.tls, allowed_failures=flow.retries) as client:
        warnings = check_versions(client, libraries)
        scheduler = ClusterScheduler(client, flow.retries, flow.threads_per_task, flow.gpu_resource)
        scheduler.warnings = warnings
        report = flow.performance_report
        with nullcontext() if report is None else performance_report_at(resolve(report, base_dir), client):
            yield scheduler
