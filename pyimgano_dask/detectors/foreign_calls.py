"""Calling detectors of another package: from image files, one at a time, quietly, with random numbers that repeat."""

from __future__ import annotations

import hashlib
import io
import os
import random
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import cloudpickle
import cv2
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pyimgano_dask.detectors.base import Image
from pyimgano_dask.detectors.foreign_prints import prints_discarded
from pyimgano_dask.errors import RunError
from pyimgano_dask.shortages import is_disk_full, is_out_of_memory

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
FAST_COMPRESSION = 1

Result = TypeVar("Result")

# One call a process: such detectors may change themselves, and the random numbers are the process's own.
_alone = threading.RLock()


def encode_png(image: Image) -> bytes:
    """A lossless file of an image, uint8 RGB (H, W, 3)."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, FAST_COMPRESSION])
    if not done:
        raise ValueError(f"an image of the shape {image.shape} cannot be written as PNG")
    return data.tobytes()


@contextmanager
def image_files(encoded: Sequence[bytes]) -> Iterator[list[str]]:
    """Paths of PNG files with these bytes, there until the block ends; raises RunError where they cannot be written."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pyimgano-dask-"))
            paths = [os.path.join(folder, f"{number:06d}.png") for number in range(len(encoded))]
            for path, data in zip(paths, encoded, strict=True):
                with open(path, "wb") as file:
                    file.write(data)
        except OSError as error:
            raise RunError(
                f"temporary files for pyimgano cannot be written: {error}; make room, or name a folder on another disk "
                "in the environment variable TMPDIR, and run again"
            ) from error
        yield paths


@contextmanager
def faults_of_the_machine(what: str) -> Iterator[None]:
    """Tell faults of this machine apart from those of the foreign code in the block, which stay as they are.

    Raises MemoryError where memory is short, RunError where a disk is full; `what` says what could not be done.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(f"{what}: {error}") from error
        if is_disk_full(error):
            raise RunError(f"{what}: {error}; make room and run again") from error
        raise


def image_array(encoded: Sequence[bytes]) -> NDArray[np.uint8]:
    """PNG files as one array, RGB (N, H, W, 3). Raises ValueError where they are not all of one size."""
    images: list[Any] = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) for data in encoded]
    sizes = sorted({f"{image.shape[1]}x{image.shape[0]}" for image in images})
    if len(sizes) > 1:
        raise ValueError(f"the images must all be of one size, got {len(sizes)}: {', '.join(sizes[:3])}")
    return np.stack(images)


class _StatePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Writes what an object holds: torch itself writes where its arrays lie in memory, too."""

    def reducer_override(self, obj: Any) -> Any:
        torch = loaded_torch()
        if torch is not None and isinstance(obj, torch.Tensor):
            values = obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            return bytes, (values.tobytes(),)
        return super().reducer_override(obj)


def fingerprint(value: Any) -> bytes:
    """A hash that is the same as long as an object holds the same. Raises what pickling it raises."""
    buffer = io.BytesIO()
    _StatePickler(buffer).dump(value)
    return hashlib.sha256(buffer.getbuffer()).digest()


@contextmanager
def alone_and_repeatable(seed: int) -> Iterator[None]:
    """Run the block with no other such block beside it, its prints discarded, from known random numbers.

    The generators of `random`, of numpy and, where it is loaded, of torch start at `seed` and are put back afterwards,
    so that what the block draws depends on nothing before it. Standard output carries records, so nothing of the block
    may be printed there.
    """
    with _alone, _seeded(seed), prints_discarded():
        yield


def repeatable(seed: int, work: Callable[[], Result]) -> Result:
    """What `work` gives in a block of `alone_and_repeatable`; where it loads torch, it is done again from the start.

    Torch that is loaded on the way draws from numbers that nothing has settled, with as many threads as it likes.
    """
    had_torch = loaded_torch() is not None
    try:
        with alone_and_repeatable(seed):
            result = work()
    except Exception:
        if had_torch or loaded_torch() is None:
            raise
    else:
        if had_torch or loaded_torch() is None:
            return result
    with alone_and_repeatable(seed):
        return work()


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run the block with one native thread, so that its sums come out alike on any machine and in any process."""
    before_opencv = cv2.getNumThreads()
    torch = loaded_torch()
    before_torch = None if torch is None else torch.get_num_threads()
    try:
        with threadpool_limits(1):
            cv2.setNumThreads(1)
            if torch is not None:
                torch.set_num_threads(1)
            yield
    finally:
        cv2.setNumThreads(before_opencv)
        if torch is not None:
            torch.set_num_threads(before_torch)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    torch = loaded_torch()
    torch_state: NDArray[np.uint8] | None = None if torch is None else torch.random.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    if torch is not None:
        torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if torch is not None:
            torch.random.set_rng_state(torch_state)


def loaded_torch() -> Any:
    """The module, None where nothing has loaded it, or a thread is about to."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "set_num_threads") else None
