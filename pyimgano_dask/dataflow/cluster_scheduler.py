"""A distributed cluster: futures in a bounded window, on workers that may come and go."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

from pyimgano_dask.dataflow.plan import Chunk
from pyimgano_dask.dataflow.scheduler import (
    Chain,
    Common,
    Fault,
    Merge,
    OnLost,
    OnResult,
    Patience,
    Result,
    Scheduler,
    Shared,
    Task,
    attempt,
    died,
    merged_in_turn,
    reduction_of,
    slabs,
)
from pyimgano_dask.errors import ConfigError, RunError

SMALLEST_WINDOW = 32
WINDOW_PER_THREAD = 8
POLL_S = 0.002
LOOK_EVERY_S = 2.0
WORKER_TIMEOUT_S = 60.0


def _attempt(chunk: Chunk[Any], shared: Shared, task: Task[Any, Any]) -> Any:
    return attempt(task, chunk, shared.value)


def _attempt_start(chunk: Chunk[Any], shared: Shared, chain: Chain[Any, Any]) -> Any:
    return attempt(lambda chunk, common: chain.pack(chain.start(chunk, common)), chunk, shared.value)


def _attempt_finish(chunk: Chunk[Any], started: Any, shared: Shared, chain: Chain[Any, Any]) -> Any:
    if isinstance(started, Fault):
        return started
    return attempt(lambda chunk, common: chain.finish(chunk, started, common), chunk, shared.value)


def _call(chunk: Chunk[Any], shared: Shared, task: Task[Any, Any]) -> Any:
    return task(chunk, shared.value)


class _Died:
    """Stands for the result of a chunk that was on more dying workers than the scheduler puts up with."""


class _Lost:
    """Stands for the result of a chunk that the cluster has forgotten, because what it needs went with a worker."""


class ClusterScheduler(Scheduler):
    """The cluster of a connected `distributed.Client`.

    With `gpu_resource` the first half of a chain goes to workers that were started with this resource, and the second
    half to the others. Raises ConfigError when there is no such worker.
    """

    def __init__(
        self, client: Any, retries: int = 0, threads_per_task: int = 1, gpu_resource: str | None = None
    ) -> None:
        super().__init__(retries, threads_per_task)
        self._workers = _Workers(client, gpu_resource)

    def run(
        self,
        task: Task[Common, Result],
        chunks: Iterable[Chunk[Any]],
        common: Common,
        on_result: OnResult[Result],
        on_lost: OnLost,
    ) -> None:
        suspects: list[Chunk[Any]] = []
        with _cluster_faults_in_words():
            shared = Shared(common, self.threads_per_task)
            flight = _Flight(self._workers, task, shared, self.retries, on_result, on_lost)
            flight.run(_Queue(chunks), suspects.append)
            # All chunks that waited on a dying worker count as its killers; each is tried with no other chunk about.
            for chunk in suspects:
                flight.run(_Queue([chunk]), lambda chunk: on_lost(chunk, died(chunk)))

    def reduce(
        self, task: Task[Common, Result], merge: Merge[Result], chunks: Iterable[Chunk[Any]], common: Common
    ) -> Result:
        call = partial(_call, task=task)
        with _cluster_faults_in_words():
            share = _Share(self._workers, Shared(common, self.threads_per_task))
            return merged_in_turn(merge, (self._join(slab, call, merge, share) for slab in slabs(chunks)))

    def describe(self) -> str:
        return f"cluster {self._workers.client.scheduler.address}, {self.n_workers} worker threads"

    @property
    def n_workers(self) -> int:
        return self._workers.n_threads

    def _join(self, slab: Sequence[Chunk[Any]], call: Any, merge: Merge[Result], share: _Share) -> Result:
        for _ in range(self.retries + 1):
            item = reduction_of(slab, call, share.get(), merge)
            future = self._workers.client.compute(item, resources=self._workers.gpu_demand)
            watched = self._workers.watched([future])
            while not (done := self._workers.wait(watched)):
                pass
            outcome = done[0][1]
            if isinstance(outcome, _Died):
                break
            if not isinstance(outcome, _Lost):
                joined: Result = outcome
                return joined
            share.is_lost = True
        raise RunError(
            "a chunk of training images killed every worker it ran on (out of memory, most often); run again with a "
            "smaller --batch-size or more memory a worker"
        )


class _Workers:
    """The workers of a cluster, looked at now and then, and futures on their way."""

    def __init__(self, client: Any, gpu_resource: str | None) -> None:
        self.client = client
        self.gpu_resource = gpu_resource
        self.n_threads = self._n_able_threads = 0
        self._others: list[str] = []
        self._looked_at = self._seen_at = time.monotonic()
        self._look()
        if gpu_resource is not None and not self._are_enough:
            raise ConfigError(
                f"--gpu-resource: no worker has the resource {gpu_resource!r}; start workers with "
                f"`dask worker ... --resources {gpu_resource}=1`, or leave the flag out"
            )

    @property
    def gpu_demand(self) -> dict[str, int] | None:
        """The resources of a task that infers."""
        return None if self.gpu_resource is None else {self.gpu_resource: 1}

    @property
    def others(self) -> list[str] | None:
        """Addresses of the workers without the resource, None when there are none."""
        return self._others or None

    @property
    def window(self) -> int:
        """How many chunks are in flight at most; inferred ones do not pile up where other workers finish them."""
        if self.gpu_resource is None:
            return max(SMALLEST_WINDOW, WINDOW_PER_THREAD * self.n_threads)
        return 2 * (self._n_able_threads + self.n_threads)

    def watched(self, futures: Sequence[Any]) -> Any:
        """Futures whose results `wait` hands over."""
        from distributed import as_completed

        return as_completed(futures, loop=self.client.loop, with_results=True, raise_errors=False)

    def wait(self, watched: Any) -> list[tuple[Any, Any]]:
        """Futures that are done, with their outcomes; none when it is time to see who is there.

        Raises RunError when there has been no worker for too long that could do them.
        """
        while True:
            if is_due := time.monotonic() - self._looked_at > LOOK_EVERY_S:
                self._look_again()
            if is_due or watched.has_ready():
                break
            time.sleep(POLL_S)
        return [(future, _outcome(future, result)) for future, result in watched.next_batch(block=False)]

    def _look_again(self) -> None:
        now = self._looked_at = time.monotonic()
        self._look()
        if self._are_enough:
            self._seen_at = now
        elif now - self._seen_at > WORKER_TIMEOUT_S:
            what = "workers" if self.gpu_resource is None else f"workers with the resource {self.gpu_resource!r}"
            raise RunError(
                f"the cluster has had no {what} for {WORKER_TIMEOUT_S:.0f} s; start some with "
                f"`dask worker {self.client.scheduler.address}`, and run again"
            )

    def check_scheduler(self) -> None:
        """Raise RunError when the scheduler is gone: the client gives it up after some seconds, and closes itself."""
        if self.client.status != "running":
            raise RunError("the cluster was lost during the run; see that its scheduler is up, and run again")

    def _look(self) -> None:
        self.check_scheduler()
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        able = [
            address
            for address, worker in workers.items()
            if self.gpu_resource is not None and self.gpu_resource in worker["resources"]
        ]
        self.n_threads = sum(worker["nthreads"] for worker in workers.values())
        self._n_able_threads = sum(workers[address]["nthreads"] for address in able)
        self._others = [address for address in workers if address not in able]
        self._are_enough = bool(workers if self.gpu_resource is None else able)


class _Share:
    """What all chunks need, on the workers; put there again when the last worker that held it is gone."""

    def __init__(self, workers: _Workers, shared: Shared) -> None:
        self._workers = workers
        self._shared = shared
        self._future: Any = None
        self.is_lost = True

    def get(self) -> Any:
        """The future of it. Raises RunError when the scheduler is gone, or no worker is there in time."""
        if not self.is_lost:
            return self._future
        self._workers.check_scheduler()
        deadline = time.monotonic() + WORKER_TIMEOUT_S
        while self.is_lost:
            self._scatter(deadline)
        return self._future

    def _scatter(self, deadline: float) -> None:
        client = self._workers.client
        self._workers.check_scheduler()
        try:
            client.wait_for_workers(1, timeout=max(POLL_S, deadline - time.monotonic()))
            self._future = client.scatter(self._shared, broadcast=True, hash=False)
            self.is_lost = False
        except TimeoutError:
            raise RunError(
                f"the cluster has had no workers for {WORKER_TIMEOUT_S:.0f} s; start some with "
                f"`dask worker {client.scheduler.address}`, and run again"
            ) from None
        except (OSError, LookupError, ValueError) as error:
            # A worker that has just died is still known for a moment, and the scheduler trips over one that leaves.
            if time.monotonic() > deadline:
                raise RunError(
                    f"the workers cannot be reached ({error}); see that they are up, and run again"
                ) from error
            time.sleep(POLL_S)


class _Queue:
    """Chunks to do: those that are tried again before new ones."""

    def __init__(self, chunks: Iterable[Chunk[Any]]) -> None:
        self._source = iter(chunks)
        self._again: deque[Chunk[Any]] = deque()

    def put_back(self, chunk: Chunk[Any]) -> None:
        """To be tried again."""
        self._again.append(chunk)

    def take(self, count: int) -> list[Chunk[Any]]:
        """The next chunks, at most `count`."""
        again = [self._again.popleft() for _ in range(min(count, len(self._again)))]
        return [*again, *islice(self._source, count - len(again))]


class _Flight:
    """Chunks of one run on their way through the cluster."""

    def __init__(
        self,
        workers: _Workers,
        task: Task[Any, Any],
        shared: Shared,
        retries: int,
        on_result: OnResult[Any],
        on_lost: OnLost,
    ) -> None:
        self._workers = workers
        self._task = task
        self._share = _Share(workers, shared)
        self._retries = retries
        self._losses: Counter[int] = Counter()
        self._patience = Patience(retries)
        self._on_result = on_result
        self._on_lost = on_lost

    def run(self, queue: _Queue, on_died: Callable[[Chunk[Any]], None]) -> None:
        """Do every chunk of the queue; `on_died` gets those whose workers died."""
        self._share.is_lost = True
        under_way: dict[Any, tuple[Chunk[Any], Any, Sequence[str] | None]] = {}
        watched = self._workers.watched([])
        while True:
            window = self._workers.window
            # Half a window at a time: a graph of many chunks costs the scheduler less than many graphs.
            is_low = len(under_way) <= window // 2
            if is_low and (chunks := queue.take(window - len(under_way))):
                futures = self._submit(chunks)
                for chunk, future in zip(chunks, futures, strict=True):
                    under_way[future.key] = chunk, future, self._workers.others
                watched.update(futures)
            if not under_way:
                return
            done = self._workers.wait(watched)
            for future, outcome in done:
                chunk, _, _ = under_way.pop(future.key)
                self._settle(chunk, outcome, queue, on_died)
            if not done:
                self._give_up_what_nobody_may_do(under_way.values())

    def _give_up_what_nobody_may_do(self, under_way: Iterable[tuple[Chunk[Any], Any, Sequence[str] | None]]) -> None:
        """Cancel chunks whose second half is bound to workers of which none is left: they come back as lost."""
        there = set(self._workers.others or ())
        stuck = [future for _, future, places in under_way if places is not None and not there.intersection(places)]
        if stuck:
            self._workers.client.cancel(stuck)

    def _settle(self, chunk: Chunk[Any], outcome: Any, queue: _Queue, on_died: Callable[[Chunk[Any]], None]) -> None:
        if isinstance(outcome, _Lost):
            self._share.is_lost = True
            self._losses[chunk.index] += 1
            # One is always borne: a worker that somebody else has killed may be still known when this chunk begins.
            if self._losses[chunk.index] <= max(1, self._retries):
                queue.put_back(chunk)
                return
        self._losses.pop(chunk.index, None)
        if isinstance(outcome, _Lost | _Died):
            on_died(chunk)
        elif not isinstance(outcome, Fault):
            self._on_result(outcome)
        elif loss := self._patience.loss(chunk, outcome):
            self._on_lost(chunk, loss)
        else:
            queue.put_back(chunk)

    def _submit(self, chunks: Sequence[Chunk[Any]]) -> list[Any]:
        client, shared = self._workers.client, self._share.get()
        futures: list[Any]
        if self._workers.gpu_resource is None or not isinstance(self._task, Chain):
            futures = client.map(
                partial(_attempt, task=self._task),
                chunks,
                shared=shared,
                pure=False,
                resources=self._workers.gpu_demand,
            )
            return futures
        started = client.map(
            partial(_attempt_start, chain=self._task),
            chunks,
            shared=shared,
            pure=False,
            resources=self._workers.gpu_demand,
        )
        # Not allow_other_workers: a task that may run elsewhere is stolen by a worker with the resource that is idle.
        futures = client.map(
            partial(_attempt_finish, chain=self._task),
            chunks,
            started,
            shared=shared,
            pure=False,
            workers=self._workers.others,
        )
        return futures


def _outcome(future: Any, result: Any) -> Any:
    """A result, or what stands for it; what is nobody's fault but the run's is raised.

    A future that failed has (type, error, traceback) for a result, one that was given up has its cancellation.
    """
    from distributed import KilledWorker

    if isinstance(result, CancelledError):
        return _Lost()
    if future.status != "error":
        return result
    if isinstance(result[1], KilledWorker):
        return _Died()
    raise result[1].with_traceback(result[2])


@contextmanager
def _cluster_faults_in_words() -> Iterator[None]:
    from distributed.comm.core import CommClosedError

    try:
        yield
    except (CancelledError, CommClosedError) as error:
        raise RunError(
            f"the cluster was lost during the run ({error}); see that its scheduler is up, and run again"
        ) from error
