"""What Dask costs: each local scheduler beside a bare loop or pool over the very same functions, pair by pair.

    python tests/benchmarks/bench_schedulers.py [--images N] [--runs N]

Images of 256x256 with defects, masks, maps and overlays. Both sides process the same chunks and join their shards; a
run of each after the other, so that the ratio holds when the machine's speed drifts.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyimgano_dask
from pyimgano_dask.dataflow.chunk import Job, Receipt, process_chunk
from pyimgano_dask.dataflow.inspection import Inspection, RunSummary, Thresholds, inspect, stored_source
from pyimgano_dask.dataflow.merge import OrderedMerge
from pyimgano_dask.dataflow.native import limit_native_threads, native_threads_as_before
from pyimgano_dask.dataflow.plan import Chunk, chunked, make_plan
from pyimgano_dask.dataflow.progress import SilentProgress
from pyimgano_dask.dataflow.reading import Reader
from pyimgano_dask.dataflow.run_folder import find_run_folder
from pyimgano_dask.dataflow.schedulers import open_scheduler
from pyimgano_dask.dataflow.sources import DetectorSource
from pyimgano_dask.detectors.checkpoint import decode_detector
from pyimgano_dask.images.listing import InputList
from pyimgano_dask.settings.infer_config import read_infer_config
from pyimgano_dask.settings.resolve import given_by_keyword, resolve
from pyimgano_dask.storage.files import open_sink
from pyimgano_dask.synthesis import write_inspection_set

N_TRAIN = 40
OUTPUT = {
    "save_jsonl": "out/records.jsonl",
    "save_masks": "out/masks",
    "save_maps": "out/maps",
    "save_overlays": "out/overlays",
}
_job: Job


def main() -> None:
    """Make the images, time every pair, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = prepare(Path(name), arguments.images)
        pairs: list[tuple[str, str, Callable[[Job, Path], None], dict[str, Any]]] = [
            ("sync", "a plain loop", in_a_loop, {"scheduler": "sync"}),
            ("threads × 2", "a bare pool of two threads", in_threads, {"scheduler": "threads", "workers": 2}),
            ("processes × 2", "a bare pool of two processes", in_processes, {"scheduler": "processes", "workers": 2}),
        ]
        print(f"{arguments.images} images, {os.cpu_count()} cores, {arguments.runs} pairs after one to warm up\n")
        print("| scheduler | s | ms an image | beside | s | ratio, pair by pair |\n|---|---|---|---|---|---|")
        for scheduler, peer, bare, flow in pairs:
            times = []
            for _ in range(arguments.runs + 1):
                ours = timed(lambda flow=flow: by_dask(work, flow))
                theirs = timed(lambda bare=bare: by_hand(work, bare))
                times.append((ours, theirs))
            ratios = sorted(ours / theirs for ours, theirs in times[1:])
            ours, theirs = (statistics.median(column) for column in zip(*times[1:], strict=True))
            print(
                f"| {scheduler} | {ours:.2f} | {1000 * ours / arguments.images:.2f} | {peer} | {theirs:.2f} "
                f"| {statistics.median(ratios):.3f} [{ratios[0]:.3f} – {ratios[-1]:.3f}] |",
                flush=True,
            )


def prepare(folder: Path, n_images: int) -> Inspection:
    """Images, a detector fitted on some of them, and what is to be done."""
    images = write_inspection_set(
        folder / "set", n_train=N_TRAIN, n_good=n_images // 4, n_per_defect=n_images // 4, sizes_hw=((256, 256),)
    )
    fitted = {
        "model": "vision_pixel_mad_map",
        "train_dir": images.train_dir,
        "defects": True,
        "run_dir": str(folder / "run"),
    }
    pyimgano_dask.infer(**fitted, input=images.train_good[0], defect_min_area=12, defect_border_ignore_px=8)
    given = {"input": images.test_dir, **OUTPUT}
    settings = resolve(given_by_keyword(given), read_infer_config(str(folder / "run/infer_config.json"))).settings
    inputs = InputList(settings.inputs.input, base_dir=str(folder))
    detector = decode_detector((folder / "run/detector.npz").read_bytes(), "detector.npz")
    reader = Reader(str(folder), detector.color, settings.inputs.max_image_pixels, with_display=True)
    thresholds = Thresholds(
        settings.threshold,
        settings.threshold_provenance,
        settings.defects.pixel_threshold,
        settings.pixel_threshold_provenance,
    )
    return Inspection(
        settings=settings,
        base_dir=str(folder),
        inputs_dir=str(folder),
        inputs=inputs,
        n_inputs=inputs.count(),
        source=DetectorSource(reader, detector),
        thresholds=thresholds,
        images=stored_source(settings, str(folder)),
    )


def by_dask(work: Inspection, flow: dict[str, Any]) -> None:
    """The inspecting half of a run."""
    settings = work.settings.model_copy(update={"dataflow": work.settings.dataflow.model_copy(update=flow)})
    plan = make_plan(settings, {"--input": (work.n_inputs, "")}, work.base_dir, {})
    folder = find_run_folder(settings, work.base_dir, plan)
    summary = RunSummary(settings, "benchmark", thresholds=work.thresholds)
    with open_scheduler(settings.dataflow, work.n_inputs, work.base_dir) as scheduler, folder.begun():
        inspect(work, scheduler, folder, io.BytesIO(), SilentProgress(), summary)
    assert (summary.n_inputs, summary.n_errors) == (work.n_inputs, 0)


def by_hand(work: Inspection, bare: Callable[[Job, Path], Iterable[Receipt]]) -> None:
    """The same chunks by the same functions, without Dask."""
    base = Path(work.base_dir)
    parts = base / "bare-parts"
    parts.mkdir()
    for name in ("masks", "maps", "overlays"):
        (base / "out" / name).mkdir(parents=True, exist_ok=True)
    job = Job(
        settings=work.settings,
        source=work.source,
        score_threshold=work.thresholds.score,
        pixel_threshold=work.thresholds.pixel,
        pixel_threshold_provenance=work.thresholds.pixel_provenance,
        base_dir=work.base_dir,
        parts_dir=str(parts),
        n_inputs=work.n_inputs,
    )
    chunks = chunked(work.inputs, work.settings.dataflow.chunk_size)
    with open_sink(str(base / "out/records.jsonl")) as sink:
        merge = OrderedMerge(str(parts), sink)
        for receipt in bare(chunks, job):
            merge.add(receipt.index)
    shutil.rmtree(parts)


def in_a_loop(chunks: Iterator[Chunk[str]], job: Job) -> Iterator[Receipt]:
    """One chunk after the other."""
    with native_threads_as_before():
        limit_native_threads(1)
        for chunk in chunks:
            yield process_chunk(chunk, job)


def in_threads(chunks: Iterator[Chunk[str]], job: Job) -> Iterator[Receipt]:
    """On two threads."""
    with native_threads_as_before(), ThreadPoolExecutor(2) as pool:
        yield from pool.map(lambda chunk: _limited(chunk, job), chunks)


def in_processes(chunks: Iterator[Chunk[str]], job: Job) -> Iterator[Receipt]:
    """In two new processes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, _take_job, (job,)) as pool:
        yield from pool.map(_process, chunks)


def _limited(chunk: Chunk[str], job: Job) -> Receipt:
    limit_native_threads(1)
    return process_chunk(chunk, job)


def _take_job(job: Job) -> None:
    global _job
    _job = job


def _process(chunk: Chunk[str]) -> Receipt:
    return _limited(chunk, _job)


def timed(work: Callable[[], None]) -> float:
    """Seconds of wall time."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
