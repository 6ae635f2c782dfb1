"""The answers of the published single-process package on small maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyimgano_dask.defects import extract_defects

DATA = Path(__file__).parent / "data"
CASES = json.loads((DATA / "cases.json").read_text(encoding="utf-8"))
MAPS = np.load(DATA / "maps.npz")
MASKS = np.load(DATA / "masks.npz")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_mask_and_record_agree_with_the_published_package(case: dict[str, Any]) -> None:
    found = extract_defects(MAPS[case["name"]], case["defects"], pixel_threshold=case["pixel_threshold"])

    np.testing.assert_array_equal(found.mask, MASKS[case["name"]], strict=True)
    record = found.to_record()
    assert [sorted(region) for region in record["regions"]] == [
        sorted(region) for region in case["expected"]["regions"]
    ]
    assert_close(record, case["expected"])
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def assert_close(got: Any, expected: Any) -> None:
    """Integers equal, floats within 1e-5."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            assert_close(got[key], value)
    elif isinstance(expected, list):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_close(one, other)
    elif isinstance(expected, float):
        assert got == pytest.approx(expected, abs=1e-5, rel=0)
    else:
        assert type(got) is type(expected)
        assert got == expected
