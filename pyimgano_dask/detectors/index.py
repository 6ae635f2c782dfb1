"""Generated documentation of the detectors: `python -m pyimgano_dask.detectors.index DIR` writes `MODEL_INDEX.md`.

How long each takes for an image is read from `model_speed.json` in the same folder, which a benchmark writes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyimgano_dask.detectors.base import Detector, TrainingFreeDetector
from pyimgano_dask.detectors.registry import detector_types

INDEX_NAME = "MODEL_INDEX.md"
SPEED_NAME = "model_speed.json"

HEAD = """# Every detector

Generated from the registry by `make docs`. `pyimgano-infer --model-info NAME` shows the arguments of each, and
[DETECTORS.md](DETECTORS.md) says which to choose.

- **needs**: the extra to install (`pip install 'pyimgano-dask[EXTRA]'`), and what it cannot do without.
- **learns**: *statistics* are summed up in one pass over the normal images, on all workers; a *network* is trained by
  gradient descent, in the process that was started; *nothing* means that normal images set thresholds only.
- **GPU**: whether it has a `device`.
"""


def index_markdown(speed: dict[str, Any]) -> str:
    """The table of all detectors; `speed` is the content of `model_speed.json`."""
    return "\n".join(_lines(speed))


def _lines(speed: dict[str, Any]) -> Iterator[str]:
    yield HEAD
    yield "| name | what it does | needs | map | learns | GPU | source | ms an image |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, detector_type in detector_types().items():
        milliseconds = speed["ms"].get(name)
        cells = (
            f"`{name}`",
            detector_type.summary,
            ", ".join(_needs(detector_type)) or "nothing",
            "yes" if detector_type.gives_maps else "no",
            _learns(detector_type),
            "yes" if "device" in detector_type.arguments_type.model_fields else "no",
            detector_type.reference,
            "not measured" if milliseconds is None else f"{milliseconds:.1f}",
        )
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""
    yield f"*ms an image*: {speed['what']}, on {speed['machine']}."
    yield ""


def _needs(detector_type: type[Detector[Any]]) -> Iterator[str]:
    if detector_type.extra is not None:
        yield f"`[{detector_type.extra}]`"
    if detector_type.model_file is not None:
        yield f"a model file ({detector_type.model_file})"
    elif detector_type.needs_reference:
        yield "defect-free references"
    elif not issubclass(detector_type, TrainingFreeDetector):
        yield "normal images"


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
