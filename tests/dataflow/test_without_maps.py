"""Detectors that score whole images and give no maps: what works, what is refused, whose threshold counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyimgano_dask.dataflow.reading import Loaded
from pyimgano_dask.dataflow.sources import infer
from pyimgano_dask.detectors.base import Detector, Prediction
from pyimgano_dask.detectors.tiling import tiled
from pyimgano_dask.errors import InputError
from pyimgano_dask.settings.tiling import TilingSettings
from tests.conftest import Ended, run_python
from tests.dataflow.doubles import NoOp, ScoresOnly

Workplace = Callable[[str], Path]

RUN = """
import json, sys
import pyimgano_dask
from pyimgano_dask.detectors.registry import register
from tests.dataflow.doubles import ScoresOnly

if __name__ == "__main__":
    register(ScoresOnly)
    run = pyimgano_dask.infer(model="scores_only", **json.loads(sys.argv[1]))
    thresholds = run.thresholds
    print(json.dumps([list(run.records()), thresholds.score, thresholds.score_provenance]))
"""


def run_at(place: Path, **given: Any) -> Ended:
    settings = {"input": "set/test/good", "train_dir": "set/train/good", "scheduler": "sync", **given}
    return run_python("-c", RUN, json.dumps(settings), cwd=place, env={"PYTHONPATH": str(Path(__file__).parents[2])})


def test_records_have_a_score_and_a_label_and_no_map(workplace: Workplace) -> None:
    done = run_at(workplace("scores"))
    assert done.rc == 0, done.stderr
    records, threshold, provenance = json.loads(done.stdout)
    assert len(records) == 8
    assert {tuple(record) for record in records} == {("index", "input", "label", "score")}
    assert [record["label"] for record in records] == [int(record["score"] >= threshold) for record in records]
    assert (provenance["method"], provenance["quantile"]) == ("quantile", 0.75)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"defects": True}, "--defects"),
        ({"include_maps": True}, "--include-maps"),
        ({"save_maps": "maps", "save_overlays": "overlays"}, "--save-maps, --save-overlays"),
    ],
)
def test_what_needs_maps_is_refused_before_anything_is_written(
    workplace: Workplace, given: dict[str, Any], told: str
) -> None:
    place = workplace("refused")
    before = sorted(place.iterdir())
    done = run_at(place, **given)
    assert done.rc != 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"pyimgano_dask.errors.ConfigError: {told}")
    assert "scores_only scores whole images and gives no anomaly maps" in last
    assert sorted(place.iterdir()) == before


def test_a_threshold_that_the_detector_settled_counts_unless_a_quantile_is_asked_for(workplace: Workplace) -> None:
    place = workplace("threshold")
    own = {"model_kwargs": {"own_threshold": 101.5}}
    _, threshold, provenance = json.loads(run_at(place, **own).stdout)
    assert threshold == 101.5
    assert (provenance["method"], provenance["source"], provenance["count"]) == ("detector", "train_dir", 12)
    _, threshold, provenance = json.loads(run_at(place, **own, calibration_quantile=0.5).stdout)
    assert threshold != 101.5
    assert (provenance["method"], provenance["quantile"]) == ("quantile", 0.5)


def test_other_images_give_a_fitted_detector_a_threshold_of_their_own(workplace: Workplace) -> None:
    place = workplace("calibrated")
    run_at(place, model_kwargs={"own_threshold": 101.5}, run_dir="run")
    others = {"infer_config": "run/infer_config.json", "train_dir": "set/test/good"}
    records, threshold, provenance = json.loads(run_at(place, **others).stdout)
    scores = [record["score"] for record in records]
    assert threshold == np.quantile(scores, 0.75) != 101.5
    assert (provenance["method"], provenance["quantile"], provenance["count"]) == ("quantile", 0.75, 8)


def test_tiles_reduce_scores_alone() -> None:
    image = np.zeros((40, 40), np.uint8)
    image[:16, :16] = 200
    detector: Detector[Any] = tiled(ScoresOnly.create(own_threshold=3.0), TilingSettings(tile_size=16, stride=12))
    prediction = detector.predict([image, image // 2])
    assert prediction.scores.tolist() == [200, 100]
    assert prediction.maps == (None, None)
    assert detector.own_score_threshold is None


class _LosesMaps(NoOp):
    def predict(self, images: Any, references: Any = ()) -> Prediction:
        return Prediction(np.zeros(len(images)), (None,) * len(images))


def test_a_detector_that_owes_maps_must_give_them() -> None:
    (answer,) = infer(_LosesMaps.create(), [Loaded(0, "a.png", np.zeros((4, 4), np.uint8), None)])
    assert isinstance(answer, InputError)
    assert answer.kind == "PredictionError"
