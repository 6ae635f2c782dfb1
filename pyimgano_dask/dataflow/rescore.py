"""A run over stored maps: new thresholds and controls, no detector."""

from __future__ import annotations

import hashlib
import os
import posixpath
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from pydantic import ValidationError

from pyimgano_dask.dataflow.artifacts import is_zarr
from pyimgano_dask.dataflow.inspection import (
    Inspection,
    RunSummary,
    Thresholds,
    inspect,
    say_finished,
    stored_source,
    take_finished,
)
from pyimgano_dask.dataflow.plan import make_plan
from pyimgano_dask.dataflow.preflight import InputFolder, check_outputs, listed, output_files, real_path
from pyimgano_dask.dataflow.profile import finish
from pyimgano_dask.dataflow.progress import Progress, SilentProgress
from pyimgano_dask.dataflow.run_folder import PARTS, find_run_folder, hold_run_folder
from pyimgano_dask.dataflow.schedulers import open_scheduler
from pyimgano_dask.dataflow.shards import part_index
from pyimgano_dask.dataflow.sources import StoredMap
from pyimgano_dask.dataflow.versions import package_versions
from pyimgano_dask.errors import ConfigError, Stage
from pyimgano_dask.images.listing import FileKind, InputList
from pyimgano_dask.settings.commands import RESCORE
from pyimgano_dask.settings.knob import Block
from pyimgano_dask.settings.rescoring import Rescoring
from pyimgano_dask.settings.run_manifest import MANIFEST_NAME, RunManifest
from pyimgano_dask.storage.files import is_file, list_names, resolve
from pyimgano_dask.storage.jsonl import iter_records
from pyimgano_dask.thresholds import fixed_pixel_provenance
from pyimgano_dask.urls import join

NPY_MAPS = FileKind("anomaly map", (".npy",))
STORED_MAPS = "stored maps"


class StoredMaps(Protocol):
    """The maps of a re-scoring in order, lazily, as often as they are iterated."""

    @property
    def base_dir(self) -> str:
        """Where relative paths of maps and images start."""

    def __iter__(self) -> Iterator[StoredMap]: ...

    def count(self) -> int:
        """How many there are."""


def rescore(rescoring: Rescoring, stdout: BinaryIO, progress: Progress | None = None) -> RunSummary:
    """Extract the defects of stored maps; records go to `save_jsonl`, or to `stdout` as soon as their turn comes.

    Raises ConfigError before any work when something cannot be right, RunError when the run cannot finish.
    """
    started = time.perf_counter()
    base_dir = os.getcwd()
    settings = rescoring.resolved.settings
    maps = _find_maps(rescoring, base_dir)
    thresholds = _thresholds(rescoring)
    _check_nothing_is_overwritten(rescoring, maps, base_dir)
    sources = [InputFolder("--input", spec) for spec in settings.inputs.input]
    if settings.stored.maps is not None:
        sources.append(InputFolder("--maps", settings.stored.maps, NPY_MAPS))
    check_outputs(settings, base_dir, sources)
    lists = {"stored maps": (maps.count(), _digest(maps))}
    plan = make_plan(
        settings, lists, base_dir, package_versions(), {"pixel threshold from": thresholds.pixel_provenance}
    )
    summary = RunSummary(settings, STORED_MAPS, thresholds=thresholds)
    progress = progress or SilentProgress()
    with ExitStack() as stack:
        stack.enter_context(hold_run_folder(settings, base_dir))
        folder = find_run_folder(settings, base_dir, plan)
        if take_finished(folder, settings, base_dir, summary):
            finish(summary, started, RESCORE.name)
            return summary
        scheduler = stack.enter_context(open_scheduler(settings.dataflow, maps.count(), base_dir))
        stack.enter_context(folder.begun())
        summary.warnings = scheduler.warnings
        summary.scheduler = scheduler.describe()
        summary.profile.n_workers = scheduler.n_workers
        summary.training_seconds = time.perf_counter() - started
        work = Inspection(
            settings=settings,
            base_dir=base_dir,
            inputs_dir=maps.base_dir,
            inputs=maps,
            n_inputs=maps.count(),
            source=stored_source(settings, maps.base_dir),
            thresholds=thresholds,
            images=None,
        )
        inspect(work, scheduler, folder, stdout, progress, summary)
        say_finished(work, folder)
    finish(summary, started, RESCORE.name)
    return summary


