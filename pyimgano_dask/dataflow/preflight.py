"""Everything that can be known to be wrong before the first image is read, and before anything is written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pyimgano_dask.dataflow.artifacts import is_zarr
from pyimgano_dask.dataflow.faults import flag_named
from pyimgano_dask.dataflow.making import Made, make_detector
from pyimgano_dask.dataflow.profile import Profile
from pyimgano_dask.dataflow.reading import Reader
from pyimgano_dask.detectors.base import Detector
from pyimgano_dask.detectors.tiling import tiled
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.images.listing import IMAGES, FileKind, InputList
from pyimgano_dask.images.references import References, find_references
from pyimgano_dask.settings.resolve import Resolved
from pyimgano_dask.settings.run import InferSettings, StoredMapSettings
from pyimgano_dask.settings.run_manifest import CONFIG_NAME, DETECTOR_NAME, MANIFEST_NAME, PLAN_NAME
from pyimgano_dask.storage.files import check_writable, kind_at, local_path, resolve
from pyimgano_dask.transfers import ONCE, canonical
from pyimgano_dask.urls import is_url, join

RUN_FILES = (MANIFEST_NAME, CONFIG_NAME, DETECTOR_NAME, PLAN_NAME)
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
    made: Made

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of the detector."""
        return self.made.warnings

    @property
    def lists(self) -> dict[str, tuple[int, str]]:
        """The lists of images by the flag that names them: how many, and a digest of their paths."""
        lists = {"--input": (self.inputs.count(), self.inputs.digest())}
        if self.training is not None:
            lists["--train-dir"] = (self.training.count(), self.training.digest())
        if self.references is not None:
            lists["--reference-dir"] = (len(self.references.nested), self.references.digest())
        return lists

    def reader(self, settings: InferSettings, *, with_display: bool = False) -> Reader:
        """How images are read for the detector."""
        return Reader(
            self.base_dir,
            self.detector.color,
            settings.inputs.max_image_pixels,
            with_display,
            self.references,
            settings.preprocessing.illumination_contrast,
        )


@dataclass(frozen=True)
class InputFolder:
    """Something that is read, by the flag that names it: files of this kind must not be written into it."""

    flag: str
    spec: str
    kind: FileKind = IMAGES


def check(resolved: Resolved, base_dir: str, profile: Profile) -> Preflight:
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
    with profile.stage("load_model"):
        made = make_detector(resolved, base_dir)
        detector = tiled(made.detector, settings.adaptation.tiling)
    _check_maps(settings, detector)
    references = references_for(settings, detector, base_dir)
    if settings.model.reference_dir is not None:
        sources.append(InputFolder("--reference-dir", settings.model.reference_dir))
    if not detector.is_fitted and training is None:
        raise ConfigError(
            f"{detector.name} must be fitted before it can score: give normal images with --train-dir DIR, "
            "or a saved state with --checkpoint-path FILE"
        )
    sources += [
        InputFolder(flag, path)
        for flag, path in (
            *(("--input", spec[1:]) for spec in settings.inputs.input if spec.startswith("@")),
            ("--infer-config", resolved.config_path),
        )
        if path is not None
    ]
    sources += [InputFolder(file.named_by, path) for path, file in made.files.items()]
    source = _pixel_threshold_source(resolved) if settings.defects.enabled else None
    check_outputs(settings, base_dir, sources)
    _check_no_input_is_overwritten(settings, base_dir, inputs)
    return Preflight(inputs, inputs.count(), training, detector, references, source, base_dir, made)


def _check_no_input_is_overwritten(settings: InferSettings, base_dir: str, inputs: InputList) -> None:
    """Refuse to write a file over an input that a glob or a list stands for."""
    names = {real_path(name, base_dir): (flag, name) for flag, name in output_files(settings)}
    there = {path for path in names if kind_at(path, pauses_s=ONCE) == "file"}
    ends = {os.path.basename(path) for path in there}
    for item in inputs if there else ():
        if os.path.basename(item) in ends and (path := real_path(item, base_dir)) in there:
            flag, name = names[path]
            raise ConfigError(f"{flag}: {name!r} is an input; name another file")


def listed(specs: tuple[str, ...], base_dir: str, flag: str, kind: FileKind = IMAGES) -> InputList:
    """The inputs of a flag, known to be there; raises ConfigError naming the flag."""
    if not specs:
        raise ConfigError(f"{flag} is missing; give an {kind.noun}, a folder, a glob or @list.txt")
    inputs = InputList(specs, base_dir=base_dir, kind=kind)
    with flag_named(flag):
        inputs.check()
    return inputs


