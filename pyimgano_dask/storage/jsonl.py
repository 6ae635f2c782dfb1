"""The JSONL of a run: one strict JSON record a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.storage.files import open_binary


def encode_record(record: Mapping[str, Any]) -> bytes:
    r"""One line of JSONL: keys sorted, ASCII only (other characters as `\u` escapes), ending in a newline.

    Raises ValueError for NaN and infinities and TypeError for values that are not plain Python.

    >>> encode_record({"score": 0.5, "index": 0})
    b'{"index": 0, "score": 0.5}\n'
    """
    return json.dumps(record, sort_keys=True, allow_nan=False).encode("ascii") + b"\n"


def iter_records(path: str) -> Iterator[dict[str, Any]]:
    """Read records one by one from a local file or URL; empty lines are skipped.

    Raises OSError when the file cannot be opened, ConfigError naming the line that is not a JSON object.
    """
    with open_binary(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _decode_line(line, path, number)


def _decode_line(line: bytes, path: str, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line, parse_constant=_refuse_constant)
        if not isinstance(record, dict):
            raise ValueError(f"it holds {type(record).__name__}, not an object")
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path!r} line {number} is not a record: {error}. "
            "Each line must be one complete JSON object; the file may be cut short or edited."
        ) from error
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
