"""What records say in numbers: one by one, in parts, and again after they were written and read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pyimgano_dask.dataflow.tally import SHOWN_ERRORS, Tally, tally
from pyimgano_dask.defects import extract_defects
from pyimgano_dask.settings.resolve import given_by_keyword, resolve

EXPLAINED = {
    "defects": True,
    "explain_defects": "counts",
    "roi_xyxy_norm": [0.1, 0.0, 1.0, 0.9],
    "defect_border_ignore_px": 1,
    "defect_map_smoothing": "median",
    "defect_map_smoothing_ksize": 3,
    "defect_hysteresis": True,
    "defect_open_ksize": 2,
    "defect_close_ksize": 2,
    "defect_min_area": 2,
    "defect_min_score_max": 0.5,
    "defect_min_score_mean": 0.1,
    "defect_min_fill_ratio": 0.1,
    "defect_max_aspect_ratio": 9.0,
    "defect_min_solidity": 0.1,
    "defect_fill_holes": True,
    "defect_merge_nearby": True,
    "defect_merge_nearby_max_gap_px": 1,
    "defect_max_regions": 3,
}
RECORDS = st.lists(
    st.one_of(
        st.just("error"),
        st.tuples(st.sampled_from([0, 1, None]), st.integers(0, 4)),
    ),
    max_size=20,
)


def record_of(index: int, what: Any) -> dict[str, Any]:
    record: dict[str, Any] = {"index": index, "input": f"{index}.png"}
    if what == "error":
        return {**record, "error": {"stage": "read", "type": "OSError", "message": f"no {index}"}}
    label, n_regions = what
    record |= {"score": 1.0, "defects": {"regions": [{}] * n_regions}}
    return record if label is None else {**record, "label": label}


@given(RECORDS, st.integers(1, 7))
def test_parts_add_up_to_the_whole(kinds: list[Any], size: int) -> None:
    records = [record_of(index, what) for index, what in enumerate(kinds)]
    parts = [tally(records[start : start + size]) for start in range(0, len(records), size)]
    whole = tally(records)
    assert sum(parts, Tally()) == whole == sum(reversed(parts), Tally())
    good = [what for what in kinds if what != "error"]
    assert whole.n_inputs == len(kinds)
    assert whole.n_errors == kinds.count("error")
    assert whole.n_anomalous == sum(label == 1 for label, _ in good)
    assert (whole.n_defective, whole.n_regions) == (sum(n > 0 for _, n in good), sum(n for _, n in good))
    first = [index for index, what in enumerate(kinds) if what == "error"][:SHOWN_ERRORS]
    assert whole.errors == tuple((index, f"{index}.png", f"no {index}") for index in first)


def test_a_waterfall_is_the_same_after_it_was_written_with_sorted_keys() -> None:
    settings = resolve(given_by_keyword(EXPLAINED)).settings
    anomaly_map = np.random.default_rng(3).random((40, 50), np.float32)
    found = extract_defects(anomaly_map, settings.defects, pixel_threshold=0.7)
    assert len(found.waterfall) == 18
    record = json.loads(json.dumps({"index": 0, "input": "a", "defects": found.to_record()}, sort_keys=True))
    assert tally([record]).waterfall == found.waterfall
