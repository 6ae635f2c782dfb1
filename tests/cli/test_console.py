"""What a person sees when a run has ended."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from pyimgano_dask.cli.console import TerminalProgress, print_summary, setting_in_words
from pyimgano_dask.dataflow.inspection import RunSummary, Thresholds
from pyimgano_dask.dataflow.progress import Progress
from pyimgano_dask.dataflow.tally import Tally
from pyimgano_dask.defects import Step, Waterfall
from pyimgano_dask.settings.commands import INFER, RESCORE, Command
from pyimgano_dask.settings.defects import DefectSettings
from pyimgano_dask.settings.resolve import given_by_keyword, resolve

EVERY_CONTROL = {
    "defects": True,
    "roi_xyxy_norm": (0.1, 0.05, 0.9, 1.0),
    "defect_border_ignore_px": 2,
    "defect_map_smoothing": "gaussian",
    "defect_map_smoothing_sigma": 1.5,
    "defect_hysteresis": True,
    "defect_hysteresis_low": 12.25,
    "defect_open_ksize": 3,
    "defect_close_ksize": 5,
    "defect_min_area": 16,
    "defect_min_score_max": 0.6,
    "defect_min_score_mean": 0.25,
    "defect_min_fill_ratio": 0.15,
    "defect_max_aspect_ratio": 6.0,
    "defect_min_solidity": 0.8,
    "defect_fill_holes": True,
    "defect_merge_nearby": True,
    "defect_merge_nearby_max_gap_px": 4,
    "defect_max_regions": 20,
}
WORDS = {
    "roi_xyxy_norm": "0.1 0.05 0.9 1",
    "border_ignore_px": "2 px",
    "map_smoothing": "gaussian σ 1.5",
    "hysteresis": "12.25 / threshold",
    "open_ksize": "3 px",
    "close_ksize": "5 px",
    "min_area": "16 px",
    "min_score_max": "0.6",
    "min_score_mean": "0.25",
    "min_fill_ratio": "0.15",
    "max_aspect_ratio": "6",
    "min_solidity": "0.8",
    "fill_holes": "",
    "roi_clip": "0.1 0.05 0.9 1",
    "merge_nearby": "4 px",
    "max_regions": "20",
}


def waterfall(scale: int = 1) -> Waterfall:
    """A step for each control, all with different numbers."""
    names = ["thresholded", *WORDS, "reported"]
    return tuple(
        Step(name, *(scale * value for value in (row, 100 + row, 200 + row, 3000 + row, 40000 + row)))
        for row, name in enumerate(names)
    )


def printed(steps: Waterfall = (), width: int = 80, command: Command = INFER, **given: Any) -> str:
    settings = resolve(given_by_keyword({**EVERY_CONTROL, **given}, command)).settings
    return printed_summary(
        RunSummary(settings, "a_detector", "sync", Thresholds(pixel=1.0), Tally(waterfall=steps)), width
    )


def printed_summary(summary: RunSummary, width: int = 80) -> str:
    text = io.StringIO()
    print_summary(summary, Console(file=text, width=width), "pyimgano-infer")
    return text.getvalue()


def row_of(text: str, control: str) -> str:
    (row,) = (line for line in text.splitlines() if line.strip().startswith(f"{control} "))
    return " ".join(row.split())


@pytest.mark.parametrize("width", [80, 200])
def test_each_control_has_its_value_and_its_numbers(width: int) -> None:
    text = printed(waterfall(), width)
    assert "thresholded 3,000 40,000" in row_of(text, "thresholded")
    assert "reported 3,017 40,017" in row_of(text, "reported")
    for row, (control, words) in enumerate(WORDS.items(), start=1):
        expected = f"{control} {words} −{row} 3,{row:03} −{100 + row} +{200 + row} 40,{row:03}"
        assert " ".join(expected.split()) in row_of(text, control)
    assert max(map(len, text.splitlines())) <= width


def test_what_did_nothing_is_a_dot() -> None:
    steps = (Step("thresholded", 0, 0, 0, 7, 90), Step("min_area", 0, 0, 0, 7, 90), Step("reported", 0, 0, 0, 7, 90))
    assert row_of(printed(steps), "min_area").startswith("min_area 16 px · 7 · 90")


def test_a_run_that_found_nothing() -> None:
    steps = (Step("thresholded", 0, 0, 0, 0, 0), Step("min_area", 0, 0, 0, 0, 0), Step("reported", 0, 0, 0, 0, 0))
    assert row_of(printed(steps), "reported").startswith("reported 0 0")


@pytest.mark.parametrize("width", [30, 50, 80])
@pytest.mark.parametrize("scale", [1, 100, 10**4])
@pytest.mark.parametrize("roi", [(0.1, 0.05, 0.9, 1.0), (1 / 30, 1 / 7, 29 / 30, 6 / 7)])
def test_no_number_is_cut(width: int, scale: int, roi: tuple[float, ...]) -> None:
    text = printed(waterfall(scale), width, roi_xyxy_norm=roi)
    assert "…" not in text
    for step in waterfall(scale)[1:-1]:
        words = row_of(text, step.control).split()
        for number in (f"−{step.components:,}", f"{step.components_left:,}", f"−{step.pixels:,}"):
            assert number in words
        assert words.count(f"{step.pixels_left:,}") == 1
    if width == 80:
        assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [54, 80, 1000])
@pytest.mark.parametrize("steps", [waterfall(), (Step("thresholded", 0, 0, 0, 0, 0), Step("reported", 0, 0, 0, 0, 0))])
def test_the_caption_is_one_line_however_narrow_the_table(steps: Waterfall, width: int) -> None:
    lines = printed(steps, width).splitlines()
    assert lines.count("from thresholded pixels to regions (dropped, and left)") == 1


@pytest.mark.parametrize(
    ("n_resumed", "said"),
    [
        (0, "2.00 s, 150.0 ms an image after 0.50 s of setup"),
        (7, "2.00 s, 500.0 ms an image after 0.50 s of setup"),
        (10, "2.00 s, no image worked on"),
    ],
)
def test_the_time_of_an_image_is_told_where_one_was_worked_on(n_resumed: int, said: str) -> None:
    settings = resolve(given_by_keyword({})).settings
    tally = Tally(n_inputs=10)
    summary = RunSummary(settings, "a_detector", tally=tally, n_resumed=n_resumed, seconds=2.0, training_seconds=0.5)
    assert said in " ".join(printed_summary(summary).split())
    assert ("ms an image" in printed_summary(summary)) == (n_resumed < 10)


def test_what_labels_need_is_told_where_there_is_no_score_threshold() -> None:
    said = "no score threshold: labels need --train-dir or a config's threshold"
    assert said in printed(width=100)
    assert said not in printed(width=100, command=RESCORE, maps="maps")


def test_the_bar_takes_the_names_of_the_protocol() -> None:
    progress: Progress = TerminalProgress(Console(file=io.StringIO()))
    progress.phase(name="training", total=3)
    progress.advance(steps=2)


def test_no_waterfall_without_an_explanation() -> None:
    text = printed()
    assert "thresholded" not in text
    assert "min_area" not in text


@pytest.mark.parametrize(
    ("control", "settings", "words"),
    [
        ("map_smoothing", {"map_smoothing": {"method": "median", "ksize": 3}}, "median 3 px"),
        ("hysteresis", {"hysteresis": {"enabled": True}}, "half / threshold"),
        ("hysteresis", {"hysteresis": {"enabled": True, "high": 30.0}}, "half / 30"),
        ("max_regions", {"max_regions": 1_000_000}, "1000000"),
        ("max_regions", {"max_regions": 0}, "0"),
        ("min_score_max", {"min_score_max": -0.5}, "-0.5"),
        ("roi_clip", {"roi_xyxy_norm": (0.0, 0.25, 1.0, 1.0)}, "0 0.25 1 1"),
    ],
)
def test_settings_in_words(control: str, settings: dict[str, Any], words: str) -> None:
    assert setting_in_words(control, DefectSettings.model_validate(settings)) == words
