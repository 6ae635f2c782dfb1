"""The scikit-learn estimator: scores of the dataflow, scikit-learn's conventions, and its own checks."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import make_scorer, roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import validate_data

import pyimgano_dask
from pyimgano_dask.sklearn import DaskAnomalyDetector
from pyimgano_dask.synthesis import write_inspection_set
from tests.cluster import DaskCluster
from tests.dataflow.test_references import board, flawed, write_image

KWARGS = {"resize_hw": (48, 64)}
MAD = {"model_kwargs": KWARGS, "scheduler": "sync"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`good/` and `in/`: boards of three sizes, grey and in colour."""
    place = tmp_path_factory.mktemp("boards")
    for number in range(9):
        for name, image in (("good", board(number)), ("in", flawed(number))):
            tinted = (image[..., None] * np.array([1.0, 0.8, 0.6])).astype(np.uint8)
            write_image(place / name / f"{number}.png", tinted if number % 2 else image)
    return place


def paths_of(folder: Path, name: str) -> list[str]:
    return [str(path) for path in sorted((folder / name).iterdir())]


def arrays_of(folder: Path, name: str) -> list[NDArray[np.uint8]]:
    """The same images in memory, RGB or grey."""
    images = [cv2.imread(path, cv2.IMREAD_UNCHANGED) for path in paths_of(folder, name)]
    return [image if image.ndim == 2 else image[..., ::-1] for image in images]


@pytest.fixture(scope="module")
def records(folder: Path) -> list[dict[str, Any]]:
    """What `pyimgano-infer` says of the boards."""
    with chdir(folder):
        run = pyimgano_dask.infer(
            model="vision_pixel_mad_map", train_dir="good", input="in", contamination=0.2, save_maps="maps", **MAD
        )
        return list(run.records())


@pytest.fixture(scope="module")
def fitted(folder: Path) -> DaskAnomalyDetector:
    return DaskAnomalyDetector(contamination=0.2, **MAD).fit(paths_of(folder, "good"))


def test_the_answers_are_those_of_the_command(
    fitted: DaskAnomalyDetector, folder: Path, records: list[dict[str, Any]]
) -> None:
    paths = paths_of(folder, "in")
    assert fitted.score_samples(paths).tolist() == [-record["score"] for record in records]
    assert fitted.predict(paths).tolist() == [-1 if record["label"] else 1 for record in records]
    for record, anomaly_map in zip(records, fitted.anomaly_maps(paths), strict=True):
        assert anomaly_map.dtype == np.float32
        np.testing.assert_array_equal(anomaly_map, np.load(folder / record["anomaly_map"]["path"]))


@pytest.mark.parametrize("color", ["gray", "rgb"])
@pytest.mark.parametrize("further", [{}, {"clahe": True, "tile_size": 32}], ids=["plain", "corrected, in tiles"])
def test_arrays_are_scored_as_the_files_of_their_pixels(color: str, further: dict[str, Any], folder: Path) -> None:
    estimator = DaskAnomalyDetector(model_kwargs={**KWARGS, "color": color}, scheduler="threads", settings=further)
    from_files = clone(estimator).fit(paths_of(folder, "good")).score_samples(paths_of(folder, "in"))
    from_memory = estimator.fit(arrays_of(folder, "good")).score_samples(arrays_of(folder, "in"))
    np.testing.assert_array_equal(from_memory, from_files)


def test_decisions_are_zero_or_more_for_what_is_normal(fitted: DaskAnomalyDetector, folder: Path) -> None:
    images = paths_of(folder, "in") + paths_of(folder, "good")
    scores, decisions = fitted.score_samples(images), fitted.decision_function(images)
    np.testing.assert_array_equal(decisions, scores - fitted.offset_)
    assert fitted.predict(images).tolist() == [1 if decision >= 0 else -1 for decision in decisions]
    assert fitted.predict(images).tolist() == [-1 if -score >= fitted.threshold_ else 1 for score in scores]
    assert set(fitted.predict(images)) == {-1, 1}


