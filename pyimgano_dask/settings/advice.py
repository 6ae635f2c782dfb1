"""Settings that are allowed and do nothing, or surely not what was meant: told, not refused."""

from __future__ import annotations

from collections.abc import Iterator, Set

from pyimgano_dask.settings.catalog import Path, knobs
from pyimgano_dask.settings.defects import clamped_roi
from pyimgano_dask.settings.preprocessing import IlluminationContrast
from pyimgano_dask.settings.run import InferSettings
from pyimgano_dask.settings.tiling import TilingSettings

WITHOUT_DEFECTS = ("defects.enabled", "defects.preset")
JSON_BYTES_A_PIXEL = 20
"""What a float32 takes in a record, on average: 17 or 18 digits, a point, a comma and a space."""
TILING = ("adaptation", "tiling")
ILLUMINATION = ("preprocessing", "illumination_contrast")
STEPS = {"homomorphic": "homomorphic_", "clahe": "clahe_", "contrast_stretch": "contrast_"}
"""Steps of the correction that are switched on, and what the names of their parameters begin with."""
SENSIBLE_TILE = 32
MOST_LOOKS = 16


def advice(settings: InferSettings, explicit: Set[Path]) -> Iterator[str]:
    """One sentence for each setting that has no effect; `explicit` are the paths of knobs given as flags."""
    if settings.output.include_anomaly_map_values:
        small, large = (JSON_BYTES_A_PIXEL * side**2 / 1e6 for side in (256, 1024))
        yield (
            f"--include-anomaly-map-values takes about {JSON_BYTES_A_PIXEL} bytes a pixel: {small:.1f} MB a record for "
            f"maps of 256×256, {large:.0f} MB for 1024×1024; --save-maps keeps the same values in 4 bytes a pixel"
        )
    yield from _of_tiling(settings.adaptation.tiling, explicit)
    yield from _of_illumination(settings.preprocessing.illumination_contrast, explicit)
    yield from _of_defects(settings, explicit)


def _of_tiling(tiling: TilingSettings, explicit: Set[Path]) -> Iterator[str]:
    tile, stride = tiling.tile_size, tiling.stride
    if tile is None:
        for knob in knobs():
            if knob.path in explicit and knob.path[:2] == TILING:
                yield f"{knob.flag} does nothing without --tile-size"
        return
    if (*TILING, "score_topk") in explicit and tiling.score_reduce != "topk_mean":
        yield "--tile-score-topk does nothing without --tile-score-reduce topk_mean"
    if tile < SENSIBLE_TILE:
        yield f"--tile-size {tile} is very small, a detector sees next to nothing in it; take {SENSIBLE_TILE} or more"
    if tiling.map_reduce != "max" and (stride is None or stride == tile):
        yield (
            f"--tile-map-reduce {tiling.map_reduce} blends nothing where tiles do not overlap; "
            f"give a --tile-stride such as {max(1, 3 * tile // 4)}"
        )
    if stride is not None and stride < tile and (tile / stride) ** 2 > MOST_LOOKS:
        yield (
            f"--tile-stride {stride}: each pixel is scored about {(tile / stride) ** 2:,.0f} times; "
            f"{tile // 2} or more of {tile} is usual"
        )


def _of_illumination(correction: IlluminationContrast, explicit: Set[Path]) -> Iterator[str]:
    for knob in knobs():
        if knob.path not in explicit or knob.path[:2] != ILLUMINATION:
            continue
        for step, prefix in STEPS.items():
            if knob.path[-1].startswith(prefix) and knob.path[-1] != step and not getattr(correction, step):
                yield f"{knob.flag} does nothing without --{step.replace('_', '-')}"


def _of_defects(settings: InferSettings, explicit: Set[Path]) -> Iterator[str]:
    defects = settings.defects
    if not defects.enabled:
        for knob in knobs():
            if knob.path in explicit and knob.path[0] == "defects" and knob.key not in WITHOUT_DEFECTS:
                yield f"{knob.flag} does nothing without --defects"
        return
    smoothing = defects.map_smoothing
    if smoothing.method != "none" and not smoothing.is_on:
        also = " or --defect-map-smoothing-sigma" if smoothing.method == "gaussian" else ""
        yield f"--defect-map-smoothing {smoothing.method} does nothing yet; give --defect-map-smoothing-ksize{also}"
    hysteresis = defects.hysteresis
    if not hysteresis.enabled and (hysteresis.low is not None or hysteresis.high is not None):
        yield "--defect-hysteresis-low and --defect-hysteresis-high do nothing without --defect-hysteresis"
    merging = defects.merge_nearby
    if merging.enabled and merging.max_gap_px == 0:
        yield "--defect-merge-nearby does nothing yet; give --defect-merge-nearby-max-gap-px"
    if not merging.enabled and merging.max_gap_px > 0:
        yield "--defect-merge-nearby-max-gap-px does nothing without --defect-merge-nearby"
    calibrates = settings.training.train_dir is not None
    if ("defects", "pixel_normal_quantile") in explicit and not calibrates:
        yield (
            "--pixel-normal-quantile does nothing without normal images (pyimgano-infer --train-dir); "
            "give --pixel-threshold to change the threshold"
        )
    roi = defects.roi_xyxy_norm
    if roi is not None:
        x1, y1, x2, y2 = clamped_roi(roi)
        words = " ".join(f"{edge:g}" for edge in roi)
        if x1 == x2 or y1 == y2:
            yield f"--roi-xyxy-norm {words} has no area from 0 to 1; give fractions such as 0.1 0.1 0.9 0.9"
        elif not 0 <= min(roi) <= max(roi) <= 1:
            yield f"--roi-xyxy-norm {words} is cut down to fractions from 0 to 1"
