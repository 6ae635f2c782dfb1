"""Making the detector that the `model` block of the settings names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pyimgano_dask.dataflow.detector_advice import chosen_arguments, chosen_type
from pyimgano_dask.dataflow.faults import flag_named
from pyimgano_dask.detectors.base import Detector
from pyimgano_dask.detectors.checkpoint import decode_detector, is_checkpoint
from pyimgano_dask.detectors.devices import DEVICES, is_here
from pyimgano_dask.detectors.extras import EXTRAS, require
from pyimgano_dask.detectors.model_files import ModelFiles, ReadFile
from pyimgano_dask.detectors.registry import PYIMGANO_PREFIX
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.model import ModelSettings
from pyimgano_dask.settings.resolve import Resolved
from pyimgano_dask.settings.run import LOCAL_SCHEDULERS


@dataclass(frozen=True)
class Made:
    """A detector, fitted where a saved state is named, and what the user should know of it.

    `files` are those it was made of, by path. `saved_arguments` are the arguments that came with a saved state.
    """

    detector: Detector[Any]
    warnings: tuple[str, ...]
    files: Mapping[str, ReadFile]
    saved_arguments: Mapping[str, Any] = field(default_factory=dict)


def make_detector(resolved: Resolved, base_dir: str) -> Made:
    """The detector that the settings name; raises ConfigError."""
    settings = resolved.settings
    detector_type = chosen_type(resolved)
    if detector_type.extra is not None:
        require(detector_type.extra, detector_type.name)
    kwargs = given_arguments(settings.model, detector_type)
    _check_device(kwargs.get("device"), detector_type, settings.dataflow.scheduler)
    files = ModelFiles(base_dir, settings.model.trust_model_file)
    path = settings.model.checkpoint_path
    if path is None and detector_type.model_file is not None:
        raise ConfigError(
            f"{detector_type.name} runs a model file: give it ({detector_type.model_file}) with --checkpoint-path FILE"
        )
    if path is None:
        opened = detector_type.create(**kwargs).opened(files)
        made = Made(opened, opened.advice(), files.seen)
    else:
        made = _restored(resolved, detector_type, kwargs, path, files)
    for named, argument in made.detector.files_named.items():
        files.note(named, argument)
    return made


def given_arguments(model: ModelSettings, detector_type: type[Detector[Any]]) -> dict[str, Any]:
    """The arguments that these settings name for a detector: those of a preset, `model_kwargs`, then their own."""
    preset = {} if model.preset is None else detector_type.preset_arguments(model.preset)
    return {**preset, **model.model_kwargs, **chosen_arguments(model, detector_type)}


def _restored(
    resolved: Resolved, detector_type: type[Detector[Any]], kwargs: Mapping[str, Any], path: str, files: ModelFiles
) -> Made:
    """The detector around the saved state or the model file at `path`."""
    data = files.read(path, "--checkpoint-path")
    checkpoint_files = replace(files, takes_sha256=True, trusted_sha256=resolved.settings.checkpoint.sha256)
    if detector_type.model_file is not None and not is_checkpoint(data):
        return Made(detector_type.create(**kwargs).with_model_file(path, checkpoint_files), (), files.seen)
    if not is_checkpoint(data) and (why := _why_unread(resolved, path, detector_type)) is not None:
        warning = _unread_checkpoint(resolved, path, detector_type, why)
        opened = detector_type.create(**kwargs).opened(files)
        return Made(opened, (warning, *opened.advice()), files.seen)
    detector = decode_detector(data, path)
    if detector.name != detector_type.name:
        raise ConfigError(f"--checkpoint-path: {path!r} holds a {detector.name}, but --model is {detector_type.name}")
    arguments = {**detector.arguments.model_dump(), **kwargs}
    changed = detector_type.create(**arguments)
    if detector.runs_code or changed.runs_code:
        what = "a detector around a model with code"
        trusted = checkpoint_files if changed.carries_code else files
        trusted.check_trust(data, path, "--checkpoint-path", what)
    _check_changes(detector, changed, path)
    fitted = changed.with_state(detector.state())
    with flag_named("--checkpoint-path"):
        warnings = (*fitted.advice(), *fitted.check())
    return Made(fitted, warnings, files.seen, detector.arguments.model_dump())


def _check_changes(saved: Detector[Any], changed: Detector[Any], path: str) -> None:
    """Raise ConfigError where an argument that a saved state was learned with is given another value."""
    then, now = saved.arguments.model_dump(mode="json"), changed.arguments.model_dump(mode="json")
    faults = [
        f"model_kwargs.{name}: {json.dumps(now[name])} is given, but {path!r} was fitted with "
        f"{json.dumps(then[name])}; leave it out, or fit anew: --model {saved.name} with "
        "--train-dir, without --infer-config and --checkpoint-path"
        for name in then
        if name in saved.learned_with and now[name] != then[name]
    ]
    if faults:
        raise ConfigError("\n".join(faults))


def _why_unread(resolved: Resolved, path: str, detector_type: type[Detector[Any]]) -> str | None:
    """Why a file that is no saved state of this package need not be one, None where it must be."""
    if detector_type.foreign_checkpoint is not None:
        return detector_type.foreign_checkpoint
    is_of_the_config = not resolved.is_explicit("model.checkpoint_path")
    return "it is no saved state (.npz) of this package" if is_of_the_config and not path.endswith(".npz") else None


def _unread_checkpoint(resolved: Resolved, path: str, detector_type: type[Detector[Any]], why: str) -> str:
    """A warning that a config's checkpoint is left unread; ConfigError where nothing can take its place."""
    name, unread = detector_type.name, f"{path!r} is not read: {why}"
    if resolved.is_explicit("model.checkpoint_path"):
        raise ConfigError(f"--checkpoint-path: {unread}; leave it out, and fit {name} anew with --train-dir DIR")
    if resolved.settings.training.train_dir is None:
        is_own = not name.startswith(PYIMGANO_PREFIX)
        other = f"; for the detector of this name in pyimgano add --model {PYIMGANO_PREFIX}{name}" if is_own else ""
        raise ConfigError(
            f"the config's checkpoint {unread}; give --train-dir DIR beside the config to fit {name} anew{other}"
        )
    return f"the config's checkpoint {unread}; {name} is fitted anew on --train-dir"


def _check_device(device: object, detector_type: type[Detector[Any]], scheduler: str) -> None:
    """Raise ConfigError for a device that is not here, where the workers are on this machine."""
    if detector_type.extra is None or scheduler not in LOCAL_SCHEDULERS:
        return
    if isinstance(device, str) and DEVICES.fullmatch(device) and not is_here(device, detector_type.extra):
        raise ConfigError(
            f"--device {device}: {EXTRAS[detector_type.extra]} finds no such device here; give --device cpu, or the "
            "address of a cluster whose workers have it with --scheduler"
        )
