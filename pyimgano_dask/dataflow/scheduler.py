"""Where chunks are computed: Dask's local schedulers or a distributed cluster, behind two verbs.

`run` calls a task on every chunk and hands each result over as it comes; `reduce` joins the results of all chunks
in a tree whose shape depends on their number alone. A task is a module-level function `task(chunk, common)`;
`common` (settings, the fitted detector) reaches each worker once, not with every chunk.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

import dask.bag

from pyimgano_dask.dataflow.native import limit_native_threads
from pyimgano_dask.dataflow.plan import Chunk
from pyimgano_dask.errors import ConfigError, RunError

Common = TypeVar("Common")
Result = TypeVar("Result")
Task = Callable[[Chunk[Any], Common], Result]
Merge = Callable[[Sequence[Result]], Result]

# Chunks of one local graph.
SLAB = 96
REDUCTION_FAN_IN = 8

WORKER_DIED = "WorkerDiedError"


@dataclass(frozen=True)
class Fault:
    """What a task raised, in words that travel anywhere."""

    kind: str
    message: str


@dataclass(frozen=True)
class Loss:
    """Why a chunk is given up: what its task raised at last (`WORKER_DIED` when its worker died), and how often."""

    kind: str
    message: str


OnResult = Callable[[Result], None]
OnLost = Callable[[Chunk[Any], Loss], None]


@dataclass(frozen=True)
class Chain(Generic[Common, Result]):
    """A task in two halves, which run as one unless the first half needs another kind of worker.

    `start(chunk, common)` gives what `finish(chunk, started, common)` takes; `pack` makes what started ready to travel.
    """

    start: Callable[[Chunk[Any], Common], Any]
    finish: Callable[[Chunk[Any], Any, Common], Result]
    pack: Callable[[Any], Any]

    def __call__(self, chunk: Chunk[Any], common: Common) -> Result:
        return self.finish(chunk, self.start(chunk, common), common)


class Scheduler(ABC):
    """Computes tasks on chunks.

    A chunk whose task fails is tried again `retries` times; inside a task OpenCV, BLAS and torch use `threads_per_task`
    threads. `warnings` are what a user should know of the place where it computes.
    """

    warnings: tuple[str, ...] = ()

    def __init__(self, retries: int = 0, threads_per_task: int = 1) -> None:
        self.retries = retries
        self.threads_per_task = threads_per_task

    @abstractmethod
    def run(
        self,
        task: Task[Common, Result],
        chunks: Iterable[Chunk[Any]],
        common: Common,
        on_result: OnResult[Result],
        on_lost: OnLost,
    ) -> None:
        """Call `task` on every chunk; `on_result` gets each result in this thread, in any order.

        `on_lost` gets the chunks that are given up: their task raised, or their worker died, again and again. Only a
        RunError or a ConfigError of a task ends the run.
        """

    @abstractmethod
    def reduce(
        self, task: Task[Common, Result], merge: Merge[Result], chunks: Iterable[Chunk[Any]], common: Common
    ) -> Result:
        """Join the results of `task` on every chunk, always in the order of the chunks.

        What a task raises comes out as it is; RunError when workers die again and again.
        """

    @abstractmethod
    def describe(self) -> str:
        """What it is and how many workers it has, in a few words."""

    @property
    @abstractmethod
    def n_workers(self) -> int:
        """How many tasks it can work on at a time."""


class Named:
    """Dask sees a name where a value is meant, not its contents."""

    def __init__(self) -> None:
        self._name = uuid.uuid4().hex

    def __dask_tokenize__(self) -> str:
        return self._name


class Shared(Named):
    """What all chunks need: threads share it, and each worker of a cluster keeps one copy for the whole run.

    A task that takes it uses so many native threads from then on.
    """

    def __init__(self, value: Any, threads_per_task: int) -> None:
        super().__init__()
        self._value = value
        self._threads_per_task = threads_per_task

    @property
    def value(self) -> Any:
        """The value itself."""
        limit_native_threads(self._threads_per_task)
        return self._value


class Patience:
    """How often each chunk has failed, and when that is enough; holds only chunks that have."""

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._failures: Counter[int] = Counter()

    def loss(self, chunk: Chunk[Any], fault: Fault) -> Loss | None:
        """Count a failure; None when the chunk may be tried again."""
        self._failures[chunk.index] += 1
        count = self._failures[chunk.index]
        if count <= self._retries:
            return None
        del self._failures[chunk.index]
        return Loss(fault.kind, f"{in_words(chunk)} failed {times(count)}: {fault.message}")


def times(count: int) -> str:
    """A number of times in words."""
    return "once" if count == 1 else f"{count} times"


def in_words(chunk: Chunk[Any]) -> str:
    """Which inputs a chunk holds."""
    last = chunk.start + len(chunk.inputs) - 1
    return f"the chunk of input {last}" if last == chunk.start else f"the chunk of inputs {chunk.start} to {last}"


def died(chunk: Chunk[Any]) -> Loss:
    """The loss of a chunk whose worker died each time."""
    return Loss(
        WORKER_DIED,
        f"the worker died each time it worked on {in_words(chunk)}, at last with no other chunk about: out of memory, "
        "or a crash in native code, most often; run these inputs alone with a smaller --batch-size or more memory a "
        "worker",
    )


def attempt(task: Task[Common, Result], chunk: Chunk[Any], common: Common) -> Result | Fault:
    """What the task gives, or what it raises in words; what ends the whole run is raised."""
    try:
        return task(chunk, common)
    except (RunError, ConfigError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a chunk meets costs that chunk, not the run
        return Fault(type(error).__name__, f"{type(error).__name__}: {error}")


def merged_in_turn(merge: Merge[Result], results: Iterable[Result]) -> Result:
    """Join any number of results in their order while a few are held; how depends on their number alone."""
    held: list[Result] = []
    for result in results:
        held.append(result)
        if len(held) == REDUCTION_FAN_IN:
            held = [merge(held)]
    return merge(held)


def slabs(chunks: Iterable[Chunk[Any]]) -> Iterator[list[Chunk[Any]]]:
    """The chunks in lists of at most `SLAB`, lazily."""
    source = iter(chunks)
    while slab := list(islice(source, SLAB)):
        yield slab


def bag_of(chunks: Sequence[Chunk[Any]], call: Callable[[Chunk[Any], Any], Any], shared: Any) -> dask.bag.Bag:
    """A bag of one partition a chunk, on which `call(chunk, shared)` is applied."""
    bag = dask.bag.from_sequence(chunks, npartitions=len(chunks))
    mapped: dask.bag.Bag = bag.map_partitions(_run_partition, call=call, shared=shared)
    return mapped


def reduction_of(
    chunks: Sequence[Chunk[Any]], call: Callable[[Chunk[Any], Any], Any], shared: Any, merge: Merge[Any]
) -> dask.bag.Item:
    """The results of `call` on some chunks, joined in their order in a tree."""
    join = partial(_join, merge=merge)
    item: dask.bag.Item = bag_of(chunks, call, shared).reduction(join, join, split_every=REDUCTION_FAN_IN)
    return item


def _run_partition(partition: Iterable[Chunk[Any]], call: Callable[[Chunk[Any], Any], Any], shared: Any) -> list[Any]:
    return [call(chunk, shared) for chunk in partition]


def _join(results: Iterable[Result], merge: Merge[Result]) -> Result:
    return merge(list(results))
