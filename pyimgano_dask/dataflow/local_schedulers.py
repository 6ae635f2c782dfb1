"""Dask's own schedulers `sync`, `threads` and `processes`: one bag of chunks after the other."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from multiprocessing.synchronize import Lock
from typing import Any, ParamSpec, TypeVar

import dask.bag
from dask.callbacks import Callback

from pyimgano_dask.dataflow.native import limit_native_threads, native_threads_as_before
from pyimgano_dask.dataflow.plan import Chunk
from pyimgano_dask.dataflow.scheduler import (
    Common,
    Fault,
    Merge,
    Named,
    OnLost,
    OnResult,
    Patience,
    Result,
    Scheduler,
    Shared,
    Task,
    attempt,
    bag_of,
    died,
    merged_in_turn,
    reduction_of,
    slabs,
    times,
)
from pyimgano_dask.dataflow.undisturbed import undisturbed
from pyimgano_dask.errors import RunError

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")

_common_of_this_process: list[Any] = []


def _start_worker_process(common: Connection, turn: Lock) -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    with turn:
        common.send_bytes(b"")
        pickled = common.recv_bytes()
    if pickled:
        _common_of_this_process.append(pickle.loads(pickled))


def _end_with_the_parent() -> None:
    """A pool's process waits for work without end, also for that of a client that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _ByInitializer(Named):
    """A value that every process of a pool has fetched; only its name travels with a task.

    Where the value was refused a task fails, for nobody waits for it any more.
    """

    def __init__(self, threads_per_task: int) -> None:
        super().__init__()
        self._threads_per_task = threads_per_task

    @property
    def value(self) -> Any:
        limit_native_threads(self._threads_per_task)
        return _common_of_this_process[0]


def _attempt(chunk: Chunk[Any], shared: Any, task: Task[Any, Any]) -> tuple[int, Any]:
    return chunk.index, attempt(task, chunk, shared.value)


def _call(chunk: Chunk[Any], shared: Any, task: Task[Any, Any]) -> Any:
    return task(chunk, shared.value)


def _in_turn(chunks: Sequence[Chunk[Any]]) -> list[Chunk[Any]]:
    """The chunks as partitions of a bag that is to be computed in their order, so that records stream.

    Dask's local schedulers take independent partitions from the last key on, and keys are ordered as texts.
    """
    turns = sorted(range(len(chunks)), key=str, reverse=True)
    placed = dict(zip(turns, chunks, strict=True))
    return [placed[partition] for partition in range(len(chunks))]


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


class _Crew:
    """Whoever computes bags, and what they share: this thread, or threads."""

    def __init__(self, shared: Any, options: Mapping[str, Any]) -> None:
        self.shared = shared
        self._options = options

    @property
    def options(self) -> Mapping[str, Any]:
        """What Dask's `compute` is told."""
        return self._options

    def replace(self, workers: int | None = None) -> None:
        """Start anew, `workers` strong (as before if None), after one has died; threads do not."""


class _Handover:
    """A value for each process of a pool, which asks for it once it runs.

    Among its arguments the value would have to be read before the start of the process is over, and one that dies
    before would hold its parent up for good.
    """

    def __init__(self, context: SpawnContext, value: Any) -> None:
        self._ours, self._theirs = context.Pipe()
        self.arguments = self._theirs, context.Lock()
        self._is_refused = False
        self._thread = threading.Thread(target=self._answer, args=(pickle.dumps(value),), daemon=True)
        self._thread.start()

    def refuse(self) -> None:
        """Give nothing to processes that come too late to be of use; loading the value may take them seconds."""
        self._is_refused = True

    def close(self) -> None:
        """To be called once no process runs that could ask."""
        self._theirs.close()
        self._thread.join()

    def _answer(self, pickled: bytes) -> None:
        with suppress(EOFError, OSError), self._ours:
            while True:
                self._ours.recv_bytes()
                self._ours.send_bytes(b"" if self._is_refused else pickled)


