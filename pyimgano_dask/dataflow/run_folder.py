"""The folder of a run: its plan, its shards and its fitted detector, and what an earlier session left there.

`plan.json` is written when a run begins and says what the bytes depend on; the fitted detector and the thresholds join
it once they are known, the scale of the overlays likewise. A chunk is done when its shard is there. `run.json` says
that the run is finished.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pyimgano_dask.dataflow.faults import CANNOT_WRITE, REMEDY
from pyimgano_dask.dataflow.plan import RunPlan
from pyimgano_dask.dataflow.shards import is_spooled, part_index, scores_index
from pyimgano_dask.errors import ConfigError, RunError
from pyimgano_dask.settings.infer_config import CONFIG_NAME
from pyimgano_dask.settings.knob import Block, knob
from pyimgano_dask.settings.run import InferSettings
from pyimgano_dask.settings.run_manifest import DETECTOR_NAME, MANIFEST_NAME, PLAN_NAME
from pyimgano_dask.storage.files import (
    TEMP_PREFIX,
    is_file,
    kind_at,
    list_names,
    local_path,
    make_folder,
    read_file,
    remove_file,
    remove_folder_if_empty,
    remove_leftovers,
    resolve,
    write_atomic,
)
from pyimgano_dask.urls import is_url, join

PARTS = "parts"
SPOOL = ".spool"
FORMAT = 1
_KEPT = "what is done is kept in {!r}; the same command with --resume goes on"


class Training(Block):
    """What fitting and calibrating gave: all a resumed run needs beside the detector's file."""

    detector_sha256: str = knob(..., "Checksum of the fitted detector beside the plan.")
    threshold: float | None = knob(None, "Score threshold.")
    threshold_provenance: dict[str, Any] | None = knob(None, "Where it came from.")
    pixel_threshold: float | None = knob(None, "Pixel threshold.")
    pixel_threshold_provenance: dict[str, Any] | None = knob(None, "Where it came from.")
    warnings: tuple[str, ...] = knob((), "What was said of the training images.")


class PlanFile(Block):
    """`plan.json`."""

    format: int = knob(FORMAT, "Version of this file.", ge=FORMAT, le=FORMAT)
    plan: dict[str, Any] = knob(..., "What the bytes of the run depend on.")
    training: Training | None = knob(None, "None until it is done.")
    overlay_scale: tuple[float, float] | None = knob(None, "Extremes of all maps, for --overlay-scale run.")
    is_surveyed: bool = knob(False, "Whether the extremes have been looked for.")
    outputs_are_ready: bool = knob(False, "Whether the output folders and stores are made.")


@dataclass(frozen=True)
class Earlier:
    """What an earlier session of the same plan left: its plan file, and whether it came to the end."""

    file: PlanFile
    is_finished: bool


