"""Measure the memory and the time of one very large image, scored in tiles on the serial scheduler.

    python tests/benchmarks/bench_tiles.py [--side 12000] [--tile-size 512] [--tile-stride 384] [--overlays]

The images are a colour PNG of side x side pixels with a print of lines, uneven light and noise of 2 levels, and the
same with 200 dark spots on it, 3 pixels further right. Each line is one `pyimgano-infer` in a process of its own on two
such images, one after the other: it reads an image (and its reference), scores its tiles, blends their maps, extracts
the defects with an ignored border and a smallest area and writes the mask. `vision_pixel_mad_map` is also fitted and
calibrated on two images without spots. The peak is VmHWM, the most memory the whole process ever held.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

SPOTS = 200
SHIFT_PX = 3
BAND_ROWS = 500
SOURCES = {
    "vision_reference_diff_map": ("--reference-dir", "good", "--pixel-threshold", "30"),
    "vision_pixel_mad_map": ("--train-dir", "good"),
}
# Runs the command and reports the high-water mark of its own process.
CHILD = """
import sys
from pyimgano_dask.cli.infer import main
code = main(sys.argv[2:])
with open("/proc/self/status") as status, open(sys.argv[1], "w") as peak:
    peak.write(next(line.split()[1] for line in status if line.startswith("VmHWM")))
sys.exit(code)
"""


def make_image(side: int, *, shift_px: int, spots: int) -> NDArray[np.uint8]:
    """A print under uneven light, uint8 (side, side, 3), made in bands so that this takes little more memory."""
    image = np.empty((side, side, 3), np.uint8)
    x = np.arange(side, dtype=np.float32) - shift_px
    for top in range(0, side, BAND_ROWS):
        noise = np.random.default_rng([top, shift_px])
        y = np.arange(top, min(top + BAND_ROWS, side), dtype=np.float32)[:, None]
        light = 120 + 40 * np.sin(x / side * 5) * np.cos(y / side * 4)
        lines = 40 * ((x % 97 < 12) | (y % 131 < 10))
        grey = (light + lines)[..., None] * np.array((1.0, 0.95, 0.9), np.float32)
        grey += noise.standard_normal(grey.shape, np.float32) * np.float32(2)
        image[top : top + BAND_ROWS] = np.clip(np.rint(grey), 0, 255)
    places = np.random.default_rng(1)
    for centre in places.integers(side // 20, side - side // 20, (spots, 2)).tolist():
        cv2.circle(image, centre, int(places.integers(3, 12)), (40, 30, 30), -1)
    return image


def make_set(folder: Path, side: int) -> None:
    """`part.png` and the same as `same.png`, in `good` and in `test`."""
    for name, shift_px, spots in (("good", 0, 0), ("test", SHIFT_PX, SPOTS)):
        (folder / name).mkdir()
        path = str(folder / name / "part.png")
        cv2.imwrite(path, make_image(side, shift_px=shift_px, spots=spots), (cv2.IMWRITE_PNG_COMPRESSION, 1))
        os.link(path, folder / name / "same.png")


def measure(folder: Path, flags: Sequence[str]) -> str:
    """One run: seconds, peak in MiB, regions."""
    start = time.perf_counter()
    command = [sys.executable, "-c", CHILD, "peak.txt", *flags]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    peak_mib = int((folder / "peak.txt").read_text()) / 1024
    regions = [len(json.loads(line)["defects"]["regions"]) for line in (folder / "records.jsonl").open()]
    return f"{seconds:8.1f} {peak_mib:10.0f} {regions[0]:8}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=12_000)
    parser.add_argument("--tile-size", default="512")
    parser.add_argument("--tile-stride", default="384")
    parser.add_argument("--tile-map-reduce", default="hann")
    parser.add_argument("--folder", type=Path, help="make the images here and leave them for the next run")
    parser.add_argument("--overlays", action="store_true", help="also draw overlays")
    parser.add_argument("--models", nargs="+", choices=SOURCES, default=list(SOURCES))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / "test").exists():
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run([sys.executable, __file__, "--make", str(folder), str(arguments.side)], check=True)
        common = ["--input", "test", "--defects", "--defect-border-ignore-px", "16", "--defect-min-area", "12"]
        common += ["--save-masks", "masks", "--save-jsonl", "records.jsonl", "--scheduler", "sync"]
        for name in ("tile-size", "tile-stride", "tile-map-reduce"):
            common += [f"--{name}", getattr(arguments, name.replace("-", "_"))]
        if arguments.overlays:
            common += ["--save-overlays", "overlays"]
        print(f"{'detector':28} {'colour':6} {'seconds':>8} {'peak MiB':>10} {'regions':>8}")
        for model in arguments.models:
            for color in ("gray", "rgb"):
                kwargs = {"color": color}
                if model == "vision_reference_diff_map":
                    kwargs["registration"] = "translation"
                flags = ["--model", model, "--model-kwargs", json.dumps(kwargs), *SOURCES[model], *common]
                print(f"{model:28} {color:6} {measure(folder, flags)}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make_set(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
