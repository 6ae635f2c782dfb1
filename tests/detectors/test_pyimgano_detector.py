"""The adapter of pyimgano's detectors, around objects of our own: what it does with arguments and with pickles."""

from __future__ import annotations

import errno
import importlib.util
import pickle
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pyimgano_dask.detectors.foreign_calls import PNG_SIGNATURE
from pyimgano_dask.detectors.model_files import ModelFiles
from pyimgano_dask.detectors.pyimgano_detector import HUB_DETECTORS, PyimganoDetector
from pyimgano_dask.detectors.pyimgano_registry import PyimganoArguments
from pyimgano_dask.errors import ConfigError, RunError
from pyimgano_dask.settings.knob import knob
from tests.conftest import ROOT, run_python
from tests.detectors.images import draw_images

NONE: frozenset[str] = frozenset()
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


class Cannot:
    """What no pickle takes."""

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle this")


class Drifts(Counts):
    """Scores how many images it was asked for."""

    n_asked = 0

    def decision_function(self, paths: Sequence[str]) -> list[float]:
        self.n_asked += 1
        return [float(self.n_asked)] * len(paths)


class LocksOn(Counts):
    """Scores how much larger the file of an image is than that of the first one it was asked for."""

    locked: int | None = None

    def decision_function(self, paths: Sequence[str]) -> list[float]:
        sizes = [Path(path).stat().st_size for path in paths]
        self.locked = self.locked or sizes[0]
        return [float(size - self.locked) for size in sizes]


class DrawsLate(Counts):
    """Scores what torch draws, which it loads while it is fitted."""

    def fit(self, paths: Sequence[str]) -> None:
        import torch

        self.drawn = float(torch.rand(1))

    def decision_function(self, paths: Sequence[str]) -> list[float]:
        return [self.drawn] * len(paths)


class FailsOnFiles(Counts):
    """Cannot be fitted on files, but on arrays."""

    error: Exception = ValueError("no files, please")

    def fit(self, images: Any) -> None:
        if not isinstance(images, np.ndarray):
            raise self.error

    def decision_function(self, images: Any) -> list[float]:
        return [1.0] * len(images)


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
        words_of_parts: ClassVar[dict[str, frozenset[str]]] = {"nets": frozenset({"torch", "torchvision"}), "hog": NONE}
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
        ({"checkpoint": {"file": "model.pt"}}, True),
        ({"clip_model": "hf-hub:owner/name"}, True),
        ({"clip_model": "https://host/model"}, True),
        ({"clip_model": "ViT-B/32", "device": "cuda:0"}, False),
        ({"detectors": [{"name": "vision_superad", "kwargs": {"pretrained": True}}]}, True),
    ],
    ids=str,
)
def test_texts_that_may_name_code_need_trust_at_any_depth(extractor: dict[str, Any], runs_code: bool) -> None:
    assert adapter(Counts, extractor=extractor).runs_code is runs_code


@pytest.mark.parametrize("name", sorted(HUB_DETECTORS))
def test_a_detector_on_a_repository_of_code_needs_trust(name: str) -> None:
    detector = adapter(Counts, extractor={"base_detector": name, "base_kwargs": {"pretrained": True}})
    with pytest.raises(ConfigError, match=rf"{name} runs on .*facebookresearch/dinov2.*--trust-model-file"):
        detector.opened(ModelFiles())
    assert detector.opened(ModelFiles(trusts_code=True)) is detector


def test_a_text_that_is_a_file_here_needs_trust_whatever_its_argument(tmp_path: Path) -> None:
    (tmp_path / "model").touch()
    detector = adapter(Counts, extractor={"clip_model": str(tmp_path / "model")})
    assert detector.files_named == {str(tmp_path / "model"): "clip_model"}
    with pytest.raises(ConfigError, match=r"model_kwargs\.extractor\.clip_model: '.*model' .*--trust-model-file"):
        detector.opened(ModelFiles())
    assert not adapter(Counts, extractor={"clip_model": str(tmp_path)}).runs_code


def test_a_file_that_has_the_name_of_an_extractor_takes_nothing_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hog").touch()
    assert not adapter(Counts, extractor={"name": "hog"}).runs_code
    assert not adapter(Counts, extractor={"base_extractor": "hog"}).runs_code
    assert adapter(Counts, extractor={"clip_model": "hog"}).runs_code


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


@pytest.mark.parametrize("kind", [Drifts, LocksOn])
def test_scores_do_not_depend_on_what_was_asked_before(kind: type[Counts]) -> None:
    fitted = adapter(kind).fit(IMAGES)
    forwards = fitted.predict(IMAGES).scores.tolist()
    assert forwards == fitted.predict(IMAGES[::-1]).scores.tolist()[::-1]
    assert forwards == [1.0 if kind is Drifts else 0.0] * 3


@pytest.mark.parametrize("kind", [Drifts, LocksOn])
def test_one_that_remembers_images_and_cannot_be_copied_is_refused(kind: type[Counts]) -> None:
    stuck = type("Stuck", (kind,), {"__init__": lambda self, **_: setattr(self, "held", Cannot())})
    with pytest.raises(ConfigError, match="answers otherwise after other images"):
        adapter(stuck).fit(IMAGES)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_torch_that_is_loaded_while_it_is_fitted_draws_from_its_seed() -> None:
    code = (
        "import sys; from tests.detectors.test_pyimgano_detector import DrawsLate, IMAGES, adapter\n"
        "assert 'torch' not in sys.modules\n"
        "print(adapter(DrawsLate).fit(IMAGES).predict(IMAGES).scores.tolist())"
    )
    first, second = (run_python("-c", code, cwd=ROOT) for _ in range(2))
    assert first.rc == 0, first.stderr
    assert first.stdout == second.stdout
    assert first.stdout == f"{adapter(DrawsLate).fit(IMAGES).predict(IMAGES).scores.tolist()}\n"


@contextmanager
def files_limited(n_bytes: int) -> Iterator[None]:
    """No file of this process grows larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestFaultsOfTheMachine:
    """They end the fit, and never make another one of it."""

    def test_temporary_files_that_cannot_be_written_are_told(self) -> None:
        detector = adapter(FailsOnFiles)
        with files_limited(100), pytest.raises(RunError, match=r"temporary files .*File too large.*TMPDIR"):
            detector.fit(IMAGES)

    def test_they_are_told_of_predictions_too(self) -> None:
        fitted = adapter(Counts).fit(IMAGES)
        with files_limited(100), pytest.raises(RunError, match=r"temporary files .*File too large"):
            fitted.predict(IMAGES)

    @pytest.mark.parametrize(
        ("error", "told"),
        [
            (MemoryError("1 GiB"), MemoryError),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryError),
            (OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError),
            (OSError(errno.ENOSPC, "No space left on device"), RunError),
        ],
        ids=["memory", "torch", "system", "disk"],
    )
    def test_short_memory_and_a_full_disk_end_the_fit(self, error: Exception, told: type[Exception]) -> None:
        kind = type("Kind", (FailsOnFiles,), {"error": error})
        with pytest.raises(told, match="pyimgano:own cannot be fitted on 3 training images: "):
            adapter(kind).fit(IMAGES)

    @pytest.mark.parametrize("error", [ValueError("not these"), FileNotFoundError("no such file")], ids=repr)
    def test_faults_of_the_detector_lead_to_arrays(self, error: Exception) -> None:
        kind = type("Kind", (FailsOnFiles,), {"error": error})
        assert adapter(kind).fit(IMAGES).predict(IMAGES).scores.tolist() == [1.0] * 3
