"""Configs, and flags that change what their detectors were fitted and their thresholds calibrated with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

import pyimgano_dask
from tests.conftest import DaskCluster, infer_command

Workplace = Callable[[str], Path]

TOLD = "the thresholds of the config were calibrated with other values; give --train-dir to calibrate anew"
MODEL = {"model": "vision_pixel_mad_map", "model_kwargs": {"resize_hw": [64, 64], "topk": 0.02}}


def train(folder: Path, **settings: Any) -> None:
    with chdir(folder):
        pyimgano_dask.infer(
            train_dir="set/train/good",
            input="set/test/good",
            defects=True,
            run_dir="run",
            **{"scheduler": "sync", **settings},
        )


def told_by(**flags: Any) -> list[str]:
    """What a run from the config, with further flags, says of its thresholds: the flags it names."""
    given = {"infer_config": "run/infer_config.json", "input": "set/test/good", "scheduler": "sync", **flags}
    warnings = [line for line in pyimgano_dask.infer(**given).warnings if "thresholds of the config" in line]
    assert all(line.endswith(TOLD) for line in warnings)
    return [line.split(" change")[0] for line in warnings]


@pytest.fixture(scope="module")
def trained(workplace: Workplace) -> Path:
    folder = workplace("calibrated")
    train(folder, **MODEL, clahe=True)
    return folder


@pytest.fixture
def place(trained: Path) -> Iterator[Path]:
    with chdir(trained):
        yield trained


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"model_kwargs": {"resize_hw": [64, 64], "topk": 0.5}}, "--model-kwargs (topk)"),
        ({"model_kwargs": {"topk": 0.5, "reduction": "max"}}, "--model-kwargs (reduction, topk)"),
        ({"tile_size": 32, "tile_stride": 16}, "--tile-size, --tile-stride"),
        ({"gamma": 1.5, "tile_size": 32, "seed": 4}, "--tile-size"),
        ({"model_kwargs": {"reduction": "mean", "topk": 0.02}}, "--model-kwargs (reduction)"),
    ],
    ids=str,
)
def test_flags_that_change_scores_or_maps_are_named_in_one_sentence(
    flags: dict[str, Any], named: str, place: Path
) -> None:
    assert told_by(**flags) == [named]


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"model_kwargs": MODEL["model_kwargs"], "clahe": True, "seed": 0},
        {"model_kwargs": {}},
        {"contamination": 0.2},
        {"seed": 4},
        {"model_kwargs": {"random_state": 4, "max_train_images": 2}},
        {"model_kwargs": {"channel_reduce": "l2"}},
        {"device": "cpu"},
        {"tile_map_reduce": "hann"},
        {"batch_size": 3, "defect_min_area": 9, "amp": True},
        {"tile_size": 32, "train_dir": "set/train/good"},
    ],
    ids=str,
)
def test_flags_that_change_neither_are_not(flags: dict[str, Any], place: Path) -> None:
    assert told_by(**flags) == []


@pytest.mark.parametrize("calibrates", [{}, {"train_dir": "set/train/good"}], ids=["thresholds kept", "calibrated"])
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"clahe": False}, "--no-clahe"),
        ({"gamma": 1.5, "contrast_stretch": True}, "--contrast-stretch, --gamma"),
        ({"preprocessing_preset": "illumination-contrast-aggressive"}, "--preprocessing-preset"),
    ],
    ids=str,
)
def test_a_detector_that_learned_from_images_corrected_otherwise_is_told(
    flags: dict[str, Any], named: str, calibrates: dict[str, str], place: Path
) -> None:
    given = {"infer_config": "run/infer_config.json", "input": "set/test/good", "scheduler": "sync"}
    warnings = pyimgano_dask.infer(**given, **flags, **calibrates).warnings
    (told,) = (line for line in warnings if "corrected otherwise" in line)
    assert sorted(told.split(": ")[0].split(", ")) == named.split(", ")
    assert "--model vision_pixel_mad_map --train-dir DIR, without --infer-config" in told
    assert not any("thresholds of the config" in line for line in warnings)


@pytest.mark.parametrize("flags", [{}, {"clahe": True}, {"clahe_clip_limit": 2.0}], ids=str)
def test_the_same_correction_is_not(flags: dict[str, Any], place: Path) -> None:
    given = {"infer_config": "run/infer_config.json", "input": "set/test/good", "scheduler": "sync"}
    warnings = pyimgano_dask.infer(**given, **flags, train_dir="set/train/good").warnings
    assert not any("corrected otherwise" in line for line in warnings)


def test_a_share_that_no_score_takes_and_an_unread_argument_are_no_change(workplace: Workplace) -> None:
    place = workplace("max")
    train(place, model=MODEL["model"], model_kwargs={"resize_hw": [64, 64], "reduction": "max"})
    with chdir(place):
        assert told_by(model_kwargs={"topk": 0.5}) == []
        assert told_by(model_kwargs={"topk": 0.5, "reduction": "topk_mean"}) == ["--model-kwargs (reduction, topk)"]
        assert told_by(model_kwargs={"reduction": "topk_mean"}) == ["--model-kwargs (reduction)"]


def test_nothing_is_said_where_no_threshold_is_the_configs(place: Path) -> None:
    config = json.loads((place / "run/infer_config.json").read_text())
    (place / "run/bare.json").write_text(json.dumps({**config, "threshold": None}))
    assert told_by(infer_config="run/bare.json", tile_size=32, pixel_threshold=5.0) == []
    assert told_by(infer_config="run/bare.json", tile_size=32) == ["--tile-size"]


def test_another_checkpoint_is_told_and_a_copy_is_not(place: Path, workplace: Workplace) -> None:
    shutil.copy("run/detector.npz", "copy.npz")
    assert told_by(checkpoint_path="copy.npz") == []
    assert told_by(checkpoint_path="run/detector.npz") == []
    other = workplace("other")
    train(other, **{**MODEL, "model_kwargs": {"resize_hw": [64, 64], "topk": 0.02, "max_train_images": 3}})
    assert told_by(checkpoint_path=str(other / "run/detector.npz")) == ["--checkpoint-path"]


def test_another_reference_for_all_is_told_and_another_folder_of_references_is_not(workplace: Workplace) -> None:
    place = workplace("references")
    good = sorted((place / "set/test/good").iterdir())
    for name in ("golden", "again"):
        shutil.copytree(place / "set/test/good", place / name)
    comparing: dict[str, Any] = {"model": "vision_reference_diff_map"}
    with chdir(place):
        train(place, **comparing, reference_dir=str(good[0]))
        assert told_by() == told_by(reference_dir=str(good[0])) == []
        assert told_by(reference_dir=str(good[1])) == ["--reference-dir"]
        assert told_by(clahe=True) == ["--clahe"]  # it has learned nothing, so calibrating anew is enough
        config = json.loads(Path("run/infer_config.json").read_text())
        config["model"]["reference_dir"] = "golden"
        Path("run/infer_config.json").write_text(json.dumps(config))
        assert told_by(reference_dir="again") == []
        assert told_by(reference_dir=str(good[1])) == ["--reference-dir"]


@pytest.mark.parametrize("before", ["nosuch://bucket/golden", "oci://bucket@space/golden"])
def test_a_reference_of_before_that_is_out_of_reach_ends_no_run(before: str, workplace: Workplace) -> None:
    place = workplace("unreachable")
    good = sorted((place / "set/test/good").iterdir())
    with chdir(place):
        train(place, model="vision_reference_diff_map", reference_dir=str(good[0]))
        config = json.loads(Path("run/infer_config.json").read_text())
        config["model"]["reference_dir"] = before
        Path("run/infer_config.json").write_text(json.dumps(config))
        assert told_by(reference_dir=str(good[0])) == ["--reference-dir"]
        assert told_by(reference_dir="set/test/good") == ["--reference-dir"]


def test_an_unset_device_is_the_one_that_is_here(workplace: Workplace) -> None:
    torch = pytest.importorskip("torch", reason="the detector needs torch")
    place = workplace("device")
    train(place, model="vision_autoencoder", model_kwargs={"image_size": 32, "base_channels": 4, "epochs": 1})
    here = "cuda" if torch.cuda.is_available() else "cpu"
    with chdir(place):
        assert told_by(device=here) == told_by(device=here.replace("cuda", "cuda:0")) == []
        assert told_by(model_kwargs={"smoothing_sigma": 2.0}) == []
        assert told_by(model_kwargs={"smoothing_sigma": 5.0}) == ["--model-kwargs (smoothing_sigma)"]


def test_a_config_that_only_the_flags_make_valid_has_all_of_them_named(place: Path) -> None:
    config = json.loads((place / "run/infer_config.json").read_text())
    broken = {**config, "adaptation": {"tiling": {"tile_size": 16, "stride": 64}}}
    (place / "run/broken.json").write_text(json.dumps(broken))
    assert told_by(infer_config="run/broken.json", tile_stride=8, contamination=0.1, seed=3, include_maps=True) == [
        "--tile-stride"
    ]


def test_every_warning_of_a_command_has_its_name_before_it_once(place: Path) -> None:
    flags = ("--infer-config", "run/infer_config.json", "--input", "set/test/good", "--gamma", 2, "--device", "cpu")
    done = infer_command(*flags, cwd=place)
    warnings = [line for line in done.stderr.splitlines() if "warning: " in line]
    assert [line.split()[2] for line in warnings] == ["--device", "--gamma:"]
    assert all(line.startswith("pyimgano-infer: warning: ") and line.count("warning: ") == 1 for line in warnings)


@pytest.mark.cluster
def test_mixed_precision_is_part_of_the_config_where_it_may_have_counted(
    workplace: Workplace, dask_cluster: DaskCluster
) -> None:
    pytest.importorskip("torch", reason="the detector needs torch")
    place = workplace("amp")
    network = {"model": "vision_autoencoder", "model_kwargs": {"image_size": 32, "base_channels": 4, "epochs": 1}}
    train(place, **network, scheduler=dask_cluster.address, amp=True)
    with chdir(place):
        assert told_by(scheduler=dask_cluster.address) == []
        assert told_by(scheduler=dask_cluster.address, amp=True) == []
        assert told_by(scheduler=dask_cluster.address, amp=False) == ["--no-amp"]


def test_arguments_that_were_edited_in_the_config_are_told(place: Path) -> None:
    config = json.loads(Path("run/infer_config.json").read_text())
    config["model"]["model_kwargs"]["topk"] = 0.3
    Path("run/edited.json").write_text(json.dumps(config))
    assert told_by(infer_config="run/edited.json") == ["the config's model_kwargs (topk)"]
    assert told_by(infer_config="run/edited.json", model_kwargs={"topk": 0.02, "resize_hw": [64, 64]}) == []
    assert told_by(infer_config="run/edited.json", model_kwargs={"topk": 0.4, "resize_hw": [64, 64]}) == [
        "--model-kwargs (topk)"
    ]


def test_a_configs_checkpoint_of_another_program_is_left_unread(place: Path) -> None:
    Path("model.pt").write_bytes(b"a pickle")
    model = {"name": MODEL["model"], "model_kwargs": MODEL["model_kwargs"], "checkpoint_path": "model.pt"}
    Path("theirs.json").write_text(json.dumps({"schema_version": 1, "model": model}))
    flags = ("--infer-config", "theirs.json", "--input", "set/test/good", "--scheduler", "sync")
    refused = infer_command(*flags, cwd=place)
    assert refused.rc == 2
    assert "model.pt' is not read: it is no saved state" in refused.stderr
    assert "give --train-dir DIR beside the config to fit vision_pixel_mad_map anew" in refused.stderr
    assert "add --model pyimgano:vision_pixel_mad_map" in refused.stderr
    fitted = infer_command(*flags, "--train-dir", "set/train/good", "--save-jsonl", "theirs.jsonl", cwd=place)
    assert fitted.rc == 0
    assert "vision_pixel_mad_map is fitted anew on --train-dir" in fitted.stderr
    named = ("--model", MODEL["model"], "--model-kwargs", json.dumps(MODEL["model_kwargs"]), *flags[2:])
    infer_command(*named, "--train-dir", "set/train/good", "--save-jsonl", "ours.jsonl", cwd=place)
    assert Path("theirs.jsonl").read_bytes() == Path("ours.jsonl").read_bytes()


def test_a_damaged_state_of_a_config_is_no_other_programs(place: Path) -> None:
    Path("torn.npz").write_bytes(Path("run/detector.npz").read_bytes()[:-100])
    model = {"name": MODEL["model"], "checkpoint_path": "torn.npz"}
    Path("torn.json").write_text(json.dumps({"schema_version": 1, "model": model}))
    flags = ("--infer-config", "torn.json", "--input", "set/test/good", "--train-dir", "set/train/good")
    done = infer_command(*flags, cwd=place)
    assert done.rc == 2
    assert "torn.npz' is not a detector state (.npz) of this package" in done.stderr