def _digest(maps: StoredMaps) -> str:
    """SHA-256 of where the maps lie and what is known of their inputs, in order."""
    digest = hashlib.sha256()
    for item in maps:
        digest.update(repr(item).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _thresholds(rescoring: Rescoring) -> Thresholds:
    settings = rescoring.resolved.settings
    value = settings.defects.pixel_threshold
    if value is None:
        raise ConfigError(
            "defects need a pixel threshold, and neither the stored run nor a config has one; "
            "give --pixel-threshold T, or an --infer-config whose defects.pixel_threshold is set"
        )
    provenance: Mapping[str, Any] | None = settings.pixel_threshold_provenance
    if rescoring.resolved.is_explicit("defects.pixel_threshold"):
        provenance = fixed_pixel_provenance(value, "explicit")
    elif rescoring.run is None or provenance is None:
        provenance = fixed_pixel_provenance(value, "infer_config")
    return Thresholds(settings.threshold, settings.threshold_provenance, value, provenance)


def _check_nothing_is_overwritten(rescoring: Rescoring, maps: StoredMaps, base_dir: str) -> None:
    """Refuse to write over the run or the maps that are read."""
    settings, run = rescoring.resolved.settings, rescoring.run
    run_dir, from_run = settings.dataflow.run_dir, settings.stored.from_run
    if run_dir is not None and from_run is not None and real_path(run_dir, base_dir) == real_path(from_run, base_dir):
        raise ConfigError(f"--run-dir: {run_dir!r} is the run of --from-run, which is read; name another folder")
    if run is not None and from_run is not None:
        read = {real_path(join(from_run, MANIFEST_NAME), base_dir)}
        if run.records is not None:
            read.add(real_path(run.records, run.base_dir))
        parts = real_path(join(from_run, PARTS), base_dir)
        for flag, name in output_files(settings):
            target = real_path(name, base_dir)
            if target in read or os.path.dirname(target) == parts:
                raise ConfigError(f"{flag}: {name!r} is a file of the run that is read; name another file")
    overlays = settings.output.save_overlays
    masks = settings.output.save_masks if settings.defects.mask_format in ("npy", "zarr") else None
    if overlays is None and masks is None:
        return
    of_images: set[str] = set()
    of_maps: set[str] = set()
    for item in maps:
        if item.image is not None:
            of_images.add(posixpath.dirname(item.image))
        if item.location is not None:
            of_maps.add(_place(item.location))
    for flag, folder, what, places in (
        ("--save-overlays", overlays, "images", of_images),
        ("--save-masks", masks, "maps", of_maps),
    ):
        if folder is not None and real_path(folder, base_dir) in {real_path(place, maps.base_dir) for place in places}:
            raise ConfigError(f"{flag}: the {what} that are read lie in {folder!r}; take another folder")


def _place(location: Mapping[str, Any]) -> str:
    """The store or the folder a map lies in."""
    path: str = location["path"]
    return path if "row" in location else posixpath.dirname(path)


def _find_maps(rescoring: Rescoring, base_dir: str) -> StoredMaps:
    settings = rescoring.resolved.settings
    stored = settings.stored
    images = listed(settings.inputs.input, base_dir, "--input") if settings.inputs.input else None
    if rescoring.run is not None and stored.from_run is not None:
        if images is not None:
            raise ConfigError("--input: the run of --from-run knows its images; leave --input out")
        return _RunMaps.find(resolve(stored.from_run, base_dir), rescoring.run)
    assert stored.maps is not None
    if images is None and settings.defects.image_space:
        raise ConfigError(
            "--defects-image-space needs the images of the maps; give them with --input, in the same order"
        )
    maps: StoredMaps
    maps = _StoreMaps.find(stored.maps, base_dir) if is_zarr(stored.maps) else _FileMaps(stored.maps, base_dir)
    if images is None:
        return maps
    if images.count() != maps.count():
        raise ConfigError(
            f"--input stands for {images.count()} images and --maps for {maps.count()} maps; there must be one image a "
            "map, in the same order"
        )
    return _PairedMaps(maps, images)


@dataclass(frozen=True)
class _RunMaps:
    """The maps that the records of a finished run name."""

    run: RunManifest
    records: tuple[str, ...]

    @classmethod
    def find(cls, run_dir: str, run: RunManifest) -> _RunMaps:
        try:
            return cls._find(run_dir, run)
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(f"--from-run: the records of the run in {run_dir!r} cannot be read: {error}") from None

    @classmethod
    def _find(cls, run_dir: str, run: RunManifest) -> _RunMaps:
        if run.records is not None:
            records: tuple[str, ...] = (resolve(run.records, run.base_dir),)
        else:
            parts = join(run_dir, PARTS)
            records = tuple(join(parts, name) for name in list_names(parts) if part_index(name) is not None)
        if not records or not is_file(records[0]):
            raise ConfigError(
                f"--from-run: the records of the run in {run_dir!r} are not there "
                f"({run.records or 'standard output'}); they are kept with --save-jsonl FILE or --keep-parts"
            )
        maps = cls(run, records)
        n_records = 0
        for item in maps:
            n_records += 1
            if item.location is not None and "path" not in item.location:
                raise ConfigError(
                    f"--from-run: the run in {run_dir!r} stored no maps; run it again with --save-maps DIR"
                )
        if n_records != run.n_inputs:
            raise ConfigError(
                f"--from-run: {', '.join(map(repr, records[:3]))} hold {n_records} records, but the run in {run_dir!r} "
                f"had {run.n_inputs} inputs; the file was cut short or changed"
            )
        return maps

    @property
    def base_dir(self) -> str:
        return self.run.base_dir

    def count(self) -> int:
        return self.run.n_inputs

    def __iter__(self) -> Iterator[StoredMap]:
        for path in self.records:
            for record in iter_records(path):
                yield _from_record(record, path)


class _Failure(Block):
    """What the record of an input that failed says."""

    stage: Stage
    type: str
    message: str


class _Location(Block):
    """Where the record says that its map lies."""

    path: str | None = None
    array: str | None = None
    row: int | None = None


class _Record(Block):
    """What is needed of a record."""

    input: str
    score: float | None = None
    error: _Failure | None = None
    anomaly_map: _Location = _Location()


def _from_record(payload: Mapping[str, Any], path: str) -> StoredMap:
    try:
        record = _Record.model_validate(payload)
    except ValidationError as fault_list:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in fault_list.errors(include_url=False)
        )
        raise ConfigError(
            f"--from-run: {path!r} holds a record that pyimgano-infer does not write ({faults}): {payload!r:.200}"
        ) from None
    if record.error is not None:
        error = record.error
        return StoredMap(record.input, None, record.input, failure=(error.stage, error.type, error.message))
    location = record.anomaly_map.model_dump(exclude_none=True)
    is_map = record.input in (record.anomaly_map.path, f"{record.anomaly_map.path}#{record.anomaly_map.row}")
    return StoredMap(record.input, location, None if is_map else record.input, score=record.score)


