"""What to know of a config whose detector was fitted, or whose thresholds were calibrated, with other values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyimgano_dask.dataflow.detector_advice import ARGUMENTS, argument_for
from pyimgano_dask.dataflow.making import given_arguments
from pyimgano_dask.dataflow.preflight import Preflight, real_path
from pyimgano_dask.detectors.amp import device_of, missing_for_amp
from pyimgano_dask.detectors.base import Detector, TrainingFreeDetector
from pyimgano_dask.detectors.devices import device_here
from pyimgano_dask.detectors.registry import PYIMGANO_PREFIX
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.catalog import Path, knobs
from pyimgano_dask.settings.resolve import Resolved
from pyimgano_dask.settings.run import LOCAL_SCHEDULERS, InferSettings
from pyimgano_dask.storage.files import kind_at
from pyimgano_dask.transfers import ONCE

# Blocks of settings that scores depend on, and what in them they do not.
OF_SCORES = ("model", "preprocessing", "adaptation")
NOT_OF_SCORES = ("trust_model_file", "save_maps")


def calibrated_otherwise(resolved: Resolved, preflight: Preflight) -> Iterator[str]:
    """One sentence that names the flags by which this run scores otherwise than the config it takes thresholds from."""
    has_threshold = resolved.settings.threshold is not None or preflight.pixel_threshold_source == "infer_config"
    if resolved.config_path is None or preflight.training is not None or not has_threshold:
        return
    flags = list(dict.fromkeys(_changes(resolved, preflight)))
    if _learned_from_other_images(resolved, preflight):
        flags = [flag for flag in flags if flag not in _of_the_correction(resolved)]
    if flags:
        verb = "changes" if len(flags) == 1 else "change"
        yield (
            f"{', '.join(flags)} {verb} scores or maps, and the thresholds of the config were calibrated with other "
            "values; give --train-dir to calibrate anew"
        )


def fitted_otherwise(resolved: Resolved, preflight: Preflight) -> Iterator[str]:
    """One sentence that names the flags by which images are corrected otherwise than those the detector has learned."""
    if _learned_from_other_images(resolved, preflight):
        flags = ", ".join(_of_the_correction(resolved))
        name = preflight.made.detector.name
        yield (
            f"{flags}: {name} was fitted on images that were corrected otherwise, so it may miss defects or find many "
            f"that are none; fit it anew (--model {name} --train-dir DIR, without --infer-config), unless this makes "
            "images look like those it was fitted on"
        )


def mixes_precision(settings: InferSettings, detector: Detector[Any]) -> bool:
    """Whether `--amp` changes answers of this detector; on a cluster, whether it may."""
    if "torch" not in detector.libraries:
        return False
    return settings.dataflow.scheduler not in LOCAL_SCHEDULERS or missing_for_amp(device_of(detector)) is None


def _changes(resolved: Resolved, preflight: Preflight) -> Iterator[str]:
    """Flags that change scores or maps, each with the arguments that it changes."""
    now, configured = resolved.settings, resolved.configured
    flags = _flags(resolved)
    if configured is None:
        yield from (flag for path, flag in flags.items() if _may_count(path, preflight.made.detector))
        return
    tiling, tiling_before = now.adaptation.tiling, configured.adaptation.tiling
    if tiling.effective != tiling_before.effective:
        yield from _differing(flags, ("adaptation", "tiling"), now, configured)
    yield from _of_the_correction(resolved)
    yield from _changes_of_the_detector(resolved, configured, preflight)
    if now.dataflow.amp != configured.dataflow.amp and mixes_precision(now, preflight.detector):
        yield _spelled("--amp", now.dataflow.amp)


def _learned_from_other_images(resolved: Resolved, preflight: Preflight) -> bool:
    """Whether the config's detector has learned from images that were corrected otherwise than those of this run."""
    detector = preflight.made.detector
    has_learned = detector.is_fitted and not isinstance(detector, TrainingFreeDetector)
    return has_learned and not resolved.is_explicit("model.checkpoint_path") and bool(_of_the_correction(resolved))


def _of_the_correction(resolved: Resolved) -> list[str]:
    """The flags that correct images otherwise than the config does, none where neither corrects them."""
    configured = resolved.configured
    if configured is None:
        return []
    now, before = (settings.preprocessing.illumination_contrast for settings in (resolved.settings, configured))
    if now == before or not (now.is_on or before.is_on):
        return []
    return list(_differing(_flags(resolved), ("preprocessing",), resolved.settings, configured))


def _flags(resolved: Resolved) -> dict[Path, str]:
    """The flags that were given, by the paths of their knobs."""
    return {knob.path: knob.flag for knob in knobs() if knob.flag and knob.path in resolved.explicit}


