"""How well detectors find the defects of an inspection set.

    python tests/benchmarks/bench_detectors.py FOLDER --model NAME [--model-kwargs JSON] [--model NAME …]
    python tests/benchmarks/bench_detectors.py FOLDER --configs LIST.json

FOLDER has the layout of MVTec AD: train/good, test/good, test/KIND, ground_truth/KIND/STEM_mask.png. LIST.json is a
list of objects {"model": NAME, "model_kwargs": {…}, "label": TEXT}, the last two optional. Each detector is fitted,
calibrated and run as `pyimgano-infer` does; one row of a Markdown table comes out for each. Needs scikit-learn.

- image AUROC: of the scores. With --per-kind also of each kind against the good test images.
- pixel AUROC: of all pixels of all test images, in a histogram of 2^20 buckets by the first bits of the floats.
- false regions: regions on good test images, per image, at the calibrated pixel threshold, without other controls.
- hits: of the regions on defective images, those that touch a defect; found: the images with such a region.
- ms: of one core, for an image in the stage `infer`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

import pyimgano_dask

KEY_BITS = 20


@dataclass(frozen=True)
class Config:
    """A detector to run."""

    model: str
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def title(self) -> str:
        """What the row is called."""
        return self.label or " ".join(
            [f"`{self.model}`", *(f"{key}={value}" for key, value in self.model_kwargs.items())]
        )


@dataclass
class PixelCounts:
    """How many normal and defective pixels have each leading part of a float."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 1 << KEY_BITS), dtype=np.int64))

    def add(self, values: NDArray[np.float32], truth: NDArray[np.bool_]) -> None:
        """Count the pixels of a map."""
        bits = np.ascontiguousarray(values).view(np.uint32)
        ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)) >> np.uint32(32 - KEY_BITS)
        for defective in (0, 1):
            self.counts[defective] += np.bincount(ordered[truth == defective], minlength=1 << KEY_BITS)

    def auroc(self) -> float:
        """Area under the curve of all pixels counted."""
        keys = np.flatnonzero(self.counts.sum(axis=0))
        labels = np.repeat([0, 1], len(keys))
        return float(roc_auc_score(labels, np.tile(keys, 2), sample_weight=self.counts[:, keys].ravel()))


@dataclass
class Tally:
    """What the records of a run say, image by image."""

    kinds: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    pixels: PixelCounts = field(default_factory=PixelCounts)
    n_false: int = 0
    n_regions: int = 0
    n_hits: int = 0
    n_found: int = 0

    def add(self, record: Mapping[str, Any], folder: Path) -> None:
        """Take the record of a test image, whose truth lies in `folder`."""
        image = Path(record["input"])
        kind = image.parent.name
        values = np.load(record["anomaly_map"]["path"], allow_pickle=False)
        truth = np.zeros(values.shape, dtype=bool)
        if kind != "good":
            truth = read_mask(folder / "ground_truth" / kind / f"{image.stem}_mask.png")
        self.kinds.append(kind)
        self.scores.append(record["score"])
        self.pixels.add(values, truth)
        regions = record["defects"]["regions"]
        if kind == "good":
            self.n_false += len(regions)
            return
        struck = truth & read_mask(Path(record["defects"]["mask"]["path"]))
        boxes = (region["bbox_xyxy"] for region in regions)
        hits = sum(bool(struck[y0 : y1 + 1, x0 : x1 + 1].any()) for x0, y0, x1, y1 in boxes)
        self.n_regions += len(regions)
        self.n_hits += hits
        self.n_found += hits > 0

    def image_auroc(self, *kinds: str) -> float:
        """Of the good images against those of some kinds (none given: all others)."""
        chosen = [(kind != "good", score) for kind, score in self.pairs() if not kinds or kind in ("good", *kinds)]
        labels, scores = zip(*chosen, strict=True)
        return float(roc_auc_score(labels, scores))

    def pairs(self) -> Iterator[tuple[str, float]]:
        """Kind and score of each image."""
        return zip(self.kinds, self.scores, strict=True)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """A mask file as bool (H, W)."""
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise SystemExit(f"there is no mask {path}")
    return np.asarray(mask > 127)


def measure(config: Config, folder: Path, per_kind: bool) -> list[str]:
    """Run a detector; the cells of its row."""
    with tempfile.TemporaryDirectory() as work:
        run = pyimgano_dask.infer(
            model=config.model,
            model_kwargs=dict(config.model_kwargs),
            train_dir=str(folder / "train/good"),
            input=str(folder / "test"),
            defects=True,
            save_maps=f"{work}/maps",
            save_masks=f"{work}/masks",
            scheduler="sync",
        )
        tally = Tally()
        for record in run.records():
            if "error" in record:
                raise SystemExit(f"{record['input']}: {record['error']['message']}")
            tally.add(record, folder)
    n_good = tally.kinds.count("good")
    kinds = sorted({*tally.kinds} - {"good"}) if per_kind else []
    return [
        config.title,
        f"{tally.image_auroc():.3f}",
        f"{tally.pixels.auroc():.3f}",
        f"{tally.n_false / n_good:.2f}",
        f"{tally.n_hits} of {tally.n_regions}",
        f"{tally.n_found} of {len(tally.kinds) - n_good}",
        f"{1000 * run.stage_seconds['infer'] / run.n_inputs:.1f}",
        *(f"{tally.image_auroc(kind):.2f}" for kind in kinds),
    ]


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


class NextModel(argparse.Action):
    """`--model` begins a configuration, `--model-kwargs` completes the last one."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        """Take one flag."""
        configs: list[Config] = namespace.listed or []
        if option == "--model":
            configs.append(Config(values))
        elif not configs:
            parser.error("--model-kwargs belongs behind the --model it is for")
        else:
            configs[-1] = Config(configs[-1].model, json.loads(values))
        namespace.listed = configs


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the inspection set")
    parser.add_argument("--model", action=NextModel, dest="listed", metavar="NAME", help="a detector; may repeat")
    parser.add_argument("--model-kwargs", action=NextModel, dest="listed", metavar="JSON", help="arguments of the last")
    parser.add_argument("--configs", type=Path, metavar="FILE", help="a JSON list of detectors and arguments")
    parser.add_argument("--per-kind", action="store_true", help="add the image AUROC of each kind of defect")
    arguments = parser.parse_args()
    configs: list[Config] = list(arguments.listed or [])
    if arguments.configs:
        configs += [Config(**entry) for entry in json.loads(arguments.configs.read_text(encoding="utf-8"))]
    if not configs:
        parser.error("give --model or --configs")

    kinds = sorted(path.name for path in (arguments.folder / "test").iterdir() if path.name != "good")
    header = ["model", "image AUROC", "pixel AUROC", "false regions", "hits", "found", "ms"]
    header += kinds if arguments.per_kind else []
    print(row(header))
    print("|---" + "|---:" * (len(header) - 1) + "|")
    for config in configs:
        try:
            print(row(measure(config, arguments.folder, arguments.per_kind)), flush=True)
        except pyimgano_dask.ConfigError as error:
            print(row([config.title, f"not run: {str(error).splitlines()[0]}", *[""] * (len(header) - 2)]), flush=True)


if __name__ == "__main__":
    main()
