"""Time and memory of the detectors on backbones, beside the backbone's own forward pass and beside other programs.

    python tests/benchmarks/bench_backbones.py [--train 400] [--test 944] [--pyimgano PYTHON] [--anomalib PYTHON]

Draws that many images of 256 x 256 and runs `pyimgano-infer` with two threads on them: PaDiM and PatchCore on ResNet-18
with random weights, `image_size` 256, from fitting to the last record. Two floors are measured in this process on the
same images, one thread: the network's forward pass as a user would write it, batch normalisation and all, and the
detector's `predict`. Memory is the most that the process of the run ever held, for all test images and for a quarter of
them. PYTHON is that of another environment, in which the package pyimgano with its deep detectors, or anomalib, is
installed: its PaDiM then fits and scores the same images in the same run of this script, as its users would run it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from pyimgano_dask.dataflow.native import limit_native_threads
from pyimgano_dask.detectors.deep.padim import Padim
from pyimgano_dask.detectors.deep.patchcore import Patchcore
from pyimgano_dask.detectors.deep.resnet import ResNet, initialise
from tests.benchmarks.bench_tiles import CHILD

SIDE = 256
KWARGS = {"image_size": SIDE}
LAYERS = ("layer1", "layer2", "layer3")
SAMPLE = 32
ROUNDS = 5
PYIMGANO = """
import sys, time
from pathlib import Path
from pyimgano.models import create_model
train, test = (sorted(map(str, Path(folder).iterdir())) for folder in sys.argv[1:])
started = time.perf_counter()
detector = create_model("vision_padim", backbone="resnet18", image_size=256, pretrained=False, device="cpu")
detector.fit(train)
fitted = time.perf_counter()
detector.decision_function(test)
for path in test:
    detector.get_anomaly_map(path)
print(fitted - started, time.perf_counter() - started)
"""
ANOMALIB = """
import sys, time
from anomalib.data import Folder, PredictDataset
from anomalib.engine import Engine
from anomalib.models import Padim
from torch.utils.data import DataLoader
train, test = sys.argv[1:]
started = time.perf_counter()
square = Padim.configure_pre_processor((256, 256))
model = Padim(backbone="resnet18", pre_trained=False, pre_processor=square, evaluator=False, visualizer=False)
engine = Engine(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir="anomalib")
data = Folder("parts", root=".", normal_dir=train, test_split_mode="none", val_split_mode="none", num_workers=0)
data.setup()
engine.fit(model, train_dataloaders=data.train_dataloader())
fitted = time.perf_counter()
images = PredictDataset(test, image_size=(256, 256))
engine.predict(model, dataloaders=DataLoader(images, batch_size=32, collate_fn=images.collate_fn))
print(fitted - started, time.perf_counter() - started)
"""
PEERS = {"pyimgano": PYIMGANO, "anomalib": ANOMALIB}


def draw_folder(folder: Path, count: int, seed: int) -> None:
    """Smooth texture with noise, so that files and features look like photographs of a surface."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    base = cv2.GaussianBlur(rng.normal(size=(2 * SIDE, 2 * SIDE, 3)), (0, 0), 3)
    base = 120 + 60 * base / np.abs(base).max()
    for number in range(count):
        y, x = rng.integers(0, SIDE, 2)
        image = base[y : y + SIDE, x : x + SIDE] + rng.normal(0, 4, (SIDE, SIDE, 3))
        cv2.imwrite(str(folder / f"{number:05d}.png"), np.clip(image, 0, 255).astype(np.uint8))


def run(place: Path, model: str, inputs: str) -> dict[str, float]:
    """Seconds of a run and of its stages, and its memory in MiB."""
    command = [
        *(sys.executable, "-c", CHILD, "peak", "--model", model, "--model-kwargs", json.dumps(KWARGS), "--no-progress"),
        *("--train-dir", "train", "--input", inputs, "--scheduler", "threads", "--workers", "2"),
        *("--save-jsonl", "records.jsonl", "--profile-json", "profile.json"),
    ]
    started = time.perf_counter()
    subprocess.run(command, cwd=place, check=True, capture_output=True)
    seconds = time.perf_counter() - started
    profile: dict[str, Any] = json.loads((place / "profile.json").read_text())
    stages = {name: stage["seconds"] for name, stage in profile["stages"].items()}
    learning = stages.get("fit", 0) + stages.get("calibrate", 0)
    return {
        "total": seconds,
        "fit": stages.get("fit", 0),
        "predict": seconds - learning,
        "MiB": int((place / "peak").read_text()) / 1024,
    }


def floors(place: Path) -> dict[str, float]:
    """Milliseconds an image on one thread: the forward pass, and `predict` of both detectors, in turns."""
    limit_native_threads(1)
    paths = sorted((place / "test").iterdir())[:SAMPLE]
    images = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths]
    net = ResNet("resnet18", LAYERS).eval()
    initialise(net, 0)
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in images]
    channels_last = ResNet("resnet18", LAYERS).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(module: Any) -> None:
        with torch.inference_mode():
            for tensor in tensors:
                module(tensor)

    padim, patchcore = Padim.create(**KWARGS).fit(images), Patchcore.create(**KWARGS).fit(images)
    work = {
        "forward, as written": lambda: forward(net),
        "forward, channels last": lambda: forward(channels_last),
        "vision_padim predict": lambda: padim.predict(images),
        "vision_patchcore predict": lambda: patchcore.predict(images),
    }
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS + 1):
        for name, action in work.items():
            started = time.perf_counter()
            action()
            found[name].append((time.perf_counter() - started) * 1000 / len(images))
    return {name: float(np.median(times[1:])) for name, times in found.items()}


def print_peer(title: str, python: str, program: str, place: Path) -> None:
    """Run another program on the same images, and print its times and its memory."""
    watched = f"{program}\nimport resource\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    done = subprocess.run(
        [python, "-c", watched, "train", "test"], cwd=place, check=True, capture_output=True, text=True
    )
    fitted, total, mib = map(float, done.stdout.split()[-3:])
    seconds = f"{total:8.1f} s in all, {fitted:.1f} s fit, {total - fitted:.1f} s predict"
    print(f"{title:28} {seconds}; {mib:.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--test", type=int, default=944)
    for name in PEERS:
        parser.add_argument(f"--{name}", metavar="PYTHON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        draw_folder(place / "train", given.train, 0)
        draw_folder(place / "test", given.test, 1)
        (place / "quarter.txt").write_text(
            "".join(f"test/{path.name}\n" for path in sorted((place / "test").iterdir())[: given.test // 4])
        )
        for name, value in floors(place).items():
            print(f"{name:28} {value:8.1f} ms an image, one thread", flush=True)
        for model in (Padim.name, Patchcore.name):
            whole, quarter = run(place, model, "test"), run(place, model, "@quarter.txt")
            seconds = f"{whole['total']:8.1f} s in all, {whole['fit']:.1f} s fit, {whole['predict']:.1f} s predict"
            memory = f"{whole['MiB']:.0f} MiB, {quarter['MiB']:.0f} MiB for a quarter of the images"
            print(f"{model:28} {seconds}; {memory}", flush=True)
        for name, program in PEERS.items():
            if python := getattr(given, name):
                print_peer(f"{name} PaDiM", python, program, place)


if __name__ == "__main__":
    main()
