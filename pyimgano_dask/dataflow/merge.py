"""The ordered merge: shards come in any order and leave by index."""

from __future__ import annotations

from typing import BinaryIO

from pyimgano_dask.dataflow.shards import part_path
from pyimgano_dask.storage.files import copy_into


class OrderedMerge:
    """Copies shard k to `sink` as soon as shards 0 … k are there.

    Between calls it holds the indices of the shards that came too early, nothing else.
    """

    def __init__(self, parts_dir: str, sink: BinaryIO) -> None:
        self._parts_dir = parts_dir
        self._sink = sink
        self._waiting: set[int] = set()
        self._next = 0

    def add(self, index: int) -> None:
        """Shard `index` is complete."""
        self._waiting.add(index)
        if index != self._next:
            return
        while self._next in self._waiting:
            copy_into(part_path(self._parts_dir, self._next), self._sink)
            self._waiting.remove(self._next)
            self._next += 1
        self._sink.flush()
