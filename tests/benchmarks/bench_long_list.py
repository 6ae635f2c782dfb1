"""A list of a million paths: what a chunk costs, and whether client and scheduler stay as small as for a short list.

    python tests/benchmarks/bench_long_list.py [--sizes N ...] [--read]

A detector that does nothing, on a `dask scheduler` with two single-threaded workers, all processes of their own and new
for each list. Without `--read` no image is opened, so that only the dataflow is left: listing, scheduling, shards of 32
records, the merge. With it every path is a PNG of 16x16 that is read. Memory is the peak of each process (VmHWM).
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pyimgano_dask.dataflow.inspection import Inspection, RunSummary, Thresholds, inspect
from pyimgano_dask.dataflow.plan import make_plan
from pyimgano_dask.dataflow.profile import peak_memory_bytes
from pyimgano_dask.dataflow.progress import SilentProgress
from pyimgano_dask.dataflow.reading import Reader
from pyimgano_dask.dataflow.run_folder import find_run_folder
from pyimgano_dask.dataflow.schedulers import open_scheduler
from pyimgano_dask.dataflow.sources import DetectorSource
from pyimgano_dask.images.listing import InputList
from pyimgano_dask.settings.resolve import given_by_keyword, resolve
from tests.cluster import start_cluster
from tests.dataflow.doubles import NoOp, NothingRead

MEBIBYTE = 1 << 20
COLUMNS = ("inputs", "chunks", "s", "ms a chunk", "client MiB", "scheduler MiB", "largest worker MiB")


@dataclass(frozen=True)
class Measured:
    """What one list took."""

    n_inputs: int
    seconds: float
    n_chunks: int
    client_bytes: int
    scheduler_bytes: int
    workers_bytes: int


def main() -> None:
    """Measure every size, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--read", action="store_true", help="read a small PNG for each path")
    arguments = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measure, (folder, size, arguments.read))
        peaks = [f"{peak / MEBIBYTE:.0f}" for peak in (found.client_bytes, found.scheduler_bytes, found.workers_bytes)]
        a_chunk = 1000 * found.seconds / found.n_chunks
        row = (f"{found.n_inputs:,}", f"{found.n_chunks:,}", f"{found.seconds:.1f}", f"{a_chunk:.2f}", *peaks)
        print(f"| {' | '.join(row)} |", flush=True)


def measure(name: str, n_inputs: int, reads: bool) -> Measured:
    """Run one list in this process, as its client."""
    folder = Path(name)
    cv2.imwrite(str(folder / "part.png"), np.zeros((16, 16), np.uint8))
    with (folder / "list.txt").open("w") as lines:
        for index in range(n_inputs):
            lines.write("part.png\n" if reads else f"line-4/shift-2/camera-1/part-{index:09d}.png\n")
    with start_cluster(folder / "cluster", 2) as cluster:
        given = {"input": "@list.txt", "save_jsonl": "records.jsonl", "scheduler": cluster.address}
        settings = resolve(given_by_keyword(given)).settings
        start = time.perf_counter()
        inputs = InputList(settings.inputs.input, base_dir=name)
        work = Inspection(
            settings=settings,
            base_dir=name,
            inputs_dir=name,
            inputs=inputs,
            n_inputs=inputs.count(),
            source=DetectorSource(Reader(name, "gray", 2**28), NoOp.create()) if reads else NothingRead(),
            thresholds=Thresholds(),
            images=None,
        )
        plan = make_plan(settings, {"--input": (inputs.count(), inputs.digest())}, name, {})
        run_folder = find_run_folder(settings, name, plan)
        summary = RunSummary(settings, "no_op")
        with open_scheduler(settings.dataflow, n_inputs, name) as scheduler, run_folder.begun():
            inspect(work, scheduler, run_folder, io.BytesIO(), SilentProgress(), summary)
        seconds = time.perf_counter() - start
        assert (summary.n_inputs, summary.n_errors) == (n_inputs, 0)
        peaks = [peak_memory_bytes(Path(f"/proc/{process.pid}/status")) for process in cluster.processes]
    return Measured(n_inputs, seconds, plan.n_chunks, peak_memory_bytes(), peaks[0], max(peaks[1:]))


if __name__ == "__main__":
    main()