class RunFolder:
    """Where one run keeps what it needs until it ends, and after a failure.

    `parts_dir` takes the shards. With a folder of the user's own (`run_dir`) everything stays when the run fails, so
    that it can be resumed; without one it is a temporary folder that goes with the run. `follows_another` says that an
    earlier run, of this plan or another, began in it.
    """

    def __init__(
        self,
        plan: RunPlan,
        run_dir: str | None,
        parts_dir: str,
        *,
        keeps_parts: bool,
        earlier: Earlier | None = None,
        follows_another: bool = False,
    ) -> None:
        self.plan = plan
        self.run_dir = run_dir
        self.parts_dir = parts_dir
        self.earlier = earlier
        self.follows_another = follows_another
        self._keeps_parts = keeps_parts
        self._file = earlier.file if earlier else PlanFile(plan=dict(plan.facts))

    @property
    def spool_dir(self) -> str:
        """Where a first pass puts maps aside."""
        return join(self.parts_dir, SPOOL)

    @property
    def is_resumed(self) -> bool:
        """Whether an earlier session of this plan began here."""
        return self.earlier is not None

    @property
    def training(self) -> Training | None:
        """What fitting and calibrating gave, once it is done."""
        return self._file.training

    @property
    def surveyed_scale(self) -> tuple[bool, tuple[float, float] | None]:
        """Whether the extremes of all maps are known, and what they are (None when the maps have no two values)."""
        return self._file.is_surveyed, self._file.overlay_scale

    def read_detector(self) -> bytes | None:
        """The fitted detector that belongs to `training`; None when it is not there or another one."""
        data = self._stored_detector()
        if data is None or self.training is None:
            return None
        return data if hashlib.sha256(data).hexdigest() == self.training.detector_sha256 else None

    def _stored_detector(self) -> bytes | None:
        try:
            return None if self.run_dir is None else read_file(join(self.run_dir, DETECTOR_NAME))
        except OSError:
            return None

    def keep_training(self, training: Training, detector: bytes) -> None:
        """Remember what fitting and calibrating gave; a config that belongs to another detector goes."""
        if self.run_dir is not None:
            if self._stored_detector() != detector:
                remove_file(join(self.run_dir, CONFIG_NAME))
            write_atomic(join(self.run_dir, DETECTOR_NAME), detector)
        self._write(training=training)

    @property
    def outputs_are_ready(self) -> bool:
        """Whether this run has made its output folders and stores."""
        return self._file.outputs_are_ready

    def keep_outputs_are_ready(self) -> None:
        """Remember that the output folders and stores are made."""
        self._write(outputs_are_ready=True)

    def keep_scale(self, scale: tuple[float, float] | None) -> None:
        """Remember the extremes of all maps."""
        self._write(overlay_scale=scale, is_surveyed=True)

    def finished_chunks(self) -> set[int]:
        """Indices of the chunks whose shard is there."""
        return {index for name in list_names(self.parts_dir) if (index := part_index(name)) is not None}

    def surveyed_chunks(self) -> set[int]:
        """Indices of the chunks whose maps a first pass has put aside."""
        return {index for name in list_names(self.spool_dir) if (index := scores_index(name)) is not None}

    @contextmanager
    def begun(self) -> Iterator[None]:
        """The time of the run: the folder is made ready, and tidied at the end; kept as it is when a run fails in it.

        Raises RunError for whatever cannot be written in the block, with what to do then.
        """
        try:
            self._make_ready()
            yield
        except BaseException as error:
            if self.run_dir is None:
                self._remove_parts()
            kept = "" if self.run_dir is None else _KEPT.format(self.run_dir)
            if isinstance(error, KeyboardInterrupt) and kept:
                raise type(error)(kept) from None
            if isinstance(error, RunError) or (isinstance(error, OSError) and not isinstance(error, BrokenPipeError)):
                said = str(error) if isinstance(error, RunError) else f"{CANNOT_WRITE}: {error}; {REMEDY}"
                raise RunError("\n  ".join(filter(None, (said, kept)))) from error
            raise
        self.remove_spool()
        if not self._keeps_parts:
            self._remove_parts()

    def _make_ready(self) -> None:
        if self.run_dir is not None and not self.is_resumed:
            make_folder(self.run_dir)
            remove_file(join(self.run_dir, MANIFEST_NAME))
            self._remove_parts()
            self._write()
        make_folder(self.parts_dir)
        remove_leftovers(self.parts_dir)

    def remove_spool(self) -> None:
        """Remove the maps of a first pass."""
        for name in list_names(self.spool_dir):
            if is_spooled(name) or name.startswith(TEMP_PREFIX):
                remove_file(join(self.spool_dir, name))
        remove_folder_if_empty(self.spool_dir)

    def _remove_parts(self) -> None:
        """Remove what runs leave in a folder of shards, and the folder if nothing else is in it."""
        self.remove_spool()
        for name in list_names(self.parts_dir):
            if part_index(name) is not None or name.startswith(TEMP_PREFIX):
                remove_file(join(self.parts_dir, name))
        remove_folder_if_empty(self.parts_dir)

    def _write(self, **changes: Any) -> None:
        self._file = self._file.model_copy(update=changes)
        if self.run_dir is not None:
            content = json.dumps(self._file.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False) + "\n"
            write_atomic(join(self.run_dir, PLAN_NAME), content.encode())


def find_run_folder(settings: InferSettings, base_dir: str, plan: RunPlan) -> RunFolder:
    """The folder of a run that is about to begin; nothing is written yet.

    Raises ConfigError when an unfinished run lies there that the user did not speak of, one of another plan that
    cannot be resumed, or what is no run folder.
    """
    try:
        return _find_run_folder(settings, base_dir, plan)
    except OSError as error:
        raise ConfigError(
            f"--run-dir: {settings.dataflow.run_dir!r} cannot be read: {error}; name another one"
        ) from None


