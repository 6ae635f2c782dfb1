"""Industrial anomaly inspection as a Dask dataflow."""

from pyimgano_dask.version import __version__

__all__ = ["__version__"]
