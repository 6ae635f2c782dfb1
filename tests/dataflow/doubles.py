"""Stand-ins for what a test needs to control: a scheduler out of order, detectors that wait or kill on purpose."""

from __future__ import annotations

import io
import os
import random
import signal
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from pyimgano_dask.dataflow.inspection import Inspection, RunSummary, Thresholds, inspect, stored_source
from pyimgano_dask.dataflow.plan import Chunk, make_plan
from pyimgano_dask.dataflow.progress import SilentProgress
from pyimgano_dask.dataflow.reading import Reader
from pyimgano_dask.dataflow.run_folder import find_run_folder
from pyimgano_dask.dataflow.scheduler import Common, Loss, Merge, OnLost, OnResult, Result, Scheduler, Task
from pyimgano_dask.dataflow.schedulers import open_scheduler
from pyimgano_dask.dataflow.sources import Clock, DetectorSource, Scored, Source
from pyimgano_dask.detectors.base import Color, Detector, Image, Prediction, State, TrainingFreeDetector
from pyimgano_dask.images.listing import InputList
from pyimgano_dask.settings.knob import Block, knob
from pyimgano_dask.settings.resolve import given_by_keyword, resolve
from pyimgano_dask.settings.run import DataflowSettings
from tests.waiting import wait_until

BIG_SIDE_PX = 200
SMALL_MAP = np.zeros((16, 16), np.float32)


def opened(name: str, workers: int | None = None, n_inputs: int = 1, **flow: Any) -> AbstractContextManager[Scheduler]:
    """The scheduler that `--scheduler` names; nothing is tried again unless `flow` says so."""
    settings = DataflowSettings(**{"scheduler": name, "workers": workers, "retries": 0, **flow})
    return open_scheduler(settings, n_inputs, os.getcwd())


def none_is_lost(chunk: Chunk, loss: Loss) -> None:
    """Takes the chunks that are given up where none may be."""
    raise AssertionError(f"chunk {chunk.index} was given up: {loss.message}")


class ShuffledScheduler(Scheduler):
    """Computes chunks in a random order, hands results over in another, and joins neighbours in random groups."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)

    def run(
        self,
        task: Task[Common, Result],
        chunks: Iterable[Chunk],
        common: Common,
        on_result: OnResult[Result],
        on_lost: OnLost,
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


class ScoreOnlyArguments(Block):
    """Arguments of `ScoresOnly`."""

    own_threshold: float | None = knob(None, "What fitting would have settled.")


class ScoresOnly(Detector[ScoreOnlyArguments]):
    """Scores the brightness of a whole image and gives no maps; learns how many images there are.

    Not registered: the tests hand it over themselves.
    """

    name = "scores_only"
    summary = "Has no maps."
    tags = ("test",)
    reference = "None."
    arguments_type = ScoreOnlyArguments
    gives_maps = False
    color: Color = "gray"
    contamination = 0.25

    def __init__(self, arguments: ScoreOnlyArguments, count: int = 0) -> None:
        super().__init__(arguments)
        self.count = count

    @property
    def is_fitted(self) -> bool:
        return self.count > 0

    @property
    def own_score_threshold(self) -> float | None:
        return self.arguments.own_threshold

    def select_training(self, n_images: int) -> Sequence[int]:
        return range(n_images)

    def accumulate(self, images: Sequence[Image]) -> State:
        return {"count": np.array(len(images))}

    @classmethod
    def merge(cls, states: Sequence[State]) -> State:
        return {"count": np.sum([state["count"] for state in states])}

    def finalize(self, state: State) -> Self:
        return self.with_state(state)

    def state(self) -> State:
        return {"count": np.array(self.count)}

    def with_state(self, state: State) -> Self:
        return type(self)(self.arguments, int(state["count"]))

    def predict(self, images: Sequence[Image], references: Sequence[Image] = ()) -> Prediction:
        return Prediction(np.array([image.mean() for image in images], dtype=np.float64), (None,) * len(images))


class NoOp(TrainingFreeDetector[Block]):
    """Scores 0, with a map of zeros."""

    name = "no_op"
    summary = "Does nothing."
    tags = ("test",)
    reference = "None."
    arguments_type = Block
    color: Color = "gray"
    contamination = None

    def predict(self, images: Sequence[Image], references: Sequence[Image] = ()) -> Prediction:
        return Prediction(np.zeros(len(images)), (SMALL_MAP,) * len(images))


@dataclass(frozen=True)
class NothingRead(Source):
    """Answers for each path without looking at it."""

    def outcomes(self, chunk: Chunk[str], clock: Clock) -> Iterator[Scored]:
        for index, path in chunk.rows():
            yield Scored(index, path, path, 0.0, SMALL_MAP, SMALL_MAP.shape, None)


class HazardArguments(Block):
    """Arguments of `Hazard`."""

    folder: str = knob("", "Where it leaves a file each time a big image comes, and looks for `release`.")
    deaths: int = knob(0, "How often a big image kills the process.", ge=0)
    waits: int = knob(0, "How often a big image waits until `release` is there.", ge=0)


class Hazard(TrainingFreeDetector[HazardArguments]):
    """Scores the brightness; an image as large as `BIG_SIDE_PX` kills its process, or waits, the first few times.

    Not registered: the tests hand it over themselves.
    """

    name = "hazard"
    summary = "Kills its process at big images."
    tags = ("test",)
    reference = "None."
    arguments_type = HazardArguments
    color: Color = "gray"
    contamination = None

    def predict(self, images: Sequence[Image], references: Sequence[Image] = ()) -> Prediction:
        if any(max(image.shape) >= BIG_SIDE_PX for image in images):
            self._meet_a_big_image()
        maps = tuple(image.astype(np.float32) / np.float32(255) for image in images)
        return Prediction(np.array([image.mean() for image in images], dtype=np.float64), maps)

    def _meet_a_big_image(self) -> None:
        folder = Path(self.arguments.folder)
        count = len(list(folder.glob("met-*")))
        (folder / f"met-{os.getpid()}-{uuid.uuid4().hex}").touch()
        if count < self.arguments.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        if count < self.arguments.waits:
            wait_until((folder / "release").exists, "the detector is released")
            (folder / "released").touch()


def inspect_at(
    place: Path, detector: Detector[Any], scheduler: Scheduler, inputs: Sequence[str], **given: Any
) -> RunSummary:
    """The inspecting half of a run in `place` with any detector; outputs go below `out/`."""
    settings = resolve(
        given_by_keyword({"input": "@list.txt", "defects": True, "pixel_threshold": 0.7, **given})
    ).settings
    thresholds = Thresholds(score=100.0, pixel=0.7, pixel_provenance={"method": "fixed"})
    (place / "list.txt").write_text("".join(f"{path}\n" for path in inputs))
    listed = InputList(settings.inputs.input, base_dir=str(place))
    work = Inspection(
        settings=settings,
        base_dir=str(place),
        inputs_dir=str(place),
        inputs=listed,
        n_inputs=listed.count(),
        source=DetectorSource(Reader(str(place), detector.color, 2**28, with_display=True), detector),
        thresholds=thresholds,
        images=stored_source(settings, str(place)),
    )
    plan = make_plan(settings, {"--input": (listed.count(), listed.digest())}, str(place), {})
    folder = find_run_folder(settings, str(place), plan)
    summary = RunSummary(settings, detector.name, "test", thresholds, base_dir=str(place))
    with folder.begun():
        inspect(work, scheduler, folder, io.BytesIO(), SilentProgress(), summary)
    return summary
