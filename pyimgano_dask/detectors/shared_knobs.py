"""Arguments that several detectors have, each said once."""

from __future__ import annotations

from typing import Any

from pyimgano_dask.settings.knob import knob


def contamination_knob() -> Any:
    """The expected share of anomalies among the normal images, whose upper quantile becomes the score threshold."""
    return knob(0.01, "Expected share of anomalies among the normal images.", gt=0, le=0.5)


def random_state_knob() -> Any:
    """The seed of a detector that draws at random."""
    return knob(0, "Seed of everything drawn at random.", ge=0, lt=2**63)


def smoothing_sigma_knob(default: float) -> Any:
    """The smoothing of the map, in a detector that resizes images to image_size."""
    return knob(default, "Gaussian smoothing of the map, in pixels of image_size; 0 is none.", ge=0, le=512)
