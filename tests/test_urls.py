from __future__ import annotations

import pytest

from pyimgano_dask.urls import is_url, join


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s3://bucket/a.png", True),
        ("memory://a", True),
        ("simplecache::s3://bucket/a.png", True),
        ("/data/a.png", False),
        ("a/b://c", False),
        ("a.png", False),
        ("C:\\data\\a.png", False),
    ],
)
def test_is_url(path: str, expected: bool) -> None:
    assert is_url(path) is expected


@pytest.mark.parametrize(
    ("folder", "names", "expected"),
    [
        ("run", ("parts", "a"), "run/parts/a"),
        ("", ("a",), "a"),
        ("s3://line4", ("a",), "s3://line4/a"),
        ("s3://line4/run/", ("parts", "a"), "s3://line4/run/parts/a"),
        ("zip://in::s3://line4/cam.zip", ("a",), "zip://in/a::s3://line4/cam.zip"),
        ("zip://::s3://line4/cam.zip", ("a",), "zip://a::s3://line4/cam.zip"),
    ],
)
def test_join(folder: str, names: tuple[str, ...], expected: str) -> None:
    assert join(folder, *names) == expected
