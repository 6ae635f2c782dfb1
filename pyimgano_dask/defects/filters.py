"""Which components are kept, by their size, scores and shape."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pyimgano_dask.defects.components import Components
from pyimgano_dask.defects.regions import box_shapes
from pyimgano_dask.defects.solidity import solidities
from pyimgano_dask.settings.defects import DefectSettings


def any_filter_on(settings: DefectSettings) -> bool:
    """Whether the settings can drop a component at all."""
    return (
        settings.min_area > 1
        or settings.min_score_max is not None
        or settings.min_score_mean is not None
        or settings.shape_filters.any_on
    )


def passing(components: Components, settings: DefectSettings) -> Components:
    """The components that pass every filter, with their solidity when that is filtered by.

    Values are compared before they are rounded. Solidity is worked out only where everything else passes.
    """
    shape = settings.shape_filters
    keep = components.areas >= settings.min_area
    if settings.min_score_max is not None:
        keep &= components.score_max >= settings.min_score_max
    if settings.min_score_mean is not None:
        keep &= components.score_mean >= settings.min_score_mean
    _, fill_ratios, aspect_ratios = box_shapes(components.boxes_xyxy, components.areas)
    if shape.min_fill_ratio is not None:
        keep &= fill_ratios >= shape.min_fill_ratio
    if shape.max_aspect_ratio is not None:
        keep &= aspect_ratios <= shape.max_aspect_ratio
    kept = components.take(np.flatnonzero(keep))
    if shape.min_solidity is None:
        return kept
    solidity = solidities(kept)
    return replace(kept, solidity=solidity).take(np.flatnonzero(solidity >= shape.min_solidity))
