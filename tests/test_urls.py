from __future__ import annotations

import pytest

from pyimgano_dask.urls import is_url


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
