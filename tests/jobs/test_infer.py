"""`jobs/infer.py`: a job file, flags that win over it, and a cluster to submit to."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT, DaskCluster, Ended, hashes_below, infer_command, run_python

Workplace = Callable[[str], Path]

JOB = {
    "schema_version": 1,
    "model": {"name": "vision_pixel_mad_map", "model_kwargs": {"resize_hw": [64, 64]}},
    "training": {"train_dir": "set/train/good"},
    "inputs": {"input": ["@list.txt"]},
    "defects": {"enabled": True, "min_area": 30, "roi_xyxy_norm": [0.1, 0.1, 0.9, 0.9]},
    "output": {"save_jsonl": "out/records.jsonl", "save_masks": "out/masks", "save_overlays": "out/overlays"},
    "dataflow": {"batch_size": 2, "scheduler": "sync"},
}
SAME_IN_FLAGS = (
    *("--model", "vision_pixel_mad_map", "--model-kwargs", '{"resize_hw": [64, 64]}', "--train-dir", "set/train/good"),
    *("--input", "@list.txt", "--defects", "--roi-xyxy-norm", 0.1, 0.1, 0.9, 0.9),
    *("--save-jsonl", "out/records.jsonl", "--save-masks", "out/masks", "--save-overlays", "out/overlays"),
    *("--batch-size", 2, "--scheduler", "sync"),
)


def submit(place: Path, *flags: object) -> Ended:
    """Run the job script on `job.json` in the folder `place`."""
    (place / "job.json").write_text(json.dumps(JOB))
    return run_python(str(ROOT / "jobs/infer.py"), "--config", "job.json", *map(str, flags), cwd=place)


@pytest.fixture(scope="module")
def by_flags(workplace: Workplace) -> Callable[[int], dict[str, str]]:
    """What the command leaves when everything is said in flags, for a smallest area."""

    @cache
    def leave(min_area: int) -> dict[str, str]:
        place = workplace("flags")
        done = infer_command(*SAME_IN_FLAGS, "--defect-min-area", min_area, cwd=place)
        assert done.rc == 3, done.stderr
        return hashes_below(place / "out")

    return leave


@pytest.mark.cluster
def test_a_job_on_a_cluster_leaves_what_the_command_leaves(
    by_flags: Callable[[int], dict[str, str]], workplace: Workplace, dask_cluster: DaskCluster
) -> None:
    place = workplace("job")
    done = submit(place, "--scheduler", dask_cluster.address)
    assert done.rc == 3, done.stderr
    assert dask_cluster.address in "".join(done.stderr.split("\n"))
    assert hashes_below(place / "out") == by_flags(30)


def test_a_flag_wins_over_the_job_file_also_with_the_default_value(
    by_flags: Callable[[int], dict[str, str]], workplace: Workplace
) -> None:
    place = workplace("job")
    done = submit(place, "--defect-min-area", 0)
    assert done.rc == 3, done.stderr
    assert hashes_below(place / "out") == by_flags(0)
    assert by_flags(0) != by_flags(30)


def test_a_switch_wins_over_the_job_file(workplace: Workplace) -> None:
    place = workplace("job")
    done = submit(place, "--no-defects")
    assert done.rc == 2
    assert "--save-masks needs --defects" in done.stderr
    assert not (place / "out").exists()


def test_inputs_of_the_command_line_replace_those_of_the_job(workplace: Workplace) -> None:
    place = workplace("job")
    done = submit(place, "--input", "set/test/pit")
    assert done.rc == 0, done.stderr
    records = [json.loads(line) for line in (place / "out/records.jsonl").read_text().splitlines()]
    assert [record["input"] for record in records] == [f"set/test/pit/{index:03d}.png" for index in range(4)]


def test_faults_are_told_in_the_name_of_the_script(workplace: Workplace) -> None:
    done = submit(workplace("job"), "--defect-min-area", "many")
    assert (done.rc, done.stdout) == (2, "")
    assert done.stderr.startswith("jobs/infer.py: error: --defect-min-area: 'many'")
    missing = run_python(str(ROOT / "jobs/infer.py"), "--config", "none.json", cwd=workplace("job"))
    assert missing.rc == 2
    assert "none.json" in missing.stderr
