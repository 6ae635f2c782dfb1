"""`--defects-preset`: a starting point that everything given beside it wins over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.defects import DefectSettings
from pyimgano_dask.settings.presets import DEFECT_PRESETS
from pyimgano_dask.settings.resolve import given_by_keyword, resolve
from tests.settings.samples import load, write_config

NAMES = ("industrial-fp40", "industrial-defects-fp40")
FP40 = {
    "enabled": True,
    "preset": "industrial-fp40",
    "explain": "none",
    "image_space": False,
    "mask_format": "png",
    "pixel_threshold": None,
    "pixel_threshold_strategy": "normal_pixel_quantile",
    "pixel_normal_quantile": 0.999,
    "roi_xyxy_norm": [0.1, 0.1, 0.9, 0.9],
    "border_ignore_px": 2,
    "map_smoothing": {"method": "median", "ksize": 3, "sigma": 0.0},
    "hysteresis": {"enabled": True, "low": None, "high": None},
    "shape_filters": {"min_fill_ratio": 0.15, "max_aspect_ratio": 6.0, "min_solidity": 0.8},
    "merge_nearby": {"enabled": True, "max_gap_px": 1},
    "min_area": 16,
    "min_score_max": 0.6,
    "min_score_mean": None,
    "open_ksize": 0,
    "close_ksize": 0,
    "fill_holes": False,
    "max_regions": 20,
    "max_regions_sort_by": "score_max",
}


def in_json(defects: DefectSettings) -> dict[str, Any]:
    return json.loads(defects.model_dump_json())  # type: ignore[no-any-return]


def test_every_preset_has_a_name_the_settings_know() -> None:
    assert set(DEFECT_PRESETS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["keyword", "config"])
def test_its_values(name: str, how: str, tmp_path: Path) -> None:
    if how == "keyword":
        settings = resolve(given_by_keyword({"defects_preset": name})).settings
    else:
        settings = load(write_config(tmp_path, {"schema_version": 1, "defects": {"preset": name}})).settings
    assert in_json(settings.defects) == {**FP40, "preset": name}


def test_only_the_named_block_changes() -> None:
    without, with_preset = resolve({}).settings, resolve(given_by_keyword({"defects_preset": NAMES[0]})).settings
    assert with_preset.model_copy(update={"defects": without.defects}) == without


def test_a_config_wins_over_its_own_preset(tmp_path: Path) -> None:
    defects = {
        "preset": NAMES[0],
        "enabled": False,
        "min_area": 0,
        "roi_xyxy_norm": None,
        "hysteresis": {"low": 0.25},
        "shape_filters": {"min_solidity": None},
    }
    found = in_json(load(write_config(tmp_path, {"schema_version": 1, "defects": defects})).settings.defects)
    assert found == {
        **FP40,
        "enabled": False,
        "min_area": 0,
        "roi_xyxy_norm": None,
        "hysteresis": {"enabled": True, "low": 0.25, "high": None},
        "shape_filters": {"min_fill_ratio": 0.15, "max_aspect_ratio": 6.0, "min_solidity": None},
    }


def test_an_explicit_preset_wins_over_the_config_and_explicit_flags_over_all(tmp_path: Path) -> None:
    config = write_config(
        tmp_path, {"schema_version": 1, "defects": {"min_area": 3, "border_ignore_px": 9, "open_ksize": 5}}
    )
    found = in_json(load(config, "--defect-border-ignore-px", "0", "--defects-preset", NAMES[0]).settings.defects)
    assert found == {**FP40, "border_ignore_px": 0, "open_ksize": 5}


def test_it_turns_defects_on_unless_a_flag_turns_them_off(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"schema_version": 1, "defects": {"enabled": False}})
    assert load(config, "--defects-preset", NAMES[0]).settings.defects.enabled
    assert not load(config, "--defects-preset", NAMES[0], "--no-defects").settings.defects.enabled


@pytest.mark.parametrize("name", ["", "industrial", "INDUSTRIAL-FP40", 5, ["industrial-fp40"], {}], ids=str)
def test_an_unknown_one_is_told_the_known_ones(name: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"defects\.preset: .*industrial-fp40, industrial-defects-fp40"):
        load(write_config(tmp_path, {"schema_version": 1, "defects": {"preset": name}}))
    if isinstance(name, str):
        with pytest.raises(ConfigError, match=r"--defects-preset: .*industrial-fp40, industrial-defects-fp40"):
            resolve(given_by_keyword({"defects_preset": name}))
