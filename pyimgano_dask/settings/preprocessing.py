"""Knobs of illumination and contrast correction: the `preprocessing` block of an infer config, and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from pyimgano_dask.settings.knob import Block, knob

# More parts than any histogram can be taken of; the curves of all parts are held at once.
MAX_GRID = 256

IlluminationPreset = Literal[
    "illumination-contrast-balanced",
    "illumination-contrast-lowlight",
    "illumination-contrast-texture-boost",
    "illumination-contrast-aggressive",
    "illumination-contrast-no-homomorphic",
    "illumination-contrast-color-stable",
]


class IlluminationContrast(Block):
    """Correction of images between decoding and the detector; the steps run in the order of the fields."""

    white_balance: Literal["none", "gray_world", "max_rgb"] = knob(
        "none",
        "Scale the colour channels so that their means (gray_world) or their largest values (max_rgb) are equal. Does "
        "nothing to grey images.",
        flag="--white-balance",
    )
    homomorphic: bool = knob(
        False,
        "Even out slow changes of brightness by a filter on the logarithm of the image.",
        flag="--homomorphic",
    )
    homomorphic_cutoff: float = knob(
        0.5,
        "Where the homomorphic filter passes from slow to quick changes, as a share of half the longer side, in cycles "
        "per image.",
        flag="--homomorphic-cutoff",
        metavar="F",
        gt=0,
        le=1,
    )
    homomorphic_gamma_low: float = knob(
        0.7,
        "Gain of slow changes; below 1 evens out the illumination.",
        flag="--homomorphic-gamma-low",
        metavar="GAIN",
        ge=0,
        le=100,
    )
    homomorphic_gamma_high: float = knob(
        1.5,
        "Gain of quick changes; above 1 strengthens detail and noise.",
        flag="--homomorphic-gamma-high",
        metavar="GAIN",
        ge=0,
        le=100,
    )
    homomorphic_c: float = knob(
        1.0,
        "How sharply the filter passes from the one gain to the other.",
        flag="--homomorphic-c",
        metavar="C",
        ge=0,
        le=10**6,
    )
    homomorphic_per_channel: bool = knob(
        True,
        "Filter each colour channel by itself; without it the intensity is filtered and colours keep their ratios.",
        flag="--homomorphic-per-channel",
    )
    clahe: bool = knob(
        False,
        "Equalise the histogram of each part of the image, with limited contrast (CLAHE).",
        flag="--clahe",
    )
    clahe_clip_limit: float = knob(
        2.0,
        "Most that a bin of a histogram may hold, in multiples of the mean; smaller strengthens contrast less.",
        flag="--clahe-clip-limit",
        metavar="N",
        gt=0,
    )
    clahe_tile_grid_size: tuple[int, int] = knob(
        (8, 8), "Parts of the image, across and down.", flag="--clahe-tile-grid-size", metavar="COLUMNS ROWS"
    )
    gamma: float | None = knob(
        None,
        "Gamma correction, level^(1/gamma): above 1 brightens, below 1 darkens (default: none).",
        flag="--gamma",
        metavar="G",
        gt=0,
    )
    contrast_stretch: bool = knob(
        False,
        "Stretch the levels between two percentiles of each channel over the whole range.",
        flag="--contrast-stretch",
    )
    contrast_lower_percentile: float = knob(
        2.0, "Percentile that becomes black.", flag="--contrast-lower-percentile", metavar="P", ge=0, le=100
    )
    contrast_upper_percentile: float = knob(
        98.0, "Percentile that becomes white.", flag="--contrast-upper-percentile", metavar="P", ge=0, le=100
    )

    @property
    def is_on(self) -> bool:
        """Whether any step is on."""
        has_gamma = self.gamma is not None
        return self.white_balance != "none" or self.homomorphic or self.clahe or has_gamma or self.contrast_stretch

    @field_validator("clahe_tile_grid_size")
    @classmethod
    def _grid_has_parts(cls, grid: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= min(grid) <= max(grid) <= MAX_GRID:
            raise ValueError(f"{grid[0]} x {grid[1]} parts are not allowed; give two numbers from 1 to {MAX_GRID}")
        return grid

    @model_validator(mode="after")
    def _percentiles_are_in_order(self) -> Self:
        low, high = self.contrast_lower_percentile, self.contrast_upper_percentile
        if low >= high:
            raise ValueError(
                f"contrast_lower_percentile {low:g} is not below contrast_upper_percentile {high:g}; "
                "give two percentiles such as 2 and 98"
            )
        return self


class PreprocessingSettings(Block):
    """What happens to images between decoding and the detector."""

    preset: IlluminationPreset | None = knob(
        None,
        "Start from a named illumination and contrast correction; every value given beside it wins.",
        flag="--preprocessing-preset",
        metavar="NAME",
    )
    illumination_contrast: IlluminationContrast = IlluminationContrast()


_EVEN_LIGHT: Mapping[str, Any] = {"white_balance": "gray_world", "homomorphic": True, "clahe": True}
_UNFILTERED: Mapping[str, Any] = {
    "clahe": True,
    "homomorphic_cutoff": 0.25,
    "homomorphic_gamma_low": 0.8,
    "homomorphic_gamma_high": 1.2,
}
_PRESETS: Mapping[IlluminationPreset, Mapping[str, Any]] = {
    "illumination-contrast-balanced": {
        **_EVEN_LIGHT,
        "homomorphic_cutoff": 0.25,
        "homomorphic_gamma_low": 0.8,
        "homomorphic_gamma_high": 1.2,
        "contrast_lower_percentile": 1.0,
        "contrast_upper_percentile": 99.0,
    },
    "illumination-contrast-lowlight": {
        **_EVEN_LIGHT,
        "homomorphic_cutoff": 0.2,
        "homomorphic_gamma_high": 1.35,
        "clahe_clip_limit": 2.5,
        "gamma": 1.08,
        "contrast_lower_percentile": 0.5,
        "contrast_upper_percentile": 99.5,
    },
    "illumination-contrast-texture-boost": {**_UNFILTERED, "white_balance": "max_rgb", "clahe_clip_limit": 3.0},
    "illumination-contrast-aggressive": {
        **_EVEN_LIGHT,
        "homomorphic_cutoff": 0.18,
        "homomorphic_gamma_low": 0.65,
        "homomorphic_gamma_high": 1.45,
        "clahe_clip_limit": 3.5,
        "gamma": 1.05,
        "contrast_stretch": True,
        "contrast_lower_percentile": 0.5,
        "contrast_upper_percentile": 99.5,
    },
    "illumination-contrast-no-homomorphic": {
        **_UNFILTERED,
        "white_balance": "gray_world",
        "clahe_clip_limit": 2.2,
        "contrast_stretch": True,
        "contrast_lower_percentile": 1.0,
        "contrast_upper_percentile": 99.0,
    },
    "illumination-contrast-color-stable": {
        **_UNFILTERED,
        "white_balance": "max_rgb",
        "clahe_clip_limit": 1.8,
        "gamma": 1.03,
    },
}

ILLUMINATION_PRESETS: Mapping[IlluminationPreset, Mapping[str, Any]] = {
    name: IlluminationContrast(**values).model_dump() for name, values in _PRESETS.items()
}
"""Values by preset, names and values those of the predecessor package: each sets the whole block."""
