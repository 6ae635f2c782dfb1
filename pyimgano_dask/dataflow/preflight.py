"""Everything that can be known to be wrong before the first image is read, and before anything is written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from pyimgano_dask.dataflow.artifacts import is_zarr
from pyimgano_dask.dataflow.reading import Reader
from pyimgano_dask.detectors.base import Detector
from pyimgano_dask.detectors.checkpoint import decode_detector
from pyimgano_dask.detectors.registry import find_detector_type
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.images.listing import IMAGES, FileKind, InputList
from pyimgano_dask.images.references import References, find_references
from pyimgano_dask.settings.resolve import Resolved
from pyimgano_dask.settings.run import InferSettings, StoredMapSettings
from pyimgano_dask.settings.run_manifest import CONFIG_NAME, DETECTOR_NAME, MANIFEST_NAME
from pyimgano_dask.storage.files import check_writable, open_binary, resolve
from pyimgano_dask.urls import is_url

RUN_FILES = (MANIFEST_NAME, CONFIG_NAME, DETECTOR_NAME)
LOCAL_ONLY = "this version writes records, shards and reports to local paths only"
PixelThresholdSource = Literal["explicit", "train_dir", "infer_config"]


@dataclass(frozen=True)
class Preflight:
    """A run that is known to make sense: its inputs, its detector (fitted or not yet), where thresholds come from."""

    inputs: InputList
    n_inputs: int
    training: InputList | None
    detector: Detector[Any]
    references: References | None
    pixel_threshold_source: PixelThresholdSource | None
    base_dir: str

    def reader(self, settings: InferSettings, *, with_display: bool = False) -> Reader:
        """How images are read for the detector."""
        return Reader(
            self.base_dir, self.detector.color, settings.inputs.max_image_pixels, with_display, self.references
        )


@dataclass(frozen=True)
class InputFolder:
    """Something that is read, by the flag that names it: files of this kind must not be written into it."""

    flag: str
    spec: str
    kind: FileKind = IMAGES


def check(resolved: Resolved, base_dir: str) -> Preflight:
    """Check inputs, detector, thresholds and outputs; raises ConfigError."""
    settings = resolved.settings
    if settings.stored != StoredMapSettings():
        raise ConfigError("stored: stored maps are scored anew by pyimgano-rescore; leave the block out here")
    inputs = listed(settings.inputs.input, base_dir, "--input")
    training = None
    sources = [InputFolder("--input", spec) for spec in settings.inputs.input]
    if settings.training.train_dir is not None:
        training = listed((settings.training.train_dir,), base_dir, "--train-dir")
        sources.append(InputFolder("--train-dir", settings.training.train_dir))
    detector = _make_detector(settings, base_dir)
    references = _find_references(settings, detector, base_dir)
    if settings.model.reference_dir is not None:
        sources.append(InputFolder("--reference-dir", settings.model.reference_dir))
    if not detector.is_fitted and training is None:
        raise ConfigError(
            f"{detector.name} must be fitted before it can score: give normal images with --train-dir DIR, "
            "or a saved state with --checkpoint-path FILE"
        )
    source = _pixel_threshold_source(resolved) if settings.defects.enabled else None
    check_outputs(settings, base_dir, sources)
    return Preflight(inputs, inputs.count(), training, detector, references, source, base_dir)


def listed(specs: tuple[str, ...], base_dir: str, flag: str, kind: FileKind = IMAGES) -> InputList:
    """The inputs of a flag, known to be there; raises ConfigError naming the flag."""
    if not specs:
        raise ConfigError(f"{flag} is missing; give an {kind.noun}, a folder, a glob or @list.txt")
    inputs = InputList(specs, base_dir=base_dir, kind=kind)
    with _named(flag):
        inputs.check()
    return inputs


@contextmanager
def _named(flag: str) -> Iterator[None]:
    """Put the flag before each line of a ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError("\n".join(f"{flag}: {line}" for line in str(error).splitlines())) from None


def _find_references(settings: InferSettings, detector: Detector[Any], base_dir: str) -> References | None:
    folder = settings.model.reference_dir
    if folder is None:
        if detector.needs_reference:
            raise ConfigError(
                f"{detector.name} compares each image with a defect-free one: give --reference-dir DIR, a folder of "
                "images of the same names, or one image for all"
            )
        return None
    if not detector.needs_reference:
        raise ConfigError(
            f"--reference-dir: {detector.name} compares with no reference; leave it out or choose a detector that does "
            "(--list-models --tags golden_reference)"
        )
    with _named("--reference-dir"):
        return find_references(folder, base_dir=base_dir)


def _make_detector(settings: InferSettings, base_dir: str) -> Detector[Any]:
    model = settings.model
    if model.name is None:
        raise ConfigError("no detector is named; give --model NAME or --infer-config FILE (--list-models shows them)")
    detector_type = find_detector_type(model.name)
    kwargs = dict(model.model_kwargs)
    for name, value in (
        ("contamination", model.contamination),
        ("random_state", model.seed),
        ("device", model.device),
        ("pretrained", model.pretrained),
    ):
        if value is not None and name in detector_type.arguments_type.model_fields:
            kwargs[name] = value
    if model.checkpoint_path is None:
        return detector_type.create(**kwargs)
    path = resolve(model.checkpoint_path, base_dir)
    try:
        with open_binary(path) as file:
            data = file.read()
    except OSError as error:
        raise ConfigError(f"--checkpoint-path: {model.checkpoint_path!r} cannot be read: {error}") from None
    detector = decode_detector(data, model.checkpoint_path)
    if detector.name != model.name:
        raise ConfigError(
            f"--checkpoint-path: {model.checkpoint_path!r} holds a {detector.name}, but --model is {model.name}"
        )
    arguments = {**detector.arguments.model_dump(), **kwargs}
    return detector_type.create(**arguments).with_state(detector.state())


