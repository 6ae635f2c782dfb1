"""Dask's performance report of a run: whole, readable without a network, there also when the run fails."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest

from pyimgano_dask.errors import RunError
from pyimgano_dask.synthesis import InspectionSet
from tests.cluster import DaskCluster, start_cluster
from tests.conftest import infer_command
from tests.dataflow import tasks
from tests.dataflow.doubles import none_is_lost, opened

FLAGS = ("--model", "vision_pixel_mad_map", "--train-dir", "set/train/good", "--input", "set/test/good")
# Run when Python starts: nobody in this process finds bokeh, as if it were not installed.
WITHOUT_BOKEH = """
import sys
from importlib.metadata import DistributionFinder, PackageNotFoundError

class Gone(DistributionFinder):
    def find_spec(self, name, path=None, target=None):
        return None

    def find_distributions(self, context=DistributionFinder.Context()):
        if context.name == "bokeh":
            raise PackageNotFoundError("bokeh")
        return []

sys.modules["bokeh"] = None
sys.meta_path.insert(0, Gone())
"""


@pytest.fixture
def place(tmp_path: Path, parts: InspectionSet) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "set").symlink_to(parts.root)
    return folder


def text_of(report: Path) -> str:
    """What a reader sees of the page, its data included."""
    page = report.read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
    assert "<title>Dask Performance Report</title>" in page
    # Bokeh draws the page: its code is in it, not behind a link.
    assert not re.search(r'<script[^>]* src="https?://', page)
    return unescape(page)


def n_tasks(text: str) -> int:
    found = re.search(r"number of tasks: (\d+)", text)
    assert found is not None
    return int(found[1])


@pytest.mark.cluster
def test_it_tells_of_the_whole_run_and_changes_no_byte(dask_cluster: DaskCluster, place: Path) -> None:
    flags = (*FLAGS, "--batch-size", 2)
    done = infer_command(
        *flags, "--scheduler", dask_cluster.address, "--performance-report", "new/folder/run.html", cwd=place
    )
    assert done.rc == 0, done.stderr
    assert "new/folder/run.html" in done.stderr
    assert done.stdout == infer_command(*flags, "--scheduler", "sync", cwd=place).stdout
    text = text_of(place / "new/folder/run.html")
    # Four chunks are inspected, and as many and more tasks fit and calibrate the detector.
    assert n_tasks(text) > 8
    assert "_attempt" in text
    assert [path.name for path in (place / "new/folder").iterdir()] == ["run.html"]


@pytest.mark.cluster
def test_a_local_cluster_has_one_too(tmp_path: Path) -> None:
    report = tmp_path / "local.html"
    with opened("local-cluster", 1, performance_report=str(report)) as scheduler:
        scheduler.run(tasks.name_of, tasks.chunks(5), "c", lambda _: None, none_is_lost)
    assert n_tasks(text_of(report)) >= 5


@pytest.mark.cluster
def test_a_run_that_fails_has_its_report_and_its_own_error(dask_cluster: DaskCluster, tmp_path: Path) -> None:
    report = tmp_path / "failed.html"
    with (
        pytest.raises(RunError, match="the disk is full at 3"),
        opened(dask_cluster.address, performance_report=str(report)) as scheduler,
    ):
        scheduler.run(tasks.end_the_run_at_three, tasks.chunks(8), None, lambda _: None, none_is_lost)
    assert n_tasks(text_of(report)) > 0


@pytest.mark.cluster
def test_a_lost_scheduler_gives_no_report_and_hides_no_error(tmp_path: Path) -> None:
    report = tmp_path / "lost.html"
    with (
        start_cluster(tmp_path / "cluster", 1) as cluster,
        pytest.raises(RunError, match="run again"),
        opened(cluster.address, performance_report=str(report)) as scheduler,
    ):
        scheduler.run(tasks.name_of, tasks.chunks(500), "c", lambda _: cluster.kill_scheduler(), none_is_lost)
    assert not report.exists()


@pytest.mark.cluster
def test_without_bokeh_nothing_is_begun(dask_cluster: DaskCluster, tmp_path: Path, place: Path) -> None:
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone/sitecustomize.py").write_text(WITHOUT_BOKEH)
    env = {"PYTHONPATH": f"{tmp_path / 'gone'}:{Path(__file__).parents[2]}"}
    flags = (*FLAGS, "--save-jsonl", "r.jsonl", "--performance-report", "r.html")
    with start_cluster(tmp_path / "cluster", 1, scheduler_env=env) as cluster:
        there = infer_command(*flags, "--scheduler", cluster.address, cwd=place)
    here = infer_command(*flags, "--scheduler", dask_cluster.address, cwd=place, env=env)
    for done, where in ((there, "on the scheduler"), (here, "here")):
        assert (done.rc, done.stdout) == (2, "")
        assert f"--performance-report needs bokeh, which is not installed {where}; install" in done.stderr
        assert "pyimgano-dask[report]" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in place.iterdir()] == ["set"]


@pytest.mark.parametrize("kind", ["auto", "threads", "sync", "processes"])
def test_schedulers_that_dask_does_not_report_on_are_refused(place: Path, kind: str) -> None:
    done = infer_command(*FLAGS, "--scheduler", kind, "--performance-report", "r.html", cwd=place)
    assert (done.rc, done.stdout) == (2, "")
    assert f"--performance-report with --scheduler {kind}" in done.stderr
    assert "local-cluster" in done.stderr