def _find_run_folder(settings: InferSettings, base_dir: str, plan: RunPlan) -> RunFolder:
    flow = settings.dataflow
    if flow.run_dir is None:
        return RunFolder(plan, None, _temporary_parts(settings, base_dir), keeps_parts=flow.keep_parts)
    run_dir = resolve(flow.run_dir, base_dir)
    parts_dir = join(run_dir, PARTS)
    for name in (PLAN_NAME, DETECTOR_NAME, CONFIG_NAME, MANIFEST_NAME):
        if kind_at(join(run_dir, name)) not in ("file", None):
            raise ConfigError(
                f"--run-dir: {name!r} in {flow.run_dir!r} is no file; move it away, or name another folder"
            )
    if kind_at(parts_dir) not in ("folder", None):
        raise ConfigError(
            f"--run-dir: {PARTS!r} in {flow.run_dir!r} is no folder; move it away, or name another folder"
        )
    begun_before = is_file(join(run_dir, PLAN_NAME))
    folder = RunFolder(plan, run_dir, parts_dir, keeps_parts=flow.keep_parts, follows_another=begun_before)
    if flow.resume is False or not begun_before:
        return folder
    is_finished = is_file(join(run_dir, MANIFEST_NAME))
    if flow.resume is None:
        n_done = 0 if is_finished else len(folder.finished_chunks() or folder.surveyed_chunks())
        if n_done:
            raise ConfigError(
                f"--run-dir: {flow.run_dir!r} holds an unfinished run, {n_done} chunks of it done; give --resume to go "
                "on with it, or --no-resume to start anew"
            )
        return folder
    file = _read_plan(run_dir, flow.run_dir)
    differences = list(plan.differences(file.plan))
    if differences:
        raise ConfigError(
            f"--resume: the run in {flow.run_dir!r} began with another plan; give what it began with, or --no-resume "
            "to start anew:\n  " + "\n  ".join(differences)
        )
    earlier = Earlier(file, is_finished)
    return RunFolder(
        plan, run_dir, parts_dir, keeps_parts=flow.keep_parts, earlier=earlier, follows_another=begun_before
    )


def _read_plan(run_dir: str, shown: str) -> PlanFile:
    try:
        return PlanFile.model_validate(json.loads(read_file(join(run_dir, PLAN_NAME))), strict=False)
    except (ValueError, RecursionError) as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in _faults_in(error)]
        raise ConfigError(
            f"--resume: the plan in {shown!r} is damaged or of another version ({'; '.join(faults) or error}); "
            "--no-resume starts anew"
        ) from None


def _faults_in(error: Exception) -> list[Any]:
    return list(error.errors(include_url=False)) if isinstance(error, ValidationError) else []


def _temporary_parts(settings: InferSettings, base_dir: str) -> str:
    """A folder for shards that goes with the run: beside the JSONL, else where the command runs."""
    jsonl = settings.output.save_jsonl
    if jsonl is not None:
        path = resolve(jsonl, base_dir)
        beside = path.rpartition("/")[0] if is_url(path) else os.path.dirname(path)
    else:
        # The working folder, which workers on other machines mostly share.
        beside = base_dir if os.access(base_dir, os.W_OK) else tempfile.gettempdir()
    return join(beside, f".parts-{uuid.uuid4().hex}")


@contextmanager
def hold_run_folder(settings: InferSettings, base_dir: str) -> Iterator[None]:
    """Hold the run folder, if there is one, against other runs of this machine, where its file system can.

    A run holds it from before it looks into it. A dead run lets go of it. The folder is made, and removed again if
    nothing is in it at the end. Raises ConfigError when another run holds it.
    """
    shown = settings.dataflow.run_dir
    folder = None if shown is None else local_path(resolve(shown, base_dir))
    if folder is None:
        yield
        return
    descriptor = _locked(folder, shown)
    try:
        yield
    finally:
        remove_folder_if_empty(folder)
        os.close(descriptor)


def _locked(folder: str, shown: str | None) -> int:
    """A descriptor of the folder, locked where its file system can; made anew when another run removes it meanwhile."""
    while True:
        try:
            make_folder(folder)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ConfigError(f"--run-dir: {shown!r} cannot be used as a folder: {error}; name another one") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigError(
                f"--run-dir: another run is at work in {shown!r}; wait until it ends, or take another folder"
            ) from None
        except OSError:
            return descriptor
        try:
            if os.path.samestat(os.stat(folder), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)
