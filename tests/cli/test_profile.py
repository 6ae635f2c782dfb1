"""What `--profile` prints: every number, at the width of a terminal, after everything else."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from pyimgano_dask.cli.profile import print_profile
from pyimgano_dask.dataflow.inspection import RunSummary, Thresholds
from pyimgano_dask.dataflow.profile import Profile, Worker
from pyimgano_dask.dataflow.tally import Tally
from pyimgano_dask.settings.resolve import given_by_keyword, resolve
from tests.cli.command import command
from tests.cli.conftest import Trained

STAGES = ["load model", "fit", "calibrate", "read", "infer", "extract", "write", "merge"]
MEBIBYTE = 1 << 20


def printed(profile: Profile, *, n_inputs: int = 50, seconds: float = 2.5, threads_per_task: int = 1) -> str:
    settings = resolve(given_by_keyword({"threads_per_task": threads_per_task})).settings
    summary = RunSummary(settings, "a_detector", "sync", Thresholds(), Tally(n_inputs=n_inputs), seconds=seconds)
    summary.profile = profile
    text = io.StringIO()
    print_profile(summary, Console(file=text, width=80))
    assert "…" not in text.getvalue()
    assert max(map(len, text.getvalue().splitlines())) <= 80
    return text.getvalue()


def row_of(text: str, name: str) -> list[str]:
    (row,) = (line for line in text.splitlines() if line.strip().startswith(f"{name} "))
    return row.strip().removeprefix(name).split()


def of_a_cluster(scale: float = 1.0) -> Profile:
    profile = Profile(n_workers=16)
    for stage, seconds in zip(profile.seconds, (0.5, 0.0, 1.5, 1.0, 2.0, 4.0, 1.0, 0.0), strict=True):
        profile.seconds[stage] = scale * seconds
    profile.client = Worker("line4-control:1", 100 * MEBIBYTE)
    for number in range(8):
        profile.add_chunk({}, [Worker(f"node-{number}.line4.factory.example:31{number}77", (300 + number) * MEBIBYTE)])
    return profile


def test_each_stage_has_its_numbers() -> None:
    text = printed(of_a_cluster())
    assert re.findall(rf"^ ({'|'.join(STAGES)}) ", text, flags=re.MULTILINE) == STAGES
    assert row_of(text, "load model")[:4] == ["0.500", "10.000", "5.0", "%"]
    assert row_of(text, "extract")[:4] == ["4.000", "80.000", "40.0", "%"]
    assert row_of(text, "merge") == ["·", "·", "·"]
    assert row_of(text, "total") == ["10.000", "200.000"]
    assert row_of(text, "extract")[4].startswith("█████████")


def test_the_run_has_its_own() -> None:
    text = printed(of_a_cluster(), threads_per_task=2)
    assert " ".join(row_of(text, "wall time")) == "2.50 s, 20.0 images a second"
    assert " ".join(row_of(text, "workers")) == "16 at a time, in 8 processes, 2 native threads a task"
    words = " ".join(text.partition("peak memory")[2].split())
    assert words.startswith("client 100 MiB, largest worker 307 MiB (node-7.")


def test_a_process_that_does_all_of_it_is_named_once() -> None:
    profile = Profile(n_workers=2, client=Worker("here:1", 200 * MEBIBYTE))
    profile.add_chunk({"read": 1.0}, [Worker("here:1", 190 * MEBIBYTE)])
    text = printed(profile)
    assert " ".join(row_of(text, "workers")) == "2 at a time, in 1 process"
    assert " ".join(row_of(text, "peak memory")) == "200 MiB"


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_no_number_is_cut_however_short_or_long_the_run(scale: float) -> None:
    text = printed(of_a_cluster(scale), seconds=2.5 * scale)
    assert row_of(text, "total")[0] == f"{10 * scale:,.3f}"


def test_a_run_without_any_time() -> None:
    assert row_of(printed(Profile(n_workers=1), n_inputs=0), "read") == ["·", "·", "·"]


def test_the_command_prints_it_last_and_only_when_asked(trained: Trained, tmp_path: Path) -> None:
    given = (*trained.source, "--input", trained.parts.test_dir, "--batch-size", "2", "--scheduler", "threads")
    with_it = command(*given, "--profile", cwd=tmp_path)
    without = command(*given, cwd=tmp_path)
    assert with_it.stdout == without.stdout != b""
    assert not {"\r", "\x1b"} & set(with_it.stderr)
    title = "where the time went"
    assert title not in without.stderr
    summary, profile = with_it.stderr.split(title)
    assert "└" in summary
    assert "└" not in profile
    assert [line.split()[0] for line in profile.splitlines()[-3:]] == ["wall", "workers", "peak"]
    assert row_of(profile, "fit") == ["·", "·", "·"]


def test_rescoring_prints_it_too(trained: Trained, tmp_path: Path) -> None:
    given = (*trained.source, "--input", trained.parts.test_dir, "--save-maps", "maps", "--save-jsonl", "r.jsonl")
    command(*given, cwd=tmp_path)
    answer = command(*("--maps", "maps", "--pixel-threshold", "3", "--profile"), cwd=tmp_path, module="rescore")
    assert answer.code == 0, answer.stderr
    assert float(row_of(answer.stderr, "extract")[0]) > 0
    assert row_of(answer.stderr, "infer") == ["·", "·", "·"]
