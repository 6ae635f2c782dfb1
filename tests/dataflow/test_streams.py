"""What stands on standard output and standard error when the command is part of a pipe."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import DaskCluster, Ended, infer_command

Workplace = Callable[[str], Path]
TRAINED = (
    "--model",
    "vision_pixel_mad_map",
    "--model-kwargs",
    '{"resize_hw": [64, 64]}',
    "--train-dir",
    "set/train/good",
)
RUN = (*TRAINED, "--input", "@list.txt", "--defects", "--batch-size", 2)


def assert_only_the_summary(stderr: str) -> None:
    """A title, the table below it, and one line for each of the two broken inputs; no control codes."""
    assert not {"\r", "\x1b"} & set(stderr)
    lines = stderr.splitlines()
    top, bottom = (next(n for n, line in enumerate(lines) if line.startswith(corner)) for corner in "┌└")
    assert lines[0].startswith("vision_pixel_mad_map · ")
    assert top <= 2
    assert all(line.startswith("│") for line in lines[top + 1 : bottom])
    assert "20 of 22 (done)" in lines[top + 1]
    assert [line.split(":")[0] for line in lines[bottom + 1 :]] == [
        "  'set/torn/torn.png'",
        "  'set/test/good/missing.png'",
    ]


def assert_only_records(stdout: str) -> None:
    lines = stdout.splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(22))
    assert stdout.endswith("\n")


@pytest.fixture(scope="module")
def on_one_thread(workplace: Workplace) -> Ended:
    done = infer_command(*RUN, "--scheduler", "sync", cwd=workplace("streams"), fresh=True)
    assert done.rc == 3, done.stderr
    return done


def test_a_pipe_gets_records_on_one_stream_and_the_summary_on_the_other(on_one_thread: Ended) -> None:
    assert_only_records(on_one_thread.stdout)
    assert_only_the_summary(on_one_thread.stderr)


@pytest.fixture
def dashboard_port_taken() -> Iterator[None]:
    """Port 8787, where Dask likes to show its dashboard, is in use, by this test or by somebody else."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            taken.bind(("127.0.0.1", 8787))
            taken.listen()
        yield


@pytest.mark.cluster
@pytest.mark.usefixtures("dashboard_port_taken")
@pytest.mark.parametrize("kind", ["local-cluster", "address"])
def test_a_cluster_says_nothing_of_its_own_even_beside_another_one(
    kind: str, on_one_thread: Ended, workplace: Workplace, request: pytest.FixtureRequest
) -> None:
    name = kind if kind == "local-cluster" else request.getfixturevalue("dask_cluster").address
    done = infer_command(*RUN, "--scheduler", name, "--workers", 2, cwd=workplace("streams"), fresh=True)
    assert done.rc == 3, done.stderr
    assert done.stdout == on_one_thread.stdout
    assert_only_the_summary(done.stderr)


def run_into_closed_pipe(place: Path, *flags: object) -> tuple[bytes, Ended]:
    """`pyimgano-infer … | head -1`, with records far larger than a pipe holds; returns that line, and how it ended."""
    command = [sys.executable, "-m", "pyimgano_dask.cli.infer", *map(str, RUN), "--include-anomaly-map-values"]
    with subprocess.Popen(
        [*command, *map(str, flags)], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.stdout.close()
        stderr = process.stderr.read().decode()
        return first, Ended(process.wait(timeout=60), "", stderr)


@pytest.mark.parametrize(
    "scheduler", ["sync", "threads", "processes", pytest.param("address", marks=pytest.mark.cluster)]
)
def test_a_reader_that_leaves_ends_the_run_without_a_traceback(
    scheduler: str, workplace: Workplace, request: pytest.FixtureRequest
) -> None:
    on_cluster = scheduler == "address"
    if on_cluster:
        scheduler = request.getfixturevalue("dask_cluster").address
    place = workplace("closed")
    before = set(place.iterdir())
    first, ended = run_into_closed_pipe(place, "--scheduler", scheduler, "--workers", 2)
    assert json.loads(first)["index"] == 0
    assert ended.rc == 1
    *before_it, last = ended.stderr.splitlines(keepends=True)
    assert last == "pyimgano-infer: error: standard output was closed before all records were written\n"
    assert all(line.startswith("pyimgano-infer: warning: ") for line in before_it)
    # Chunks that run on a cluster at that moment cannot be waited for, and may still write their shards.
    assert on_cluster or set(place.iterdir()) == before


def test_nothing_is_left_beside_the_records(workplace: Workplace) -> None:
    place = workplace("clean")
    before = set(place.iterdir())
    done = infer_command(*RUN, cwd=place)
    assert done.rc == 3, done.stderr
    assert set(place.iterdir()) == before


@pytest.mark.cluster
def test_a_relative_run_folder_and_a_relative_config_work_on_a_cluster_that_runs_elsewhere(
    workplace: Workplace, dask_cluster: DaskCluster, on_one_thread: Ended
) -> None:
    place = workplace("relative")
    train = (*RUN, "--scheduler", dask_cluster.address, "--run-dir", "runs/R", "--keep-parts")
    done = infer_command(*train, "--save-jsonl", "runs/records.jsonl", cwd=place)
    assert done.rc == 3, done.stderr
    assert (place / "runs/records.jsonl").read_text() == on_one_thread.stdout
    assert len(list((place / "runs/R/parts").iterdir())) == 11
    config = ("--infer-config", "runs/R/infer_config.json", "--input", "@list.txt")
    again = infer_command(*config, "--scheduler", dask_cluster.address, cwd=place)
    assert again.rc == 3, again.stderr
    assert scores_in(again.stdout) == scores_in(on_one_thread.stdout)


def scores_in(stdout: str) -> Sequence[float | None]:
    return [json.loads(line).get("score") for line in stdout.splitlines()]
