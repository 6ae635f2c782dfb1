"""Generated documentation of the detectors: `python -m pyimgano_dask.detectors.index DIR` writes `MODEL_INDEX.md`.

How long each takes for an image is read from `model_speed.json` in the same folder, which a benchmark writes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pyimgano_dask.detectors.base import Detector, TrainingFreeDetector
from pyimgano_dask.detectors.registry import detector_types, needs

INDEX_NAME = "MODEL_INDEX.md"
SPEED_NAME = "model_speed.json"

HEAD = """# Every detector

Generated from the registry by `make docs`. `pyimgano-infer --model-info NAME` shows the arguments of each, and
[DETECTORS.md](DETECTORS.md) says which to choose.
"""

WHAT_THEY_DO = """## What each does

- **map**: whether it gives an anomaly map beside the score; without, it finds no defects in an image.
- **learns**: *statistics* are summed up in one pass over the normal images, on all workers; a *network* is trained by
  gradient descent, in the process that was started; *nothing* means that normal images set thresholds only.
- **GPU**: whether it has a `device`.
"""

WHAT_THEY_NEED = """## What each needs

- **extra**: what to install beside the package: `pip install '.[EXTRA]'` in the checkout.
- **training images**: normal images (`--train-dir`). *Required*, unless a saved state of the detector is given; *for
  thresholds*: it runs without them, with thresholds that are given.
- **weights file**: weights of its backbone (`weights_path` in `--model-kwargs`). *Optional*; without them, and without
  `pretrained`, those of a ResNet are random, and other backbones are refused.
- **model file**: the exported model that it runs (`--checkpoint-path`).
- **reference images**: a defect-free image for each input, or one for all (`--reference-dir`).
"""

DOES = ("name", "what it does", "map", "learns", "GPU", "source", "ms an image")
NEEDS = ("name", "extra", "training images", "weights file", "model file", "reference images")


def index_markdown(speed: dict[str, Any]) -> str:
    """The tables of all detectors; `speed` is the content of `model_speed.json`."""
    return "\n".join(_lines(speed))


def _lines(speed: dict[str, Any]) -> Iterator[str]:
    yield HEAD
    yield WHAT_THEY_DO
    yield from _table(DOES, (_does(detector_type, speed["ms"]) for detector_type in detector_types().values()))
    yield f"*ms an image*: {speed['what']}, on {speed['machine']}.\n"
    yield WHAT_THEY_NEED
    yield from _table(NEEDS, (_needs(detector_type) for detector_type in detector_types().values()))


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield _row(titles)
    yield "|" + "---|" * len(titles)
    for cells in rows:
        yield _row(cells)
    yield ""


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _does(detector_type: type[Detector[Any]], ms: Mapping[str, float]) -> tuple[str, ...]:
    return (
        f"`{detector_type.name}`",
        detector_type.summary,
        "yes" if detector_type.gives_maps else "no",
        _learns(detector_type),
        "yes" if "device" in detector_type.arguments_type.model_fields else "no",
        detector_type.reference,
        f"{ms[detector_type.name]:.1f}" if detector_type.name in ms else "not measured",
    )


def _needs(detector_type: type[Detector[Any]]) -> tuple[str, ...]:
    needed = needs(detector_type)
    return (
        f"`{detector_type.name}`",
        f"`[{needed['extra']}]`" if needed["extra"] else "none",
        needed["training_images"] or "none",
        needed["weights_file"] or "none",
        f"`{needed['model_file']}`, required" if needed["model_file"] else "none",
        needed["reference_images"] or "none",
    )


def _learns(detector_type: type[Detector[Any]]) -> str:
    if issubclass(detector_type, TrainingFreeDetector):
        return "nothing"
    return "network" if detector_type.trains_network else "statistics"


def write_index(folder: Path) -> None:
    """Write the index into `folder`, which holds the speeds."""
    speed = json.loads((folder / SPEED_NAME).read_text(encoding="utf-8"))
    (folder / INDEX_NAME).write_text(index_markdown(speed), encoding="utf-8")


if __name__ == "__main__":
    write_index(Path(sys.argv[1]))
