"""`--explain-defects` of `pyimgano-infer`: in the records, in the summary, on overlays."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.cli.command import Answer, command
from tests.conftest import ROOT, hashes_below, run_python

HW = (40, 60)
N_IMAGES = 5
CONTROLS = (
    *("--roi-xyxy-norm", "0.05", "0", "1", "1", "--defect-border-ignore-px", "1", "--defect-open-ksize", "2"),
    *("--defect-min-area", "10", "--defect-min-score-max", "60", "--defect-max-aspect-ratio", "4"),
    *("--defect-fill-holes", "--defect-merge-nearby", "--defect-merge-nearby-max-gap-px", "2"),
    *("--defect-max-regions", "1"),
)
CONTROL_KEYS = [
    *("roi_xyxy_norm", "border_ignore_px", "open_ksize", "min_area", "min_score_max", "max_aspect_ratio"),
    *("fill_holes", "roi_clip", "merge_nearby", "max_regions"),
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with images of flaws of many kinds, one of them without any, and the golden image of all."""
    cv2.imwrite(str(tmp_path / "golden.png"), np.full(HW, 100, np.uint8))
    (tmp_path / "in").mkdir()
    for number in range(N_IMAGES):
        image = np.full(HW, 100, np.uint8)
        if number:
            image[5:15, 10:20] = 200
            image[9:11, 14:16] = 100
            image[30:36, 40:46] = 180 + number
            image[30:33, 48:51] = 190
            image[20:22, 5 : 25 + number] = 190
            image[20:23, 40:43] = 190
            image[0, :] = 220
            image[25:29, 30:34] = 150
            image[35, ::3] = 250
        cv2.imwrite(str(tmp_path / f"in/{number}.png"), image)
    return tmp_path


def explain(place: Path, *flags: str, controls: Sequence[str] = CONTROLS) -> Answer:
    answer = command(
        *("--model", "vision_reference_diff_map", "--model-kwargs", '{"tolerance_px": 0}'),
        *("--reference-dir", "golden.png", "--input", "in", "--batch-size", "2"),
        *("--defects", "--pixel-threshold", "30", *controls, *flags),
        cwd=place,
        env={"COLUMNS": "80"},
    )
    assert answer.code == 0, answer.stderr
    return answer


def table(stderr: str) -> dict[str, tuple[str, ...]]:
    """The cells of the printed waterfall by control, the columns being where their titles end."""
    lines = stderr.splitlines()
    (first,) = (number for number, line in enumerate(lines) if re.match(r"\s*control\s+components\s", line))
    ends = [match.end() for match in re.finditer(r"components|left|pixels", lines[first])]
    cells = {}
    for line in lines[first + 2 :]:
        if not line.strip():
            break
        parts = [line[start:end].strip() for start, end in zip([0, *ends], [*ends, len(line)], strict=True)]
        cells[line.split()[0]] = tuple(parts)
    return cells


def number(text: str) -> int:
    return int(text.replace(",", ""))


def printed_counts(cells: tuple[str, ...]) -> dict[str, int]:
    """A printed row read back; its first cell is the end of the control's name or value, with the components."""
    components, components_left, pixels, pixels_left = cells[0].split()[-1], cells[1], cells[2], cells[3]
    dropped = re.search(r"−([\d,]+)", pixels)
    added = re.search(r"\+([\d,]+)", pixels)
    return {
        "components": number(components.removeprefix("−")) if components.startswith("−") else 0,
        "pixels": number(dropped[1]) if dropped else 0,
        "pixels_added": number(added[1]) if added else 0,
        "components_left": number(components_left),
        "pixels_left": number(pixels_left),
    }


def summed(ledgers: Sequence[dict[str, Any]], control: str) -> dict[str, int]:
    steps = [ledger["controls"][control] for ledger in ledgers]
    return {key: sum(step[key] for step in steps) for key in steps[0]}


def test_records_say_what_each_control_dropped(place: Path) -> None:
    ledgers = [record["defects"]["suppressed"] for record in explain(place, "--explain-defects").records]
    assert ledgers[0]["thresholded"] == {"level": 30.0, "components": 0, "pixels": 0}
    for ledger in ledgers:
        assert set(ledger) == {"thresholded", "controls", "reported"}
        assert sorted(ledger["controls"]) == sorted(CONTROL_KEYS)
    assert all(summed(ledgers, key)["components"] for key in ("min_area", "max_aspect_ratio", "max_regions"))


def test_full_lists_them(place: Path) -> None:
    records = explain(place, "--explain-defects", "full", "--defects-image-space").records
    short = explain(place, "--explain-defects", "--defects-image-space").records
    for record, without in zip(records, short, strict=True):
        dropped = record["defects"]["suppressed"].pop("dropped")
        assert record == without
        for entry in dropped:
            assert set(entry) == {"control", "value", "limit", "bbox_xyxy", "bbox_xyxy_image", "area"}
            assert entry["bbox_xyxy_image"] == entry["bbox_xyxy"]
    assert records[0]["defects"]["regions"] == []