def test_a_score_at_the_threshold_is_anomalous_as_in_records(folder: Path) -> None:
    paths = paths_of(folder, "good")[:3]
    estimator = DaskAnomalyDetector(contamination=0.5, **MAD).fit(paths)
    at_threshold = estimator.score_samples(paths) == -estimator.threshold_
    assert at_threshold.sum() == 1
    assert estimator.predict(paths)[at_threshold].tolist() == [-1]


def test_contamination_is_the_share_of_anomalies_in_the_training_images(folder: Path) -> None:
    paths = paths_of(folder, "good")
    for share in (1 / 9, 3 / 9):
        labels = DaskAnomalyDetector(contamination=share, **MAD).fit_predict(paths)
        assert np.mean(labels == -1) == pytest.approx(share)


def test_without_contamination_it_is_the_detectors_own(folder: Path) -> None:
    paths = paths_of(folder, "good")
    own, named = (DaskAnomalyDetector(contamination=share, **MAD).fit(paths) for share in (None, 0.01))
    assert own.threshold_ == named.threshold_


@pytest.mark.parametrize(
    ("scheduler", "batch_size"),
    [("threads", 1), ("threads", 4), ("processes", 4), pytest.param("address", 4, marks=pytest.mark.cluster)],
)
def test_no_scheduler_and_no_batch_size_changes_an_answer(
    scheduler: str, batch_size: int, fitted: DaskAnomalyDetector, folder: Path, request: pytest.FixtureRequest
) -> None:
    if scheduler == "address":
        cluster: DaskCluster = request.getfixturevalue("dask_cluster")
        scheduler = cluster.address
    estimator = DaskAnomalyDetector(
        contamination=0.2, model_kwargs=KWARGS, scheduler=scheduler, workers=2, batch_size=batch_size
    )
    paths = paths_of(folder, "in")
    assert estimator.fit(paths_of(folder, "good")).threshold_ == fitted.threshold_
    np.testing.assert_array_equal(estimator.decision_function(paths), fitted.decision_function(paths))
    for anomaly_map, expected in zip(estimator.anomaly_maps(paths), fitted.anomaly_maps(paths), strict=True):
        np.testing.assert_array_equal(anomaly_map, expected)


def test_arrays_never_leave_the_process(folder: Path) -> None:
    """The address is of no scheduler: anything that was sent there would fail."""
    estimator = DaskAnomalyDetector(model_kwargs=KWARGS, scheduler="tcp://127.0.0.1:9").fit(arrays_of(folder, "good"))
    assert len(estimator.predict(arrays_of(folder, "in"))) == 9


@pytest.mark.parametrize(
    "make", [tuple, iter, lambda images: np.array(images, dtype=object)], ids=["tuple", "iterator", "array of objects"]
)
def test_any_sequence_of_images_will_do(
    make: Callable[[list[Any]], Any], fitted: DaskAnomalyDetector, folder: Path
) -> None:
    for kind in (paths_of, arrays_of):
        images = kind(folder, "in")
        expected = fitted.score_samples(images)
        np.testing.assert_array_equal(fitted.score_samples(make(images)), expected)
        together = DaskAnomalyDetector(**MAD).fit_predict(make(images))
        np.testing.assert_array_equal(together, DaskAnomalyDetector(**MAD).fit(images).predict(images))
    np.testing.assert_array_equal(fitted.score_samples([Path(path) for path in paths_of(folder, "in")]), expected)
    np.testing.assert_array_equal(fitted.score_samples(np.array(paths_of(folder, "in"))), expected)


def test_one_array_of_images_of_one_size_will_do() -> None:
    stack = np.stack([board(0), board(3), board(6)])
    estimator = DaskAnomalyDetector(**MAD).fit(stack)
    np.testing.assert_array_equal(estimator.score_samples(stack), estimator.score_samples(list(stack)))
    colours = np.stack([stack] * 3, axis=3)
    np.testing.assert_array_equal(estimator.score_samples(colours), estimator.score_samples(stack))


