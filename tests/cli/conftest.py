from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from pyimgano_dask.synthesis import InspectionSet, write_inspection_set
from tests.cli.command import Answer, command

MODEL = "vision_pixel_mad_map"


@dataclass(frozen=True)
class Trained:
    """A run that was trained on the parts, its answer, and what it left in its run folder."""

    parts: InspectionSet
    answer: Answer
    run_dir: Path

    @property
    def checkpoint(self) -> str:
        return str(self.run_dir / "detector.npz")

    @property
    def infer_config(self) -> str:
        return str(self.run_dir / "infer_config.json")

    @property
    def source(self) -> tuple[str, ...]:
        """Flags that name a fitted detector."""
        return ("--model", MODEL, "--checkpoint-path", self.checkpoint)


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> InspectionSet:
    folder = tmp_path_factory.mktemp("parts")
    return write_inspection_set(folder, n_train=8, n_good=3, n_per_defect=1, sizes_hw=[(64, 64), (64, 80)])


@pytest.fixture(scope="session")
def trained(parts: InspectionSet, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    arguments = ["--model", MODEL, "--model-kwargs", '{"resize_hw": [64, 64]}', "--train-dir", parts.train_dir]
    arguments += ["--input", parts.test_dir, "--defects", "--batch-size", "2", "--run-dir", "run"]
    return Trained(parts, command(*arguments, cwd=folder), folder / "run")