def _pixel_threshold_source(resolved: Resolved) -> PixelThresholdSource:
    settings = resolved.settings
    has_value = settings.defects.pixel_threshold is not None
    if resolved.is_explicit("defects.pixel_threshold") and has_value:
        return "explicit"
    calibrates = settings.defects.pixel_threshold_strategy == "normal_pixel_quantile"
    if calibrates and settings.training.train_dir is not None:
        return "train_dir"
    if has_value:
        return "infer_config"
    raise ConfigError(
        "--defects needs a pixel threshold; there are three ways: --pixel-threshold T, "
        "normal images with --train-dir DIR (--pixel-threshold-strategy normal_pixel_quantile), "
        "or an --infer-config whose defects.pixel_threshold is set"
    )


def check_outputs(settings: InferSettings, base_dir: str, sources: Sequence[InputFolder]) -> None:
    """Raise ConfigError unless every output can be written, and none would join what is read from `sources`."""
    faults: list[str] = []
    claimed: dict[tuple[str, str], str] = {}
    for flag, path, suffix in _output_folders(settings):
        folder = real_path(path, base_dir)
        other = claimed.setdefault((folder, suffix), flag)
        if other != flag:
            faults.append(f"{flag} and {other} are the same folder {path!r}; their files have the same names, take two")
        faults += [
            f"{flag}: {path!r} lies inside the {source.flag} folder {source.spec!r}, "
            f"whose {source.kind.noun}s it would join; take another folder"
            for source in sources
            if source.kind.has_suffix(f"x{suffix}") and _lies_inside(folder, real_path(source.spec, base_dir))
        ]
        faults += [
            f"{flag}: {path!r} is what {source.flag} reads; take another folder"
            for source in sources
            if is_zarr(source.spec) and _lies_inside(folder, real_path(source.spec, base_dir))
        ]
        try:
            check_writable(folder)
        except ConfigError as error:
            faults.append(f"{flag}: {error}")
    faults += _unsafe_jsonl(settings, base_dir, sources)
    jsonl, report = settings.output.save_jsonl, settings.dataflow.performance_report
    run_dir = settings.dataflow.run_dir
    for flag, name in (("--save-jsonl", jsonl), ("--performance-report", report)):
        if name is not None:
            faults += _file_faults(flag, name, base_dir)
    if run_dir is not None and is_url(run_dir):
        faults.append(f"--run-dir: {run_dir!r} is a URL; {LOCAL_ONLY}")
    if jsonl is not None and report is not None and real_path(jsonl, base_dir) == real_path(report, base_dir):
        faults.append(f"--performance-report and --save-jsonl are the same file {report!r}; take two")
    if faults:
        raise ConfigError("\n".join(faults))


def _file_faults(flag: str, name: str, base_dir: str) -> Iterator[str]:
    """Why a single file cannot be written where it is asked for."""
    if is_url(name):
        yield f"{flag}: {name!r} is a URL; {LOCAL_ONLY}"
        return
    path = resolve(name, base_dir)
    if os.path.isdir(path):
        yield f"{flag}: {name!r} is a folder; give the path of a file"
    elif os.path.exists(path) and not os.path.isfile(path):
        instead = "leave the flag out and redirect standard output" if flag == "--save-jsonl" else "give a file's path"
        yield f"{flag}: {name!r} is a pipe or a device; {instead}"
    else:
        try:
            check_writable(os.path.dirname(path))
        except ConfigError as error:
            yield f"{flag}: {error}"


def _unsafe_jsonl(settings: InferSettings, base_dir: str, sources: Sequence[InputFolder]) -> Iterator[str]:
    """Why the JSONL must not be written where it is asked for: over what is read, or what the run itself leaves."""
    jsonl, run_dir = settings.output.save_jsonl, settings.dataflow.run_dir
    if jsonl is None or is_url(jsonl):
        return
    path = real_path(jsonl, base_dir)
    for source in sources:
        spec = real_path(source.spec, base_dir)
        is_inside_store = is_zarr(source.spec) and _lies_inside(path, spec)
        if path == spec or is_inside_store or (source.kind.has_suffix(path) and _lies_inside(path, spec)):
            yield f"--save-jsonl: {jsonl!r} lies in what {source.flag} reads; name another file"
    if (
        run_dir is not None
        and not is_url(run_dir)
        and path in {os.path.join(real_path(run_dir, base_dir), name) for name in RUN_FILES}
    ):
        yield f"--save-jsonl: the run itself writes {jsonl!r} into its folder; name another file"


def _output_folders(settings: InferSettings) -> Iterator[tuple[str, str, str]]:
    """(flag, path, suffix of its files) of every output folder that is set."""
    output = settings.output
    if output.save_maps is not None:
        yield "--save-maps", output.save_maps, ".zarr" if is_zarr(output.save_maps) else ".npy"
    if output.save_masks is not None:
        yield "--save-masks", output.save_masks, f".{settings.defects.mask_format}"
    if output.save_overlays is not None:
        yield "--save-overlays", output.save_overlays, f".{output.overlay_format}"
    if settings.dataflow.run_dir is not None:
        yield "--run-dir", settings.dataflow.run_dir, ".jsonl"


def real_path(path: str, base_dir: str) -> str:
    """The path with its links resolved; URLs as they are."""
    resolved = resolve(path, base_dir)
    return resolved if is_url(resolved) else os.path.realpath(resolved)


def _lies_inside(folder: str, input_folder: str) -> bool:
    return os.path.isdir(input_folder) and os.path.commonpath([folder, input_folder]) == input_folder
