"""Settings that are allowed and do nothing, or surely not what was meant: told, not refused."""

from __future__ import annotations

from collections.abc import Iterator, Set

from pyimgano_dask.settings.catalog import Path, knobs
from pyimgano_dask.settings.defects import clamped_roi
from pyimgano_dask.settings.run import InferSettings

WITHOUT_DEFECTS = ("defects.enabled", "defects.preset")
JSON_BYTES_A_PIXEL = 20
"""What a float32 takes in a record, on average: 17 or 18 digits, a point, a comma and a space."""


def advice(settings: InferSettings, explicit: Set[Path]) -> Iterator[str]:
    """One sentence for each setting that has no effect; `explicit` are the paths of knobs given as flags."""
    if settings.output.include_anomaly_map_values:
        small, large = (JSON_BYTES_A_PIXEL * side**2 / 1e6 for side in (256, 1024))
        yield (
            f"--include-anomaly-map-values takes about {JSON_BYTES_A_PIXEL} bytes a pixel: {small:.1f} MB a record for "
            f"maps of 256×256, {large:.0f} MB for 1024×1024; --save-maps keeps the same values in 4 bytes a pixel"
        )
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
