"""Where chunks are computed: Dask's local schedulers or a distributed cluster, behind two verbs.

`run` calls a task on every chunk and hands each result over as it comes; `reduce` joins the results of all chunks
in a tree whose shape depends on their number alone. A task is a module-level function `task(chunk, common)`;
`common` (settings, the fitted detector) reaches each worker once, not with every chunk.
"""

from __future__ import annotations

import multiprocessing
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import dask.bag
from dask.callbacks import Callback
from dask.system import CPU_COUNT

from pyimgano_dask.dataflow.clusters import connect
from pyimgano_dask.dataflow.native import limit_native_threads, native_threads_limited
from pyimgano_dask.dataflow.plan import Chunk
from pyimgano_dask.dataflow.report import performance_report_at
from pyimgano_dask.dataflow.versions import check_versions
from pyimgano_dask.errors import RunError
from pyimgano_dask.settings.run import TlsFiles

Common = TypeVar("Common")
Result = TypeVar("Result")
Task = Callable[[Chunk[Any], Common], Result]
Merge = Callable[[Sequence[Result]], Result]

# Chunks of one local graph. Below 100 so that Dask's order of independent partitions, by key, is nearly numeric.
SLAB = 96
REDUCTION_FAN_IN = 8
SMALLEST_WINDOW = 8
WINDOW_PER_THREAD = 4
SHORT_LIST = 256
MANY_CORES = 4


class Scheduler(ABC):
    """Computes tasks on chunks. `warnings` are what a user should know of the place where it does."""

    warnings: tuple[str, ...] = ()

    @abstractmethod
    def run(
        self,
        task: Task[Common, Result],
        chunks: Iterable[Chunk[Any]],
        common: Common,
        on_result: Callable[[Result], None],
    ) -> None:
        """Call `task` on every chunk; `on_result` gets each result in this thread, in any order."""

    @abstractmethod
    def reduce(
        self, task: Task[Common, Result], merge: Merge[Result], chunks: Iterable[Chunk[Any]], common: Common
    ) -> Result:
        """Join the results of `task` on every chunk, always in the order of the chunks."""

    @abstractmethod
    def describe(self) -> str:
        """What it is and how many workers it has, in a few words."""


class _Named:
    """Dask sees a name where a value is meant, not its contents."""

    def __init__(self) -> None:
        self._name = uuid.uuid4().hex

    def __dask_tokenize__(self) -> str:
        return self._name


class _ByReference(_Named):
    """A value in this process: threads share it."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


class _ByScatter(_Named):
    """A value scattered over a cluster: each worker keeps one copy for the whole run."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self._value = value

    @property
    def value(self) -> Any:
        limit_native_threads()
        return self._value


_common_of_this_process: Any = None


def _start_worker_process(common: Any) -> None:
    global _common_of_this_process
    _common_of_this_process = common
    limit_native_threads()


class _ByInitializer(_Named):
    """A value that every process of a pool was started with; only its name travels with a task."""

    @property
    def value(self) -> Any:
        return _common_of_this_process


def _run_partition(partition: Iterable[Chunk[Any]], task: Task[Any, Any], shared: Any) -> list[Any]:
    return [task(chunk, shared.value) for chunk in partition]


def _join(results: Iterable[Result], merge: Merge[Result]) -> Result:
    return merge(list(results))


class _EarlyResults(Callback):
    """Hands over the results of a bag's partitions as their tasks end, before the whole bag is done.

    `delivered` are the partitions seen. Dask may fuse a partition's key away, so a partition can be missed here;
    the bag's own result has them all.
    """

    def __init__(self, bag: dask.bag.Bag, on_result: Callable[[Any], None]) -> None:
        self._partition_of = {key: index for index, key in enumerate(bag.__dask_keys__())}
        self._on_result = on_result
        self.delivered: set[int] = set()

    def _posttask(self, key: Any, result: Any, dsk: Any, state: Any, worker_id: Any) -> None:
        if key in self._partition_of:
            self.delivered.add(self._partition_of[key])
            for value in result:
                self._on_result(value)


class LocalScheduler(Scheduler):
    """Dask's own schedulers `sync`, `threads` and `processes`: one bag of chunks after the other."""

    def __init__(self, kind: str, workers: int) -> None:
        self._kind = kind
        self._workers = workers

    def run(
        self,
        task: Task[Common, Result],
        chunks: Iterable[Chunk[Any]],
        common: Common,
        on_result: Callable[[Result], None],
    ) -> None:
        with self._place(common) as (shared, options):
            for slab in _slabs(chunks):
                # Dask's local schedulers take independent partitions from the last one on.
                bag = _bag(slab[::-1], task, shared)
                with _EarlyResults(bag, on_result) as early:
                    results = bag.compute(**options)
                for partition, result in enumerate(results):
                    if partition not in early.delivered:
                        on_result(result)

    def reduce(
        self, task: Task[Common, Result], merge: Merge[Result], chunks: Iterable[Chunk[Any]], common: Common
    ) -> Result:
        with self._place(common) as (shared, options):
            partials = [_reduction(slab, task, shared, merge).compute(**options) for slab in _slabs(chunks)]
        return merge(partials)

    def describe(self) -> str:
        return self._kind if self._kind == "sync" else f"{self._kind} × {self._workers}"

    @contextmanager
    def _place(self, common: Any) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        if self._kind == "sync":
            with native_threads_limited():
                yield _ByReference(common), {"scheduler": "sync"}
            return
        if self._kind == "threads":
            # A pool of its own, so that no task is still writing when a run that failed is cleaned up.
            with native_threads_limited(), ThreadPoolExecutor(self._workers) as threads:
                yield _ByReference(common), {"scheduler": "threads", "pool": threads}
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self._workers, context, _start_worker_process, (common,)) as pool:
            try:
                yield _ByInitializer(), {"scheduler": "processes", "pool": pool}
            except BrokenProcessPool:
                raise RunError(
                    "a worker process died before its chunk was done (killed, or out of memory); "
                    "run again with fewer --workers or a smaller --batch-size"
                ) from None


