"""What makes two runs the same, and how their differences are told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyimgano_dask.dataflow.plan import LONGEST_SHOWN, RunPlan


def told(then: Any, now: Any) -> tuple[str, str]:
    """Both values as they are shown where they differ."""
    (line,) = RunPlan(1, 1, {"inputs.input": now}).differences({"inputs.input": then})
    shown_then, _, shown_now = line.removeprefix("--input: ").removesuffix(" now").partition(" then, ")
    return shown_then, shown_now


@pytest.mark.parametrize("place", [0, 1, 19, 39])
def test_long_lists_are_cut_to_where_they_differ(place: int) -> None:
    names = [f"line4/shift-7/board_{number:04}.png" for number in range(40)]
    shown = told(names, [*names[:place], "another.png", *names[place + 1 :]])
    assert names[place] in shown[0]
    assert "another.png" in shown[1]
    assert max(map(len, shown)) <= LONGEST_SHOWN + 2


@given(then=st.text("ab", max_size=900), now=st.text("ab", max_size=900))
def test_no_two_values_are_shown_alike(then: str, now: str) -> None:
    if then == now:
        assert list(RunPlan(1, 1, {"inputs.input": now}).differences({"inputs.input": then})) == []
    else:
        shown_then, shown_now = told(then, now)
        assert shown_then != shown_now


def test_short_values_are_shown_whole() -> None:
    assert told(["a.png"], ["b.png", "c.png"]) == ("['a.png']", "['b.png', 'c.png']")
