"""What counts as a URL, wherever a path may stand."""

from __future__ import annotations

import re

_URL = re.compile(r"(?:[A-Za-z][\w+.-]*::)*[A-Za-z][\w+.-]*://")


def is_url(path: str) -> bool:
    """Whether `path` is an fsspec URL (`scheme://…`, also chained as in `simplecache::s3://…`).

    >>> is_url("s3://line-3/shift.png"), is_url("line-3/shift.png")
    (True, False)
    """
    return _URL.match(path) is not None
