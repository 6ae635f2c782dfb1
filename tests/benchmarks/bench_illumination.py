"""What each correction of illumination and contrast does for the defects that are found, in four kinds of light.

    PYTHONPATH=. python tests/benchmarks/bench_illumination.py [--model NAME] [--model-kwargs JSON]

Photographs the parts of the demo set under each light, trains and calibrates on 24 of them, and inspects 12 good and 12
defective ones, all in that light. A cell of the Markdown tables tells how many defective parts have a region that
touches the defect, how many good parts have a region, and the AUROC of all pixels; the outer 16 pixels, where the set
has seams that are no defects, are left out of all three.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

import pyimgano_dask
from pyimgano_dask.settings.preprocessing import ILLUMINATION_PRESETS
from pyimgano_dask.synthesis import InspectionSet, write_inspection_set
from tests.benchmarks.bench_detectors import PixelCounts, read_mask

BORDER_PX = 16
N_TRAIN, N_GOOD, N_PER_DEFECT = 24, 12, 4

Light = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]
"""Factors, (H, W, 3) or what broadcasts to it, in the order blue, green, red."""


def even(rng: np.random.Generator, size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """As it is."""
    return np.ones(3)


def exposure(rng: np.random.Generator, size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """Another exposure for each image."""
    return np.full(3, rng.uniform(0.5, 1.1))


def colour(rng: np.random.Generator, size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """Lamps between blue and yellow."""
    warm = rng.uniform(-0.3, 0.3)
    return np.exp([-warm, 0.0, warm]) * 0.75


def slope(rng: np.random.Generator, size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """A lamp at another side for each image: twice as much light there as opposite."""
    angle, (height, width) = rng.uniform(0, 2 * np.pi), size_hw
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return np.exp(0.35 * (x * np.cos(angle) + y * np.sin(angle)) - 0.4)[..., None]  # type: ignore[no-any-return]


LIGHTS: Mapping[str, Light] = {"even": even, "exposure": exposure, "colour": colour, "slope": slope}
SLOW_ONLY = {"homomorphic_cutoff": 0.05, "homomorphic_gamma_low": 0.2, "homomorphic_gamma_high": 1.0}
CORRECTIONS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "`--white-balance gray_world`": {"white_balance": "gray_world"},
    "`--white-balance max_rgb`": {"white_balance": "max_rgb"},
    "`--homomorphic`": {"homomorphic": True},
    "the same, slow changes only": {"homomorphic": True, **SLOW_ONLY},
    "`--clahe`": {"clahe": True},
    "`--gamma 1.6`": {"gamma": 1.6},
    "`--contrast-stretch`": {"contrast_stretch": True},
    **{f"`{name}`": {"preprocessing_preset": name} for name in ILLUMINATION_PRESETS},
}


def relit(made: InspectionSet, light: Light, folder: Path) -> Path:
    """The images of the set under a light, as a set of its own without ground truth."""
    paths = [*made.train_good, *made.test_good, *(path for kind in made.test_defect.values() for path in kind)]
    for number, path in enumerate(paths):
        photo = cv2.imread(path, cv2.IMREAD_COLOR)
        factors = light(np.random.default_rng(number), (photo.shape[0], photo.shape[1]))
        target = folder / Path(path).relative_to(made.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), np.clip(photo * factors, 0, 255).astype(np.uint8))
    return folder


def measure(lit: Path, truth: Path, model: Mapping[str, Any], correction: Mapping[str, Any]) -> str:
    """The cell of a correction in a light."""
    n_found, n_false, pixels, inner = 0, 0, PixelCounts(), np.s_[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]
    with tempfile.TemporaryDirectory() as work:
        run = pyimgano_dask.infer(
            train_dir=str(lit / "train/good"),
            input=str(lit / "test"),
            defects=True,
            defect_border_ignore_px=BORDER_PX,
            defect_min_area=12,
            save_maps=f"{work}/maps",
            save_masks=f"{work}/masks",
            scheduler="sync",
            **model,
            **correction,
        )
        for record in run.records():
            image, values = Path(record["input"]), np.load(record["anomaly_map"]["path"], allow_pickle=False)
            defect = np.zeros(values.shape, dtype=bool)
            if image.parent.name == "good":
                n_false += bool(record["defects"]["regions"])
            else:
                defect = read_mask(truth / image.parent.name / f"{image.stem}_mask.png")
                n_found += bool((defect & read_mask(Path(record["defects"]["mask"]["path"]))).any())
            pixels.add(values[inner], defect[inner])
    return f"{n_found} / {n_false} / {pixels.auroc():.3f}"


def rows(model: Mapping[str, Any]) -> Iterator[list[str]]:
    """The rows of the table, the head first."""
    yield ["found / false / pixel AUROC", *LIGHTS]
    yield ["---"] * (1 + len(LIGHTS))
    with tempfile.TemporaryDirectory() as folder:
        made = write_inspection_set(f"{folder}/set", n_train=N_TRAIN, n_good=N_GOOD, n_per_defect=N_PER_DEFECT)
        lit = [relit(made, light, Path(folder, name)) for name, light in LIGHTS.items()]
        truth = Path(made.root, "ground_truth")
        for title, correction in CORRECTIONS.items():
            yield [title, *(measure(images, truth, model, correction) for images in lit)]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vision_pixel_mad_map", metavar="NAME", help="a detector")
    parser.add_argument("--model-kwargs", type=json.loads, default={"color": "rgb"}, metavar="JSON", help="for it")
    arguments = parser.parse_args()
    for cells in rows({"model": arguments.model, "model_kwargs": arguments.model_kwargs}):
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
