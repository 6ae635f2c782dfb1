"""Milliseconds that each registered detector takes for an image, on one thread.

Writes docs/model_speed.json, from which `make docs` makes the table of detectors. Detectors are fitted on drawn images,
exported ones run a weighted sum of the channels.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pyimgano_dask.dataflow.native import limit_native_threads
from pyimgano_dask.detectors.base import Detector
from pyimgano_dask.detectors.extras import require
from pyimgano_dask.detectors.index import SPEED_NAME
from pyimgano_dask.detectors.model_files import ModelFiles
from pyimgano_dask.detectors.registry import detector_types
from tests.detectors.exported import onnx_models, torch_models

SIDE = 256
N_TRAIN, N_TEST, ROUNDS = 16, 16, 5


SHAPE = (1, 3, SIDE, SIDE)
MODELS: Mapping[str, Callable[[Path], Path]] = {
    "vision_onnx": partial(onnx_models.save_model, shape=SHAPE),
    "vision_torchscript": torch_models.save_script,
    "vision_torch_export": partial(torch_models.save_export, shape=SHAPE),
}


def draw(seed: int, color: str) -> list[Any]:
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.linspace(0, 100, SIDE), np.linspace(0, 100, SIDE))
    shape = (SIDE, SIDE) if color == "gray" else (SIDE, SIDE, 3)
    base = ramp if color == "gray" else ramp[..., None]
    return [(base + rng.integers(0, 40, shape)).astype(np.uint8) for _ in range(N_TRAIN)]


def ready(detector_type: type[Detector[Any]], folder: Path) -> Detector[Any]:
    """The detector with its default arguments, fitted or around a small model."""
    if detector_type.model_file is not None:
        path = MODELS[detector_type.name](folder / f"model{detector_type.model_file}")
        return detector_type.create().with_model_file(str(path), ModelFiles(trusts_code=True))
    arguments = {"epochs": 1} if "epochs" in detector_type.arguments_type.model_fields else {}
    detector = detector_type.create(**arguments)
    return detector.fit(draw(0, detector.color))


def milliseconds(detector: Detector[Any]) -> float:
    images = draw(1, detector.color)[:N_TEST]
    references = draw(2, detector.color)[:N_TEST] if detector.needs_reference else []
    detector.predict(images, references)
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        detector.predict(images, references)
        rounds.append((time.perf_counter() - started) * 1000 / len(images))
    return median(rounds)


def main() -> None:
    found = {}
    for name, detector_type in detector_types().items():
        if detector_type.extra is not None:
            require(detector_type.extra, name)
        limit_native_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            found[name] = round(milliseconds(ready(detector_type, Path(folder))), 2)
        print(f"{name:34} {found[name]:8.2f} ms")
    content = {
        "what": f"median of {ROUNDS} rounds of `predict` with default arguments, a batch of {N_TEST} images of "
        f"{SIDE} x {SIDE}, one thread; exported models are one weighted sum of the channels",
        "machine": f"{platform.machine()}, Python {platform.python_version()}, a machine of two cores",
        "ms": found,
    }
    path = Path(__file__).parents[2] / "docs" / SPEED_NAME
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
