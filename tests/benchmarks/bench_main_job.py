"""Time the main job, and where its time goes.

    python tests/benchmarks/bench_main_job.py [--peer PATH_TO/pyimgano-infer] [--runs N]

400 normal and 900 test images of 256×256; `vision_pixel_mad_map` with defects, masks, overlays and maps. With
`--peer`, the command of the single-process package (installed in an environment of its own) runs the same job in turn
with ours, pair by pair, so that a drift of the machine's speed cancels out of the ratio.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyimgano_dask
from pyimgano_dask.synthesis import write_inspection_set

OURS = Path(sys.executable).with_name("pyimgano-infer")
JOB = [
    "--model=vision_pixel_mad_map",
    "--train-dir=../parts/train/good",
    "--input=../parts/test",
    "--defects",
    "--include-maps",
    "--save-masks=masks",
    "--save-overlays=overlays",
    "--save-maps=maps",
    "--save-jsonl=results.jsonl",
]


def wall_seconds(command: list[str], folder: Path) -> float:
    """Wall time of a command in a fresh working folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.perf_counter() - start


def spread(values: list[float]) -> str:
    """Median, and the range in brackets."""
    return f"{statistics.median(values):.2f} [{min(values):.2f} – {max(values):.2f}]"


def print_stages(root: Path) -> None:
    """Milliseconds of one core an image takes in each stage, from a serial run in this process."""
    folder = root / "stages"
    folder.mkdir()
    os.chdir(folder)
    run = pyimgano_dask.infer(
        model="vision_pixel_mad_map",
        train_dir="../parts/train/good",
        input="../parts/test",
        defects=True,
        save_masks="masks",
        save_overlays="overlays",
        save_maps="maps",
        save_jsonl="results.jsonl",
        scheduler="sync",
    )
    print(f"\nserial scheduler, {run.seconds - run.training_seconds:.2f} s, of which an image takes")
    for stage, seconds in run.stage_seconds.items():
        print(f"  {stage:<8} {1000 * seconds / run.n_inputs:6.2f} ms")
    print(f"  fit and calibrate on 400 images: {run.training_seconds:.2f} s")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="pyimgano-infer of the single-process package")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_inspection_set(str(root / "parts"), n_train=400, n_good=300, n_per_defect=200, sizes_hw=((256, 256),))
        ours, theirs = [], []
        for _ in range(arguments.runs + 1):
            ours.append(wall_seconds([str(OURS), *JOB], root / "ours"))
            if arguments.peer:
                theirs.append(wall_seconds([arguments.peer, *JOB], root / "theirs"))
        ours, theirs = ours[1:], theirs[1:]
        print(f"pyimgano-dask  {spread(ours)} s wall, {1000 * statistics.median(ours) / 900:.2f} ms an image")
        if theirs:
            print(f"peer           {spread(theirs)} s wall, {1000 * statistics.median(theirs) / 900:.2f} ms an image")
            print(f"ratio          {spread([b / a for a, b in zip(ours, theirs, strict=True)])} times faster")
        print_stages(root)


if __name__ == "__main__":
    main()
