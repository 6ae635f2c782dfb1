"""The adapter of pyimgano's detectors, around objects of our own: what it does with arguments and with pickles."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pyimgano_dask.detectors.foreign_calls import PNG_SIGNATURE
from pyimgano_dask.detectors.pyimgano_detector import PyimganoDetector
from pyimgano_dask.detectors.pyimgano_registry import PyimganoArguments
from pyimgano_dask.settings.knob import knob
from tests.detectors.images import draw_images

IMAGES = draw_images(1, "rgb", [(16, 20)] * 3)


class Counts:
    """Scores how many images it was fitted on."""

    def __init__(self, **_: Any) -> None:
        self.threshold_ = 0.0

    def fit(self, paths: Sequence[str]) -> None:
        print("fitting", len(paths))
        self.n = len(paths)

    def decision_function(self, paths: Sequence[str]) -> list[float]:
        return [float(self.n) for path in paths if Path(path).stat().st_size]


class Unpicklable(Counts):
    """Raises what a network in the middle of its work raises when it is pickled."""

    error: type[Exception] = RuntimeError

    def __reduce__(self) -> Any:
        raise self.error("only leaves of the graph can be pickled")


class Nested(PyimganoArguments):
    """Arguments of any shape."""

    extractor: dict[str, Any] = knob({}, "Anything.")


def adapter(model: type[Counts], **arguments: Any) -> PyimganoDetector:
    class Adapter(PyimganoDetector):
        name, summary, tags, reference = "pyimgano:own", "An object of the test.", ("test",), "None."
        arguments_type = Nested
        constructor = model
        parameter_names = frozenset()
        words = frozenset({"vision_own", "classical"})
        words_of_extractors: ClassVar[dict[str, frozenset[str]]] = {"nets": frozenset({"torch", "torchvision"})}
        gives_maps = False

    return Adapter.create(**arguments)


@pytest.mark.parametrize("error", [RuntimeError, TypeError, AttributeError, pickle.PicklingError])
def test_an_object_that_cannot_be_pickled_answers_all_the_same_and_travels_as_its_images(
    error: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    kind = type("Kind", (Unpicklable,), {"error": error})
    fitted = adapter(kind).fit(IMAGES)
    assert fitted.predict(IMAGES).scores.tolist() == [3.0] * 3
    assert pickle.dumps(fitted).count(PNG_SIGNATURE) == 3
    assert capsys.readouterr().out == ""


def test_an_object_that_can_be_pickled_travels_without_images() -> None:
    fitted = adapter(Counts).fit(IMAGES)
    assert fitted.predict(IMAGES).scores.tolist() == [3.0] * 3
    assert PNG_SIGNATURE not in pickle.dumps(fitted)


@pytest.mark.parametrize(
    ("extractor", "runs_code"),
    [
        ({"name": "hog"}, False),
        ({"name": "own", "kwargs": {"checkpoint_path": "model.pt"}}, True),
        ({"parts": [{"hub_repo": "owner/name"}]}, True),
        ({"weight_paths": ["a.pt", "b.pt"]}, True),
        ({"path_length": 3}, False),
    ],
    ids=str,
)
def test_texts_that_may_name_code_need_trust_at_any_depth(extractor: dict[str, Any], runs_code: bool) -> None:
    assert adapter(Counts, extractor=extractor).runs_code is runs_code


def test_files_are_what_arguments_of_such_names_hold() -> None:
    kwargs = {"files": ["a.pt", "b.pt"], "device": "cpu", "hub_repo": "c", "size_path": 3}
    detector = adapter(Counts, extractor={"name": "own", "kwargs": kwargs})
    assert detector.files_named == {"a.pt": "files", "b.pt": "files", "c": "hub_repo"}


@pytest.mark.parametrize(
    ("extractor", "more"),
    [
        ({"name": "color_hist"}, []),
        ({"name": "nets"}, ["torch", "torchvision"]),
        ({"parts": [{"name": "hog"}, "nets"]}, ["torch", "torchvision", "scikit-image"]),
    ],
    ids=str,
)
def test_libraries_are_those_that_its_words_and_its_extractors_name(extractor: dict[str, Any], more: list[str]) -> None:
    assert adapter(Counts, extractor=extractor).libraries == {"pyimgano", "scikit-learn", "scipy", *more}


def test_the_seed_and_arguments_of_a_refit_count_for_scores() -> None:
    assert adapter(Counts).scoring_arguments == ("extractor",)


def test_scores_do_not_depend_on_the_batch() -> None:
    fitted = adapter(Counts).fit(IMAGES)
    one_by_one = [float(fitted.predict([image]).scores[0]) for image in IMAGES]
    np.testing.assert_array_equal(fitted.predict(IMAGES).scores, one_by_one)
