"""Detectors of the published package pyimgano behind our contract, against the package itself."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pyimgano_dask.detectors.base import Detector, Prediction
from pyimgano_dask.detectors.checkpoint import decode_detector, encode_detector
from pyimgano_dask.detectors.model_files import ModelFiles
from pyimgano_dask.detectors.pyimgano_detector import HUB_DETECTORS
from pyimgano_dask.detectors.registry import describe, find_configured_type, find_detector_type, pyimgano_names
from pyimgano_dask.errors import ConfigError
from tests.conftest import ROOT, run_python
from tests.detectors.images import Image, draw_images

pyimgano = pytest.importorskip("pyimgano.models", reason="needs the package pyimgano; .ci/pyimgano installs it")

SIZES_HW = ((48, 64), (40, 40), (72, 50))
HIST = {"feature_extractor": {"name": "color_hist", "kwargs": {}}}
NEEDS_TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None
NEEDS_TORCHVISION = pytest.mark.skipif(not HAS_TORCHVISION, reason="needs torchvision")
LACKS_TORCHVISION = pytest.mark.skipif(HAS_TORCHVISION, reason="torchvision is there")
NEEDS_SKIMAGE = pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="needs scikit-image")

# A detector of each kind: pixel statistics, templates, features and neighbours, trees that draw, a memory of patches,
# one that a prediction changes, one whose fitted object cannot be pickled.
SMALL = {"resize_hw": [32, 32]}
KINDS: dict[str, dict[str, Any]] = {
    "vision_pixel_gaussian_map": SMALL,
    "vision_template_ncc_map": SMALL,
    "vision_ecod": HIST,
    "vision_iforest": {**HIST, "n_estimators": 8},
    "vision_knn": {**HIST, "n_neighbors": 2},
    "vision_loda": HIST,
    "vision_patchcore_lite": HIST,
    "vision_lmdd": {**HIST, "n_iter": 5},
}
every_kind = pytest.mark.parametrize("model", KINDS)


def kind(model: str) -> Detector[Any]:
    return find_detector_type(f"pyimgano:{model}").create(**KINDS[model])


@cache
def fitted(model: str) -> Detector[Any]:
    return kind(model).fit(draw_images(1, "rgb", SIZES_HW * 4))


def images() -> list[Image]:
    drawn = draw_images(2, "rgb", SIZES_HW)
    drawn[1][10:20, 10:20] = 255
    return drawn


def assert_same(first: Prediction, second: Prediction) -> None:
    np.testing.assert_array_equal(first.scores, second.scores)
    assert len(first.maps) == len(second.maps)
    for one, other in zip(first.maps, second.maps, strict=True):
        if one is None or other is None:
            assert one is other
        else:
            np.testing.assert_array_equal(one, other)


def written(folder: Path, pictures: list[Image]) -> list[str]:
    folder.mkdir()
    paths = [str(folder / f"{number}.png") for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        assert cv2.imwrite(path, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return paths


@pytest.mark.parametrize("model", [model for model in KINDS if model not in ("vision_loda", "vision_lmdd")])
def test_scores_maps_and_threshold_are_those_of_pyimgano(model: str, tmp_path: Path) -> None:
    takes_seed = "random_state" in find_detector_type(f"pyimgano:{model}").arguments_type.model_fields
    seed = {"random_state": 0} if takes_seed else {}
    theirs = pyimgano.create_model(model, **KINDS[model], **seed)
    theirs.fit(written(tmp_path / "train", draw_images(1, "rgb", SIZES_HW * 4)))
    ours = fitted(model)

    prediction = ours.predict(images())

    assert ours.own_score_threshold == pytest.approx(theirs.threshold_, rel=1e-12)
    for number, path in enumerate(written(tmp_path / "test", images())):
        assert prediction.scores[number] == pytest.approx(float(theirs.decision_function([path])[0]), rel=1e-9)
        if ours.gives_maps:
            np.testing.assert_allclose(prediction.maps[number], theirs.predict_anomaly_map([path])[0], rtol=1e-6)
        else:
            assert prediction.maps[number] is None


@every_kind
def test_fitting_again_gives_the_same_bits(model: str) -> None:
    np.random.seed(7)
    random.seed(7)
    again = kind(model).fit(draw_images(1, "rgb", SIZES_HW * 4))
    assert encode_detector(again) == encode_detector(fitted(model))
    assert again.own_score_threshold == fitted(model).own_score_threshold
    assert_same(again.predict(images()), fitted(model).predict(images()))


@every_kind
def test_a_saved_state_is_fitted_anew_to_the_same_detector(model: str) -> None:
    data = encode_detector(fitted(model))
    again = decode_detector(data, "here.npz")
    assert type(again) is type(fitted(model))
    assert encode_detector(again) == data
    (told,) = again.check()
    assert "fitted anew on the 12 images in its saved state" in told
    assert_same(again.predict(images()), fitted(model).predict(images()))


@every_kind
def test_another_process_of_the_run_gives_the_same_answers(model: str) -> None:
    there = pickle.loads(pickle.dumps(fitted(model)))
    assert there.is_fitted
    assert_same(there.predict(images()), fitted(model).predict(images()))
    assert_same(pickle.loads(pickle.dumps(there)).predict(images()), fitted(model).predict(images()))


@every_kind
def test_no_answer_depends_on_the_images_before_or_beside_it(model: str) -> None:
    detector = fitted(model)
    whole = detector.predict(images())
    backwards = [detector.predict([image]) for image in reversed(images())][::-1]
    assert_same(
        whole, Prediction(np.concatenate([one.scores for one in backwards]), tuple(one.maps[0] for one in backwards))
    )


@every_kind
def test_threads_share_one_instance(model: str) -> None:
    detector = fitted(model)
    expected = detector.predict(images())
    with ThreadPoolExecutor(3) as pool:
        for answer in pool.map(lambda _: detector.predict(images()), range(6)):
            assert_same(answer, expected)


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_any_grouping_of_the_training_images_gives_the_same_state(cut: int) -> None:
    detector = kind("vision_knn")
    pictures = draw_images(1, "rgb", SIZES_HW * 4)
    parts = [detector.accumulate(pictures[:cut]), detector.accumulate(pictures[cut:])]
    assert encode_detector(detector.finalize(detector.merge(parts))) == encode_detector(fitted("vision_knn"))


FRESH = """
import json, sys
from tests.detectors.images import draw_images
from tests.detectors.test_pyimgano_registry import SIZES_HW, images
from pyimgano_dask.detectors.registry import find_detector_type
detector = find_detector_type("pyimgano:" + sys.argv[1]).create(**json.loads(sys.argv[2]))
print(detector.fit(draw_images(1, "rgb", SIZES_HW * 2)).predict(images()).scores.tolist())
"""


@pytest.mark.parametrize(
    ("model", "kwargs"),
    [
        pytest.param("vision_oddoneout", {"image_size": 32}, marks=NEEDS_TORCHVISION),
        pytest.param(
            "vision_score_standardizer",
            {"base_detector": "vision_torch_autoencoder", "base_kwargs": {**HIST, "epochs": 2}, "method": "zscore"},
            marks=NEEDS_TORCH,
        ),
    ],
)
def test_fresh_processes_draw_the_same_weights_where_arguments_name_no_network(
    model: str, kwargs: dict[str, Any]
) -> None:
    first, second = (run_python("-c", FRESH, model, json.dumps(kwargs), cwd=ROOT) for _ in range(2))
    assert first.rc == 0, first.stderr
    assert len(set(json.loads(first.stdout))) > 1
    assert first.stdout == second.stdout


@NEEDS_TORCH
def test_a_fitted_network_travels_as_it_was_fitted() -> None:
    here = find_detector_type("pyimgano:vision_torch_autoencoder").create(**HIST, epochs=2)
    here = here.fit(draw_images(1, "rgb", SIZES_HW))
    there = pickle.loads(pickle.dumps(here))
    assert_same(there.predict(images()), here.predict(images()))
    with pytest.raises(RuntimeError, match="not where it was fitted"):
        there.state()


@NEEDS_TORCH
def test_a_fitted_object_that_cannot_be_pickled_is_fitted_where_it_is_needed(tmp_path: Path) -> None:
    import torch

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5, 4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    torch.jit.trace(network, torch.zeros(1, 3, 32, 32)).save(str(tmp_path / "model.pt"))
    arguments = {"checkpoint_path": str(tmp_path / "model.pt"), "image_size": 32}
    detector = find_detector_type("pyimgano:vision_torchscript_ecod").create(**arguments)
    here = detector.opened(ModelFiles(trusts_code=True)).fit(draw_images(1, "rgb", SIZES_HW * 2))
    there = pickle.loads(pickle.dumps(here))
    assert there.state().keys() == here.state().keys()
    assert_same(there.predict(images()), here.predict(images()))


class TestArrays:
    """Detectors that cannot work on files are handed arrays, as their own documentation asks for."""

    PICTURES = draw_images(1, "rgb", [(40, 40)] * 6)

    @cached_property
    def fitted(self) -> Detector[Any]:
        return find_detector_type("pyimgano:vision_logsad").create().fit(self.PICTURES)

    def test_scores_and_maps_are_those_of_pyimgano(self) -> None:
        theirs = pyimgano.create_model("vision_logsad")
        theirs.fit(np.stack(self.PICTURES))
        pictures = draw_images(2, "rgb", [(40, 40)] * 3)
        prediction = self.fitted.predict(pictures)
        for score, anomaly_map, picture in zip(prediction.scores, prediction.maps, pictures, strict=True):
            assert score == pytest.approx(float(theirs.decision_function(picture[None])[0]), rel=1e-9)
            np.testing.assert_allclose(anomaly_map, theirs.predict_anomaly_map(picture[None])[0], rtol=1e-6)

    def test_another_process_of_the_run_and_a_saved_state_hand_them_too(self) -> None:
        expected = self.fitted.predict(self.PICTURES)
        assert_same(pickle.loads(pickle.dumps(self.fitted)).predict(self.PICTURES), expected)
        assert_same(decode_detector(encode_detector(self.fitted), "here.npz").predict(self.PICTURES), expected)

    def test_images_of_several_sizes_are_told(self) -> None:
        detector = find_detector_type("pyimgano:vision_logsad").create()
        with pytest.raises(ConfigError, match=r"given as arrays: .*one size, got 3: 40x40, 50x72, 64x48"):
            detector.fit(draw_images(1, "rgb", SIZES_HW))


@NEEDS_SKIMAGE
def test_structural_similarity_gives_maps_of_each_images_size() -> None:
    detector = find_detector_type("pyimgano:ssim_template_map").create(**SMALL)
    maps = detector.fit(draw_images(1, "rgb", SIZES_HW)).predict(images()).maps
    assert [None if one is None else one.shape for one in maps] == list(SIZES_HW)


def test_the_random_numbers_and_the_output_of_the_process_are_left_alone(capfd: pytest.CaptureFixture[str]) -> None:
    np.random.seed(3)
    random.seed(3)
    expected = np.random.random(), random.random()
    np.random.seed(3)
    random.seed(3)
    kind("vision_loda").fit(draw_images(1, "rgb", SIZES_HW)).predict(images())
    assert (np.random.random(), random.random()) == expected
    assert capfd.readouterr().out == ""


def test_more_training_images_than_the_limit_are_subsampled_by_the_seed() -> None:
    detector = find_detector_type("pyimgano:vision_ecod").create(**HIST, max_train_images=5)
    chosen = list(detector.select_training(40))
    assert len(chosen) == 5
    assert chosen == sorted(set(chosen))
    assert list(detector.select_training(5)) == [0, 1, 2, 3, 4]
    forest = find_detector_type("pyimgano:vision_iforest")
    draws = {tuple(forest.create(random_state=seed, max_train_images=5).select_training(40)) for seed in range(4)}
    assert len(draws) == 4


def test_before_fitting_it_says_what_to_do() -> None:
    detector = kind("vision_ecod")
    assert not detector.is_fitted
    with pytest.raises(RuntimeError, match=r"vision_ecod is not fitted.*fit"):
        detector.predict(images())
    with pytest.raises(RuntimeError, match="not fitted"):
        detector.state()


@pytest.mark.parametrize(
    ("model", "kwargs", "libraries"),
    [
        ("vision_ecod", HIST, set()),
        ("vision_ecod", {"feature_extractor": "torchvision_backbone"}, {"torch", "torchvision"}),
        ("vision_pixel_gaussian_map", {}, set()),
        ("vision_onnx_ecod", {}, {"onnxruntime"}),
        ("vision_torchscript_ecod", {}, {"torch"}),
        ("vision_resnet18_ecod", {}, {"torch", "torchvision"}),
        ("vision_embedding_core", {"embedding_extractor": "onnx_embed"}, {"onnxruntime"}),
        ("ssim_template_map", {}, {"scikit-image"}),
        ("vision_deep_svdd", {}, {"torch", "torchvision"}),
        ("vision_oddoneout", {}, {"torch", "torchvision"}),
        ("vision_crossmad", {}, {"torch", "torchvision"}),
        ("vision_patch_embedding_core_map", {}, {"torch", "torchvision"}),
        ("one_class_cnn", {}, {"torch", "torchvision", "scikit-image"}),
        ("vision_score_standardizer", {}, set()),
        ("vision_score_standardizer", {"base_detector": "vision_deep_svdd"}, {"torch", "torchvision"}),
        ("vision_score_standardizer", {"base_detector": "vision_resnet18_ecod"}, {"torch", "torchvision"}),
        ("vision_score_ensemble", {"detectors": [{"name": "vision_embedding_core"}]}, {"torch", "torchvision"}),
    ],
)
def test_libraries_are_told_from_tags_and_arguments(model: str, kwargs: dict[str, Any], libraries: set[str]) -> None:
    detector = find_detector_type(f"pyimgano:{model}").create(**kwargs)
    assert detector.libraries == {"pyimgano", "scikit-learn", "scipy"} | libraries


def test_a_refit_draws_anew_from_its_seed_on_the_images_it_has() -> None:
    assert "random_state" in kind("vision_iforest").scoring_arguments
    assert not {"max_train_images", "contamination"} & set(kind("vision_iforest").scoring_arguments)


class TestArguments:
    def test_an_unknown_one_is_answered_with_those_of_the_constructor(self) -> None:
        with pytest.raises(ConfigError, match=r"model_kwargs\.neighbours: unknown argument.*contamination.*eps"):
            find_detector_type("pyimgano:vision_ecod").create(neighbours=3)

    def test_what_the_constructor_refuses_is_told_before_fitting(self) -> None:
        detector = find_detector_type("pyimgano:vision_ecod").create(contamination=0.9)
        with pytest.raises(ConfigError, match=r"vision_ecod cannot be made with these arguments: .*0\.9"):
            detector.opened(ModelFiles())

    def test_what_cannot_be_fitted_is_told_in_words(self) -> None:
        detector = find_detector_type("pyimgano:vision_sampling").create(**HIST, subset_size=50)
        with pytest.raises(ConfigError, match=r"vision_sampling cannot be fitted on 3 training images: .*50"):
            detector.fit(draw_images(1, "rgb", SIZES_HW))

    def test_only_what_is_given_is_saved(self) -> None:
        detector = find_detector_type("pyimgano:vision_iforest").create(n_estimators=8, contamination=0.2)
        assert detector.arguments.model_dump(mode="json") == {"n_estimators": 8, "contamination": 0.2}
        assert detector.contamination == 0.2
        assert kind("vision_ecod").contamination == 0.1

    @pytest.mark.parametrize("argument", ["checkpoint_path", "checkpoint", "hub_repo"])
    def test_files_that_may_hold_code_need_trust(self, argument: str) -> None:
        spec = {"name": "torchscript_embed", "kwargs": {argument: "model.pt"}}
        detector = find_detector_type("pyimgano:vision_ecod").create(feature_extractor=spec)
        assert detector.runs_code
        with pytest.raises(ConfigError, match=rf"{argument}.*--trust-model-file"):
            detector.opened(ModelFiles())

    def test_detectors_on_repositories_of_code_are_all_known(self) -> None:
        folder = Path(pyimgano.__file__).parent
        modules = {path.stem for path in folder.glob("*.py") if "TorchHubDinoV2Embedder" in path.read_text()}
        registry = importlib.import_module("pyimgano.models.registry").MODEL_REGISTRY
        entries = {name: registry.info(name) for name in registry.available()}
        owners = {
            name: entry.metadata.get("_lazy_module") or entry.constructor.__module__.rpartition(".")[2]
            for name, entry in entries.items()
        }
        assert {name for name, owner in owners.items() if owner in modules} == HUB_DETECTORS

    def test_a_preset_stands_for_arguments(self) -> None:
        assert find_detector_type("pyimgano:vision_ecod").preset_arguments("industrial-fast") == {}
        with pytest.raises(ConfigError, match="industrial-balanced"):
            find_detector_type("pyimgano:vision_ecod").preset_arguments("industrial-slow")


class TestState:
    @pytest.mark.parametrize(
        ("spoil", "reason"),
        [
            (lambda state: {}, "no such array"),
            (lambda state: {**state, "png_bytes": state["png_bytes"][:-1]}, "their sizes"),
            (lambda state: {**state, "png": state["png"][::-1].copy()}, "something else"),
            (lambda state: {**state, "png": state["png"].astype(np.float32)}, "PNG files"),
        ],
    )
    def test_one_that_holds_no_images_is_refused(self, spoil: Any, reason: str) -> None:
        with pytest.raises(ConfigError, match=reason):
            kind("vision_ecod").with_state(spoil(fitted("vision_ecod").state()))


class TestNames:
    def test_an_unknown_one_is_answered_with_near_ones(self) -> None:
        with pytest.raises(ConfigError, match=r"'pyimgano:vision_ecodd'.*none of this name.*pyimgano:vision_ecod"):
            find_detector_type("pyimgano:vision_ecodd")

    @pytest.mark.parametrize(
        ("model", "reason"),
        [
            ("core_ecod", "tables of features"),
            ("vision_patchcore_anomalib", "run code"),
            ("vision_ref_patch_distance_map", "vision_reference_diff_map"),
            pytest.param("vision_devnet", "labelled images", marks=NEEDS_TORCHVISION),
            pytest.param("vision_stfpm", "cannot be loaded here: .*'torchvision' is required", marks=LACKS_TORCHVISION),
        ],
    )
    def test_what_is_not_run_here_is_refused_in_words(self, model: str, reason: str) -> None:
        with pytest.raises(ConfigError, match=reason):
            find_detector_type(f"pyimgano:{model}")

    def test_a_config_may_leave_the_prefix_out_and_native_names_win(self) -> None:
        assert find_configured_type("vision_ecod") is find_detector_type("pyimgano:vision_ecod")
        assert find_configured_type("vision_pixel_mad_map") is find_detector_type("vision_pixel_mad_map")
        with pytest.raises(ConfigError, match="pyimgano:NAME"):
            find_detector_type("vision_ecod")

    def test_the_list_holds_detectors_of_images(self) -> None:
        names = pyimgano_names()
        assert "pyimgano:vision_ecod" in names
        assert not any(name.startswith("pyimgano:core_") for name in names)
        assert "pyimgano:vision_ecod" not in pyimgano_names(["pixel_map"])
        assert "pyimgano:vision_pixel_gaussian_map" in pyimgano_names(["pixel_map"])

    @every_kind
    def test_a_description_is_json_and_explains_every_argument(self, model: str) -> None:
        described = json.loads(json.dumps(describe(find_detector_type(f"pyimgano:{model}"))))
        assert described["name"] == f"pyimgano:{model}"
        assert described["summary"]
        assert "pyimgano" in described["tags"]
        assert "max_train_images" in described["arguments"]
        assert all(argument["help"] for argument in described["arguments"].values())

    def test_every_listed_detector_has_a_type_or_a_reason(self) -> None:
        made = 0
        for name in pyimgano_names():
            try:
                json.dumps(describe(find_detector_type(name)))
                made += 1
            except ConfigError as error:
                assert name in str(error)  # noqa: PT017
        assert made > 100

    def test_pyimgano_is_loaded_only_when_it_is_asked_for(self) -> None:
        code = "import sys; from pyimgano_dask.detectors import registry; registry.detector_types()"
        code += "; print('pyimgano' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout == "False\n"
