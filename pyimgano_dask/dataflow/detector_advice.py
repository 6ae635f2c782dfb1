"""Settings of the `model` block that a detector takes as its arguments, and those that do nothing for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyimgano_dask.detectors.base import Detector
from pyimgano_dask.detectors.registry import find_configured_type, find_detector_type
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.model import ModelSettings
from pyimgano_dask.settings.resolve import Resolved

# The arguments of a detector that each of these settings stands for: it has one of them, or none.
ARGUMENTS: Mapping[str, Sequence[str]] = {
    "contamination": ("contamination",),
    "seed": ("random_state", "random_seed", "seed"),
    "device": ("device",),
    "pretrained": ("pretrained",),
}


def chosen_arguments(model: ModelSettings, detector_type: type[Detector[Any]]) -> dict[str, Any]:
    """The arguments of a detector that settings of their own were given for, by name, without those it lacks."""
    return {
        argument: value
        for setting in ARGUMENTS
        if (value := getattr(model, setting)) is not None
        and (argument := argument_for(setting, detector_type)) is not None
    }


def argument_for(setting: str, detector_type: type[Detector[Any]]) -> str | None:
    """The argument of this detector that a setting stands for, None where it has no such argument."""
    known = detector_type.arguments_type.model_fields
    return next((argument for argument in ARGUMENTS[setting] if argument in known), None)


def chosen_type(resolved: Resolved) -> type[Detector[Any]]:
    """The detector that is named; raises ConfigError. A config may name pyimgano's as pyimgano does."""
    name = resolved.settings.model.name
    if name is None:
        raise ConfigError("no detector is named; give --model NAME or --infer-config FILE (--list-models shows them)")
    is_configured = resolved.config_path is not None and not resolved.is_explicit("model.name")
    return find_configured_type(name) if is_configured else find_detector_type(name)


def detector_advice(resolved: Resolved) -> Iterator[str]:
    """One sentence for each setting that the chosen detector has no argument for, or no use of in this run.

    Flags are always told. Of a config only a device other than the CPU is: configs record the device, the seed and
    the like of every detector, also of those that do not have them. An unknown detector gets none.
    """
    model = resolved.settings.model
    try:
        detector_type = chosen_type(resolved)
    except ConfigError:  # told by the run that follows
        return
    for setting in ARGUMENTS:
        value = getattr(model, setting)
        is_flag = resolved.is_explicit(f"model.{setting}")
        is_told = is_flag or (setting == "device" and value != "cpu")
        if value is not None and is_told and argument_for(setting, detector_type) is None:
            flag = f"--{'no-' if value is False else ''}{setting}"
            why = " and runs on the CPU" if setting == "device" else ""
            yield f"{flag} does nothing: {detector_type.name} has no such argument{why}"
        elif setting == "contamination" and is_flag and resolved.settings.training.train_dir is None:
            yield "--contamination does nothing without --train-dir (normal images to calibrate the score threshold on)"
