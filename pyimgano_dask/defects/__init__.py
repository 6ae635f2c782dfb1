"""Defect extraction: from an anomaly map to its mask and regions."""

from pyimgano_dask.defects.explanation import (
    REPORTED,
    THRESHOLDED,
    Step,
    Waterfall,
    add_waterfalls,
    waterfall_of_record,
)
from pyimgano_dask.defects.extract import Defects, MapStats, check_map, extract_defects, scale_to_image
from pyimgano_dask.defects.image_space import boxes_to_image
from pyimgano_dask.defects.regions import Region, RegionTable
from pyimgano_dask.defects.roi import roi_slices

__all__ = [
    "REPORTED",
    "THRESHOLDED",
    "Defects",
    "MapStats",
    "Region",
    "RegionTable",
    "Step",
    "Waterfall",
    "add_waterfalls",
    "boxes_to_image",
    "check_map",
    "extract_defects",
    "roi_slices",
    "scale_to_image",
    "waterfall_of_record",
]
