"""The block of illumination and contrast: its presets, its null, and what is refused with which path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.commands import RESCORE, knobs_of
from pyimgano_dask.settings.preprocessing import ILLUMINATION_PRESETS, IlluminationContrast
from pyimgano_dask.settings.resolve import given_by_keyword, resolve
from tests.settings.samples import load, write_config

BALANCED = "illumination-contrast-balanced"
LOWLIGHT = "illumination-contrast-lowlight"

# What the presets of these names hold in pyimgano 0.9.1, with the defaults of what they leave out.
DEFAULTS: dict[str, Any] = {
    "white_balance": "none",
    "homomorphic": False,
    "homomorphic_cutoff": 0.5,
    "homomorphic_gamma_low": 0.7,
    "homomorphic_gamma_high": 1.5,
    "homomorphic_c": 1.0,
    "homomorphic_per_channel": True,
    "clahe": False,
    "clahe_clip_limit": 2.0,
    "clahe_tile_grid_size": (8, 8),
    "gamma": None,
    "contrast_stretch": False,
    "contrast_lower_percentile": 2.0,
    "contrast_upper_percentile": 98.0,
}
COLUMNS = (
    *("white_balance", "homomorphic", "homomorphic_cutoff", "homomorphic_gamma_low", "homomorphic_gamma_high"),
    *("clahe", "clahe_clip_limit", "gamma", "contrast_stretch"),
    *("contrast_lower_percentile", "contrast_upper_percentile"),
)
PRESETS = {
    BALANCED: ("gray_world", True, 0.25, 0.8, 1.2, True, 2.0, None, False, 1.0, 99.0),
    LOWLIGHT: ("gray_world", True, 0.2, 0.7, 1.35, True, 2.5, 1.08, False, 0.5, 99.5),
    "illumination-contrast-texture-boost": ("max_rgb", False, 0.25, 0.8, 1.2, True, 3.0, None, False, 2.0, 98.0),
    "illumination-contrast-aggressive": ("gray_world", True, 0.18, 0.65, 1.45, True, 3.5, 1.05, True, 0.5, 99.5),
    "illumination-contrast-no-homomorphic": ("gray_world", False, 0.25, 0.8, 1.2, True, 2.2, None, True, 1.0, 99.0),
    "illumination-contrast-color-stable": ("max_rgb", False, 0.25, 0.8, 1.2, True, 1.8, 1.03, False, 2.0, 98.0),
}


def block(**preprocessing: Any) -> dict[str, Any]:
    return {"schema_version": 1, "preprocessing": preprocessing}


def correction_of(path: str, *flags: str) -> dict[str, Any]:
    return load(path, *flags).settings.preprocessing.illumination_contrast.model_dump()


def values_of(name: str) -> dict[str, Any]:
    return {**DEFAULTS, **dict(zip(COLUMNS, PRESETS[name], strict=True))}


def test_every_preset_is_there() -> None:
    assert set(ILLUMINATION_PRESETS) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_its_values_as_flag_and_in_a_config(name: str, tmp_path: Path) -> None:
    by_keyword = resolve(given_by_keyword({"preprocessing_preset": name})).settings.preprocessing
    assert by_keyword.illumination_contrast.model_dump() == values_of(name)
    assert correction_of(write_config(tmp_path, block(preset=name))) == values_of(name)


def test_a_preset_as_a_flag_sets_the_whole_block(tmp_path: Path) -> None:
    own = {"contrast_stretch": True, "homomorphic_c": 3.0, "clahe_tile_grid_size": [2, 3]}
    path = write_config(tmp_path, block(illumination_contrast=own))
    assert correction_of(path, "--preprocessing-preset", BALANCED) == values_of(BALANCED)


def test_what_is_given_beside_a_preset_wins(tmp_path: Path) -> None:
    path = write_config(tmp_path, block(preset=BALANCED, illumination_contrast={"clahe": False, "gamma": 0.5}))
    assert correction_of(path) == {**values_of(BALANCED), "clahe": False, "gamma": 0.5}
    found = correction_of(path, "--no-homomorphic", "--preprocessing-preset", LOWLIGHT, "--gamma", "2")
    assert found == {**values_of(LOWLIGHT), "homomorphic": False, "gamma": 2.0}


def test_null_is_no_correction_and_no_hindrance_to_flags(tmp_path: Path) -> None:
    path = write_config(tmp_path, block(illumination_contrast=None))
    assert load(path).warnings == ()
    assert correction_of(path) == DEFAULTS
    assert not IlluminationContrast(**correction_of(path)).is_on
    assert correction_of(path, "--clahe") == {**DEFAULTS, "clahe": True}
    assert correction_of(path, "--preprocessing-preset", LOWLIGHT) == values_of(LOWLIGHT)


def test_null_tiles_are_no_hindrance_to_flags_either(tmp_path: Path) -> None:
    path = write_config(tmp_path, {"schema_version": 1, "adaptation": {"tiling": None}})
    assert load(path, "--tile-size", "64").settings.adaptation.tiling.tile_size == 64


@pytest.mark.parametrize(
    "switch",
    [{"white_balance": "max_rgb"}, {"homomorphic": True}, {"clahe": True}, {"gamma": 1.0}, {"contrast_stretch": True}],
    ids=str,
)
def test_one_step_is_a_correction(switch: dict[str, Any]) -> None:
    assert IlluminationContrast(**switch).is_on


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("white_balance", "grey", "one of none, gray_world, max_rgb"),
        ("homomorphic", 1, "true or false"),
        ("homomorphic_cutoff", 0, "a finite number > 0 and ≤ 1"),
        ("homomorphic_cutoff", 1.01, "a finite number > 0 and ≤ 1"),
        ("homomorphic_gamma_low", -0.1, "a finite number ≥ 0 and ≤ 100"),
        ("homomorphic_gamma_high", "1", "a finite number"),
        ("homomorphic_c", -1, "a finite number ≥ 0"),
        ("homomorphic_per_channel", None, "true or false"),
        ("clahe_clip_limit", 0, "a finite number > 0"),
        ("clahe_tile_grid_size", [8], "2 numbers"),
        ("clahe_tile_grid_size", [8, 0], "two numbers from 1 to 256"),
        ("clahe_tile_grid_size", [257, 8], "two numbers from 1 to 256"),
        ("gamma", 0, "a finite number > 0 or null"),
        ("contrast_upper_percentile", 101, "a finite number ≥ 0 and ≤ 100"),
    ],
)
def test_a_fault_names_its_path_and_what_is_allowed(key: str, value: object, allowed: str, tmp_path: Path) -> None:
    path = write_config(tmp_path, block(illumination_contrast={key: value}))
    with pytest.raises(ConfigError) as caught:
        load(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: preprocessing.illumination_contrast.{key}")
    assert allowed in line


def test_percentiles_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path, block(illumination_contrast={"contrast_lower_percentile": 98}))
    said = re.escape("preprocessing.illumination_contrast: contrast_lower_percentile 98 is not below ")
    with pytest.raises(ConfigError, match=said):
        load(path)


@pytest.mark.parametrize("wrong", [[], "clahe", 1, True], ids=str)
def test_a_block_of_another_type_is_refused(wrong: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"preprocessing\.illumination_contrast: .* is not an object"):
        load(write_config(tmp_path, block(illumination_contrast=wrong)))


@pytest.mark.parametrize("name", ["", "balanced", 5, [BALANCED], {}], ids=str)
def test_an_unknown_preset_is_told_the_known_ones(name: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"preprocessing\.preset: .*{BALANCED}, {LOWLIGHT}"):
        load(write_config(tmp_path, block(preset=name)))


def test_a_flag_of_the_grid_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"--clahe-tile-grid-size: 0 x 8 parts are not allowed"):
        resolve(given_by_keyword({"clahe_tile_grid_size": [0, 8]}))


def test_scoring_stored_maps_anew_has_no_use_for_it() -> None:
    assert not [knob for knob in knobs_of(RESCORE) if knob.path[0] == "preprocessing"]