def test_a_saved_detector_is_calibrated_only(folder: Path, tmp_path: Path, fitted: DaskAnomalyDetector) -> None:
    with chdir(folder):
        pyimgano_dask.infer(
            model="vision_pixel_mad_map", train_dir="good", input="in", run_dir=str(tmp_path / "run"), **MAD
        )
    estimator = DaskAnomalyDetector(checkpoint_path=tmp_path / "run/detector.npz", scheduler="sync")
    estimator.fit(paths_of(folder, "in"))
    paths = paths_of(folder, "good")
    np.testing.assert_array_equal(estimator.score_samples(paths), fitted.score_samples(paths))
    assert estimator.threshold_ > fitted.threshold_


def test_references_are_found_by_name(folder: Path) -> None:
    comparing = {"model": "vision_reference_diff_map", "scheduler": "sync"}
    estimator = DaskAnomalyDetector(**comparing, settings={"reference_dir": str(folder / "good")})
    estimator.fit(paths_of(folder, "good"))
    assert estimator.predict(paths_of(folder, "in")).tolist() == [-1] * 9
    with pytest.raises(pyimgano_dask.ConfigError, match="arrays have none; give paths, or one reference image"):
        estimator.fit(arrays_of(folder, "good"))
    one = DaskAnomalyDetector(**comparing, settings={"reference_dir": str(folder / "good/0.png")})
    assert one.fit(arrays_of(folder, "good")).score_samples([board(0)]).tolist() == [0.0]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("good/0.png", "for one image give a list"),
        (board(0), r"X\[0\] has the shape \(64,\)"),
        (np.zeros((8, 9, 3), np.uint8), "looks like one RGB image"),
        ([], "0 samples"),
        (None, "got NoneType"),
        ({"a": board(0)}, "got dict"),
        (["a.png", "b.png", board(0)], r"paths of images, such as X\[0\], and arrays, such as X\[2\]"),
        (np.array(3), "got ndarray; for one image give a list"),
        ([b"a.png"], r"X\[0\] is of type bytes"),
        ([""], r"X\[0\] is ''"),
        ([board(0), board(0) / 255], r"X\[1\] is an array of float64; give uint8 levels from 0 to 255"),
        ([np.zeros((8, 8, 4), np.uint8)], r"X\[0\] has the shape \(8, 8, 4\)"),
        ([np.zeros((0, 8), np.uint8)], "of one pixel or more"),
        ([np.zeros((4, 4))] * 9, r"X\[4\] is an array .* and 4 more$"),
    ],
    ids=str,
)
def test_what_is_no_images_is_refused_in_words(images: Any, said: str, fitted: DaskAnomalyDetector) -> None:
    with pytest.raises(ValueError, match=said):
        DaskAnomalyDetector(**MAD).fit(images)
    with pytest.raises(ValueError, match=said):
        fitted.predict(images)


def test_normal_images_that_cannot_be_read_are_left_out_with_a_warning(
    folder: Path, fitted: DaskAnomalyDetector
) -> None:
    with pytest.warns(UserWarning, match="1 training images were left out") as caught:
        estimator = DaskAnomalyDetector(contamination=0.2, **MAD).fit([*paths_of(folder, "good"), "none.png"])
    (told,) = (warning for warning in caught if "left out" in str(warning.message))
    assert told.filename == __file__
    assert estimator.threshold_ == fitted.threshold_
    with pytest.raises(pyimgano_dask.ConfigError, match=r"X: none of its images can be used:\nnone\.png: "):
        DaskAnomalyDetector(**MAD).fit(["none.png"])


