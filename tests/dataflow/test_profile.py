"""Where time and memory of a run went, from every scheduler and for every way to start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyimgano_dask
from pyimgano_dask.cli.rescore import main as rescore_command
from pyimgano_dask.dataflow.inspection import RunSummary, Thresholds
from pyimgano_dask.dataflow.profile import Profile, Worker, finish, peak_memory_bytes, this_worker
from pyimgano_dask.errors import RunError
from pyimgano_dask.settings.resolve import given_by_keyword, resolve
from tests.cli.command import parse_strict
from tests.conftest import ROOT

Workplace = Callable[[str], Path]

CLUSTER = pytest.mark.cluster
KINDS = (
    "sync",
    "threads",
    "processes",
    pytest.param("local-cluster", marks=CLUSTER),
    pytest.param("address", marks=CLUSTER),
)
STAGES = ("load_model", "fit", "calibrate", "read", "infer", "extract", "write", "merge")
MEBIBYTE = 1 << 20
RUN: dict[str, Any] = {
    "model": "vision_pixel_mad_map",
    "model_kwargs": {"resize_hw": [64, 64]},
    "train_dir": "set/train/good",
    "input": "@list.txt",
    "defects": True,
    "batch_size": 2,
    "workers": 2,
    "profile_json": "new/profile.json",
}
N_INPUTS, N_CHUNKS = 22, 11


def profile_at(place: Path) -> dict[str, Any]:
    """The file of a run, read strictly."""
    data = (place / "new/profile.json").read_bytes()
    assert data.endswith(b"}\n")
    profile: dict[str, Any] = parse_strict(data)
    return profile


@pytest.mark.parametrize("kind", KINDS)
def test_every_scheduler_tells_what_its_workers_did(
    kind: str, workplace: Workplace, request: pytest.FixtureRequest
) -> None:
    place = workplace("profile")
    scheduler = request.getfixturevalue("dask_cluster").address if kind == "address" else kind
    with chdir(place):
        run = pyimgano_dask.infer(**RUN, scheduler=scheduler, save_overlays="overlays")
    told = profile_at(place)

    assert set(told["stages"]) == set(STAGES)
    for stage in told["stages"].values():
        assert set(stage) == {"seconds", "per_image_ms", "share"}
        assert stage["seconds"] > 0
        assert stage["per_image_ms"] == pytest.approx(1000 * stage["seconds"] / N_INPUTS)
    assert sum(stage["share"] for stage in told["stages"].values()) == pytest.approx(1)
    assert (told["n_inputs"], told["counts"]) == (22, {"inputs": 22, "processed": 22, "errors": 2})
    assert told["wall_seconds"] == told["timing_seconds"]["total"] == run.seconds > 0
    assert told["images_per_second"] == pytest.approx(N_INPUTS / run.seconds)
    assert told["scheduler"] == run.scheduler

    workers, here = told["workers"], this_worker()
    assert workers["count"] == (1 if kind == "sync" else 2)
    assert workers["threads_per_task"] == 1
    names = [process["name"] for process in workers["processes"]]
    assert sum(process["chunks"] for process in workers["processes"]) == N_CHUNKS
    assert all(30 * MEBIBYTE < process["peak_memory_bytes"] < 2000 * MEBIBYTE for process in workers["processes"])
    if kind in ("sync", "threads"):
        assert names == [here.name]
    else:
        assert 1 <= len(names) <= 2
        assert here.name not in names
        assert {name.partition(":")[0] for name in names} == {here.name.partition(":")[0]}
    # The system counts memory in batches a core, so that a peak read later may be a little lower.
    assert told["peak_memory_bytes"]["client"] <= 1.05 * here.peak_memory_bytes
    assert told["peak_memory_bytes"]["largest_worker"] == max(
        process["peak_memory_bytes"] for process in workers["processes"]
    )


def test_the_times_of_pyimgano_are_sums_of_stages(workplace: Workplace) -> None:
    place = workplace("times")
    with chdir(place):
        pyimgano_dask.infer(**RUN, scheduler="sync")
    told = profile_at(place)
    seconds = {name: stage["seconds"] for name, stage in told["stages"].items()}
    times = told["timing_seconds"]
    assert told["tool"] == "pyimgano-infer"
    assert times["load_model"] == seconds["load_model"]
    assert times["fit_calibrate"] == pytest.approx(seconds["fit"] + seconds["calibrate"])
    assert times["infer"] == pytest.approx(seconds["read"] + seconds["infer"])
    assert times["artifacts"] == pytest.approx(seconds["extract"] + seconds["write"] + seconds["merge"])
    # One thread does all of it, so no stage is counted twice.
    assert sum(seconds.values()) <= times["total"]


def test_versions_are_those_that_are_installed(workplace: Workplace) -> None:
    place = workplace("versions")
    with chdir(place):
        pyimgano_dask.infer(**RUN, scheduler="sync")
    versions = profile_at(place)["versions"]
    assert versions["numpy"] == np.__version__
    assert versions["python"] == sys.version.split()[0]
    assert versions["pyimgano-dask"] == pyimgano_dask.__version__
    assert {"opencv", "dask", "distributed", "zarr", "numba", "pillow", "torch"} <= set(versions)


def test_a_first_pass_over_the_maps_counts_too(workplace: Workplace) -> None:
    place = workplace("survey")
    with chdir(place):
        run = pyimgano_dask.infer(**RUN, scheduler="threads", save_overlays="overlays", overlay_scale="run")
    told = profile_at(place)
    assert [process["chunks"] for process in told["workers"]["processes"]] == [2 * N_CHUNKS]
    assert told["n_inputs"] == N_INPUTS
    assert told["stages"]["infer"]["seconds"] == run.profile.seconds["infer"] == run.stage_seconds["infer"] > 0


def test_a_rescoring_has_a_profile_and_no_time_for_detectors(workplace: Workplace) -> None:
    place = workplace("rescored")
    with chdir(place):
        pyimgano_dask.infer(**RUN, scheduler="sync", save_maps="maps", save_jsonl="records.jsonl", run_dir="run")
        os.unlink("new/profile.json")
        given = ("--from-run", "run", "--batch-size", "2", "--scheduler", "sync", "--save-jsonl", "again.jsonl")
        assert rescore_command([*given, "--profile-json", "new/profile.json"]) == 3
    told = profile_at(place)
    assert told["tool"] == "pyimgano-rescore"
    assert [process["chunks"] for process in told["workers"]["processes"]] == [N_CHUNKS]
    used = {name for name, stage in told["stages"].items() if stage["seconds"] > 0}
    assert used == {"read", "extract", "write", "merge"}


def test_a_fitted_detector_takes_no_time_to_fit(workplace: Workplace) -> None:
    place = workplace("fitted")
    with chdir(place):
        pyimgano_dask.infer(**{**RUN, "profile_json": None}, run_dir="run", scheduler="sync")
        run = pyimgano_dask.infer(infer_config="run/infer_config.json", input="@list.txt", scheduler="sync")
    assert run.profile.seconds["load_model"] > 0
    assert run.profile.seconds["fit"] == run.profile.seconds["calibrate"] == 0


def test_a_profile_changes_no_record(workplace: Workplace) -> None:
    place = workplace("records")
    with chdir(place):
        with_it = pyimgano_dask.infer(**RUN, save_jsonl="with.jsonl", profile=True)
        without = pyimgano_dask.infer(**{**RUN, "profile_json": None}, save_jsonl="without.jsonl")
    assert with_it.n_inputs == without.n_inputs
    assert (place / "with.jsonl").read_bytes() == (place / "without.jsonl").read_bytes()


def test_a_profile_that_cannot_be_written_ends_the_run_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = resolve(given_by_keyword({"profile_json": "file/profile.json"})).settings
    summary = RunSummary(settings, "a_detector", "sync", Thresholds(), base_dir=str(tmp_path))
    with pytest.raises(RunError, match=r"--profile-json: 'file/profile.json' cannot be written"):
        finish(summary, time.perf_counter(), "pyimgano-infer")


def test_an_empty_profile_has_no_largest_worker_and_no_shares() -> None:
    assert Profile().largest_worker is None
    assert {Profile().share(stage) for stage in STAGES} == {0.0}


def test_a_process_that_works_on_both_halves_of_a_chunk_counts_it_once() -> None:
    profile = Profile()
    profile.add_chunk({"read": 1.0}, [Worker("a:1", 5), Worker("a:1", 7)])
    profile.add_chunk({"read": 2.0, "write": 1.0}, [Worker("a:1", 6), Worker("b:2", 9)])
    profile.add_chunk({}, [])
    assert {name: (use.chunks, use.peak_memory_bytes) for name, use in profile.workers.items()} == {
        "a:1": (2, 7),
        "b:2": (1, 9),
    }
    assert profile.largest_worker == Worker("b:2", 9)
    assert (profile.seconds["read"], profile.seconds["write"]) == (3.0, 1.0)
    assert profile.share("read") == 0.75


class TestPeakMemory:
    def test_it_grows_with_what_is_held_and_stays_when_it_is_let_go(self) -> None:
        before = peak_memory_bytes()
        held = np.ones(before // 8 + 16 * MEBIBYTE)
        peak = peak_memory_bytes()
        assert peak >= 0.95 * held.nbytes > before
        del held
        assert peak_memory_bytes() >= 0.95 * peak

    @pytest.mark.parametrize("status", ["none", "without"])
    def test_systems_without_proc_have_it_too(self, status: str, tmp_path: Path) -> None:
        (tmp_path / "without").write_text("Name:\tpython\n")
        told = peak_memory_bytes(tmp_path / status)
        assert told == pytest.approx(peak_memory_bytes(), rel=0.5)

    def test_a_worker_does_not_inherit_it_from_the_process_that_started_it(self, workplace: Workplace) -> None:
        place = workplace("inherited")
        code = (
            "import json, sys, numpy, pyimgano_dask\n"
            f"held = numpy.ones({600 * MEBIBYTE} // 8)\n"
            "pyimgano_dask.infer(**json.loads(sys.argv[1]))\n"
        )
        settings = json.dumps({**RUN, "scheduler": "processes", "workers": 1})
        subprocess.run(
            [sys.executable, "-c", code, settings],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=120,
            check=True,
        )
        peaks = profile_at(place)["peak_memory_bytes"]
        assert peaks["client"] > 600 * MEBIBYTE
        assert peaks["largest_worker"] < 600 * MEBIBYTE
