"""What every registered detector promises, whatever it computes."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyimgano_dask.detectors.base import Detector, Prediction, State, TrainingFreeDetector
from pyimgano_dask.detectors.checkpoint import decode_detector, encode_detector
from pyimgano_dask.detectors.registry import detector_types
from pyimgano_dask.errors import ConfigError
from tests.detectors.images import SIZES_HW, draw_images, make, predict

# Those that run a model file are in tests/detectors/exported: they answer as their model does.
NAMES = tuple(name for name, detector_type in detector_types().items() if detector_type.model_file is None)
LEARNING_NAMES = tuple(name for name in NAMES if not issubclass(detector_types()[name], TrainingFreeDetector))
COLORS = ("gray", "rgb")

every_detector = pytest.mark.parametrize("name", NAMES)
every_learning_detector = pytest.mark.parametrize("name", LEARNING_NAMES)
every_color = pytest.mark.parametrize("color", COLORS)


def fitted(name: str, color: str) -> Detector[Any]:
    return make(name, color).fit(draw_images(1, color))


def assert_same(first: Prediction, second: Prediction) -> None:
    np.testing.assert_array_equal(first.scores, second.scores)
    assert len(first.maps) == len(second.maps)
    for one, other in zip(first.maps, second.maps, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_same_state(first: State, second: State) -> None:
    assert set(first) == set(second)
    for key in first:
        assert first[key].dtype == second[key].dtype
        np.testing.assert_array_equal(first[key], second[key])


@every_detector
@every_color
def test_one_pass_gives_a_finite_score_and_a_map_of_each_images_own_size(name: str, color: str) -> None:
    prediction = predict(fitted(name, color), draw_images(2, color))

    assert prediction.scores.dtype == np.float64
    assert prediction.scores.shape == (len(SIZES_HW),)
    assert np.isfinite(prediction.scores).all()
    assert [anomaly_map.shape for anomaly_map in prediction.maps] == list(SIZES_HW)
    assert {anomaly_map.dtype for anomaly_map in prediction.maps} == {np.dtype(np.float32)}
    assert all(np.isfinite(anomaly_map).all() for anomaly_map in prediction.maps)


@every_detector
@every_color
def test_a_spot_raises_the_score_and_shows_in_the_map(name: str, color: str) -> None:
    detector = make(name, color).fit(draw_images(1, color, [(32, 40)] * 8))
    (clean,) = draw_images(2, color, [(32, 40)])
    spotted = clean.copy()
    spotted[8:16, 10:20] = 255

    prediction = predict(detector, [clean, spotted])

    assert prediction.scores[1] > prediction.scores[0]
    y, x = np.unravel_index(prediction.maps[1].argmax(), (32, 40))
    assert 8 <= y < 16
    assert 10 <= x < 20


@every_detector
@every_color
def test_images_are_left_as_they_are(name: str, color: str) -> None:
    images = draw_images(2, color, [(16, 20), (30, 30)])
    before = [image.copy() for image in images]
    detector = make(name, color).fit(images)
    predict(detector, images)
    for image, copy in zip(images, before, strict=True):
        np.testing.assert_array_equal(image, copy)


@every_detector
@every_color
def test_batch_size_changes_neither_scores_nor_maps(name: str, color: str) -> None:
    detector = fitted(name, color)
    images = draw_images(2, color)
    whole = predict(detector, images)
    one_by_one = [predict(detector, [image]) for image in images]
    assert_same(
        whole,
        Prediction(np.concatenate([p.scores for p in one_by_one]), tuple(p.maps[0] for p in one_by_one)),
    )


@every_detector
def test_an_empty_batch_has_an_empty_answer(name: str) -> None:
    prediction = predict(fitted(name, "gray"), [])
    assert prediction.scores.shape == (0,)
    assert prediction.scores.dtype == np.float64
    assert prediction.maps == ()


@every_learning_detector
def test_predicting_before_fitting_says_what_to_do(name: str) -> None:
    detector = make(name, "gray")
    assert not detector.is_fitted
    with pytest.raises(RuntimeError, match=rf"{name} is not fitted.*fit"):
        detector.predict(draw_images(2, "gray"))
    with pytest.raises(RuntimeError, match="not fitted"):
        detector.state()


@every_learning_detector
def test_fitting_gives_a_copy_and_leaves_the_detector_unfitted(name: str) -> None:
    detector = make(name, "gray")
    assert detector.fit(draw_images(1, "gray")).is_fitted
    assert not detector.is_fitted


@every_detector
@every_color
def test_one_training_image_is_enough(name: str, color: str) -> None:
    (image,) = draw_images(1, color, [(16, 20)])
    prediction = predict(make(name, color).fit([image]), [image, 255 - image])
    assert prediction.scores[0] == 0
    assert np.isfinite(prediction.scores).all()
    assert prediction.scores[1] > 0


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("name", LEARNING_NAMES)
@given(cuts=st.lists(st.integers(0, 9), max_size=4), fold_left=st.booleans())
def test_any_grouping_of_the_training_images_gives_the_same_bits(
    name: str, color: str, cuts: list[int], fold_left: bool
) -> None:
    images = draw_images(1, color, (SIZES_HW * 2)[:9])
    detector = make(name, color)
    whole = detector.finalize(detector.accumulate(images)).state()

    edges = sorted({0, 9, *cuts})
    states = [detector.accumulate(images[start:stop]) for start, stop in pairwise(edges)]
    merge = type(detector).merge
    if fold_left:
        merged = states[0]
        for state in states[1:]:
            merged = merge([merged, state])
    else:
        merged = states[-1]
        for state in states[-2::-1]:
            merged = merge([state, merged])
    assert_same_state(detector.finalize(merged).state(), whole)
    assert_same_state(detector.finalize(merge(states)).state(), whole)


@every_learning_detector
def test_training_images_are_chosen_once_each_and_in_order(name: str) -> None:
    for n_images in (1, 5, 1000):
        chosen = list(make(name, "gray").select_training(n_images))
        assert chosen == sorted(set(chosen))
        assert chosen
        assert chosen[0] >= 0
        assert chosen[-1] < n_images


@every_detector
@every_color
def test_a_checkpoint_brings_back_the_same_detector(name: str, color: str) -> None:
    detector = fitted(name, color)
    data = encode_detector(detector)
    again = decode_detector(data, "here.npz")

    assert type(again) is type(detector)
    assert again.arguments == detector.arguments
    assert encode_detector(again) == data
    assert encode_detector(fitted(name, color)) == data
    assert_same(predict(again, draw_images(2, color)), predict(detector, draw_images(2, color)))


@every_detector
@every_color
def test_pickling_keeps_the_predictions(name: str, color: str) -> None:
    detector = fitted(name, color)
    again = pickle.loads(pickle.dumps(detector))
    assert_same(predict(again, draw_images(2, color)), predict(detector, draw_images(2, color)))
    unfitted = make(name, color)
    assert pickle.loads(pickle.dumps(unfitted)).is_fitted == unfitted.is_fitted


@every_detector
def test_threads_share_one_instance(name: str) -> None:
    detector = fitted(name, "rgb")
    batches = [draw_images(seed, "rgb") for seed in range(8)]
    expected = [predict(detector, batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(partial(predict, detector), batches * 5))
    for answer, right in zip(answers, expected * 5, strict=True):
        assert_same(answer, right)


@every_detector
def test_every_bad_argument_is_named_at_once(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        detector_types()[name].create(contamination=0.9, resize="big", color="blue")
    message = str(caught.value)
    assert "model_kwargs.contamination: 0.9" in message
    assert "model_kwargs.color: 'blue'" in message
    assert "model_kwargs.resize: unknown argument" in message
    assert all(known in message for known in detector_types()[name].arguments_type.model_fields)


@every_detector
@pytest.mark.parametrize(
    "argument",
    [
        {"resize_hw": [0, 16]},
        {"resize_hw": [16]},
        {"resize_hw": "16"},
        {"topk": 0},
        {"topk": 1.5},
        {"topk": float("nan")},
        {"reduction": "median"},
        {"channel_reduce": 3},
        {"contamination": 0},
    ],
)
def test_a_bad_argument_is_refused_by_name(name: str, argument: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(argument))):
        detector_types()[name].create(**argument)


@every_learning_detector
def test_a_state_of_another_size_is_refused_with_both_sizes(name: str) -> None:
    state = fitted(name, "gray").state()
    other = detector_types()[name].create(resize_hw=(8, 8))
    with pytest.raises(ConfigError, match=r"\(8, 8\).*\(16, 20\)"):
        other.with_state(state)
    with pytest.raises(ConfigError, match="no such array"):
        other.with_state({})


@every_learning_detector
def test_a_state_that_is_not_finite_is_refused(name: str) -> None:
    detector = fitted(name, "gray")
    spoiled = {key: np.full_like(values, np.nan) for key, values in detector.state().items()}
    with pytest.raises(ConfigError, match="finite"):
        detector.with_state(spoiled)
