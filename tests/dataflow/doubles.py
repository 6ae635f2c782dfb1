"""Stand-ins for what a test needs to control: a scheduler out of order, and a detector that is slow on purpose."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from pyimgano_dask.dataflow.plan import Chunk
from pyimgano_dask.dataflow.schedulers import Common, Merge, Result, Scheduler, Task
from pyimgano_dask.detectors.base import Color, Image, Prediction, TrainingFreeDetector
from pyimgano_dask.settings.knob import Block, knob
from tests.conftest import wait_until

BIG_SIDE_PX = 200


class ShuffledScheduler(Scheduler):
    """Computes chunks in a random order, hands results over in another, and joins neighbours in random groups."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def run(
        self, task: Task[Common, Result], chunks: Iterable[Chunk], common: Common, on_result: Callable[[Result], None]
    ) -> None:
        results = self._compute(task, chunks, common)
        for position in self._shuffled(len(results)):
            on_result(results[position])

    def reduce(
        self, task: Task[Common, Result], merge: Merge[Result], chunks: Iterable[Chunk], common: Common
    ) -> Result:
        level = self._compute(task, chunks, common)
        while len(level) > 1:
            size = self._random.randint(2, len(level))
            level = [merge(level[start : start + size]) for start in range(0, len(level), size)]
        return level[0]

    def describe(self) -> str:
        return "shuffled"

    @property
    def n_workers(self) -> int:
        return 1

    def _compute(self, task: Task[Common, Result], chunks: Iterable[Chunk], common: Common) -> Sequence[Result]:
        planned = list(chunks)
        results = {position: task(planned[position], common) for position in self._shuffled(len(planned))}
        return [results[position] for position in range(len(planned))]

    def _shuffled(self, count: int) -> list[int]:
        return self._random.sample(range(count), count)


class WaitingArguments(Block):
    """Arguments of `WaitsForOthers`."""

    folder: str = knob("", "Folder of the shards.")
    others: int = knob(3, "Shards that must be there before a big image is done.", ge=0)


class WaitsForOthers(TrainingFreeDetector[WaitingArguments]):
    """Scores the brightness; an image as large as `BIG_SIDE_PX` takes until some shards of others are written.

    Not registered: the tests hand it over themselves.
    """

    name = "waits_for_others"
    summary = "Makes big images finish late."
    tags = ("test",)
    reference = "None."
    arguments_type = WaitingArguments
    color: Color = "gray"
    contamination = None

    def predict(self, images: Sequence[Image], references: Sequence[Image] = ()) -> Prediction:
        if any(max(image.shape) >= BIG_SIDE_PX for image in images):
            folder = Path(self.arguments.folder)
            wait_until(
                lambda: len(list(folder.glob("part-*.jsonl"))) >= self.arguments.others, "other shards are there"
            )
        maps = tuple(image.astype(np.float32) / np.float32(255) for image in images)
        return Prediction(np.array([image.mean() for image in images], dtype=np.float64), maps)


class InferenceModeArguments(Block):
    """Arguments of `ReportsInferenceMode`."""

    device: str | None = knob(None, "Passed on to nothing.")


class ReportsInferenceMode(TrainingFreeDetector[InferenceModeArguments]):
    """Scores 1 in torch's inference mode, and 0 outside of it or without torch; the map has the score everywhere.

    Not registered: the tests hand it over themselves.
    """

    name = "reports_inference_mode"
    summary = "Tells whether torch is in inference mode."
    tags = ("test",)
    reference = "None."
    arguments_type = InferenceModeArguments
    color: Color = "gray"
    contamination = None

    def predict(self, images: Sequence[Image], references: Sequence[Image] = ()) -> Prediction:
        torch = sys.modules.get("torch")
        score = float(torch is not None and torch.is_inference_mode_enabled())
        maps = tuple(np.full(image.shape[:2], score, np.float32) for image in images)
        return Prediction(np.full(len(images), score), maps)
