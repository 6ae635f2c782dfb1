"""Defect extraction: from an anomaly map to its mask and regions."""

from pyimgano_dask.defects.extract import Defects, MapStats, check_map, extract_defects, scale_to_image
from pyimgano_dask.defects.regions import Region, RegionTable
from pyimgano_dask.defects.roi import roi_slices

__all__ = [
    "Defects",
    "MapStats",
    "Region",
    "RegionTable",
    "check_map",
    "extract_defects",
    "roi_slices",
    "scale_to_image",
]