def references_for(settings: InferSettings, detector: Detector[Any], base_dir: str) -> References | None:
    """The references of a detector that needs them; raises ConfigError where they and the detector do not fit."""
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
    with flag_named("--reference-dir"):
        return find_references(folder, base_dir=base_dir)


def _check_maps(settings: InferSettings, detector: Detector[Any]) -> None:
    """Refuse to ask a detector for maps that gives none."""
    if detector.gives_maps:
        return
    asked = {
        "--defects": settings.defects.enabled,
        "--include-maps (adaptation.save_maps)": settings.adaptation.save_maps,
        "--save-maps": settings.output.save_maps is not None,
        "--save-overlays": settings.output.save_overlays is not None,
    }
    if any(asked.values()):
        raise ConfigError(
            f"{', '.join(flag for flag, is_on in asked.items() if is_on)}: {detector.name} scores whole images and "
            "gives no anomaly maps; leave this out, or choose a detector that does (--list-models --tags pixel_map)"
        )


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
    unwritable = _Unwritable()
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
        faults += unwritable.why(flag, folder)
    flags: dict[str, str] = {}
    for flag, name in output_files(settings):
        faults += _faults_of_file(flag, name, settings, base_dir, sources, unwritable)
        other = flags.setdefault(real_path(name, base_dir), flag)
        if other != flag:
            faults.append(f"{flag} and {other} are the same file {name!r}; take two")
    if faults:
        raise ConfigError("\n".join(faults))


class _Unwritable:
    """Why folders cannot be written to.

    A store at a URL that failed is not asked again, because each answer may take long and be the same.
    """

    def __init__(self) -> None:
        self._failed: set[str] = set()

    def why(self, flag: str, folder: str) -> list[str]:
        """The fault of one folder, none when it can be written to, or lies in a store whose fault is told already."""
        store = self.store(folder)
        if self.is_told(folder):
            return []
        try:
            check_writable(folder)
        except ConfigError as error:
            if store is not None:
                self._failed.add(store)
            return [f"{flag}: {error}"]
        return []

    def is_told(self, path: str) -> bool:
        """Whether a path lies in a store whose fault is told."""
        return self.store(path) in self._failed

    @staticmethod
    def store(path: str) -> str | None:
        """Scheme and bucket of a URL."""
        return "/".join(path.split("/")[:3]) if is_url(path) else None


def _faults_of_file(
    flag: str,
    name: str,
    settings: InferSettings,
    base_dir: str,
    sources: Sequence[InputFolder],
    unwritable: _Unwritable,
) -> Iterator[str]:
    """Why a file must not be written where it is asked for: over what is read or what the run leaves, or it cannot."""
    real = real_path(name, base_dir)
    for source in sources:
        spec = real_path(source.spec, base_dir)
        is_inside_store = is_zarr(source.spec) and _lies_inside(real, spec)
        if real == spec or is_inside_store or (source.kind.has_suffix(real) and _lies_inside(real, spec)):
            yield f"{flag}: {name!r} lies in what {source.flag} reads; name another file"
    run_dir = settings.dataflow.run_dir
    if run_dir is not None and real in {join(real_path(run_dir, base_dir), own) for own in RUN_FILES}:
        yield f"{flag}: the run itself writes {name!r} into its folder; name another file"
    path = resolve(name, base_dir)
    yield from unwritable.why(flag, os.path.dirname(path))
    if unwritable.is_told(path):
        return
    try:
        kind = "folder" if is_url(path) and path.endswith("/") else kind_at(path, pauses_s=ONCE)
    except OSError as error:
        yield f"{flag}: {name!r} cannot be written: {error}"
        return
    if kind == "folder":
        yield f"{flag}: {name!r} is a folder; give the path of a file"
    elif kind == "other":
        instead = "leave the flag out and redirect standard output" if flag == "--save-jsonl" else "name a file"
        yield f"{flag}: {name!r} is a pipe or a device; {instead}"


def output_files(settings: InferSettings) -> Iterator[tuple[str, str]]:
    """(flag, path) of every output file that is set."""
    for flag, name in (
        ("--save-jsonl", settings.output.save_jsonl),
        ("--profile-json", settings.output.profile_json),
        ("--performance-report", settings.dataflow.performance_report),
    ):
        if name is not None:
            yield flag, name


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
    """The path with its links resolved; a URL as its file system spells it."""
    resolved = resolve(path, base_dir)
    local = local_path(resolved)
    return canonical(resolved) if local is None else os.path.realpath(local)


def _lies_inside(folder: str, input_folder: str) -> bool:
    if is_url(folder) or is_url(input_folder):
        return f"{folder}/".startswith(f"{input_folder}/")
    return os.path.isdir(input_folder) and os.path.commonpath([folder, input_folder]) == input_folder
