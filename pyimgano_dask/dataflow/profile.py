"""Where the time and the memory of a run went: collected from every chunk, told as a table or as JSON."""

from __future__ import annotations

import json
import os
import platform
import resource
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyimgano_dask.dataflow.sources import STAGES
from pyimgano_dask.dataflow.versions import PACKAGES, installed_version
from pyimgano_dask.errors import RunError
from pyimgano_dask.storage.files import make_folder, resolve, write_atomic
from pyimgano_dask.version import __version__

if TYPE_CHECKING:
    from pyimgano_dask.dataflow.inspection import RunSummary

RUN_STAGES = ("load_model", "fit", "calibrate", *STAGES, "merge")
"""Stages of a run in their order; those between calibrating and merging are counted by the workers, chunk by chunk."""
AFTER_THE_DETECTOR = ("extract", "write")

PROCESS_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Worker:
    """The process that worked on a chunk: `host:pid`, and the most memory it has held so far."""

    name: str
    peak_memory_bytes: int


def this_worker() -> Worker:
    """The process that asks."""
    return Worker(f"{socket.gethostname()}:{os.getpid()}", peak_memory_bytes())


def peak_memory_bytes(status: Path = PROCESS_STATUS) -> int:
    """The most memory this process has held at a time: its peak resident set size in bytes.

    Read from `VmHWM` of /proc/self/status (proc(5)). Where there is none, `ru_maxrss` of getrusage(2), which a process
    inherits from the one that started it, so it may be too large there.
    """
    with suppress(OSError):
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


@dataclass
class WorkerUse:
    """What one process did in a run."""

    chunks: int = 0
    peak_memory_bytes: int = 0


@dataclass
class Profile:
    """What a run took: seconds by stage, and the processes that worked on its chunks, by name.

    `seconds` of loading, fitting, calibrating and merging are wall time of the client, the process that leads the run;
    those of the other stages are summed over all workers. `n_workers` is how many chunks could be worked on at a time,
    `client` is as at the end of the run.
    """

    n_workers: int = 0
    client: Worker = field(default_factory=this_worker)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(RUN_STAGES, 0.0))
    workers: dict[str, WorkerUse] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the wall time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def add_chunk(self, seconds: Mapping[str, float], workers: Sequence[Worker]) -> None:
        """Count what a chunk took, and who worked on it: each process once."""
        for stage, spent in seconds.items():
            self.seconds[stage] += spent
        for name, worker in {worker.name: worker for worker in workers}.items():
            use = self.workers.setdefault(name, WorkerUse())
            use.chunks += 1
            use.peak_memory_bytes = max(use.peak_memory_bytes, worker.peak_memory_bytes)

    def share(self, stage: str) -> float:
        """Part of all counted seconds that a stage took, 0 to 1."""
        return self.seconds[stage] / (sum(self.seconds.values()) or 1.0)

    @property
    def largest_worker(self) -> Worker | None:
        """The process that held the most memory; None before any chunk."""
        workers = (Worker(name, use.peak_memory_bytes) for name, use in self.workers.items())
        return max(workers, key=lambda worker: worker.peak_memory_bytes, default=None)


def finish(summary: RunSummary, started: float, tool: str) -> None:
    """Complete the times of a run that has ended, and write its `--profile-json`, if it has one.

    `started` is what `time.perf_counter` was when it began, `tool` the command's name. Raises RunError when the file
    cannot be written.
    """
    summary.seconds = time.perf_counter() - started
    summary.profile.client = this_worker()
    name = summary.settings.output.profile_json
    if name is None:
        return
    path = resolve(name, summary.base_dir)
    text = json.dumps(profile_of(summary, tool), indent=2, sort_keys=True, allow_nan=False) + "\n"
    try:
        make_folder(os.path.dirname(path))
        write_atomic(path, text.encode())
    except OSError as error:
        raise RunError(
            f"--profile-json: {name!r} cannot be written: {error}; everything else of the run is there"
        ) from error


def profile_of(summary: RunSummary, tool: str) -> dict[str, Any]:
    """The profile of a run that has ended, as JSON-ready data; docs/PROFILING.md has its keys."""
    profile = summary.profile
    seconds = profile.seconds
    return {
        "tool": tool,
        "counts": {"inputs": summary.n_inputs, "processed": summary.n_worked, "errors": summary.n_errors},
        "timing_seconds": {
            "load_model": seconds["load_model"],
            "fit_calibrate": seconds["fit"] + seconds["calibrate"],
            "infer": sum(seconds[stage] for stage in STAGES if stage not in AFTER_THE_DETECTOR),
            "artifacts": sum(seconds[stage] for stage in (*AFTER_THE_DETECTOR, "merge")),
            "total": summary.seconds,
        },
        "stages": {
            stage: {
                "seconds": spent,
                "per_image_ms": 1000 * spent / max(1, summary.n_worked),
                "share": profile.share(stage),
            }
            for stage, spent in seconds.items()
        },
        "wall_seconds": summary.seconds,
        "images_per_second": summary.n_worked / summary.seconds,
        "n_inputs": summary.n_inputs,
        "scheduler": summary.scheduler,
        "workers": {
            "count": profile.n_workers,
            "threads_per_task": summary.settings.dataflow.threads_per_task,
            "processes": [
                {"name": name, "chunks": use.chunks, "peak_memory_bytes": use.peak_memory_bytes}
                for name, use in sorted(profile.workers.items())
            ],
        },
        "peak_memory_bytes": {
            "client": profile.client.peak_memory_bytes,
            "largest_worker": profile.largest_worker and profile.largest_worker.peak_memory_bytes,
        },
        "versions": _versions(),
    }


def _versions() -> dict[str, str | None]:
    others = {name.lower(): installed_version(distributions) for name, distributions in PACKAGES.items()}
    return {**others, "python": platform.python_version(), "pyimgano-dask": __version__}