def test_a_threshold_of_the_images_that_a_close_fit_has_learned_is_warned_of(folder: Path) -> None:
    close = DaskAnomalyDetector("vision_texture_padim", model_kwargs={"grid_hw": [2, 2]})
    with pytest.warns(UserWarning, match="vision_texture_padim fits closely .*-score_samples of other normal images"):
        close.fit(paths_of(folder, "good"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DaskAnomalyDetector(**MAD).fit(paths_of(folder, "good"))


def test_images_that_cannot_be_scored_are_named(folder: Path, fitted: DaskAnomalyDetector) -> None:
    paths = [*paths_of(folder, "in"), "none.png", "neither.png"]
    for ask in (fitted.predict, fitted.anomaly_maps):
        with pytest.raises(ValueError, match=r"^2 of 11 images cannot be scored: none\.png: .*; neither\.png: "):
            ask(paths)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"model": "unheard_of"}, "unknown detector 'unheard_of'; known are"),
        ({"contamination": 0.7}, "contamination: 0.7 is not allowed"),
        ({"model_kwargs": {"colour": "rgb"}}, r"model_kwargs\.colour: unknown argument"),
        ({"scheduler": "slurm"}, "unknown scheduler 'slurm'"),
        ({"batch_size": -1}, "batch-size: -1 is not allowed"),
        ({"settings": {"save_maps": "maps"}}, "unknown setting save_maps"),
        (
            {"settings": {"defects": True}},
            r"^settings: unknown setting defects; allowed are amp, clahe, .*, tile_size, .*white_balance; inputs, ",
        ),
        ({"settings": {"clahee": True}}, r"unknown setting clahee; did you mean clahe\?"),
        ({"settings": {"model": "vision_pixel_gaussian_map"}}, "settings: model is a parameter of DaskAnomalyDetector"),
        ({"settings": {"gamma": 0.0}}, "gamma: 0.0 is not allowed"),
    ],
    ids=str,
)
def test_faulty_parameters_are_told_by_fit_in_words(parameters: dict[str, Any], said: str) -> None:
    estimator = DaskAnomalyDetector(**parameters)
    with pytest.raises(pyimgano_dask.ConfigError, match=said):
        estimator.fit([board(0)])


@pytest.mark.parametrize(
    ("settings", "got"),
    [("clahe", "got str: 'clahe'"), (["clahe"], r"got list: \['clahe'\]"), ({1: 2}, "keys such as 1")],
)
def test_settings_of_another_type_are_told_in_words(settings: Any, got: str) -> None:
    with pytest.raises(TypeError, match=rf"^settings must be a mapping of settings .*tile_size.*{got}"):
        DaskAnomalyDetector(settings=settings).fit([board(0)])


def test_a_parameter_that_does_nothing_is_told() -> None:
    with pytest.warns(UserWarning, match="--device does nothing: vision_pixel_mean_absdiff_map") as caught:
        DaskAnomalyDetector("vision_pixel_mean_absdiff_map", device="cuda", scheduler="sync").fit([board(0)])
    assert len(caught) == 1


def test_what_workers_lack_is_told(fitted: DaskAnomalyDetector, folder: Path) -> None:
    estimator = pickle.loads(pickle.dumps(fitted)).set_params(settings={"amp": True}, batch_size=2)
    with pytest.warns(UserWarning, match="--amp: ") as caught:
        estimator.score_samples(paths_of(folder, "in"))
    assert len([warning for warning in caught if "--amp: " in str(warning.message)]) == 1


def test_nothing_can_be_asked_before_fitting() -> None:
    for method in ("predict", "score_samples", "decision_function", "anomaly_maps"):
        with pytest.raises(NotFittedError):
            getattr(DaskAnomalyDetector(), method)([board(0)])


def test_a_fitted_estimator_survives_pickling(fitted: DaskAnomalyDetector, folder: Path) -> None:
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(paths_of(folder, "in")), fitted.predict(paths_of(folder, "in")))


