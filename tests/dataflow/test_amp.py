"""`--amp`, with torch and without it: what the detector sees, and what the user is told."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, DaskCluster, Ended, hashes_below, infer_command, run_python

Workplace = Callable[[str], Path]

KINDS = ("threads", "processes")
HAS_TORCH = importlib.util.find_spec("torch") is not None
WITH_TORCH = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")

# A run of the test's own detector: its scores, its threshold and its warnings.
RUN = """
import json, sys
import pyimgano_dask
from pyimgano_dask.detectors.registry import register
from tests.dataflow.doubles import ReportsInferenceMode

if __name__ == "__main__":
    register(ReportsInferenceMode)
    run = pyimgano_dask.infer(model="reports_inference_mode", **json.loads(sys.argv[1]))
    scores = [record["score"] for record in run.records() if "error" not in record]
    print(json.dumps([scores, run.thresholds.score, run.thresholds.pixel, run.warnings, "torch" in sys.modules]))
"""


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, first on the path of Python, makes `import torch` fail as it does where there is none."""
    folder = tmp_path_factory.mktemp("without-torch")
    (folder / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    return folder


def on_path(*folders: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(map(str, (*folders, ROOT)))}


def run_at(place: Path, env: dict[str, str], **given: Any) -> tuple[list[float], float, float, list[str], bool]:
    settings = {"input": "@list.txt", "batch_size": 4, "train_dir": "set/train/good", "workers": 2, **given}
    done: Ended = run_python("-c", RUN, json.dumps({**settings, "defects": True}), cwd=place, env=env)
    assert done.rc == 0, done.stderr
    scores, score, pixel, warnings, loaded = json.loads(done.stdout)
    of_alike_scores = "normal images share the highest score"  # the detector gives all images the same
    return scores, score, pixel, [line for line in warnings if of_alike_scores not in line], loaded


@WITH_TORCH
@pytest.mark.parametrize("kind", KINDS)
def test_detectors_calibrate_and_score_in_inference_mode(kind: str, workplace: Workplace) -> None:
    import torch

    # Each process loads torch, for training and again for inspecting: one shows what two would.
    given: dict[str, Any] = {"amp": True, "scheduler": kind, "workers": 1 if kind == "processes" else 2}
    scores, score, pixel, warnings, _ = run_at(workplace("amp"), on_path(), **given)
    assert scores == [1.0] * 20
    assert (score, pixel) == (1.0, 1.0)
    if torch.cuda.is_available():
        assert warnings == []
    else:
        (warning,) = warnings
        assert "CUDA is not available" in warning


@WITH_TORCH
def test_without_the_flag_torch_is_not_even_loaded(workplace: Workplace) -> None:
    scores, score, pixel, warnings, loaded = run_at(workplace("plain"), on_path(), scheduler="sync")
    assert scores == [0.0] * 20
    assert (score, pixel, warnings, loaded) == (0.0, 0.0, [], False)


@WITH_TORCH
def test_a_first_pass_over_the_maps_is_in_inference_mode_and_warns_once(workplace: Workplace) -> None:
    given: dict[str, Any] = {"amp": True, "scheduler": "sync", "save_overlays": "overlays", "overlay_scale": "run"}
    scores, _, _, warnings, _ = run_at(workplace("survey"), on_path(), **given)
    assert scores == [1.0] * 20
    assert len(warnings) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_where_torch_is_missing_one_warning_says_so_and_scores_are_those_without_the_flag(
    kind: str, workplace: Workplace, without_torch: Path
) -> None:
    scores, score, pixel, (warning,), _ = run_at(workplace("amp"), on_path(without_torch), amp=True, scheduler=kind)
    assert (scores, score, pixel) == ([0.0] * 20, 0.0, 0.0)
    assert "torch cannot be loaded where the chunks run (No module named 'torch')" in warning
    assert "pyimgano-dask[torch]" in warning


def test_where_the_config_asks_for_it_the_config_is_named(workplace: Workplace, without_torch: Path) -> None:
    place = workplace("config")
    given = ("--model", "vision_pixel_mad_map", "--train-dir", "set/train/good", "--input", "set/test/good")
    assert infer_command(*given, "--run-dir", "run", cwd=place).rc == 0
    path = place / "run/infer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dataflow": {"amp": True, "scheduler": "sync"}}))
    for flags, named in ((), "dataflow.amp of the config"), (("--amp",), "--amp"), (("--no-amp",), None):
        again = ("--infer-config", path, "--input", "set/test/good", *flags)
        done = infer_command(*again, cwd=place, env=on_path(without_torch))
        assert done.rc == 0, done.stderr
        warnings = [line.partition("warning: ")[2] for line in done.stderr.splitlines() if "warning: " in line]
        assert [line.partition(": ")[0] for line in warnings] == ([] if named is None else [named])
        assert all(line.endswith("or give --no-amp") for line in warnings)


@WITH_TORCH
@pytest.mark.cluster
def test_on_a_cluster_the_torch_of_the_workers_counts(
    dask_cluster: DaskCluster, workplace: Workplace, without_torch: Path
) -> None:
    scores, _, _, warnings, loaded = run_at(
        workplace("cluster"), on_path(without_torch), amp=True, scheduler=dask_cluster.address
    )
    assert scores == [1.0] * 20
    assert not any("torch cannot be loaded" in warning for warning in warnings)
    assert not loaded


@pytest.mark.parametrize("hidden", [True, pytest.param(False, marks=WITH_TORCH)], ids=["without", "with"])
def test_detectors_without_torch_leave_the_same_bytes(hidden: bool, workplace: Workplace, without_torch: Path) -> None:
    place = workplace("command")
    given = ("--model", "vision_pixel_mad_map", "--train-dir", "set/train/good", "--input", "@list.txt", "--defects")
    for name, flags in (("with", ["--amp"]), ("without", [])):
        outputs = ("--save-jsonl", f"{name}/r.jsonl", "--save-maps", f"{name}-maps", "--scheduler", "sync")
        done = infer_command(*(*given, *outputs, *flags), cwd=place, env=on_path(without_torch) if hidden else None)
        assert done.rc == 3, done.stderr
        assert done.stderr.count("warning: --amp: ") == len(flags)
    with_flag, without = (hashes_below(place / f"{name}-maps") for name in ("with", "without"))
    assert with_flag == without
    records = [(place / name / "r.jsonl").read_text().replace(f"{name}-maps", "maps") for name in ("with", "without")]
    assert records[0] == records[1]
