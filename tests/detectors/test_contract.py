"""What every registered detector promises, whatever it computes."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyimgano_dask.dataflow.native import limit_native_threads
from pyimgano_dask.detectors.base import Detector, Prediction, State, TrainingFreeDetector
from pyimgano_dask.detectors.checkpoint import decode_detector, encode_detector
from pyimgano_dask.detectors.registry import detector_types
from pyimgano_dask.errors import ConfigError
from tests.detectors.images import SIZES_HW, colors_of, draw_images, make, predict


def cases(names: Sequence[str]) -> list[tuple[str, str]]:
    """Every detector in every colour that it can read."""
    return [(name, color) for name in names for color in colors_of(name)]


def extra_of(name: str) -> str | None:
    """The optional dependencies of a detector, whose networks take more time than arithmetic on pixels."""
    return detector_types()[name].extra


# Those that run a model file are in tests/detectors/exported: they answer as their model does.
NAMES = tuple(name for name, detector_type in detector_types().items() if detector_type.model_file is None)
LEARNING_NAMES = tuple(name for name in NAMES if not issubclass(detector_types()[name], TrainingFreeDetector))

every_detector = pytest.mark.parametrize(("name", "color"), cases(NAMES))
every_learning_detector = pytest.mark.parametrize(("name", "color"), cases(LEARNING_NAMES))

# Relative error of fitted arrays between groupings, of detectors that add up floating-point numbers.
GROUPING_ERROR: Mapping[str, float] = {"vision_padim": 1e-5}


@cache
def fitted(name: str, color: str) -> Detector[Any]:
    """A fitted detector, which no prediction changes; made once, because networks take their time."""
    detector = make(name, color)
    limit_native_threads(1)  # the first one that is made loads torch
    return detector.fit(draw_images(1, color))


def assert_same(first: Prediction, second: Prediction) -> None:
    np.testing.assert_array_equal(first.scores, second.scores)
    assert len(first.maps) == len(second.maps)
    for one, other in zip(first.maps, second.maps, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_same_state(first: State, second: State, error: float = 0) -> None:
    assert set(first) == set(second)
    for key in first:
        assert first[key].dtype == second[key].dtype
        np.testing.assert_allclose(first[key], second[key], rtol=error, atol=error * np.abs(second[key]).max())


@every_detector
def test_one_pass_gives_a_finite_score_and_a_map_of_each_images_own_size(name: str, color: str) -> None:
    prediction = predict(fitted(name, color), draw_images(2, color))

    assert prediction.scores.dtype == np.float64
    assert prediction.scores.shape == (len(SIZES_HW),)
    assert np.isfinite(prediction.scores).all()
    assert [anomaly_map.shape for anomaly_map in prediction.maps] == list(SIZES_HW)
    assert {anomaly_map.dtype for anomaly_map in prediction.maps} == {np.dtype(np.float32)}
    assert all(np.isfinite(anomaly_map).all() for anomaly_map in prediction.maps)


@every_detector
def test_a_spot_raises_the_score_and_shows_in_the_map(name: str, color: str) -> None:
    detector = make(name, color).fit(draw_images(1, color, [(64, 80)] * 8))
    (clean,) = draw_images(2, color, [(64, 80)])
    spotted = clean.copy()
    spotted[16:32, 20:40] = 255

    prediction = predict(detector, [clean, spotted])

    assert prediction.scores[1] > prediction.scores[0]
    y, x = np.unravel_index(prediction.maps[1].argmax(), (64, 80))
    reach = 8 if detector.extra else 0  # networks see the surroundings, too
    assert 16 - reach <= y < 32 + reach
    assert 20 - reach <= x < 40 + reach


@every_detector
def test_images_are_left_as_they_are(name: str, color: str) -> None:
    images = draw_images(2, color, [(16, 20), (30, 30)])
    before = [image.copy() for image in images]
    detector = make(name, color).fit(images)
    predict(detector, images)
    for image, copy in zip(images, before, strict=True):
        np.testing.assert_array_equal(image, copy)


@every_detector
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
def test_an_empty_batch_has_an_empty_answer(name: str, color: str) -> None:
    prediction = predict(fitted(name, color), [])
    assert prediction.scores.shape == (0,)
    assert prediction.scores.dtype == np.float64
    assert prediction.maps == ()


@every_learning_detector
def test_predicting_before_fitting_says_what_to_do(name: str, color: str) -> None:
    detector = make(name, color)
    assert not detector.is_fitted
    with pytest.raises(RuntimeError, match=rf"{name} is not fitted.*fit"):
        detector.predict(draw_images(2, color))
    with pytest.raises(RuntimeError, match="not fitted"):
        detector.state()


@every_learning_detector
def test_fitting_gives_a_copy_and_leaves_the_detector_unfitted(name: str, color: str) -> None:
    detector = make(name, color)
    assert detector.fit(draw_images(1, color)).is_fitted
    assert not detector.is_fitted


@every_detector
def test_one_training_image_is_enough(name: str, color: str) -> None:
    (image,) = draw_images(1, color, [(16, 20)])
    prediction = predict(make(name, color).fit([image]), [image, 255 - image])
    assert np.isfinite(prediction.scores).all()
    assert prediction.scores[1] > prediction.scores[0]


@cache
def accumulated(name: str, color: str, start: int, stop: int) -> State:
    """The summary of some of nine training images; made once, because networks take their time."""
    return make(name, color).accumulate(draw_images(1, color, (SIZES_HW * 2)[:9])[start:stop])


@cache
def fitted_on_nine(name: str, color: str) -> State:
    return make(name, color).finalize(accumulated(name, color, 0, 9)).state()


def check_grouping(name: str, color: str, cuts: Sequence[int], fold_left: bool) -> None:
    """Fit on nine images summarised in groups that begin at `cuts`, and compare with one group."""
    detector = make(name, color)
    edges = sorted({0, 9, *cuts})
    states = [accumulated(name, color, start, stop) for start, stop in pairwise(edges)]
    merge = type(detector).merge
    if fold_left:
        merged = states[0]
        for state in states[1:]:
            merged = merge([merged, state])
    else:
        merged = states[-1]
        for state in states[-2::-1]:
            merged = merge([state, merged])
    for summary in (merged, merge(states)):
        fitted = detector.finalize(summary).state()
        assert_same_state(fitted, fitted_on_nine(name, color), GROUPING_ERROR.get(name, 0))


@pytest.mark.parametrize(("name", "color"), [case for case in cases(LEARNING_NAMES) if not extra_of(case[0])])
@given(cuts=st.lists(st.integers(0, 9), max_size=4), fold_left=st.booleans())
def test_any_grouping_of_the_training_images_gives_the_same_bits(
    name: str, color: str, cuts: list[int], fold_left: bool
) -> None:
    check_grouping(name, color, cuts, fold_left)


@pytest.mark.parametrize("name", [name for name in LEARNING_NAMES if extra_of(name)])
@pytest.mark.parametrize(("cuts", "fold_left"), [([4], True), ([1, 2, 3, 7], True), ([2, 5], False)])
def test_grouping_hardly_changes_what_networks_learn(name: str, cuts: list[int], fold_left: bool) -> None:
    check_grouping(name, "rgb", cuts, fold_left)


@every_learning_detector
def test_training_images_are_chosen_once_each_and_in_order(name: str, color: str) -> None:
    for n_images in (1, 5, 1000):
        chosen = list(make(name, color).select_training(n_images))
        assert chosen == sorted(set(chosen))
        assert chosen
        assert chosen[0] >= 0
        assert chosen[-1] < n_images


@every_detector
def test_a_checkpoint_brings_back_the_same_detector(name: str, color: str) -> None:
    detector = fitted(name, color)
    data = encode_detector(detector)
    again = decode_detector(data, "here.npz")

    assert type(again) is type(detector)
    assert again.arguments == detector.arguments
    assert encode_detector(again) == data
    assert encode_detector(make(name, color).fit(draw_images(1, color))) == data
    assert_same(predict(again, draw_images(2, color)), predict(detector, draw_images(2, color)))


@every_detector
def test_pickling_keeps_the_predictions(name: str, color: str) -> None:
    detector = fitted(name, color)
    again = pickle.loads(pickle.dumps(detector))
    assert_same(predict(again, draw_images(2, color)), predict(detector, draw_images(2, color)))
    unfitted = make(name, color)
    assert pickle.loads(pickle.dumps(unfitted)).is_fitted == unfitted.is_fitted


@every_detector
def test_threads_share_one_instance(name: str, color: str) -> None:
    detector = fitted(name, color)
    batches = [draw_images(seed, color) for seed in range(8)]
    expected = [predict(detector, batch) for batch in batches]
    rounds = 2 if detector.extra else 5  # a network computes for much longer than arithmetic on pixels
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(partial(predict, detector), batches * rounds))
    for answer, right in zip(answers, expected * rounds, strict=True):
        assert_same(answer, right)


@pytest.mark.parametrize("name", NAMES)
def test_every_bad_argument_is_named_at_once(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        detector_types()[name].create(contamination=0.9, size="big")
    message = str(caught.value)
    assert "model_kwargs.contamination: 0.9" in message
    assert "model_kwargs.size: unknown argument" in message
    assert all(known in message for known in detector_types()[name].arguments_type.model_fields)


BAD_ARGUMENTS: Mapping[str, Sequence[Any]] = {
    "resize_hw": ([0, 16], [16], "16"),
    "topk": (0, 1.5, float("nan")),
    "reduction": ("median",),
    "channel_reduce": (3,),
    "color": ("blue",),
    "contamination": (0, "much"),
    "image_size": (0, 10**6, [32, 32]),
    "backbone": ("resnet19", "timm:", "timm:local-dir:x", "timm:hf-hub:a/b", "elsewhere:resnet18", 18),
    "layers": ([], ["layer5"], ["layer1", "layer1"], "layer1"),
    "random_state": (-1, 0.5),
    "levels": ([], [1, 1], [-1], [6], 1),
    "grid_hw": ([0, 4], [4]),
    "stride": (0, 65, 1.5),
    "window_px": (0, float("inf")),
    "light": ("dim",),
    "prior_sites": (0,),
    "shrinkage": (-0.1, 1.1),
    "smoothing_px": (-1,),
    "score_border_px": (-1, 0.5),
}


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        (name, argument, value)
        for name in NAMES
        for argument, values in BAD_ARGUMENTS.items()
        if argument in detector_types()[name].arguments_type.model_fields
        for value in values
    ],
)
def test_a_bad_argument_is_refused_by_name(name: str, argument: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=argument):
        detector_types()[name].create(**{argument: value})


@every_learning_detector
def test_a_state_that_lacks_an_array_or_has_one_of_another_shape_is_refused(name: str, color: str) -> None:
    detector = fitted(name, color)
    state = detector.state()
    with pytest.raises(ConfigError, match=name):
        detector.with_state({})
    for key, values in state.items():
        with pytest.raises(ConfigError, match=name):
            detector.with_state({other: array for other, array in state.items() if other != key})
        with pytest.raises(ConfigError, match=name):
            detector.with_state({**state, key: values[..., None, :-1] if values.ndim else values[None]})


@every_learning_detector
def test_a_state_that_is_not_finite_is_refused(name: str, color: str) -> None:
    detector = fitted(name, color)
    state = detector.state()
    for key, values in state.items():
        if values.dtype.kind == "f":
            with pytest.raises(ConfigError, match="finite"):
                detector.with_state({**state, key: np.full_like(values, np.nan)})
