"""The preprocess stage: a decoded image on its way to the detector."""

from __future__ import annotations

from pyimgano_dask.detectors.base import Image
from pyimgano_dask.images.illumination import (
    clahe,
    contrast_stretch,
    gamma_correction,
    gray_world,
    homomorphic_filter,
    max_rgb,
)
from pyimgano_dask.settings.preprocessing import IlluminationContrast


def correct(image: Image, knobs: IlluminationContrast) -> Image:
    """The image, uint8 RGB (H, W, 3) or grey (H, W), after each step that is on, in the order of the settings.

    A new array of the same shape; the image itself where no step changes it.
    """
    if knobs.white_balance != "none":
        image = gray_world(image) if knobs.white_balance == "gray_world" else max_rgb(image)
    if knobs.homomorphic:
        image = homomorphic_filter(
            image,
            cutoff=knobs.homomorphic_cutoff,
            gamma_low=knobs.homomorphic_gamma_low,
            gamma_high=knobs.homomorphic_gamma_high,
            c=knobs.homomorphic_c,
            per_channel=knobs.homomorphic_per_channel,
        )
    if knobs.clahe:
        image = clahe(image, knobs.clahe_clip_limit, knobs.clahe_tile_grid_size)
    if knobs.gamma is not None:
        image = gamma_correction(image, knobs.gamma)
    if knobs.contrast_stretch:
        image = contrast_stretch(image, knobs.contrast_lower_percentile, knobs.contrast_upper_percentile)
    return image