class _Pool(ProcessPoolExecutor):
    """Spawned processes, each of which is started when a task is submitted for which there is none."""

    def __init__(self, common: Any, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._handover = _Handover(context, common)
        super().__init__(workers, context, _start_worker_process, self._handover.arguments)

    def submit(
        self, fn: Callable[_Arguments, _Answer], /, *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> Future[_Answer]:
        with undisturbed():
            return super().submit(fn, *args, **kwargs)

    def close(self) -> None:
        """End every process once its task is done."""
        self._handover.refuse()
        self.shutdown(wait=True, cancel_futures=True)
        self._handover.close()


class _Processes(_Crew):
    """A pool of spawned processes, replaced as a whole when one of them dies."""

    def __init__(self, common: Any, workers: int, threads_per_task: int) -> None:
        # One task at a time to a process: Dask's six would keep others idle, and results from streaming.
        super().__init__(_ByInitializer(threads_per_task), {"scheduler": "processes", "chunksize": 1})
        self._common = common
        self._workers = workers
        self._pool = _Pool(common, workers)

    def check(self) -> None:
        """Raise RunError when no process starts."""
        try:
            self._pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise RunError(
                "worker processes do not start; a script that uses --scheduler processes calls below "
                'if __name__ == "__main__":'
            ) from error

    @property
    def options(self) -> Mapping[str, Any]:
        return {**self._options, "pool": self._pool}

    def replace(self, workers: int | None = None) -> None:
        self.close()
        self._pool = _Pool(self._common, workers or self._workers)

    def close(self) -> None:
        """End every process once its task is done."""
        self._pool.close()


class LocalScheduler(Scheduler):
    """`sync`, `threads` or `processes`, with so many workers."""

    def __init__(self, kind: str, workers: int, retries: int = 0, threads_per_task: int = 1) -> None:
        super().__init__(retries, threads_per_task)
        self._kind = kind
        self._workers = workers

    def run(
        self,
        task: Task[Common, Result],
        chunks: Iterable[Chunk[Any]],
        common: Common,
        on_result: OnResult[Result],
        on_lost: OnLost,
    ) -> None:
        with self._crew(common) as crew:
            for slab in slabs(chunks):
                _Slab(slab, partial(_attempt, task=task), crew, self.retries, on_result, on_lost).run()

    def reduce(
        self, task: Task[Common, Result], merge: Merge[Result], chunks: Iterable[Chunk[Any]], common: Common
    ) -> Result:
        with self._crew(common) as crew:
            call = partial(_call, task=task)
            return merged_in_turn(merge, (self._join(slab, call, merge, crew) for slab in slabs(chunks)))

    def describe(self) -> str:
        return self._kind if self._kind == "sync" else f"{self._kind} × {self._workers}"

    @property
    def n_workers(self) -> int:
        return 1 if self._kind == "sync" else self._workers

    def _join(self, slab: Sequence[Chunk[Any]], call: Any, merge: Merge[Result], crew: _Crew) -> Result:
        for _ in range(self.retries + 1):
            try:
                joined: Result = reduction_of(slab, call, crew.shared, merge).compute(**crew.options)
            except BrokenProcessPool:
                crew.replace()
            else:
                return joined
        raise RunError(
            f"a worker process died {times(self.retries + 1)} before its training images were done (killed, or out of "
            "memory); run again with fewer --workers or a smaller --batch-size"
        )

    @contextmanager
    def _crew(self, common: Any) -> Iterator[_Crew]:
        if self._kind == "sync":
            with native_threads_as_before():
                yield _Crew(Shared(common, self.threads_per_task), {"scheduler": "sync"})
        elif self._kind == "threads":
            # A pool of its own, so that no task is still writing when a run that failed is cleaned up.
            with native_threads_as_before(), ThreadPoolExecutor(self._workers) as threads:
                yield _Crew(Shared(common, self.threads_per_task), {"scheduler": "threads", "pool": threads})
        else:
            processes = _Processes(common, self._workers, self.threads_per_task)
            try:
                processes.check()
                yield processes
            finally:
                processes.close()


class _Slab:
    """Some chunks on their way through one crew, until each has a result or is given up."""

    def __init__(
        self,
        slab: Sequence[Chunk[Any]],
        call: Callable[[Chunk[Any], Any], tuple[int, Any]],
        crew: _Crew,
        retries: int,
        on_result: OnResult[Any],
        on_lost: OnLost,
    ) -> None:
        self._left = {chunk.index: chunk for chunk in slab}
        self._call = call
        self._crew = crew
        self._retries = retries
        self._patience = Patience(retries)
        self._on_result = on_result
        self._on_lost = on_lost

    def run(self) -> None:
        """Compute all chunks together; after too many deaths each alone, which tells whose fault they are."""
        deaths = 0
        while self._left and deaths <= self._retries:
            try:
                self._compute(list(self._left.values()))
            except BrokenProcessPool:
                deaths += 1
                self._crew.replace()
        if not self._left:
            return
        self._crew.replace(workers=1)
        while self._left:
            chunk = next(iter(self._left.values()))
            try:
                self._compute([chunk])
            except BrokenProcessPool:
                del self._left[chunk.index]
                self._on_lost(chunk, died(chunk))
                self._crew.replace(workers=1)
        self._crew.replace()

    def _compute(self, chunks: Sequence[Chunk[Any]]) -> None:
        bag = bag_of(_in_turn(chunks), self._call, self._crew.shared)
        with _EarlyResults(bag, self._take) as early:
            results = bag.compute(**self._crew.options)
        for partition, result in enumerate(results):
            if partition not in early.delivered:
                self._take(result)

    def _take(self, answer: tuple[int, Any]) -> None:
        index, outcome = answer
        chunk = self._left[index]
        if isinstance(outcome, Fault):
            loss = self._patience.loss(chunk, outcome)
            if loss is None:
                return
            del self._left[index]
            self._on_lost(chunk, loss)
        else:
            del self._left[index]
            self._on_result(outcome)
