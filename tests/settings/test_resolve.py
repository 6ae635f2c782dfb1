"""Precedence: built-in default < infer config < explicit flag, for every knob."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.catalog import Knob, knobs
from pyimgano_dask.settings.commands import INFER, knobs_of
from pyimgano_dask.settings.infer_config import read_infer_config
from pyimgano_dask.settings.resolve import given_by_keyword, resolve
from tests.settings.samples import load, merged, nested, two_values, value_of, words, write_config

# What some knobs need beside them.
COMPANIONS: Mapping[str, dict[str, Any]] = {
    "defects.image_space": {"defects": {"enabled": True}},
    "output.save_masks": {"defects": {"enabled": True}},
    "output.include_anomaly_map_values": {"adaptation": {"save_maps": True}},
    "dataflow.tls_ca": {"dataflow": {"scheduler": "tls://host:1", "tls_cert": "c.pem", "tls_key": "k.pem"}},
    "dataflow.tls_cert": {"dataflow": {"scheduler": "tls://host:1", "tls_ca": "a.pem", "tls_key": "k.pem"}},
    "dataflow.tls_key": {"dataflow": {"scheduler": "tls://host:1", "tls_ca": "a.pem", "tls_cert": "c.pem"}},
    "dataflow.performance_report": {"dataflow": {"scheduler": "local-cluster"}},
    "training.calibration_quantile": {"training": {"train_dir": "normal"}},
    "dataflow.resume": {"dataflow": {"run_dir": "runs/1"}},
    "dataflow.gpu_resource": {"dataflow": {"scheduler": "tcp://127.0.0.1:8786"}},
}

FLAGGED = knobs_of(INFER)
every_knob = pytest.mark.parametrize("knob", FLAGGED, ids=lambda knob: knob.flag)
# A detector's name is a source, and a config is another: both at once are refused.
every_knob_beside_a_config = pytest.mark.parametrize(
    "knob", [knob for knob in FLAGGED if knob.flag != "--model"], ids=lambda knob: knob.flag
)


def config_of(folder: Path, knob: Knob, *values: Any) -> str:
    config = {"schema_version": 1, **COMPANIONS.get(knob.key, {})}
    for value in values:
        config = merged(config, nested(knob, value))
    return write_config(folder, config)


def normal(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@every_knob_beside_a_config
def test_the_default_stands_where_nothing_is_said(knob: Knob, tmp_path: Path) -> None:
    resolved = load(write_config(tmp_path, {"schema_version": 1}))
    assert value_of(resolved.settings, knob) == knob.default
    assert not resolved.is_explicit(knob.key)


@every_knob
def test_the_config_wins_over_the_default(knob: Knob, tmp_path: Path) -> None:
    for value in two_values(knob):
        resolved = load(config_of(tmp_path, knob, value))
        assert normal(value_of(resolved.settings, knob)) == value
        assert not resolved.is_explicit(knob.key)


@every_knob_beside_a_config
def test_the_flag_wins_over_the_config(knob: Knob, tmp_path: Path) -> None:
    for from_config, from_flag in (two_values(knob), two_values(knob)[::-1]):
        resolved = load(config_of(tmp_path, knob, from_config), *words(knob, from_flag))
        assert normal(value_of(resolved.settings, knob)) == from_flag
        assert resolved.is_explicit(knob.key)


@pytest.mark.parametrize(
    "knob", [k for k in FLAGGED if k.default is not None and k.default != ()], ids=lambda knob: knob.flag
)
def test_the_flag_wins_also_with_the_default_as_its_value(knob: Knob, tmp_path: Path) -> None:
    other = next(value for value in two_values(knob) if value != knob.default)
    resolved = load(config_of(tmp_path, knob, other), *words(knob, knob.default))
    assert value_of(resolved.settings, knob) == knob.default
    assert resolved.is_explicit(knob.key)


@every_knob
def test_the_keyword_wins_over_the_config(knob: Knob, tmp_path: Path) -> None:
    from_config, from_keyword = two_values(knob)
    config = read_infer_config(config_of(tmp_path, knob, from_config))
    resolved = resolve(given_by_keyword({knob.dest: from_keyword}), config)
    assert normal(value_of(resolved.settings, knob)) == from_keyword
    assert resolved.is_explicit(knob.key)


@pytest.mark.parametrize(
    "knob",
    [knob for knob in FLAGGED if knob.flag not in ("--model", "--defects-preset", "--preprocessing-preset")],
    ids=lambda knob: knob.flag,
)
def test_a_flag_changes_nothing_but_its_knob(knob: Knob, tmp_path: Path) -> None:
    from_config, from_flag = two_values(knob)
    path = config_of(tmp_path, knob, from_config)
    before, after = load(path).settings, load(path, *words(knob, from_flag)).settings
    changed = [other.key for other in knobs() if value_of(before, other) != value_of(after, other)]
    assert changed == [knob.key]


def test_a_config_block_that_is_no_object_is_told_beside_a_flag_of_it(tmp_path: Path) -> None:
    for block in (None, 5, "off", [1]):
        path = write_config(tmp_path, {"schema_version": 1, "defects": block, "output": {"save_maps": 3}})
        with pytest.raises(ConfigError) as caught:
            load(path, "--defects", "--defect-hysteresis")
        assert "defects" in str(caught.value)
        assert "output.save_maps: 3" in str(caught.value)


def test_flag_faults_bear_the_flag_and_config_faults_the_file_and_path(tmp_path: Path) -> None:
    path = write_config(tmp_path, {"schema_version": 1, "defects": {"min_area": -1, "border_ignore_px": -1}})
    with pytest.raises(ConfigError) as caught:
        load(path, "--defect-border-ignore-px=-2")
    assert sorted(str(caught.value).splitlines()) == sorted(
        [
            f"{path}: defects.min_area: -1 is not allowed; expected a whole number ≥ 0",
            "--defect-border-ignore-px: -2 is not allowed; expected a whole number ≥ 0",
        ]
    )


def test_the_config_is_left_as_it_was(tmp_path: Path) -> None:
    config = read_infer_config(write_config(tmp_path, {"schema_version": 1, "defects": {"min_area": 3}}))
    resolve(given_by_keyword({"defect_min_area": 5}), config)
    assert resolve({}, config).settings.defects.min_area == 3


def test_keywords_take_paths_and_single_inputs(tmp_path: Path) -> None:
    settings = resolve(given_by_keyword({"input": tmp_path, "train_dir": tmp_path / "good"})).settings
    assert settings.inputs.input == (str(tmp_path),)
    assert settings.training.train_dir == str(tmp_path / "good")
    assert resolve(given_by_keyword({"input": [tmp_path, "b.png"]})).settings.inputs.input == (str(tmp_path), "b.png")


def test_an_unknown_keyword_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown setting save_json"):
        given_by_keyword({"save_json": "x", "defects": True})


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", 1 + 2j], ids=lambda value: type(value).__name__)
def test_a_keyword_of_a_wrong_type_is_named(value: object) -> None:
    with pytest.raises(ConfigError, match="--pixel-threshold"):
        resolve(given_by_keyword({"pixel_threshold": value}))


@pytest.mark.parametrize("number", [np.float64(0.5), np.float32(0.5)], ids=lambda number: type(number).__name__)
def test_a_keyword_takes_a_numpy_number(number: np.floating[Any]) -> None:
    assert resolve(given_by_keyword({"pixel_threshold": number})).settings.defects.pixel_threshold == 0.5
