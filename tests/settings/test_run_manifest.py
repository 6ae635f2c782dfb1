from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.run_manifest import MANIFEST_NAME, RunManifest, read_run_manifest

MANIFEST = RunManifest(
    version="1.2",
    base_dir="/line 4/ü",
    n_inputs=3,
    records="out/records.jsonl",
    settings={"defects": {"min_area": 3, "roi_xyxy_norm": [0.1, 0.1, 0.9, 0.9]}, "threshold": None},
)


def test_it_reads_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(MANIFEST.encode())
    assert read_run_manifest(str(tmp_path)) == MANIFEST
    assert read_run_manifest(tmp_path.as_uri()) == MANIFEST


def test_it_is_strict_json_in_a_stable_order() -> None:
    text = MANIFEST.encode().decode("ascii")
    keys = list(json.loads(text))
    assert keys == sorted(keys)
    assert text.endswith("}\n")


def test_keys_of_later_versions_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({**json.loads(MANIFEST.encode()), "host": "line4"}))
    assert read_run_manifest(str(tmp_path)) == MANIFEST


def test_all_its_faults_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({"format": 2, "n_inputs": "3", "records": 4}))
    with pytest.raises(ConfigError) as caught:
        read_run_manifest(str(tmp_path))
    assert all(f"{key}: " in str(caught.value) for key in ("format", "base_dir", "n_inputs", "records"))


def test_a_folder_without_one_is_told_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--from-run: .*run\.json.*--run-dir"):
        read_run_manifest(str(tmp_path))
