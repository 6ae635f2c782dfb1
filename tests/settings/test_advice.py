"""Settings that do nothing are told, not refused; settings that work are not mentioned."""

from __future__ import annotations

from typing import Any

import pytest

from pyimgano_dask.settings.preprocessing import ILLUMINATION_PRESETS
from pyimgano_dask.settings.presets import DEFECT_PRESETS
from pyimgano_dask.settings.resolve import given_by_keyword, resolve


def advice(**keywords: Any) -> tuple[str, ...]:
    return resolve(given_by_keyword(keywords)).advice


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"defect_min_area": 3, "defects": False}, "--defect-min-area does nothing without --defects"),
        ({"explain_defects": "counts", "defects": False}, "--explain-defects does nothing without --defects"),
        ({"defect_map_smoothing": "median"}, "give --defect-map-smoothing-ksize"),
        ({"defect_map_smoothing": "gaussian"}, "--defect-map-smoothing-sigma"),
        ({"defect_hysteresis_low": 2.0}, "nothing without --defect-hysteresis"),
        ({"defect_merge_nearby": True}, "--defect-merge-nearby-max-gap-px"),
        ({"defect_merge_nearby_max_gap_px": 3}, "nothing without --defect-merge-nearby"),
        ({"pixel_normal_quantile": 0.9}, "give --pixel-threshold"),
        ({"roi_xyxy_norm": [10.0, 10.0, 90.0, 90.0]}, "has no area from 0 to 1"),
        ({"include_anomaly_map_values": True}, "1.3 MB a record for maps of 256×256, 21 MB for 1024×1024"),
        ({"roi_xyxy_norm": [-0.1, 0.0, 1.0, 1.0]}, "cut down to fractions from 0 to 1"),
        ({"tile_stride": 64}, "--tile-stride does nothing without --tile-size"),
        ({"tile_map_reduce": "hann"}, "--tile-map-reduce does nothing without --tile-size"),
        ({"tile_size": 64, "tile_score_topk": 0.5}, "nothing without --tile-score-reduce topk_mean"),
        ({"tile_size": 31}, "take 32 or more"),
        ({"tile_size": 64, "tile_map_reduce": "hann"}, "give a --tile-stride such as 48"),
        ({"tile_size": 64, "tile_stride": 64, "tile_map_reduce": "mean"}, "give a --tile-stride such as 48"),
        ({"tile_size": 64, "tile_stride": 8}, "each pixel is scored about 64 times; 32 or more of 64 is usual"),
        ({"homomorphic_cutoff": 0.1}, "--homomorphic-cutoff does nothing without --homomorphic"),
        ({"homomorphic_per_channel": False, "clahe": True}, "does nothing without --homomorphic"),
        ({"clahe_clip_limit": 3.0}, "--clahe-clip-limit does nothing without --clahe"),
        ({"contrast_upper_percentile": 99.0}, "nothing without --contrast-stretch"),
    ],
)
def test_one_sentence_for_each_setting_without_effect(keywords: dict[str, Any], said: str) -> None:
    (sentence,) = advice(**{"defects": True, **keywords})
    assert said in sentence


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"defect_map_smoothing": "gaussian", "defect_map_smoothing_sigma": 1.0},
        {"defect_map_smoothing": "median", "defect_map_smoothing_ksize": 3},
        {"defect_hysteresis": True, "defect_hysteresis_low": 2.0},
        {"pixel_normal_quantile": 0.9, "train_dir": "good"},
        {"roi_xyxy_norm": [0.9, 0.9, 0.1, 0.1]},
        {"tile_size": 512},
        {"tile_size": 512, "tile_stride": 384, "tile_map_reduce": "hann"},
        {"tile_size": 64, "tile_score_reduce": "topk_mean", "tile_score_topk": 0.5},
        {"homomorphic": True, "homomorphic_cutoff": 0.1, "clahe": True, "clahe_tile_grid_size": [4, 4]},
        {"contrast_stretch": True, "contrast_lower_percentile": 0.0},
        *({"defects_preset": name} for name in DEFECT_PRESETS),
        *({"preprocessing_preset": name} for name in ILLUMINATION_PRESETS),
    ],
)
def test_nothing_is_said_of_settings_that_work(keywords: dict[str, Any]) -> None:
    assert advice(**{"defects": True, **keywords}) == ()
