"""Names of the files that chunks leave until the run ends."""

from __future__ import annotations

import re

from pyimgano_dask.urls import join

_PART = re.compile(r"part-(\d{8,})\.jsonl")
_SCORES = re.compile(r"scores-(\d{8,})\.jsonl")
_MAP = re.compile(r"map-(\d{8,})\.npy")


def part_path(parts_dir: str, index: int) -> str:
    """Where the JSONL shard of chunk `index` lies."""
    return join(parts_dir, f"part-{index:08d}.jsonl")


def part_index(name: str) -> int | None:
    """The chunk whose shard has this file name; None for any other file."""
    return _index(_PART, name)


def scores_path(spool_dir: str, index: int) -> str:
    """Where a first pass puts the scores of chunk `index` aside."""
    return join(spool_dir, f"scores-{index:08d}.jsonl")


def scores_index(name: str) -> int | None:
    """The chunk whose scores have this file name; None for any other file."""
    return _index(_SCORES, name)


def map_path(spool_dir: str, index: int) -> str:
    """Where a first pass puts the map of input `index` aside."""
    return join(spool_dir, f"map-{index:08d}.npy")


def is_spooled(name: str) -> bool:
    """Whether a first pass has written a file of this name."""
    return bool(_SCORES.fullmatch(name) or _MAP.fullmatch(name))


def _index(pattern: re.Pattern[str], name: str) -> int | None:
    match = pattern.fullmatch(name)
    return None if match is None else int(match[1])
