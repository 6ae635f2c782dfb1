"""The ordered merge: shards come in any order and leave by index."""

from __future__ import annotations

import posixpath
import shutil
from typing import BinaryIO

from pyimgano_dask.storage.files import open_binary

COPY_BYTES = 1 << 20


def part_path(parts_dir: str, index: int) -> str:
    """Where the JSONL shard of chunk `index` lies."""
    return posixpath.join(parts_dir, f"part-{index:08d}.jsonl")


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
        while self._next in self._waiting:
            with open_binary(part_path(self._parts_dir, self._next)) as part:
                shutil.copyfileobj(part, self._sink, COPY_BYTES)
            self._sink.flush()
            self._waiting.remove(self._next)
            self._next += 1

    @property
    def n_merged(self) -> int:
        """How many shards have left."""
        return self._next
