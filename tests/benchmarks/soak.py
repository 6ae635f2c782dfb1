"""A long run on workers that are killed at random throughout: the same bytes as a serial run.

    python tests/benchmarks/soak.py [--images N] [--every SECONDS] [--seed N] [--folder DIR]

Small images (32x32, each its own file) with defects, masks and maps, on a `dask scheduler` and two workers with
nannies. A worker is killed (SIGKILL) every few seconds, at random, until the run ends. Then a serial run, and a
comparison of every file of both.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from tests.cluster import DaskCluster, start_cluster

SIDE_PX = 32
FILES_A_FOLDER = 1000


def main() -> int:
    """Soak, compare, say what happened; 1 when a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--every", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    write_images(folder / "in", arguments.images)
    write_images(folder / "normal", 64)
    with start_cluster(folder / "cluster", 2, nanny=True) as cluster:
        seconds, kills = soak(folder / "soaked", cluster, arguments.every, random.Random(arguments.seed))
    print(f"{arguments.images} images, {kills} workers killed, {seconds:.0f} s", flush=True)
    start = time.perf_counter()
    subprocess.run(command("sync"), cwd=made(folder / "serial"), check=True, stderr=subprocess.DEVNULL)
    print(f"serial: {time.perf_counter() - start:.0f} s")
    soaked, serial = (digests(folder / name) for name in ("soaked", "serial"))
    different = {name for name in soaked.keys() | serial.keys() if soaked.get(name) != serial.get(name)}
    print(f"{len(serial)} files, {len(different)} of them different: {sorted(different)[:5]}")
    if not arguments.folder:
        shutil.rmtree(folder)
    return 1 if different else 0


def write_images(folder: Path, count: int) -> None:
    """Noise with a bright square here and there."""
    rng = np.random.default_rng(count)
    for index in range(count):
        if index % FILES_A_FOLDER == 0:
            below = made(folder / f"{index // FILES_A_FOLDER:04d}")
        image = rng.integers(90, 110, (SIDE_PX, SIDE_PX), np.uint8)
        if index % 5 == 0:
            y, x = rng.integers(0, SIDE_PX - 6, 2)
            image[y : y + 6, x : x + 6] = 250
        cv2.imwrite(str(below / f"{index:06d}.png"), image)


def made(folder: Path) -> Path:
    """The folder, which is there then."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def command(scheduler: str) -> list[str]:
    """The run."""
    flags = ["--model", "vision_pixel_mad_map", "--train-dir", "../normal", "--input", "../in", "--defects"]
    output = ["--save-masks", "masks", "--save-maps", "maps.zarr", "--save-jsonl", "records.jsonl"]
    return [
        sys.executable,
        "-m",
        "pyimgano_dask.cli.infer",
        *flags,
        *output,
        "--scheduler",
        scheduler,
        "--retries",
        "10",
    ]


def soak(place: Path, cluster: DaskCluster, every: float, chance: random.Random) -> tuple[float, int]:
    """Run while workers are killed; returns the seconds and how many were."""
    start, kills = time.perf_counter(), 0
    with subprocess.Popen(command(cluster.address), cwd=made(place)) as process:
        while process.poll() is None:
            try:
                process.wait(timeout=every * chance.uniform(0.5, 1.5))
            except subprocess.TimeoutExpired:
                kills += cluster.kill_any_worker(chance)
        if process.returncode:
            raise SystemExit(f"the run ended with {process.returncode}")
    return time.perf_counter() - start, kills


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file by its path, without what a killed zarr writer may leave: it is never read."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".partial")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    sys.exit(main())
