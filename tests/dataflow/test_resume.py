"""A run that was cut off goes on: the same bytes, finished chunks done once."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster import start_cluster
from tests.commands import started_module
from tests.conftest import hashes_below, infer_command, rescore_command, wait_until
from tests.dataflow.resuming import N_CHUNKS, N_LISTS, RUN, cut_off, results, resume, settings_of, shards, started

Workplace = Callable[[str], Path]

CLUSTER = pytest.mark.cluster
KINDS = (
    "sync",
    "threads",
    "processes",
    pytest.param("local-cluster", marks=CLUSTER),
    pytest.param("address", marks=CLUSTER),
)


def scheduler_of(kind: str, request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue("dask_cluster").address if kind == "address" else kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_client_goes_on(kind: str, whole: Path, workplace: Workplace, request: pytest.FixtureRequest) -> None:
    place = workplace("killed")
    scheduler = scheduler_of(kind, request)
    after = random.Random(kind).randint(2, N_CHUNKS // 2)
    cut_off(place, scheduler, after)
    # Tasks that a cluster is at when its client dies still leave their shards.
    left = shards(place)
    done = resume(place, "--scheduler", scheduler)
    assert done.rc == 3, done.stderr
    assert "resumed" in done.stderr
    assert results(place) == results(whole)
    assert hashes_below(place / "run/parts") == hashes_below(whole / "run/parts")
    if kind != "address":
        assert left.items() <= shards(place).items()


def test_a_run_may_be_killed_again_and_again_and_go_on_elsewhere(whole: Path, workplace: Workplace) -> None:
    place = workplace("again")
    done_before: dict[str, int] = {}
    for scheduler, after in (("threads", 5), ("processes", 20), ("sync", 35)):
        with started(place, "--resume", "--scheduler", scheduler):
            wait_until(lambda after=after: len(shards(place)) >= after, f"{after} chunks are done")
        assert done_before.items() <= shards(place).items()
        done_before = shards(place)
    done = resume(place, "--scheduler", "threads")
    assert done.rc == 3, done.stderr
    assert results(place) == results(whole)
    assert done_before.items() <= shards(place).items()


@CLUSTER
def test_a_killed_scheduler_ends_the_run_in_words_and_another_one_goes_on(
    whole: Path, workplace: Workplace, tmp_path: Path
) -> None:
    place = workplace("scheduler")
    with start_cluster(tmp_path / "first", 2) as cluster, started(place, "--scheduler", cluster.address) as run:
        wait_until(lambda: len(shards(place)) >= 10, "ten chunks are done")
        cluster.kill_scheduler()
        assert run.wait() == 1
        stderr = run.stderr.decode()
    assert "the cluster was lost" in stderr
    assert "--resume goes on" in stderr
    assert "Traceback" not in stderr
    with start_cluster(tmp_path / "second", 2) as cluster:
        done = resume(place, "--scheduler", cluster.address)
    assert done.rc == 3, done.stderr
    assert results(place) == results(whole)


@CLUSTER
def test_workers_that_are_killed_at_random_change_no_byte(whole: Path, workplace: Workplace, tmp_path: Path) -> None:
    place = workplace("workers")
    chance = random.Random(4)
    with (
        start_cluster(tmp_path / "cluster", 2, nanny=True) as cluster,
        started(place, "--scheduler", cluster.address, "--retries", "10") as run,
    ):
        for after in sorted(chance.sample(range(5, N_CHUNKS - 5), 4)):
            wait_until(lambda after=after: len(shards(place)) >= after or run.poll() is not None, "chunks are done")
            wait_until(lambda: cluster.kill_any_worker(chance), "a worker is killed")
        assert run.wait() == 3, run.stderr
    assert results(place) == results(whole)


def test_a_store_keeps_no_rows_of_an_earlier_run_when_the_first_session_ended_before_it_was_made(
    workplace: Workplace,
) -> None:
    place = workplace("rows")
    one = [flag if flag != "@list.txt" else "set/test/good" for flag in RUN if flag not in ("--run-dir", "run")]
    assert infer_command(*one, cwd=place).rc == 0
    (place / "out/records.jsonl").unlink()
    cut_off(place, "sync", 5)
    plan = json.loads((place / "run/plan.json").read_text())
    (place / "run/plan.json").write_text(json.dumps({**plan, "outputs_are_ready": False}))
    for shard in (place / "run/parts").glob("part-*"):
        shard.unlink()
    expected = workplace("rows")
    assert infer_command(*RUN, cwd=expected).rc == 3
    assert resume(place).rc == 3
    stores = [hashes_below(folder / "out/maps.zarr") for folder in (place, expected)]
    assert stores[0] == stores[1]


def test_the_first_pass_of_overlays_on_one_scale_goes_on_too(workplace: Workplace) -> None:
    scale = ("--overlay-scale", "run")
    expected = workplace("scale")
    assert infer_command(*RUN, *scale, cwd=expected).rc == 3
    place = workplace("scale")
    spool = place / "run/parts/.spool"

    def spooled() -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in spool.glob("scores-*")}

    with started(place, *scale, "--scheduler", "sync"):
        wait_until(lambda: len(spooled()) >= 20, "twenty chunks are looked at")
    left = spooled()
    with started(place, *scale, "--scheduler", "sync", "--resume"):
        wait_until(lambda: len(shards(place)) >= 10, "ten chunks are done in the second pass")
        assert left.items() <= spooled().items()
    done = resume(place, *scale)
    assert done.rc == 3, done.stderr
    assert results(place) == results(expected)
    assert not spool.exists()


def test_a_run_stops_at_too_many_errors_and_goes_on_with_more_patience(whole: Path, workplace: Workplace) -> None:
    place = workplace("errors")
    done = infer_command(*RUN, "--max-errors", "3", "--scheduler", "sync", cwd=place)
    assert done.rc == 1
    assert "stopped at --max-errors 3 (error records: 3)" in done.stderr
    assert "'set/torn/torn.png'" in done.stderr
    assert 0 < len(shards(place)) < N_CHUNKS
    done = resume(place, "--max-errors", "100")
    assert done.rc == 3, done.stderr
    assert results(place) == results(whole)


def test_a_rescoring_goes_on_too(whole: Path, workplace: Workplace) -> None:
    flags = ("--from-run", whole / "run", "--defect-min-area", "3", "--batch-size", "2", "--save-masks", "masks")
    outputs = ("--save-jsonl", "records.jsonl", "--run-dir", "run", "--keep-parts", "--scheduler", "sync")
    command = tuple(map(str, (*flags, *outputs)))
    expected, place = workplace("rescored"), workplace("rescored")
    assert rescore_command(*command, cwd=expected).rc == 3
    with started_module("pyimgano_dask.cli.rescore", *command, cwd=place):
        wait_until(lambda: len(shards(place)) >= 5, "five chunks are done")
    left = shards(place)
    done = rescore_command(*command, "--resume", cwd=place)
    assert done.rc == 3, done.stderr
    assert left.items() <= shards(place).items()
    for folder in ("masks", "run/parts"):
        assert hashes_below(place / folder) == hashes_below(expected / folder)
    assert (place / "records.jsonl").read_bytes() == (expected / "records.jsonl").read_bytes()


def test_a_rescoring_is_not_gone_on_with_when_its_threshold_comes_from_elsewhere(
    whole: Path, workplace: Workplace
) -> None:
    place = workplace("rescored")
    threshold = settings_of(whole)["training"]["pixel_threshold"]
    flags = ("--from-run", whole / "run", "--batch-size", "2", "--save-jsonl", "r.jsonl", "--run-dir", "run")
    command = (*flags, "--keep-parts")
    assert rescore_command(*command, cwd=place).rc == 3
    done = rescore_command(*command, "--resume", "--pixel-threshold", repr(threshold), cwd=place)
    assert done.rc == 2
    assert "pixel threshold from" in done.stderr


def test_names_of_any_bytes_do_not_keep_a_run_from_going_on(workplace: Workplace) -> None:
    place = workplace("bytes")
    masks = os.fsdecode(b"out/m\xff")
    flags = [masks if flag == "out/masks" else flag for flag in RUN]
    with started(place, "--save-masks", masks, "--scheduler", "sync"):
        wait_until(lambda: len(shards(place)) >= 5, "five chunks are done")
    done = infer_command(*flags, "--resume", cwd=place)
    assert done.rc == 3, done.stderr
    assert "resumed" in done.stderr


def test_a_run_that_is_asked_to_end_says_where_to_go_on(workplace: Workplace) -> None:
    place = workplace("terminated")
    with started(place, "--scheduler", "sync") as run:
        wait_until(lambda: len(shards(place)) >= 5, "five chunks are done")
        run.terminate()
        assert run.wait() == 143
        assert b"terminated: what is done is kept in" in run.stderr


def test_a_run_without_a_run_folder_that_is_asked_to_end_says_that_it_cannot_be_resumed(workplace: Workplace) -> None:
    place = workplace("nothing kept")
    flags = [flag for flag in RUN if flag not in ("--run-dir", "run", "--keep-parts")]
    with started_module("pyimgano_dask.cli.infer", *flags, "--scheduler", "sync", cwd=place) as run:
        wait_until(lambda: len(list((place / "out/masks").glob("*.png"))) >= 5, "five masks are written")
        run.terminate()
        assert run.wait() == 143
        assert (
            run.stderr.splitlines()[-1] == b"pyimgano-infer: terminated: without --run-dir there is nothing to resume"
        )
    assert not list((place / "out").glob(".*"))


def test_a_profile_counts_what_this_session_has_done(workplace: Workplace) -> None:
    place = workplace("profile")
    cut_off(place, "sync", 5)
    done = resume(place, "--profile-json", "profile.json", "--scheduler", "sync")
    assert done.rc == 3, done.stderr
    told = json.loads((place / "profile.json").read_text())
    assert told["counts"]["inputs"] == 22 * N_LISTS
    assert 0 < told["counts"]["processed"] <= 22 * N_LISTS - 10
    (worker,) = told["workers"]["processes"]
    assert 2 * worker["chunks"] == told["counts"]["processed"]
    read = told["stages"]["read"]
    assert read["per_image_ms"] == pytest.approx(1000 * read["seconds"] / told["counts"]["processed"])
