from __future__ import annotations

import numpy as np
import pytest

from pyimgano_dask.defects import Region, RegionTable

TABLE = RegionTable(
    ids=np.array([2, 5, 7]),
    boxes_xyxy=np.array([[0, 0, 1, 1], [4, 0, 6, 0], [0, 5, 0, 5]]),
    areas=np.array([3, 3, 1]),
    centroids_xy=np.array([[0.5, 0.5], [5.0, 0.0], [0.0, 5.0]]),
    score_max=np.array([0.9, 0.8, 0.7]),
    score_mean=np.array([0.5, 0.4, 0.3]),
    solidity=np.array([1.0, 0.25, np.nan]),
    with_shape=True,
    merged_from_ids={5: (5, 6)},
)


def test_rows_become_regions() -> None:
    first, joined, thin = TABLE

    assert first == Region(2, (0, 0, 1, 1), 3, (0.5, 0.5), 0.9, 0.5, 4, 0.75, 1.0, solidity=1.0)
    assert (joined.merged_from_ids, joined.solidity, joined.aspect_ratio) == ((5, 6), None, 3.0)
    assert (thin.solidity, thin.solidity_is_undefined) == (None, True)


def test_it_is_a_sequence() -> None:
    regions = tuple(TABLE)

    assert len(TABLE) == 3
    assert TABLE[0] == regions[0]
    assert TABLE[-1] == regions[2]
    assert TABLE[1:] == regions[1:]
    assert TABLE[::-1] == regions[::-1]
    assert regions == TABLE
    assert regions[:2] != TABLE
    assert list(reversed(TABLE)) == list(reversed(regions))
    with pytest.raises(IndexError):
        TABLE[3]


def test_a_record_has_the_keys_of_what_was_measured() -> None:
    basic = {"id", "bbox_xyxy", "area", "centroid_xy", "score_max", "score_mean"}
    shape = {"bbox_area", "fill_ratio", "aspect_ratio"}

    assert Region(1, (0, 0, 0, 0), 1, (0.0, 0.0), 0.5, 0.5).to_record().keys() == basic
    assert TABLE[0].to_record().keys() == basic | shape | {"solidity"}
    assert TABLE[1].to_record().keys() == basic | shape | {"merged_from_ids"}
    assert TABLE[2].to_record().keys() == basic | shape | {"solidity"}
    assert TABLE[2].to_record()["solidity"] is None


def test_a_record_holds_plain_lists_and_numbers() -> None:
    record = TABLE[1].to_record()

    assert record["bbox_xyxy"] == [4, 0, 6, 0]
    assert record["merged_from_ids"] == [5, 6]
    assert {type(value) for value in record.values()} == {int, float, list}
