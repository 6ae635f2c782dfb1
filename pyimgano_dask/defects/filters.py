"""Which components are kept, by their size, scores and shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from pyimgano_dask.defects.components import Components
from pyimgano_dask.defects.regions import box_shapes
from pyimgano_dask.defects.solidity import solidities
from pyimgano_dask.settings.defects import DefectSettings


@dataclass(frozen=True, eq=False)
class Check:
    """One filter on components: the values it looks at, (N,), and whether each passes, bool (N,)."""

    control: str
    limit: float
    values: np.ndarray
    passes: np.ndarray


@dataclass(frozen=True, eq=False)
class Verdict:
    """What one filter drops: rows, int64 (N,), that passed all filters before it, and their values, float64 (N,)."""

    control: str
    limit: float
    failed: np.ndarray
    values: np.ndarray


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
    keep = np.ones(len(components), np.bool_)
    for check in _checks(components, settings):
        keep &= check.passes
    kept = components.take(np.flatnonzero(keep))
    min_solidity = settings.shape_filters.min_solidity
    if min_solidity is None:
        return kept
    solidity = solidities(kept)
    return replace(kept, solidity=solidity).take(np.flatnonzero(solidity >= min_solidity))


def verdicts(components: Components, settings: DefectSettings) -> Iterator[Verdict]:
    """Each filter that is on, in order, with the components it is the first to drop."""
    left: np.ndarray = np.arange(len(components))
    for check in _checks(components, settings):
        passes = check.passes[left]
        failed = left[~passes]
        yield Verdict(check.control, check.limit, failed, check.values[failed].astype(np.float64))
        left = left[passes]
    min_solidity = settings.shape_filters.min_solidity
    if min_solidity is not None:
        solidity = solidities(components.take(left))
        fails = ~(solidity >= min_solidity)
        yield Verdict("min_solidity", min_solidity, left[fails], solidity[fails])


def _checks(components: Components, settings: DefectSettings) -> Iterator[Check]:
    """Every filter that is on, in order, but for solidity."""
    shape = settings.shape_filters
    if settings.min_area > 1:
        yield _at_least("min_area", settings.min_area, components.areas)
    if settings.min_score_max is not None:
        yield _at_least("min_score_max", settings.min_score_max, components.score_max)
    if settings.min_score_mean is not None:
        yield _at_least("min_score_mean", settings.min_score_mean, components.score_mean)
    _, fill_ratios, aspect_ratios = box_shapes(components.boxes_xyxy, components.areas)
    if shape.min_fill_ratio is not None:
        yield _at_least("min_fill_ratio", shape.min_fill_ratio, fill_ratios)
    if shape.max_aspect_ratio is not None:
        limit = shape.max_aspect_ratio
        yield Check("max_aspect_ratio", limit, aspect_ratios, aspect_ratios <= limit)


def _at_least(control: str, limit: float, values: np.ndarray) -> Check:
    return Check(control, limit, values, values >= limit)
