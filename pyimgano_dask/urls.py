"""What counts as a URL, wherever a path may stand."""

from __future__ import annotations

import os
import re

_URL = re.compile(r"(?:[A-Za-z][\w+.-]*::)*[A-Za-z][\w+.-]*://")


def is_url(path: str) -> bool:
    """Whether `path` is an fsspec URL (`scheme://…`, also chained as in `simplecache::s3://…`).

    >>> is_url("s3://line-3/shift.png"), is_url("line-3/shift.png")
    (True, False)
    """
    return _URL.match(path) is not None


def file_name(path: str) -> str:
    """The last part of a path or URL: of a chained one that of its first link with a path, without the query.

    >>> file_name("zip://in/plate.png::s3://line4/cam.zip"), file_name("s3://line4/plate.png?versionId=3")
    ('plate.png', 'plate.png')
    """
    if is_url(path):
        path = next(link for link in path.split("::") if "://" in link).partition("?")[0]
    return path.rstrip("/").rpartition("/")[2]


def join(folder: str, *names: str) -> str:
    """The path of a file below a folder, which is a path or a URL; of a chained URL its first link goes on.

    >>> join("parts", "a.jsonl"), join("s3://line4/run/", "parts", "a.jsonl"), join("zip://in::s3://line4/cam.zip", "a")
    ('parts/a.jsonl', 's3://line4/run/parts/a.jsonl', 'zip://in/a::s3://line4/cam.zip')
    """
    if not is_url(folder):
        return os.path.join(folder, *names)
    inner, chain, outer = folder.partition("::")
    return f"{inner}{'' if inner.endswith('/') else '/'}{'/'.join(names)}{chain}{outer}"