class ClusterScheduler(Scheduler):
    """A distributed cluster: futures in a bounded window."""

    def __init__(self, client: Any, warnings: tuple[str, ...] = ()) -> None:
        self._client = client
        self.warnings = warnings

    def run(
        self,
        task: Task[Common, Result],
        chunks: Iterable[Chunk[Any]],
        common: Common,
        on_result: Callable[[Result], None],
    ) -> None:
        from distributed import as_completed

        source = iter(chunks)
        with _cluster_faults_in_words():
            shared = self._scatter(common)
            window = max(SMALLEST_WINDOW, WINDOW_PER_THREAD * self._n_threads())
            pending = as_completed(
                self._submit(task, source, shared, window),
                loop=self._client.loop,
                with_results=True,
                raise_errors=False,
            )
            for batch in pending.batches():
                for future, result in batch:
                    _raise_if_lost(future, result)
                    on_result(result)
                pending.update(self._submit(task, source, shared, len(batch)))

    def reduce(
        self, task: Task[Common, Result], merge: Merge[Result], chunks: Iterable[Chunk[Any]], common: Common
    ) -> Result:
        with _cluster_faults_in_words():
            shared = self._scatter(common)
            partials = [self._client.compute(_reduction(slab, task, shared, merge)).result() for slab in _slabs(chunks)]
        return merge(partials)

    def describe(self) -> str:
        return f"cluster {self._client.scheduler.address}, {self._n_threads()} worker threads"

    def _submit(self, task: Task[Any, Any], source: Iterator[Chunk[Any]], shared: Any, count: int) -> list[Any]:
        chunks = list(islice(source, count))
        futures: list[Any] = self._client.map(_run_chunk, chunks, task=task, shared=shared, pure=False)
        return futures

    def _scatter(self, common: Any) -> Any:
        return self._client.scatter(_ByScatter(common), broadcast=True, hash=False)

    def _n_threads(self) -> int:
        return sum(self._client.nthreads().values())


@contextmanager
def _cluster_faults_in_words() -> Iterator[None]:
    from distributed import KilledWorker
    from distributed.comm.core import CommClosedError

    try:
        yield
    except KilledWorker as error:
        raise RunError(
            f"a chunk killed every worker it ran on, the last one {error.last_worker.address} "
            "(out of memory, most often); run again with a smaller --batch-size or more memory a worker"
        ) from error
    except (CancelledError, CommClosedError) as error:
        raise RunError(
            f"the cluster was lost during the run ({error}); see that its scheduler is up, and run again"
        ) from error


def _raise_if_lost(future: Any, result: Any) -> None:
    """A future that failed has (type, error, traceback) for a result, one that was given up has its cancellation."""
    if isinstance(result, CancelledError):
        raise result
    if future.status == "error":
        raise result[1].with_traceback(result[2])


def _run_chunk(chunk: Chunk[Any], task: Task[Any, Any], shared: _ByScatter) -> Any:
    return task(chunk, shared.value)


def _slabs(chunks: Iterable[Chunk[Any]]) -> Iterator[list[Chunk[Any]]]:
    source = iter(chunks)
    while slab := list(islice(source, SLAB)):
        yield slab


def _bag(chunks: Sequence[Chunk[Any]], task: Task[Any, Any], shared: Any) -> dask.bag.Bag:
    bag = dask.bag.from_sequence(chunks, npartitions=len(chunks))
    mapped: dask.bag.Bag = bag.map_partitions(_run_partition, task=task, shared=shared)
    return mapped


def _reduction(chunks: Sequence[Chunk[Any]], task: Task[Any, Any], shared: Any, merge: Merge[Any]) -> dask.bag.Item:
    join = partial(_join, merge=merge)
    item: dask.bag.Item = _bag(chunks, task, shared).reduction(join, join, split_every=REDUCTION_FAN_IN)
    return item


@contextmanager
def open_scheduler(
    name: str, workers: int | None, n_inputs: int, *, tls: TlsFiles | None = None, report: str | None = None
) -> Iterator[Scheduler]:
    """The scheduler of this name, ready for work and shut down at the end of the block.

    `name` is what `--scheduler` takes; `auto` decides by the number of inputs and cores. A cluster of one's own is
    reached with `tls`, and Dask's performance report of the block goes to the file `report`. Raises ConfigError when a
    cluster cannot be reached or runs another version of this package, RunError when it has no workers.
    """
    count = workers or CPU_COUNT
    if name == "auto":
        name = "threads" if n_inputs <= SHORT_LIST or count <= MANY_CORES else "local-cluster"
    if name in ("threads", "sync", "processes"):
        yield LocalScheduler(name, count)
    else:
        with connect(name, count, tls=tls) as client:
            warnings = check_versions(client)
            with performance_report_at(report, client) if report is not None else nullcontext():
                yield ClusterScheduler(client, warnings)
