"""The plan: how a list of inputs becomes chunks. Arithmetic only, nothing is read or written here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

Item = TypeVar("Item", covariant=True)


@dataclass(frozen=True)
class Chunk(Generic[Item]):
    """Inputs `start`, `start + 1`, … of the list; the unit of work, of retries and of shards."""

    index: int
    start: int
    inputs: tuple[Item, ...]

    def rows(self) -> Iterator[tuple[int, Item]]:
        """Position in the whole list, and the input itself."""
        return enumerate(self.inputs, self.start)


def chunked(inputs: Iterable[Item], size: int) -> Iterator[Chunk[Item]]:
    """Cut a list into chunks of `size` inputs, lazily; the last one may be shorter.

    >>> [chunk.inputs for chunk in chunked("abc", 2)]
    [('a', 'b'), ('c',)]
    """
    source = iter(inputs)
    index = 0
    while taken := tuple(islice(source, size)):
        yield Chunk(index, index * size, taken)
        index += 1
