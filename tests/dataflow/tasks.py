"""Tasks that the tests of the schedulers run; in a module of their own, so that workers can import them."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
from threadpoolctl import threadpool_info

from pyimgano_dask.dataflow.plan import Chunk, chunked
from pyimgano_dask.errors import RunError
from tests.waiting import wait_until


def chunks(count: int) -> Iterator[Chunk]:
    """So many chunks of one input each."""
    return chunked((f"{index}.png" for index in range(count)), 1)


def name_of(chunk: Chunk, common: str) -> str:
    """Tells which chunk it was, and what every chunk shares."""
    return f"{common}{chunk.index} "


def concatenate(texts: Sequence[str]) -> str:
    """A join that sees the order and the multiplicity of what it joins."""
    return "".join(texts)


def leave_file(chunk: Chunk, folder: str) -> int:
    """Leaves a file named after the chunk."""
    (Path(folder) / str(chunk.index)).touch()
    return chunk.index


def wait_for_release(chunk: Chunk, folder: str) -> int:
    """Says that it has begun, and ends once `release` is there."""
    (Path(folder) / f"begun-{chunk.index}").touch()
    wait_until((Path(folder) / "release").exists, "the task is released")
    return chunk.index


def wait_for_release_from_four(chunk: Chunk, folder: str) -> int:
    """From the fifth chunk on it ends once `release` is there."""
    if chunk.index > 4:
        wait_until((Path(folder) / "release").exists, "the task is released")
    return chunk.index


def fail_at_three(chunk: Chunk, common: None) -> int:
    """Raises for chunk 3."""
    if chunk.index == 3:
        raise LookupError("chunk 3 is odd")
    return chunk.index


def fail_twice_at_three(chunk: Chunk, folder: str) -> int:
    """Raises for chunk 3 the first two times."""
    if chunk.index == 3 and len(failures := list(Path(folder).iterdir())) < 2:
        (Path(folder) / f"failure-{len(failures)}").touch()
        raise LookupError("chunk 3 is odd")
    return chunk.index


def process_of(chunk: Chunk, common: None) -> int:
    """The process that works on the chunk."""
    return os.getpid()


def begin_here(chunk: Chunk, common: None) -> int:
    """The first half of a chain: the process that begins."""
    return os.getpid()


def end_here(chunk: Chunk, begun: int, common: None) -> tuple[int, int]:
    """The second half: both processes."""
    return begun, os.getpid()


def as_it_is(begun: int) -> int:
    """What travels between the halves."""
    return begun


def wait_for_two_processes(chunk: Chunk, folder: str) -> int:
    """Ends once two processes have begun a chunk."""
    (Path(folder) / str(os.getpid())).touch()
    wait_until(lambda: len(list(Path(folder).iterdir())) > 1, "another process has begun")
    return os.getpid()


def end_the_run_at_three(chunk: Chunk, common: None) -> int:
    """Raises for chunk 3 what is not the fault of a chunk."""
    if chunk.index == 3:
        raise RunError("the disk is full at 3")
    return chunk.index


def die_at_three(chunk: Chunk, common: None) -> int:
    """Kills its own process at chunk 3, as the system does when memory runs out."""
    if chunk.index == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return chunk.index


def die_once(chunk: Chunk, folder: str) -> int:
    """Kills its own process at chunk 3 the first time."""
    marker = Path(folder) / "killed"
    if chunk.index == 3 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return chunk.index


def opencv_threads(chunk: Chunk, common: None) -> int:
    """How many threads OpenCV uses inside a task."""
    return cv2.getNumThreads()


class CountsArrivals:
    """A value that leaves a file in `folder`, named after the process, each time it is unpickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        (Path(self.folder) / f"{os.getpid()}-{uuid.uuid4().hex}").touch()


def use_counted(chunk: Chunk, common: CountsArrivals) -> int:
    """Reads the shared value; returns the process."""
    return os.getpid() if common.folder else 0


def longest(processes: Sequence[int]) -> int:
    """A join that needs no value in particular."""
    return max(processes)


def native_threads(chunk: Chunk, common: None) -> list[int]:
    """How many threads OpenCV and each BLAS library use inside a task; torch too where it is loaded."""
    blas = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
    torch = sys.modules.get("torch")
    return [cv2.getNumThreads(), *blas, *([torch.get_num_threads()] if torch else [])]


def wait_for_two_workers(chunk: Chunk, folder: str) -> int:
    """Tells which process it is; from the fourth chunk on it ends once two processes have begun one."""
    (Path(folder) / str(os.getpid())).touch()
    if chunk.index > 3:
        wait_until(lambda: len(list(Path(folder).iterdir())) > 1, "another worker has begun")
    return os.getpid()
