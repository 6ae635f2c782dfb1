"""Where chunks are computed: Dask's local schedulers or a distributed cluster, behind two verbs.

`run` calls a task on every chunk and hands each result over as it comes; `reduce` joins the results of all chunks
in a tree whose shape depends on their number alone. A task is a module-level function `task(chunk, common)`;
`common` (settings, the fitted detector) reaches each worker once, not with every chunk.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import dask.bag
from dask.callbacks import Callback
from dask.system import CPU_COUNT

from pyimgano_dask.dataflow.native import limit_native_threads, native_threads_as_before
from pyimgano_dask.dataflow.plan import Chunk
from pyimgano_dask.errors import ConfigError, RunError

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
CONNECT_TIMEOUT_S = 15
WORKER_TIMEOUT_S = 60


class Scheduler(ABC):
    """Computes tasks on chunks."""

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

    @property
    @abstractmethod
    def n_workers(self) -> int:
        """How many tasks it can work on at a time."""


class _Named:
    """Dask sees a name where a value is meant, not its contents."""

    def __init__(self) -> None:
        self._name = uuid.uuid4().hex

    def __dask_tokenize__(self) -> str:
        return self._name


class _ByReference(_Named):
    """A value in this process: threads share it."""

    def __init__(self, value: Any, threads_per_task: int) -> None:
        super().__init__()
        self._value = value
        self._threads_per_task = threads_per_task

    @property
    def value(self) -> Any:
        limit_native_threads(self._threads_per_task)
        return self._value


class _ByScatter(_ByReference):
    """A value scattered over a cluster: each worker keeps one copy for the whole run."""


_common_of_this_process: Any = None


def _start_worker_process(common: Any) -> None:
    global _common_of_this_process
    _common_of_this_process = common


class _ByInitializer(_Named):
    """A value that every process of a pool was started with; only its name travels with a task."""

    def __init__(self, threads_per_task: int) -> None:
        super().__init__()
        self._threads_per_task = threads_per_task

    @property
    def value(self) -> Any:
        limit_native_threads(self._threads_per_task)
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

    def __init__(self, kind: str, workers: int, threads_per_task: int) -> None:
        self._kind = kind
        self._workers = workers
        self._threads_per_task = threads_per_task

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

    @property
    def n_workers(self) -> int:
        return 1 if self._kind == "sync" else self._workers

    @contextmanager
    def _place(self, common: Any) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        if self._kind == "sync":
            with native_threads_as_before():
                yield _ByReference(common, self._threads_per_task), {"scheduler": "sync"}
            return
        if self._kind == "threads":
            # A pool of its own, so that no task is still writing when a run that failed is cleaned up.
            with native_threads_as_before(), ThreadPoolExecutor(self._workers) as threads:
                yield _ByReference(common, self._threads_per_task), {"scheduler": "threads", "pool": threads}
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self._workers, context, _start_worker_process, (common,)) as pool:
            try:
                yield _ByInitializer(self._threads_per_task), {"scheduler": "processes", "pool": pool}
            except BrokenProcessPool:
                raise RunError(
                    "a worker process died before its chunk was done (killed, or out of memory); "
                    "run again with fewer --workers or a smaller --batch-size"
                ) from None


class ClusterScheduler(Scheduler):
    """A distributed cluster: futures in a bounded window."""

    def __init__(self, client: Any, threads_per_task: int) -> None:
        self._client = client
        self._threads_per_task = threads_per_task

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
            window = max(SMALLEST_WINDOW, WINDOW_PER_THREAD * self.n_workers)
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
        return f"cluster {self._client.scheduler.address}, {self.n_workers} worker threads"

    @property
    def n_workers(self) -> int:
        return sum(self._client.nthreads().values())

    def _submit(self, task: Task[Any, Any], source: Iterator[Chunk[Any]], shared: Any, count: int) -> list[Any]:
        chunks = list(islice(source, count))
        futures: list[Any] = self._client.map(_run_chunk, chunks, task=task, shared=shared, pure=False)
        return futures

    def _scatter(self, common: Any) -> Any:
        return self._client.scatter(_ByScatter(common, self._threads_per_task), broadcast=True, hash=False)


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
def open_scheduler(name: str, workers: int | None, n_inputs: int, *, threads_per_task: int = 1) -> Iterator[Scheduler]:
    """The scheduler of this name, ready for work and shut down at the end of the block.

    `name` is what `--scheduler` takes; `auto` decides by the number of inputs and cores. `workers` None is as many as
    the cores can feed with `threads_per_task` native threads each. Raises ConfigError when a cluster cannot be
    reached, RunError when it has no workers.
    """
    count = workers or max(1, CPU_COUNT // threads_per_task)
    if name == "auto":
        name = "threads" if n_inputs <= SHORT_LIST or count <= MANY_CORES else "local-cluster"
    if name in ("threads", "sync", "processes"):
        yield LocalScheduler(name, count, threads_per_task)
    else:
        with _connect(name, count) as client:
            yield ClusterScheduler(client, threads_per_task)


@contextmanager
def _connect(name: str, workers: int) -> Iterator[Any]:
    from distributed import Client, LocalCluster
    from distributed.comm.addressing import get_address_host_port
    from distributed.utils import silence_logging_cmgr

    if name == "local-cluster":
        try:
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False},
                silence_logs=logging.CRITICAL,
            )
        except RuntimeError as error:
            raise RunError(
                f"the workers of a local cluster do not start ({error}); a script that starts one calls below "
                'if __name__ == "__main__":'
            ) from error
        with cluster, Client(cluster) as client:
            yield client
        return
    try:
        address = _address_in(name) if name.endswith(".json") else name
        # Checked here, because a Client that was given no address at all holds the process for 30 s at its end.
        get_address_host_port(address)
        client = Client(address, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except FileNotFoundError:
        raise ConfigError(
            f"--scheduler: there is no scheduler file {name!r}; start a scheduler with "
            f"`dask scheduler --scheduler-file {name}`"
        ) from None
    except (OSError, ValueError, TypeError, TimeoutError) as error:
        raise ConfigError(
            f"--scheduler: no scheduler answers at {name!r} ({error}); start one with `dask scheduler` "
            "or give its address as it prints it"
        ) from None
    with silence_logging_cmgr(logging.CRITICAL), client:
        try:
            client.wait_for_workers(1, timeout=WORKER_TIMEOUT_S)
        except TimeoutError:
            raise RunError(
                f"the scheduler at {name} has no workers after {WORKER_TIMEOUT_S} s; "
                f"start one with `dask worker {address}`"
            ) from None
        yield client


def _address_in(path: str) -> str:
    """The address in a scheduler file, as `dask scheduler --scheduler-file` writes it; OSError or ValueError if none.

    Read here, because Dask waits for a file that is not there without end.
    """
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    address = content.get("address") if isinstance(content, dict) else None
    if not isinstance(address, str):
        raise ValueError(f"the file has no text under the key address, such as tcp://127.0.0.1:8786: {content!r:.80}")
    return address
