"""Names of detectors."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pyimgano_dask.detectors.base import Detector, TrainingFreeDetector
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.catalog import Knob

# Modules that define detectors; each is imported when the registry is first read.
DETECTOR_MODULES = (
    "pyimgano_dask.detectors.deep.autoencoder",
    "pyimgano_dask.detectors.deep.padim",
    "pyimgano_dask.detectors.deep.patchcore",
    "pyimgano_dask.detectors.deep.stfpm",
    "pyimgano_dask.detectors.exported.onnx_model",
    "pyimgano_dask.detectors.exported.torch_models",
    "pyimgano_dask.detectors.pixel_statistics",
    "pyimgano_dask.detectors.reference_difference",
    "pyimgano_dask.detectors.texture_padim",
)

PYIMGANO_PREFIX = "pyimgano:"
PYIMGANO_TAG = "pyimgano"

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
    """The detector of this name; raises ConfigError listing the known ones.

    `pyimgano:NAME` is a detector of the package pyimgano, which is imported for such names alone.
    """
    if name.startswith(PYIMGANO_PREFIX):
        return _pyimgano_registry().pyimgano_type(name)  # type: ignore[no-any-return]
    known = detector_types()
    if name not in known:
        raise ConfigError(
            f"unknown detector {name!r}; known are {', '.join(known)}; "
            f"detectors of the package pyimgano are named {PYIMGANO_PREFIX}NAME"
        )
    return known[name]


def find_configured_type(name: str) -> type[Detector[Any]]:
    """The detector that a config names, which may be one of pyimgano's without the prefix; raises ConfigError.

    Where both packages have a detector of this name, it is the one of this package.
    """
    known = detector_types()
    if name.startswith(PYIMGANO_PREFIX) or name in known:
        return find_detector_type(name)
    try:
        return find_detector_type(PYIMGANO_PREFIX + name)
    except ConfigError as error:
        raise ConfigError(
            f"model.name: {name!r} is none of {', '.join(known)}; and as a detector of the package pyimgano: {error}"
        ) from None


def pyimgano_names(tags: Collection[str] = ()) -> list[str]:
    """Names of the detectors of the package pyimgano that have all these tags; raises ConfigError without it."""
    return _pyimgano_registry().pyimgano_names(tags)  # type: ignore[no-any-return]


def _pyimgano_registry() -> Any:
    return importlib.import_module("pyimgano_dask.detectors.pyimgano_registry")


def describe(detector_type: type[Detector[Any]]) -> dict[str, Any]:
    """Name, summary, tags, source, needs and arguments of a detector, as JSON-ready data."""
    return {
        "name": detector_type.name,
        "summary": detector_type.summary,
        "tags": list(detector_type.tags),
        "reference": detector_type.reference,
        "needs": needs(detector_type),
        "gives_maps": detector_type.gives_maps,
        "arguments": {
            name: _described(Knob((name,), field)) for name, field in detector_type.arguments_type.model_fields.items()
        },
    }


def needs(detector_type: type[Detector[Any]]) -> dict[str, str | None]:
    """What a detector works with, beside the images to inspect; None where it takes no such thing.

    `extra` to install; `training_images`, "required" or "for thresholds"; `weights_file` of a backbone, "optional";
    the suffix of its `model_file`, required; `reference_images`, "required".
    """
    return {
        "extra": detector_type.extra,
        "training_images": "for thresholds" if issubclass(detector_type, TrainingFreeDetector) else "required",
        "weights_file": "optional" if "weights_path" in detector_type.arguments_type.model_fields else None,
        "model_file": detector_type.model_file,
        "reference_images": "required" if detector_type.needs_reference else None,
    }


def _described(argument: Knob) -> dict[str, Any]:
    is_plain = argument.choices is not None or argument.kind in (bool, int, float)
    return {
        "default": argument.default,
        "help": argument.help,
        "allowed": argument.allowed if is_plain else None,
    }
