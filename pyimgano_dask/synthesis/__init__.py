"""A small, deterministic inspection data set, made on the spot: for the demo, the tests and the docs."""

from pyimgano_dask.synthesis.dataset import InspectionSet, write_inspection_set

__all__ = ["InspectionSet", "write_inspection_set"]
