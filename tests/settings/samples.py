"""Configs and flag values to try the settings with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyimgano_dask.cli.flags import attach_negative_values, explicit_values
from pyimgano_dask.cli.infer import build_parser
from pyimgano_dask.settings.catalog import Knob
from pyimgano_dask.settings.commands import INFER
from pyimgano_dask.settings.infer_config import read_infer_config
from pyimgano_dask.settings.resolve import Resolved, resolve

# Every key of schema version 1, each with a value that is not its default.
FULL_CONFIG: dict[str, Any] = {
    "schema_version": 1,
    "model": {
        "name": "vision_pixel_mad_map",
        "device": "cpu",
        "preset": "industrial-fast",
        "contamination": 0.05,
        "pretrained": False,
        "model_kwargs": {"resize_hw": [64, 64]},
        "checkpoint_path": "/data/detector.npz",
    },
    "adaptation": {
        "tiling": {
            "tile_size": 512,
            "stride": 384,
            "score_reduce": "topk_mean",
            "score_topk": 0.25,
            "map_reduce": "hann",
        },
        "postprocess": None,
        "save_maps": True,
    },
    "preprocessing": {
        "illumination_contrast": {
            "white_balance": "gray_world",
            "homomorphic": True,
            "homomorphic_cutoff": 0.25,
            "homomorphic_gamma_low": 0.8,
            "homomorphic_gamma_high": 1.25,
            "homomorphic_c": 2.0,
            "homomorphic_per_channel": False,
            "clahe": True,
            "clahe_clip_limit": 3.0,
            "clahe_tile_grid_size": [4, 6],
            "gamma": 1.25,
            "contrast_stretch": True,
            "contrast_lower_percentile": 1.0,
            "contrast_upper_percentile": 99.0,
        }
    },
    "defects": {
        "enabled": True,
        "pixel_threshold": 0.5,
        "pixel_threshold_strategy": "fixed",
        "pixel_normal_quantile": 0.99,
        "mask_format": "npy",
        "roi_xyxy_norm": [0.1, 0.1, 0.9, 1],
        "border_ignore_px": 2,
        "map_smoothing": {"method": "median", "ksize": 3, "sigma": 1.5},
        "hysteresis": {"enabled": True, "low": 0.25, "high": 0.75},
        "shape_filters": {"min_fill_ratio": 0.1, "max_aspect_ratio": 8.0, "min_solidity": 0.5},
        "merge_nearby": {"enabled": True, "max_gap_px": 4},
        "min_area": 5,
        "min_score_max": 0.6,
        "min_score_mean": 0.5,
        "open_ksize": 2,
        "close_ksize": 3,
        "fill_holes": True,
        "max_regions": 10,
        "max_regions_sort_by": "area",
    },
    "threshold": 0.75,
    "threshold_provenance": {"method": "quantile", "source": "train_dir"},
    "pixel_threshold_provenance": {"method": "fixed"},
    "checkpoint": {"path": "/data/detector.npz", "sha256": "0" * 64},
    "category": "bolt",
    "per_category": {"bolt": {"threshold": 0.5, "threshold_provenance": {}, "checkpoint": {"path": "/data/bolt.npz"}}},
    "from_run": "/data/run",
    "environment": {"python": "3.11"},
}


def write_config(folder: Path, config: object, name: str = "infer_config.json") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(config), encoding="utf-8")
    return str(path)


def load(path: str, *flags: str, category: str | None = None) -> Resolved:
    """What `pyimgano-infer --infer-config PATH FLAGS` would run with."""
    arguments = build_parser("pyimgano-infer", ("--infer-config",)).parse_args(
        attach_negative_values(["--infer-config", path, *flags], INFER)
    )
    return resolve(explicit_values(vars(arguments), INFER), read_infer_config(path, category))


def nested(knob: Knob, value: Any) -> dict[str, Any]:
    """The config that sets one knob."""
    for name in reversed(knob.path):
        value = {name: value}
    return dict(value)


def merged(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {**base, **other}
    for key in base.keys() & other.keys():
        if isinstance(base[key], dict) and isinstance(other[key], dict):
            both[key] = merged(base[key], other[key])
    return both


def value_of(settings: Any, knob: Knob) -> Any:
    for name in knob.path:
        settings = getattr(settings, name)
    return settings


def words(knob: Knob, value: Any) -> list[str]:
    """How a value is given on the command line."""
    assert knob.flag is not None
    if knob.is_switch:
        return [knob.flag if value else knob.flag.replace("--", "--no-", 1)]
    if isinstance(value, (list, tuple)):
        return [knob.flag, *map(str, value)]
    return [knob.flag, json.dumps(value) if isinstance(value, dict) else str(value)]


def bound(knob: Knob, *names: str) -> Any:
    """The first of these pydantic bounds that a knob has, else None."""
    limits = [getattr(limit, name) for limit in knob.field.metadata for name in names if hasattr(limit, name)]
    return limits[0] if limits else None


_SPECIAL = {
    "dataflow.scheduler": ("threads", "sync"),
    "model.checkpoint_path": ("/data/a.npz", "/data/b.npz"),
    "output.overlay_scale": ("run", "-1,2.5"),
    "preprocessing.illumination_contrast.clahe_tile_grid_size": ([2, 3], [4, 5]),
    "dataflow.performance_report": ("report.html", "other.HTML"),
}


def two_values(knob: Knob) -> tuple[Any, Any]:
    """Two different allowed values, both other than the default where the type has three values or more."""
    if knob.key in _SPECIAL:
        return _SPECIAL[knob.key]
    if knob.is_switch:
        return (not knob.default, bool(knob.default))
    if knob.choices:
        others = [choice for choice in knob.choices if choice != knob.default]
        return (others[0], others[1]) if len(others) > 1 else (others[0], str(knob.default))
    if knob.kind is int:
        low = bound(knob, "ge") or 0
        return low + 3, low + 4
    if knob.kind is float:
        low, high = bound(knob, "ge", "gt") or 0, bound(knob, "le", "lt") or 1
        return low + (high - low) * 0.25, low + (high - low) * 0.5
    if knob.width is not None:
        return [0.25] * knob.width, [0.5] * knob.width
    if knob.is_repeatable:
        return ["one"], ["two", "three"]
    return ("one", "two") if knob.kind is str else ({"a": 1}, {"b": [2]})
