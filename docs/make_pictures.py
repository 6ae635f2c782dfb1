"""Make the pictures of the documentation: run what its pages say and lay what that leaves side by side.

Run by `make pictures` after `make demo`, in the folder that holds `demo-output`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.dataflow.preprocessing import correct
from pyimgano_dask.settings.preprocessing import ILLUMINATION_PRESETS, IlluminationContrast

Picture = NDArray[np.uint8]

DOCS = Path(__file__).resolve().parent
DEMO = Path("demo-output")
FP = DEMO / "fp"
TILES = DEMO / "tiles"
LIT = DEMO / "light/parts/test"
GAP_PX = 8
JPEG_QUALITY = 84

GOOD, SCRATCH, PITS, STAIN = "000003_003", "000010_000", "000009_003", "000014_000"
INSPECTED = ("good/003", "scratch/000", "pit/003", "stain/000")
STEPS = {"0-noisy": "0", "1-border": "1", "2-median": "2", "3-area": "3", "4-hysteresis": "4", "5-clean": "clean"}
README_OVERLAYS = ("000017_003", "000013_003", "000006_000", "000000_000")
README_IMAGES = ("stain/003", "scratch/003", "pit/000", "good/000")
BLENDINGS = (("max", "mean"), ("hann", "gaussian"))
SLOW_ONLY = {"homomorphic_cutoff": 0.03, "homomorphic_gamma_high": 1.0}
CORRECTIONS = {
    "gray-world": ("scratch/001", IlluminationContrast(white_balance="gray_world")),
    "max-rgb": ("scratch/001", IlluminationContrast(white_balance="max_rgb")),
    "homomorphic": ("scratch/001", IlluminationContrast(homomorphic=True, homomorphic_gamma_low=0.6, **SLOW_ONLY)),
    "clahe": ("scratch/001", IlluminationContrast(clahe=True)),
    "gamma": ("scratch/001", IlluminationContrast(gamma=1.6)),
    "contrast-stretch": ("scratch/001", IlluminationContrast(contrast_stretch=True)),
}
PRESETS_A_ROW = 3
MAP_DETAIL = np.s_[165:315, 210:410]


def run_examples(page: Path) -> None:
    """Run the blocks of a page as its reader does, in their order."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for language, code in re.findall(r"^```(sh|python)\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL):
        command = ["bash", "-euo", "pipefail", "-c"] if language == "sh" else [sys.executable, "-c"]
        subprocess.run([*command, code], env={**os.environ, "PATH": path}, check=True, stdout=subprocess.DEVNULL)


def read(path: Path) -> Picture:
    """An image as BGR, uint8 (H, W, 3)."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise SystemExit(f"{path} is not there; run `make pictures`, which makes it")
    return np.asarray(image, np.uint8)


def enlarged(picture: Picture, times: int) -> Picture:
    """Each pixel as a square."""
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def joined(pictures: Iterable[Picture], axis: int) -> Picture:
    """Pictures of one size below (0) or beside (1) each other, with a white gap."""
    parts: list[Picture] = []
    for picture in pictures:
        shape = (GAP_PX, picture.shape[1], 3) if axis == 0 else (picture.shape[0], GAP_PX, 3)
        parts += [np.full(shape, 255, np.uint8)] * bool(parts) + [picture]
    return np.concatenate(parts, axis=axis)


def row(folder: Path, names: Iterable[str]) -> Picture:
    return joined((read(folder / f"{name}.png") for name in names), axis=1)


def heat(path: Path) -> Picture:
    """A detail of a map of grey levels, its roots from 0 to that of 60 as heat."""
    levels = np.clip(np.sqrt(np.load(path)[MAP_DETAIL] / 60), 0, 1) * 255
    return np.asarray(cv2.applyColorMap(levels.astype(np.uint8), cv2.COLORMAP_INFERNO), np.uint8)


def corrected(picture: Picture, correction: IlluminationContrast) -> Picture:
    return correct(np.ascontiguousarray(picture[..., ::-1]), correction)[..., ::-1]


def before_and_after(image: str, correction: IlluminationContrast) -> Picture:
    before = read(LIT / f"{image}.png")
    return joined((before, corrected(before, correction)), axis=1)


def after_each_preset(image: str) -> Picture:
    before = read(LIT / f"{image}.png")
    after = [corrected(before, IlluminationContrast(**values)) for values in ILLUMINATION_PRESETS.values()]
    rows = (after[first : first + PRESETS_A_ROW] for first in range(0, len(after), PRESETS_A_ROW))
    return joined((joined(pictures, axis=1) for pictures in rows), axis=0)


def write(name: str, picture: Picture) -> None:
    path = DOCS / "images" / name
    cv2.imwrite(str(path), picture, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
    print(f"{path.relative_to(DOCS.parent)}  {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    run_examples(DOCS / "FALSE_POSITIVE_DEBUGGING.md")
    originals = row(DEMO / "parts/test", README_IMAGES)
    write("overlay.jpg", joined((originals, row(DEMO / "overlays", README_OVERLAYS)), axis=0))
    write("fp-parts.jpg", row(DEMO / "parts/test", INSPECTED))
    for name, folder in STEPS.items():
        write(f"fp-{name}.jpg", row(FP / folder, (GOOD, SCRATCH, PITS, STAIN)))
    pair = (read(FP / folder / f"{SCRATCH}.png") for folder in ("4", "too-far"))
    write("fp-too-far.jpg", joined((enlarged(picture, 2) for picture in pair), axis=1))
    scales = (read(FP / folder / f"{GOOD}.png") for folder in ("own-scale", "clean"))
    write("fp-scale.jpg", joined((enlarged(picture, 2) for picture in scales), axis=1))
    moved = (read(FP / folder / "000000_moved.png") for folder in ("none", "translation"))
    write("fp-reference.jpg", joined((enlarged(picture, 2) for picture in moved), axis=1))
    run_examples(DOCS / "TILING.md")
    overlays = (joined((read(TILES / name / "000000_moved.png") for name in pair), axis=1) for pair in BLENDINGS)
    write("tiles-overlays.jpg", joined(overlays, axis=0))
    maps = (joined((heat(TILES / f"{name}-maps/000000_moved.npy") for name in pair), axis=1) for pair in BLENDINGS)
    write("tiles-maps.jpg", enlarged(joined(maps, axis=0), 2))
    run_examples(DOCS / "ILLUMINATION.md")
    for name, (image, correction) in CORRECTIONS.items():
        write(f"light-{name}.jpg", before_and_after(image, correction))
    write("light-presets.jpg", after_each_preset("scratch/001"))


if __name__ == "__main__":
    main()
