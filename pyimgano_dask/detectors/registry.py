"""Names of detectors."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, TypeVar

from pyimgano_dask.detectors.base import Detector
from pyimgano_dask.errors import ConfigError

# Modules that define detectors; each is imported when the registry is first read.
DETECTOR_MODULES = (
    "pyimgano_dask.detectors.deep.padim",
    "pyimgano_dask.detectors.deep.patchcore",
    "pyimgano_dask.detectors.pixel_statistics",
    "pyimgano_dask.detectors.reference_difference",
    "pyimgano_dask.detectors.texture_padim",
)

_registry: dict[str, type[Detector[Any]]] = {}

DetectorType = TypeVar("DetectorType", bound=type[Detector[Any]])


def register(detector_type: DetectorType) -> DetectorType:
    """Class decorator: make a detector known by its `name`."""
    _registry[detector_type.name] = detector_type
    return detector_type


def detector_types() -> Mapping[str, type[Detector[Any]]]:
    """All registered detectors by name, sorted."""
    for module in DETECTOR_MODULES:
        importlib.import_module(module)
    return dict(sorted(_registry.items()))


def find_detector_type(name: str) -> type[Detector[Any]]:
    """The detector of this name; raises ConfigError listing the known ones."""
    known = detector_types()
    if name not in known:
        raise ConfigError(f"unknown detector {name!r}; known are {', '.join(known)}")
    return known[name]


def describe(detector_type: type[Detector[Any]]) -> dict[str, Any]:
    """Name, summary, tags, source and arguments of a detector, as JSON-ready data."""
    return {
        "name": detector_type.name,
        "summary": detector_type.summary,
        "tags": list(detector_type.tags),
        "reference": detector_type.reference,
        "arguments": {
            name: {"default": field.get_default(call_default_factory=True), "help": field.description}
            for name, field in detector_type.arguments_type.model_fields.items()
        },
    }