class _FileMaps:
    """`.npy` files: a folder, a glob, a list or one file."""

    def __init__(self, spec: str, base_dir: str) -> None:
        self.base_dir = base_dir
        self._files = listed((spec,), base_dir, "--maps", NPY_MAPS)

    def count(self) -> int:
        return self._files.count()

    def __iter__(self) -> Iterator[StoredMap]:
        for path in self._files:
            yield StoredMap(path, {"path": path})


@dataclass(frozen=True)
class _StoreMaps:
    """Every row of a zarr store."""

    store: str
    base_dir: str
    n_rows: int

    @classmethod
    def find(cls, store: str, base_dir: str) -> _StoreMaps:
        from pyimgano_dask.storage.zarr_store import count_rows

        try:
            return cls(store, base_dir, count_rows(resolve(store, base_dir)))
        except ConfigError as error:
            raise ConfigError(f"--maps: {error}") from None

    def count(self) -> int:
        return self.n_rows

    def __iter__(self) -> Iterator[StoredMap]:
        for row in range(self.n_rows):
            yield StoredMap(f"{self.store}#{row}", {"path": self.store, "row": row})


@dataclass(frozen=True)
class _PairedMaps:
    """Maps with their images, which stand in the same order."""

    maps: StoredMaps
    images: InputList

    @property
    def base_dir(self) -> str:
        return self.maps.base_dir

    def count(self) -> int:
        return self.maps.count()

    def __iter__(self) -> Iterator[StoredMap]:
        for item, image in zip(self.maps, self.images, strict=True):
            yield StoredMap(image, item.location, image)
