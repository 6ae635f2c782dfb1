"""`jobs/rescore.py`: a job file, flags that win over it, and a cluster to submit to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, DaskCluster, Ended, hashes_below, infer_command, run_python

Workplace = Callable[[str], Path]

OUTPUT = {"save_jsonl": "out/records.jsonl", "save_masks": "out/masks", "save_overlays": "out/overlays"}


@pytest.fixture(scope="module")
def first(workplace: Workplace) -> Path:
    """Where a run left its run folder, its maps, and its masks and overlays."""
    place = workplace("first")
    done = infer_command(
        *("--model", "vision_pixel_mad_map", "--model-kwargs", '{"resize_hw": [64, 64]}', "--train-dir"),
        *("set/train/good", "--input", "@list.txt", "--defects", "--defect-min-area", 30, "--batch-size", 2),
        *("--run-dir", "run", "--save-maps", "maps", "--save-jsonl", "out/records.jsonl"),
        *("--save-masks", "out/masks", "--save-overlays", "out/overlays", "--scheduler", "sync"),
        cwd=place,
    )
    assert done.rc == 3, done.stderr
    return place


def submit(place: Path, run: Path, *flags: object, **blocks: object) -> Ended:
    """Run the job script in the folder `place`, on a job file that names the run and any further blocks."""
    job = {
        "stored": {"from_run": str(run)},
        "output": OUTPUT,
        "dataflow": {"batch_size": 2, "scheduler": "sync"},
        **blocks,
    }
    (place / "job.json").write_text(json.dumps({"schema_version": 1, **job}))
    return run_python(str(ROOT / "jobs/rescore.py"), "--config", "job.json", *map(str, flags), cwd=place)


@pytest.mark.cluster
def test_a_job_on_a_cluster_leaves_what_the_run_left(first: Path, tmp_path: Path, dask_cluster: DaskCluster) -> None:
    done = submit(tmp_path, first / "run", "--scheduler", dask_cluster.address)
    assert done.rc == 3, done.stderr
    assert dask_cluster.address in "".join(done.stderr.split("\n"))
    assert hashes_below(tmp_path / "out") == hashes_below(first / "out")


def test_the_job_file_wins_over_the_run_and_a_flag_over_both(first: Path, tmp_path: Path) -> None:
    areas = {}
    for name, flags in (("job", ()), ("flag", ("--defect-min-area", 30)), ("default", ("--defect-min-area", 0))):
        (tmp_path / name).mkdir()
        done = submit(tmp_path / name, first / "run", *flags, defects={"min_area": 60})
        assert done.rc == 3, done.stderr
        records = [json.loads(line) for line in (tmp_path / name / "out/records.jsonl").read_text().splitlines()]
        areas[name] = [region["area"] for r in records if "defects" in r for region in r["defects"]["regions"]]
    assert min(areas["job"]) >= 60
    assert 30 <= min(areas["flag"]) < 60
    assert min(areas["default"]) < 30
    assert hashes_below(tmp_path / "flag/out") == hashes_below(first / "out")


def test_a_preset_of_the_job_file_lies_below_its_own_values(first: Path, tmp_path: Path) -> None:
    controls = {"preset": "industrial-fp40", "min_area": 3, "min_score_max": None, "shape_filters": {}}
    done = submit(tmp_path, first / "run", "--run-dir", "run", defects=controls)
    assert done.rc == 3, done.stderr
    used = json.loads((tmp_path / "run/run.json").read_text())["settings"]["defects"]
    assert (used["min_area"], used["min_score_max"]) == (3, None)
    assert (used["border_ignore_px"], used["merge_nearby"]["enabled"], used["max_regions"]) == (2, True, 20)


def test_faults_are_told_in_the_name_of_the_script(tmp_path: Path) -> None:
    done = submit(tmp_path, tmp_path / "gone")
    assert (done.rc, done.stdout) == (2, "")
    assert done.stderr.startswith("jobs/rescore.py: error: --from-run: ")
    done = submit(tmp_path, tmp_path / "gone", "--defect-min-area", "many")
    assert (done.rc, done.stdout) == (2, "")
    assert done.stderr.startswith("jobs/rescore.py: error: --defect-min-area: 'many'")
    assert not (tmp_path / "out").exists()
