"""Settings of the model that the chosen detector has no argument for are told before the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pyimgano_dask
from pyimgano_dask.dataflow.detector_advice import chosen_arguments, detector_advice
from pyimgano_dask.detectors.registry import detector_types, find_detector_type
from pyimgano_dask.settings.infer_config import read_infer_config
from pyimgano_dask.settings.resolve import given_by_keyword, resolve
from tests.cli.command import command
from tests.dataflow.doubles import ReportsInferenceMode
from tests.settings.samples import write_config

MAD, DIFF = "vision_pixel_mad_map", "vision_reference_diff_map"


def advice(**keywords: Any) -> list[str]:
    return list(detector_advice(resolve(given_by_keyword(keywords))))


@pytest.mark.parametrize(
    ("model", "keywords", "flag"),
    [
        (MAD, {"device": "cuda"}, "--device"),
        (DIFF, {"device": "cpu"}, "--device"),
        (DIFF, {"seed": 0}, "--seed"),
        (MAD, {"pretrained": True}, "--pretrained"),
        (MAD, {"pretrained": False}, "--no-pretrained"),
    ],
)
def test_a_flag_without_an_argument_is_told(model: str, keywords: dict[str, Any], flag: str) -> None:
    (sentence,) = advice(model=model, **keywords)
    assert sentence.startswith(f"{flag} does nothing: {model} has no such argument")
    assert ("runs on the CPU" in sentence) == (flag == "--device")


@pytest.mark.parametrize(
    ("model", "keywords"),
    [
        (MAD, {"seed": 3, "contamination": 0.1, "train_dir": "good"}),
        (MAD, {}),
        ("no_such_detector", {"device": "cuda"}),
    ],
)
def test_nothing_is_said_of_arguments_that_are_there(model: str, keywords: dict[str, Any]) -> None:
    assert advice(model=model, **keywords) == []


def test_a_contamination_without_images_to_calibrate_on_is_told(tmp_path: Path) -> None:
    config = read_infer_config(write_config(tmp_path, {"schema_version": 1, "model": {"name": MAD}}))
    (sentence,) = detector_advice(resolve(given_by_keyword({"contamination": 0.1}), config))
    assert sentence.startswith("--contamination does nothing without --train-dir")
    configured = write_config(tmp_path, {"schema_version": 1, "model": {"name": MAD, "contamination": 0.1}})
    assert list(detector_advice(resolve({}, read_infer_config(configured)))) == []


def test_all_of_them_are_told_at_once() -> None:
    assert len(advice(model=DIFF, device="cuda", seed=1, pretrained=True, contamination=0.1, train_dir="good")) == 3


def test_of_a_config_only_a_device_that_is_not_used_is_told(tmp_path: Path) -> None:
    for device, told in (("cpu", 0), ("cuda", 1)):
        model = {"name": DIFF, "device": device, "pretrained": True, "seed": 3}
        config = read_infer_config(write_config(tmp_path, {"schema_version": 1, "model": model}))
        assert len(list(detector_advice(resolve({}, config)))) == told


def test_arguments_that_a_detector_has_are_handed_over() -> None:
    settings = resolve(given_by_keyword({"device": "cuda:1", "contamination": 0.2, "seed": 0})).settings
    assert chosen_arguments(settings.model, ReportsInferenceMode) == {"device": "cuda:1"}
    assert chosen_arguments(settings.model, find_detector_type(MAD)) == {"contamination": 0.2, "random_state": 0}
    assert {"contamination"} <= {
        name for kind in detector_types().values() for name in chosen_arguments(settings.model, kind)
    }


def test_the_command_tells_it_before_the_run(tmp_path: Path) -> None:
    answer = command("--model", MAD, "--device", "cuda", "--input", "none.png", cwd=tmp_path)
    first, second = answer.stderr.splitlines()
    assert answer.code == 2
    assert first.startswith("pyimgano-infer: warning: --device does nothing: ")
    assert second.startswith("pyimgano-infer: error: --input: ")


def test_python_tells_it_as_a_warning(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match="--seed does nothing: vision_reference_diff_map"),
        pytest.raises(pyimgano_dask.ConfigError),
    ):
        pyimgano_dask.infer(model=DIFF, seed=1, input=tmp_path / "none.png")