def _may_count(path: Path, detector: Detector[Any]) -> bool:
    """Whether scores or maps of the fitted detector may depend on a knob."""
    if path[0] == "model" and path[-1] in ARGUMENTS:
        return argument_for(path[-1], type(detector)) in detector.scoring_arguments
    return path[0] in OF_SCORES and path[-1] not in NOT_OF_SCORES


def _differing(flags: dict[Path, str], block: Path, now: InferSettings, before: InferSettings) -> Iterator[str]:
    """The explicit flags of a block that have another value than in the config."""
    for path, flag in flags.items():
        if path[: len(block)] == block and (value := _at(now, path)) != _at(before, path):
            yield _spelled(flag, value)


def _spelled(flag: str, value: Any) -> str:
    return flag if value is not False else flag.replace("--", "--no-", 1)


def _at(settings: InferSettings, path: Path) -> Any:
    value: Any = settings
    for name in path:
        value = getattr(value, name)
    return value


def _changes_of_the_detector(resolved: Resolved, configured: InferSettings, preflight: Preflight) -> Iterator[str]:
    now, made = resolved.settings, preflight.made
    name = configured.model.name
    if made.detector.name not in (name, f"{PYIMGANO_PREFIX}{name}"):
        yield "--model"
        return
    yield from _changed_arguments(resolved, configured, preflight)
    path = now.model.checkpoint_path
    if path is not None and resolved.is_explicit("model.checkpoint_path"):
        before, sha256 = configured.model.checkpoint_path, configured.checkpoint.sha256
        is_there = before is not None and _is_one_path(before, path, preflight.base_dir)
        if not is_there and made.files[path].sha256 != (sha256 or "").lower():
            yield "--checkpoint-path"
    if resolved.is_explicit("model.reference_dir") and _is_another_reference(now, configured, preflight):
        yield "--reference-dir"


def _changed_arguments(resolved: Resolved, configured: InferSettings, preflight: Preflight) -> Iterator[str]:
    """Flags by which arguments of the detector are others, as they take effect, than those of the calibration.

    These are those of the config's checkpoint, which a config edited since may not have, or else those of the config.
    """
    detector, saved = preflight.made.detector, preflight.made.saved_arguments
    try:
        before = detector.create(**{**saved, **given_arguments(configured.model, type(detector))})
    except ConfigError:  # flags have mended the config's arguments
        yield "--model-kwargs"
        return
    calibrated = detector.create(**saved) if saved and not resolved.is_explicit("model.checkpoint_path") else before
    of_flags = _differing_arguments(before, detector, resolved)
    changed = _differing_arguments(calibrated, detector, resolved)
    edited = [name for name in changed if name not in of_flags]
    if edited:
        yield f"the config's model_kwargs ({', '.join(edited)})"
    of_settings = {
        argument_for(setting, type(detector)): _spelled(f"--{setting}", getattr(resolved.settings.model, setting))
        for setting in ARGUMENTS
        if resolved.is_explicit(f"model.{setting}")
    }
    yield from (of_settings[name] for name in changed if name in of_settings)
    others = [name for name in changed if name in of_flags and name not in of_settings]
    if others:  # a preset is a config's alone, so no flag gives another one
        yield f"--model-kwargs ({', '.join(others)})"


def _differing_arguments(one: Detector[Any], other: Detector[Any], resolved: Resolved) -> list[str]:
    """Names of the arguments by which two detectors of one type answer differently."""
    names = dict.fromkeys((*one.scoring_arguments, *other.scoring_arguments))
    return [name for name in names if _argument(one, name, resolved) != _argument(other, name, resolved)]


def _argument(detector: Detector[Any], name: str, resolved: Resolved) -> Any:
    """The value of an argument; for an unset device of this machine, the device that is taken."""
    value = getattr(detector.arguments, name, None)
    is_local = resolved.settings.dataflow.scheduler in LOCAL_SCHEDULERS
    if name == "device" and detector.extra is not None and (is_local or value is not None):
        return device_here(value, detector.extra)
    return value


def _is_another_reference(now: InferSettings, configured: InferSettings, preflight: Preflight) -> bool:
    """Whether images are compared with another image for all than before.

    Another folder of references by name is none: there each image has a reference of its own, as it had before.
    """
    folder, before = now.model.reference_dir, configured.model.reference_dir
    if folder is None or before is None or preflight.references is None:
        return False
    if _is_one_path(before, folder, preflight.base_dir):
        return False
    return preflight.references.shared is not None or _may_be_a_file(real_path(before, preflight.base_dir))


def _may_be_a_file(path: str) -> bool:
    """Whether there is a file, or nobody knows: a place of before may be out of reach today, and nothing needs it."""
    try:
        return kind_at(path, pauses_s=ONCE) == "file"
    except (OSError, ImportError, ValueError):
        return True


def _is_one_path(one: str, other: str, base_dir: str) -> bool:
    return real_path(one, base_dir) == real_path(other, base_dir)
