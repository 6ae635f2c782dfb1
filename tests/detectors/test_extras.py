"""The distributions that extras stand for in facts."""

from __future__ import annotations

import importlib.util

import pytest

from pyimgano_dask.dataflow.versions import package_versions
from pyimgano_dask.detectors.extras import DISTRIBUTIONS, EXTRAS


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_version_of_an_extra_is_known_where_it_is_installed(extra: str) -> None:
    if importlib.util.find_spec(EXTRAS[extra]) is None:
        pytest.skip(f"needs {EXTRAS[extra]}")
    assert DISTRIBUTIONS[extra] in package_versions({DISTRIBUTIONS[extra]})
