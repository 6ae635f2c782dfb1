"""Settings of the `model` block that a detector takes as its arguments, and those that do nothing for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyimgano_dask.detectors.base import Detector
from pyimgano_dask.detectors.registry import detector_types
from pyimgano_dask.settings.model import ModelSettings
from pyimgano_dask.settings.resolve import Resolved

# The argument of a detector that each of these settings stands for.
ARGUMENTS = {"contamination": "contamination", "seed": "random_state", "device": "device", "pretrained": "pretrained"}


def chosen_arguments(model: ModelSettings, detector_type: type[Detector[Any]]) -> dict[str, Any]:
    """The arguments of a detector that settings of their own were given for, by name, without those it lacks."""
    given = {argument: getattr(model, setting) for setting, argument in ARGUMENTS.items()}
    known = detector_type.arguments_type.model_fields
    return {argument: value for argument, value in given.items() if value is not None and argument in known}


def detector_advice(resolved: Resolved) -> Iterator[str]:
    """One sentence for each setting that the chosen detector has no argument for.

    Flags are always told. Of a config only a device other than the CPU is: configs record the device, the seed and
    the like of every detector, also of those that do not have them. An unknown detector gets none.
    """
    model = resolved.settings.model
    detector_type = detector_types().get(model.name or "")
    if detector_type is None:
        return
    for setting, argument in ARGUMENTS.items():
        value = getattr(model, setting)
        told = resolved.is_explicit(f"model.{setting}") or (setting == "device" and value != "cpu")
        if value is None or not told or argument in detector_type.arguments_type.model_fields:
            continue
        flag = f"--{'no-' if value is False else ''}{setting}"
        why = " and runs on the CPU" if setting == "device" else ""
        yield f"{flag} does nothing: {detector_type.name} has no such argument{why}"
