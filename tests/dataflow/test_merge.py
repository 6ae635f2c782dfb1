"""Shards come in any order and leave by index, as early as they can."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyimgano_dask.dataflow.merge import OrderedMerge
from pyimgano_dask.dataflow.shards import part_path

SHARDS = st.lists(st.binary(max_size=40), max_size=12)


def write_shards(folder: str, shards: Sequence[bytes]) -> None:
    for index, shard in enumerate(shards):
        Path(part_path(folder, index)).write_bytes(shard)


@given(st.data(), SHARDS)
def test_any_order_of_arrival_gives_the_concatenation(data: st.DataObject, shards: list[bytes]) -> None:
    order = data.draw(st.permutations(range(len(shards))))
    sink = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        write_shards(folder, shards)
        merge = OrderedMerge(folder, sink)
        for done, index in enumerate(order, start=1):
            merge.add(index)
            arrived = set(order[:done])
            known = next(k for k in range(len(shards) + 1) if k not in arrived)
            assert sink.getvalue() == b"".join(shards[:known])
    assert sink.getvalue() == b"".join(shards)


def test_a_shard_is_read_only_when_its_turn_comes(tmp_path: Path) -> None:
    sink = io.BytesIO()
    merge = OrderedMerge(str(tmp_path), sink)
    Path(part_path(str(tmp_path), 0)).write_bytes(b"zero\n")
    merge.add(0)
    assert sink.getvalue() == b"zero\n"
    merge.add(2)
    assert sink.getvalue() == b"zero\n"
    Path(part_path(str(tmp_path), 2)).write_bytes(b"two\n")
    Path(part_path(str(tmp_path), 1)).write_bytes(b"one\n")
    merge.add(1)
    assert sink.getvalue() == b"zero\none\ntwo\n"


def test_lines_are_out_of_the_writers_buffer_at_once(tmp_path: Path) -> None:
    Path(part_path(str(tmp_path), 0)).write_bytes(b"zero\n")
    with (tmp_path / "out").open("wb") as sink:
        OrderedMerge(str(tmp_path), sink).add(0)
        assert (tmp_path / "out").read_bytes() == b"zero\n"


def test_a_large_shard_is_whole(tmp_path: Path) -> None:
    shard = bytes(range(256)) * 20_000
    Path(part_path(str(tmp_path), 0)).write_bytes(shard)
    sink = io.BytesIO()
    OrderedMerge(str(tmp_path), sink).add(0)
    assert sink.getvalue() == shard


def test_a_shard_that_is_gone_is_no_silence(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="part-00000000"):
        OrderedMerge(str(tmp_path), io.BytesIO()).add(0)