def test_without_the_flag_there_is_nothing_of_it(place: Path) -> None:
    plain, explained = explain(place), explain(place, "--explain-defects", "full")
    assert "dropped" not in plain.stderr
    assert "thresholded" not in plain.stderr
    records = explained.records
    for record in records:
        del record["defects"]["suppressed"]
    assert records == plain.records
    assert explain(place, "--explain-defects", "none").stdout == plain.stdout


def test_masks_and_regions_do_not_change(place: Path) -> None:
    left = []
    for flags in ([], ["--explain-defects"], ["--explain-defects", "full"]):
        explain(place, *flags, "--save-masks", "masks")
        left.append(hashes_below(place / "masks"))
    assert left[0] == left[1] == left[2]


def test_the_printed_waterfall_is_the_sum_of_the_records(place: Path) -> None:
    answer = explain(place, "--explain-defects")
    ledgers = [record["defects"]["suppressed"] for record in answer.records]
    cells = table(answer.stderr)
    assert list(cells) == ["thresholded", *CONTROL_KEYS, "reported"]
    for key in CONTROL_KEYS:
        assert printed_counts(cells[key]) == summed(ledgers, key)
    for key in ("thresholded", "reported"):
        total = {name: sum(ledger[key][name] for ledger in ledgers) for name in ("components", "pixels")}
        assert (number(cells[key][1]), number(cells[key][3])) == (total["components"], total["pixels"])
    assert max(map(len, answer.stderr.splitlines())) <= 80


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_it_is_the_same_on_every_scheduler(place: Path, scheduler: str) -> None:
    here = explain(place, "--explain-defects", "full", "--scheduler", "sync")
    there = explain(place, "--explain-defects", "full", "--scheduler", scheduler, "--workers", "2")
    assert there.stdout == here.stdout
    assert table(there.stderr) == table(here.stderr)


def test_overlays_show_the_dropped_dashed(place: Path) -> None:
    looks = {}
    for flags in ("", "--explain-defects", "--explain-defects full"):
        explain(place, *flags.split(), "--save-overlays", "seen")
        looks[flags] = hashes_below(place / "seen")
    assert looks["--explain-defects"] == looks["--explain-defects full"]
    changed = [name for name, digest in looks[""].items() if digest != looks["--explain-defects"][name]]
    assert changed == [f"{number:06d}_{number}.png" for number in range(1, N_IMAGES)]


def test_errors_do_not_count(place: Path) -> None:
    whole = explain(place, "--explain-defects")
    (place / "in/9.png").write_bytes(b"no image")
    answer = command(
        *("--model", "vision_reference_diff_map", "--model-kwargs", '{"tolerance_px": 0}'),
        *("--reference-dir", "golden.png", "--input", "in", "--defects", "--pixel-threshold", "30", *CONTROLS),
        *("--explain-defects", "--overlay-scale", "run", "--save-overlays", "seen"),
        cwd=place,
        env={"COLUMNS": "80"},
    )
    assert answer.code == 3
    assert table(answer.stderr) == table(whole.stderr)


def test_without_defects_it_says_that_it_does_nothing(place: Path) -> None:
    answer = command(
        *("--model", "vision_reference_diff_map", "--reference-dir", "golden.png", "--input", "in"),
        "--explain-defects",
        cwd=place,
    )
    assert answer.code == 0
    assert "warning: --explain-defects does nothing without --defects" in answer.stderr


@pytest.mark.parametrize("word", ["fully", "1", ""])
def test_other_words_are_refused(place: Path, word: str) -> None:
    answer = command(
        *("--model", "vision_reference_diff_map", "--reference-dir", "golden.png", "--input", "in"),
        *("--defects", "--pixel-threshold", "9", "--explain-defects", word),
        cwd=place,
    )
    assert answer.code == 2
    assert "--explain-defects" in answer.stderr


def test_a_job_file_asks_for_it(place: Path) -> None:
    job = {
        "schema_version": 1,
        "model": {
            "name": "vision_reference_diff_map",
            "reference_dir": "golden.png",
            "model_kwargs": {"tolerance_px": 0},
        },
        "inputs": {"input": ["in"]},
        "defects": {"enabled": True, "pixel_threshold": 30, "min_area": 9, "explain": "full"},
        "output": {"save_jsonl": "job.jsonl"},
    }
    (place / "job.json").write_text(json.dumps(job))
    done = run_python(str(ROOT / "jobs/infer.py"), "--config", "job.json", cwd=place)
    assert done.rc == 0, done.stderr
    flags = explain(place, "--explain-defects", "full", controls=("--defect-min-area", "9")).records
    records = [json.loads(line) for line in (place / "job.jsonl").read_text().splitlines()]
    assert [record["defects"]["suppressed"] for record in records] == [
        record["defects"]["suppressed"] for record in flags
    ]
    assert "min_area" in table(done.stderr)