def test_parameters_set_after_fitting_change_where_the_work_is_done_and_nothing_else(
    fitted: DaskAnomalyDetector, folder: Path
) -> None:
    changed = pickle.loads(pickle.dumps(fitted)).set_params(scheduler="threads", settings={"gamma": 3.0})
    paths = paths_of(folder, "in")
    np.testing.assert_array_equal(changed.score_samples(paths), fitted.score_samples(paths))


def test_clones_have_the_parameters_and_no_fit() -> None:
    estimator = DaskAnomalyDetector("vision_pixel_gaussian_map", contamination=0.1, settings={"clahe": True})
    copy = clone(estimator)
    assert copy.get_params() == estimator.get_params()
    assert not hasattr(copy, "detector_")


Parts = tuple[list[NDArray[np.uint8]], NDArray[np.int64]]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Images of parts, 8 to train on, then 4 good and 6 defective ones; and what they are."""
    parts = write_inspection_set(
        tmp_path_factory.mktemp("parts"), n_train=8, n_good=4, n_per_defect=2, sizes_hw=[(128, 128)]
    )
    paths = [*sorted(Path(parts.train_dir).rglob("*.png")), *sorted(Path(parts.test_dir).rglob("*.png"))]
    return [cv2.imread(str(path)) for path in paths], np.array([1] * 12 + [-1] * 6)


TRAINED_ON_NORMAL = [(np.arange(8), np.arange(8, 18))]


def without_border(images: list[NDArray[np.uint8]], border: int) -> list[NDArray[np.uint8]]:
    return [image[border : len(image) - border, border : image.shape[1] - border] for image in images]


def cropped(estimator: DaskAnomalyDetector, border: int = 16) -> Pipeline:
    """The estimator on images without their borders, where seams are that are no defects."""
    return make_pipeline(FunctionTransformer(without_border, kw_args={"border": border}), estimator)


def test_it_works_in_a_pipeline(parts: Parts) -> None:
    images, labels = parts
    pipeline = cropped(DaskAnomalyDetector(scheduler="threads")).fit(images[:8])
    assert roc_auc_score(labels[8:], pipeline.decision_function(images[8:])) > 0.8
    inside = without_border(images, 16)
    expected = DaskAnomalyDetector(scheduler="threads").fit(inside[:8]).predict(inside)
    np.testing.assert_array_equal(pipeline.predict(images), expected)


def test_it_works_in_a_grid_search(parts: Parts) -> None:
    images, labels = parts
    kwargs, border = "daskanomalydetector__model_kwargs", "functiontransformer__kw_args"
    search = GridSearchCV(
        cropped(DaskAnomalyDetector(scheduler="threads")),
        {border: [{"border": 0}, {"border": 16}], kwargs: [{"resize_hw": (4, 4)}, {"resize_hw": (64, 64)}]},
        scoring="roc_auc",
        cv=TRAINED_ON_NORMAL,
        error_score="raise",
    ).fit(images, labels)
    assert search.best_params_ == {border: {"border": 16}, kwargs: {"resize_hw": (64, 64)}}
    assert search.best_score_ > 0.8


def test_a_scorer_of_labels_works(parts: Parts) -> None:
    images, labels = parts
    right = make_scorer(lambda truth, predicted: float(np.mean(truth == predicted)))
    estimator = DaskAnomalyDetector(contamination=0.1, scheduler="threads")
    (score,) = cross_val_score(estimator, images, labels, scoring=right, cv=TRAINED_ON_NORMAL)
    assert score == np.mean(clone(estimator).fit(images[:8]).predict(images[8:]) == labels[8:])


class RowsAsImages(DaskAnomalyDetector):
    """Turns each row of a table of numbers into an image, so that scikit-learn's checks, which bring tables, apply.

    A number becomes 32 pixels of two neighbouring levels whose mean it is, nearly.
    """

    def fit(self, X: Any, y: object = None) -> RowsAsImages:  # noqa: N803
        return super().fit(self._images(validate_data(self, X)))

    def score_samples(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        if not hasattr(self, "detector_"):
            raise NotFittedError
        return super().score_samples(self._images(validate_data(self, X, reset=False)))

    def _images(self, table: NDArray[Any]) -> list[NDArray[np.uint8]]:
        levels = 128 + 12 * table[:, :, None] + np.arange(32) / 32
        return list(np.clip(levels, 0, 255).astype(np.uint8).reshape(len(table), 1, -1))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.one_d_array = tags.input_tags.three_d_array = tags.input_tags.string = False
        return tags


def outcomes(estimator: DaskAnomalyDetector) -> dict[str, set[str]]:
    """Names of scikit-learn's checks by how they ended."""
    found: dict[str, set[str]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(estimator, on_skip=None, on_fail="raise")
    for result in results:
        found.setdefault(result["status"], set()).add(result["check_name"])
    return found


def test_the_checks_of_scikit_learn_for_what_takes_no_tables() -> None:
    """scikit-learn brings tables of numbers and no images, so it runs no more than this on an estimator of images."""
    assert outcomes(DaskAnomalyDetector(scheduler="sync")) == {"passed": {"check_estimator_cloneable"}}


# Skipped by scikit-learn itself, and why.
SKIPPED = {
    "check_array_api_input",  # needs SCIPY_ARRAY_API; images are numpy arrays
    "check_classifier_data_not_an_array",  # needs pandas; tables are none of ours
}
# Those of the checks run on rows as images that say something of the estimator itself.
MEANT = {
    *("check_estimator_cloneable", "check_estimator_repr", "check_no_attributes_set_in_init", "check_mixin_order"),
    *("check_estimators_overwrite_params", "check_dont_overwrite_parameters", "check_estimators_fit_returns_self"),
    *("check_estimators_unfitted", "check_estimators_pickle", "check_outliers_train", "check_outliers_fit_predict"),
    *("check_outlier_contamination", "check_methods_sample_order_invariance", "check_methods_subset_invariance"),
    *("check_get_params_invariance", "check_set_params", "check_dict_unchanged", "check_fit_idempotent"),
    *("check_fit_check_is_fitted", "check_pipeline_consistency", "check_parameters_default_constructible"),
    *("check_readonly_memmap_input", "check_f_contiguous_array_estimator", "check_fit_score_takes_y"),
    *("check_do_not_raise_errors_in_init_or_set_params", "check_estimator_tags_renamed", "check_valid_tag_types"),
}


def test_the_checks_of_scikit_learn_on_rows_as_images() -> None:
    kwargs = {"resize_hw": (1, 64), "reduction": "mean"}
    found = outcomes(RowsAsImages(scheduler="sync", model_kwargs=kwargs))
    assert set(found) <= {"passed", "skipped"}
    assert found["skipped"] <= SKIPPED
    assert found["passed"] >= MEANT


def run_without_sklearn(code: str) -> subprocess.CompletedProcess[str]:
    hidden = "import sys; sys.modules['sklearn'] = None\n"
    return subprocess.run([sys.executable, "-c", hidden + code], capture_output=True, text=True, timeout=60)


def test_without_scikit_learn_the_package_works_and_says_what_is_missing() -> None:
    done = run_without_sklearn("from pyimgano_dask import *\nimport pyimgano_dask\npyimgano_dask.DaskAnomalyDetector")
    assert done.returncode == 1
    assert "ImportError: DaskAnomalyDetector needs scikit-learn" in done.stderr
    assert "pip install 'pyimgano-dask[sklearn]'" in done.stderr
    assert "DaskAnomalyDetector" in dir(pyimgano_dask)
    assert pyimgano_dask.DaskAnomalyDetector is DaskAnomalyDetector


def test_the_package_alone_does_not_load_scikit_learn() -> None:
    code = "import json, sys, pyimgano_dask, pyimgano_dask.api; print(json.dumps('sklearn' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) is False
