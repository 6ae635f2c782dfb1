"""A run of 55 chunks, cut off where a test wants it and resumed."""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.commands import Fork, started_module
from tests.conftest import Ended, hashes_below, infer_command, wait_until

N_LISTS = 5
N_CHUNKS = 11 * N_LISTS
TRAINING = (
    "--model",
    "vision_pixel_mad_map",
    "--model-kwargs",
    '{"resize_hw": [64, 64]}',
    "--train-dir",
    "set/train/good",
)
RUN = (
    *TRAINING,
    *("--input", *["@list.txt"] * N_LISTS, "--defects", "--explain-defects", "--batch-size", "2"),
    *("--save-masks", "out/masks", "--save-maps", "out/maps.zarr", "--save-overlays", "out/overlays"),
    *("--save-jsonl", "out/records.jsonl", "--run-dir", "run", "--keep-parts", "--workers", "2"),
)


def results(place: Path) -> dict[str, str]:
    """Hashes of what the run leaves, without the half files of killed workers: nothing reads them."""
    found = hashes_below(place / "out")
    return {path: found[path] for path in found if not path.endswith(".partial") and "/.tmp-" not in path}


def shards(place: Path) -> dict[str, tuple[int, int]]:
    """Which shards are there, each with its inode and time of writing: one that is written again has others."""
    stats = {path.name: path.stat() for path in (place / "run/parts").glob("part-*.jsonl")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def started(place: Path, *flags: object) -> AbstractContextManager[Fork]:
    """The command on its way; with all it has started, it is gone at the end of the block."""
    return started_module("pyimgano_dask.cli.infer", *map(str, (*RUN, *flags)), cwd=place)


def cut_off(place: Path, scheduler: str, after: int) -> dict[str, tuple[int, int]]:
    """Kill a run once `after` chunks are done; returns the shards it leaves."""
    with started(place, "--scheduler", scheduler) as run:
        wait_until(lambda: len(shards(place)) >= after or run.poll() is not None, f"{after} chunks are done")
        assert run.poll() is None, run.stderr
    left = shards(place)
    assert after <= len(left) < N_CHUNKS
    assert not (place / "out/records.jsonl").exists()
    return left


@dataclass(frozen=True)
class Kept:
    """A folder and a copy of it. A run folder knows where it lies, so tests get it there, as it was."""

    place: Path
    copy: Path

    @classmethod
    def of(cls, place: Path) -> Kept:
        copy = place.with_name(f"{place.name}-kept")
        return cls(place, Path(shutil.copytree(place, copy, symlinks=True)))

    def restored(self) -> Path:
        """The folder with what was in it and nothing else."""
        shutil.rmtree(self.place)
        return Path(shutil.copytree(self.copy, self.place, symlinks=True))


def resume(place: Path, *flags: object) -> Ended:
    return infer_command(*RUN, "--resume", *flags, cwd=place)


def settings_of(place: Path) -> dict[str, Any]:
    return dict(json.loads((place / "run/plan.json").read_text()))
