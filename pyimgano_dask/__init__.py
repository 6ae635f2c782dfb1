"""Industrial anomaly inspection as a Dask dataflow: scores, defects, masks and overlays, the same bytes anywhere.

>>> import pyimgano_dask
>>> run = pyimgano_dask.infer(
...     model="vision_pixel_mad_map", train_dir="normal/", input="parts/", defects=True, save_jsonl="results.jsonl"
... )  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pyimgano_dask.errors import ConfigError, PyimganoDaskError, RunError
from pyimgano_dask.version import __version__

if TYPE_CHECKING:
    from pyimgano_dask.api import infer, rescore
    from pyimgano_dask.defects import Defects, Region, extract_defects
    from pyimgano_dask.settings.defects import DefectSettings
    from pyimgano_dask.sklearn import DaskAnomalyDetector as DaskAnomalyDetector

# Imported when first used, so that a command line that only prints its help starts at once.
_HOMES = {
    "infer": "pyimgano_dask.api",
    "rescore": "pyimgano_dask.api",
    "extract_defects": "pyimgano_dask.defects",
    "Defects": "pyimgano_dask.defects",
    "Region": "pyimgano_dask.defects",
    "DefectSettings": "pyimgano_dask.settings.defects",
    "DaskAnomalyDetector": "pyimgano_dask.sklearn",
}
# Needs an extra, so that `from pyimgano_dask import *` leaves it out.
_OPTIONAL = ("DaskAnomalyDetector",)

__all__ = [
    "ConfigError",
    "DefectSettings",
    "Defects",
    "PyimganoDaskError",
    "Region",
    "RunError",
    "__version__",
    "extract_defects",
    "infer",
    "rescore",
]


def __dir__() -> list[str]:
    return [*__all__, *_OPTIONAL]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
