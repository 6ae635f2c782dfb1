import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.storage.files import write_atomic
from pyimgano_dask.storage.jsonl import encode_record, iter_records

any_text = st.text(st.characters(codec=None))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)
records = st.dictionaries(any_text, values, max_size=4)


@given(batch=st.lists(records, max_size=4))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, batch: list[dict[str, Any]]) -> None:
    local = str(tmp_path_factory.mktemp("jsonl") / "a.jsonl")
    for path in (local, "memory://jsonl/a.jsonl"):
        write_atomic(path, *map(encode_record, batch))
        assert list(iter_records(path)) == batch


@given(record=records)
def test_one_ascii_line_whatever_the_order_of_keys(record: dict[str, Any]) -> None:
    line = encode_record(record)
    assert line.isascii()
    assert line.endswith(b"\n")
    assert len(line.splitlines()) == 1
    assert encode_record(dict(reversed(record.items()))) == line


def test_exact_bytes() -> None:
    record = {"score": 0.1, "index": 3, "input": "ü\u2028\udcff", "label": None}
    assert encode_record(record) == (
        rb'{"index": 3, "input": "\u00fc\u2028\udcff", "label": null, "score": 0.1}' + b"\n"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_numbers_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode_record({"regions": [{"score_max": value}]})


@pytest.mark.parametrize("bad", [b'{"index": 1, "inp', b"[1]", b'{"score": NaN}', b"\xff"])
def test_a_bad_line_is_named_after_the_good_ones_came(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(encode_record({"index": 0}) + b"\n" + bad)
    reader = iter_records(str(path))
    assert next(reader) == {"index": 0}
    with pytest.raises(ConfigError, match=r"a\.jsonl' line 3 is not a record"):
        next(reader)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        next(iter_records(str(tmp_path / "none.jsonl")))


def test_lines_are_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_atomic(str(path), encode_record({"index": 0}), encode_record({"index": 1}))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"index": 0}, {"index": 1}]
