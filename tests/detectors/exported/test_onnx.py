"""`vision_onnx` on real ONNX files, run by the real onnxruntime."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="vision_onnx runs on onnxruntime")
pytest.importorskip("onnx", reason="the tests make ONNX files")

import onnxruntime
from onnx import TensorProto, helper

from pyimgano_dask.detectors.base import Detector
from pyimgano_dask.detectors.checkpoint import decode_detector, encode_detector
from pyimgano_dask.detectors.model_files import ModelFiles
from pyimgano_dask.detectors.registry import find_detector_type
from pyimgano_dask.detectors.tiling import TiledDetector
from pyimgano_dask.errors import ConfigError, InputError
from pyimgano_dask.settings.tiling import TilingSettings
from tests.detectors.exported.answers import assert_is_brightness, assert_same, opened
from tests.detectors.exported.onnx_models import RAW, add_sequence, forget_input_shape, point_elsewhere, save_model
from tests.detectors.images import draw_images

SIZE_HW = (16, 20)
IMAGES = draw_images(1, "rgb")
TO_FLOAT = helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT)


def vision_onnx(path: Path, **arguments: Any) -> Detector[Any]:
    return opened("vision_onnx", path, **arguments)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As anomalib's exporter leaves it: the weights in a second file, the batch frozen at 2."""
    return save_model(tmp_path_factory.mktemp("full") / "model.onnx", external="model.onnx.data")


class TestForms:
    def test_a_frozen_batch_takes_any_number_of_images(self, full: Path) -> None:
        detector = vision_onnx(full)
        for count in (1, 2, 3, len(IMAGES)):
            assert_is_brightness(detector.predict(IMAGES[:count]), IMAGES[:count], SIZE_HW)

    def test_an_image_has_the_same_answer_at_every_place(self, full: Path) -> None:
        detector = vision_onnx(full)
        answers = [detector.predict([*IMAGES[:before], IMAGES[4]]) for before in range(4)]
        for answer in answers:
            assert answer.scores[-1] == answers[0].scores[-1]
            np.testing.assert_array_equal(answer.maps[-1], answers[0].maps[-1])

    @pytest.mark.parametrize(
        "form",
        [
            {"outputs": RAW},
            {"score_axes": 2},
            {"shape": ("batch", 3, 16, 20)},
            {"shape": ("batch", 3, 16, 20), "score_axes": 2, "outputs": RAW},
            {"shape": (1, 3, 16, 20)},
            {"shape": (5, 3, 16, 20), "names": ["a", "b", "c", "d"]},
            {"names": ["Score", "Label", "Heatmap", "Mask"]},
            {"external": "weights/of the model.bin"},
        ],
    )
    def test_other_forms_answer_alike(self, form: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "weights").mkdir()
        detector = vision_onnx(save_model(tmp_path / "model.onnx", **form))
        assert_is_brightness(detector.predict(IMAGES), IMAGES, SIZE_HW)

    def test_half_precision(self, tmp_path: Path) -> None:
        prediction = vision_onnx(save_model(tmp_path / "m.onnx", dtype=TensorProto.FLOAT16)).predict(IMAGES)
        full_precision = vision_onnx(save_model(tmp_path / "m.onnx")).predict(IMAGES)
        np.testing.assert_allclose(prediction.scores, full_precision.scores, atol=2e-3)
        assert prediction.maps[0].dtype == np.float32

    def test_bytes_in_are_pixels(self, tmp_path: Path) -> None:
        cast = [
            helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["numbers", "scale"], ["pixels"]),
        ]
        constant = helper.make_node("Constant", [], ["scale"], value_float=255.0)
        path = save_model(tmp_path / "m.onnx", before=[constant, *cast], input_dtype=TensorProto.UINT8)
        prediction = vision_onnx(path).predict(IMAGES[1:2])
        np.testing.assert_allclose(
            prediction.scores, vision_onnx(save_model(path)).predict(IMAGES[1:2]).scores, atol=3e-3
        )

    def test_channels_last(self, tmp_path: Path) -> None:
        transpose = [helper.make_node("Transpose", ["images"], ["pixels"], perm=[0, 3, 1, 2])]
        path = save_model(tmp_path / "m.onnx", shape=(2, 16, 20, 3), before=transpose)
        assert_is_brightness(vision_onnx(path).predict(IMAGES), IMAGES, SIZE_HW)

    def test_one_channel_is_grey(self, tmp_path: Path) -> None:
        detector = vision_onnx(save_model(tmp_path / "m.onnx", shape=(2, 1, 16, 20)))
        assert detector.color == "gray"
        (image,) = draw_images(1, "gray", [SIZE_HW])
        prediction = detector.predict([image])
        np.testing.assert_allclose(prediction.maps[0], image / np.float32(255) * 0.5, atol=1e-6)

    def test_a_model_of_any_size_is_asked_at_the_declared_one(self, tmp_path: Path) -> None:
        path = save_model(tmp_path / "m.onnx", shape=("n", 3, "h", "w"))
        assert_is_brightness(vision_onnx(path, input_hw=[9, 7]).predict(IMAGES), IMAGES, (9, 7))
        assert_is_brightness(vision_onnx(path).predict(IMAGES), IMAGES, (256, 256))

    def test_a_model_that_does_not_say_its_shape(self, tmp_path: Path) -> None:
        path = forget_input_shape(save_model(tmp_path / "m.onnx", shape=("n", 3, "h", "w")))
        assert_is_brightness(vision_onnx(path).predict(IMAGES), IMAGES, (256, 256))
        declared = vision_onnx(path, input_hw=[9, 7], batch_size=2)
        assert_is_brightness(declared.predict(IMAGES), IMAGES, (9, 7))

    def test_a_sequence_keeps_its_position(self, tmp_path: Path) -> None:
        path = add_sequence(save_model(tmp_path / "m.onnx", outputs=RAW), "all")
        assert_is_brightness(vision_onnx(path, map_output=1).predict(IMAGES), IMAGES, SIZE_HW)
        with pytest.raises(ConfigError, match="map_output 2 is all, a sequence, which it cannot be"):
            vision_onnx(path, map_output=2)


class TestDeclared:
    def test_what_is_declared_of_the_input_is_done(self, full: Path) -> None:
        (image,) = draw_images(3, "rgb", [SIZE_HW])
        declared = vision_onnx(full, color="bgr", value_range="byte", mean=[1, 2, 3], std=[4, 5, 8])
        pixels = (image[..., ::-1] - np.array([1, 2, 3])) / [4, 5, 8]
        np.testing.assert_allclose(declared.predict([image]).maps[0], pixels @ [0.5, 0.3, 0.2], rtol=1e-5)

    def test_outputs_by_name_and_by_position(self, tmp_path: Path) -> None:
        path = save_model(tmp_path / "m.onnx", names=["first", "second", "third", "fourth"])
        for map_output, score_output in (("third", "first"), (2, 0)):
            detector = vision_onnx(path, map_output=map_output, score_output=score_output)
            assert_is_brightness(detector.predict(IMAGES), IMAGES, SIZE_HW)

    def test_without_a_score_the_map_makes_it(self, tmp_path: Path) -> None:
        path = save_model(tmp_path / "m.onnx", outputs=["anomaly_map"])
        images = draw_images(3, "rgb", [SIZE_HW])
        assert_is_brightness(vision_onnx(path).predict(images), images, SIZE_HW)
        mean = vision_onnx(path, reduction="mean").predict(images)
        np.testing.assert_allclose(mean.scores[0], mean.maps[0].mean(), rtol=1e-6)

    def test_without_a_map_the_score_makes_it_when_asked_to(self, tmp_path: Path) -> None:
        path = save_model(tmp_path / "m.onnx", outputs=["pred_score"])
        with pytest.raises(ConfigError, match=r"none of its outputs is an anomaly map.*map_from_score"):
            vision_onnx(path)
        prediction = vision_onnx(path, map_from_score=True).predict(IMAGES)
        for image, score, anomaly_map in zip(IMAGES, prediction.scores, prediction.maps, strict=True):
            assert anomaly_map.shape == image.shape[:2]
            np.testing.assert_allclose(anomaly_map, score, rtol=1e-6)

    def test_a_map_of_another_size_must_be_declared(self, tmp_path: Path) -> None:
        halve = [helper.make_node("MaxPool", ["images"], ["pixels"], kernel_shape=[2, 2], strides=[2, 2])]
        path = save_model(tmp_path / "m.onnx", before=halve)
        with pytest.raises(ConfigError, match=r"map of 8 x 10 for an input of 16 x 20.*map_hw \[8, 10\]"):
            vision_onnx(path)
        prediction = vision_onnx(path, map_hw=[8, 10]).predict(IMAGES)
        assert [values.shape for values in prediction.maps] == [image.shape[:2] for image in IMAGES]

    def test_thread_counts_change_nothing(self, full: Path) -> None:
        import cv2

        threads = cv2.getNumThreads()
        detector = vision_onnx(full)
        try:
            cv2.setNumThreads(1)
            one = detector.predict(IMAGES)
            cv2.setNumThreads(3)
            assert_same(detector.predict(IMAGES), one)
        finally:
            cv2.setNumThreads(threads)


class TestTravelling:
    def test_a_copy_needs_no_file(self, tmp_path: Path) -> None:
        path = save_model(tmp_path / "m.onnx", external="m.data")
        detector = vision_onnx(path)
        path.unlink()
        (tmp_path / "m.data").unlink()
        expected = detector.predict(IMAGES)
        assert_same(pickle.loads(pickle.dumps(detector)).predict(IMAGES), expected)
        data = encode_detector(detector)
        again = decode_detector(data, "here.npz")
        assert encode_detector(again) == data
        assert again.arguments == detector.arguments
        assert not again.runs_code
        assert_same(again.predict(IMAGES), expected)

    def test_threads_share_one_instance(self, full: Path) -> None:
        detector = pickle.loads(pickle.dumps(vision_onnx(full)))
        expected = vision_onnx(full).predict(IMAGES)
        with ThreadPoolExecutor(4) as pool:
            for answer in pool.map(detector.predict, [IMAGES] * 12):
                assert_same(answer, expected)

    def test_an_empty_batch_has_an_empty_answer(self, full: Path) -> None:
        prediction = vision_onnx(full).predict([])
        assert prediction.scores.shape == (0,)
        assert prediction.maps == ()

    def test_images_are_left_as_they_are(self, full: Path) -> None:
        images = [image.copy() for image in IMAGES]
        vision_onnx(full, color="bgr").predict(images)
        for image, original in zip(images, IMAGES, strict=True):
            np.testing.assert_array_equal(image, original)

    def test_tiles(self, full: Path) -> None:
        tiled = TiledDetector(vision_onnx(full), 20, 10, TilingSettings(tile_size=20, stride=10, map_reduce="max"))
        (image,) = draw_images(3, "rgb", [(45, 60)])
        prediction = tiled.predict([image])
        assert prediction.maps[0].shape == (45, 60)
        assert np.corrcoef(prediction.maps[0].ravel(), (image @ np.array([0.5, 0.3, 0.2])).ravel())[0, 1] > 0.8

    def test_without_a_model_nothing_is_predicted(self) -> None:
        detector = find_detector_type("vision_onnx").create()
        assert not detector.is_fitted
        with pytest.raises(RuntimeError, match="vision_onnx has no model"):
            detector.predict(IMAGES)
        with pytest.raises(RuntimeError, match="vision_onnx has no model"):
            detector.state()


class TestRefused:
    @pytest.mark.parametrize(
        ("form", "reason"),
        [
            ({"n_inputs": 2}, r"must take one input, the images, but takes 2: 'images', 'more_1'"),
            (
                {"input_dtype": TensorProto.DOUBLE, "before": [TO_FLOAT]},
                r"type tensor\(double\); it must be one of float32, float16, uint8",
            ),
            ({"shape": (1, 4, 16, 20)}, r"4 channels in the shape \(1, 4, 16, 20\).*color rgb has 3"),
        ],
    )
    def test_inputs_that_are_no_images(self, form: dict[str, Any], reason: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=reason) as caught:
            vision_onnx(save_model(tmp_path / "m.onnx", **form))
        assert "--checkpoint-path: " in str(caught.value)

    def test_an_input_of_three_axes(self, tmp_path: Path) -> None:
        reshape = [
            helper.make_node("Constant", [], ["shape"], value_ints=[1, 3, 16, 20]),
            helper.make_node("Reshape", ["images", "shape"], ["pixels"]),
        ]
        with pytest.raises(ConfigError, match=r"its input has 3 axes, \(3, 16, 20\); images need four"):
            vision_onnx(save_model(tmp_path / "m.onnx", shape=(3, 3, 16, 20), before=reshape, input_shape=(3, 16, 20)))

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ({"input_hw": [16, 16]}, "input_hw is 16 x 16, but the model takes 16 x 20"),
            ({"batch_size": 3}, "batch_size is 3, but the model takes 2 images at a time"),
            ({"color": "gray"}, "color gray has 1"),
            ({"map_output": "heat"}, "map_output: there is no output 'heat'.*2: anomaly_map float32"),
            ({"map_output": 9}, "map_output: there is no output 9"),
            ({"map_output": "pred_score"}, "map_output 'pred_score' is pred_score float32.*cannot be"),
            ({"score_output": "pred_label"}, "score_output 'pred_label' is pred_label bool"),
            ({"layout": "NHWC"}, "20 channels in the shape"),
        ],
    )
    def test_arguments_that_the_file_contradicts(self, arguments: dict[str, Any], reason: str, full: Path) -> None:
        with pytest.raises(ConfigError, match=reason):
            vision_onnx(full, **arguments)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"input_hw": [0, 4]},
            {"mean": [1, 2]},
            {"std": [0]},
            {"device": "gpu"},
            {"batch_size": 0},
            {"map_output": -1},
            {"topk": 0},
            {"value_range": "float"},
        ],
    )
    def test_a_bad_argument_is_named(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=next(iter(arguments))):
            find_detector_type("vision_onnx").create(**arguments)

    def test_outputs_that_are_no_tensors_are_listed_as_what_they_are(self, tmp_path: Path) -> None:
        path = add_sequence(save_model(tmp_path / "m.onnx"), "all", only=True)
        with pytest.raises(ConfigError, match="it has 0: all, a sequence; name it"):
            vision_onnx(path)

    def test_a_size_that_the_file_does_not_say(self, tmp_path: Path) -> None:
        to_size = [
            helper.make_node("Constant", [], ["size"], value_ints=[1, 3, 9, 7]),
            helper.make_node("Reshape", ["images", "size"], ["pixels"]),
        ]
        path = forget_input_shape(save_model(tmp_path / "m.onnx", shape=(1, 3, 9, 7), before=to_size))
        with pytest.raises(ConfigError, match=r"fails on 1 image\(s\) of 256 x 256.*declare input_hw, color"):
            vision_onnx(path)
        assert_is_brightness(vision_onnx(path, input_hw=[9, 7]).predict(IMAGES), IMAGES, (9, 7))

    @pytest.mark.parametrize("shape", [(1, 3, 2**20, 2**20), (4096, 3, 512, 512)])
    def test_an_input_too_large_to_make(self, shape: tuple[int, ...], tmp_path: Path) -> None:
        batch, _, height, width = shape
        reason = (
            rf"its input is {batch} image\(s\) of {height} x {width} pixels.*at most 16384 pixels and a batch 4 GiB"
        )
        with pytest.raises(ConfigError, match=reason):
            vision_onnx(save_model(tmp_path / "m.onnx", shape=shape))

    def test_noise_that_grows_with_the_contrast(self, tmp_path: Path) -> None:
        noise = [
            helper.make_node("RandomNormalLike", ["images"], ["noise"]),
            helper.make_node("ReduceMax", ["images"], ["largest"]),
            helper.make_node("ReduceMin", ["images"], ["smallest"]),
            helper.make_node("Sub", ["largest", "smallest"], ["contrast"]),
            helper.make_node("Mul", ["noise", "contrast"], ["grain"]),
            helper.make_node("Add", ["images", "grain"], ["pixels"]),
        ]
        with pytest.raises(ConfigError, match="another answer for the same image when it is asked again"):
            vision_onnx(save_model(tmp_path / "m.onnx", before=noise))

    def test_a_batch_whose_images_change_each_other(self, tmp_path: Path) -> None:
        scaled = [
            helper.make_node("ReduceMax", ["images"], ["largest"]),
            helper.make_node("Div", ["images", "largest"], ["pixels"]),
        ]
        vision_onnx(save_model(tmp_path / "m.onnx", before=scaled, shape=(1, 3, 16, 20)))
        with pytest.raises(
            ConfigError, match="in a batch of 2 it gives another answer for the same image beside other"
        ):
            vision_onnx(save_model(tmp_path / "m.onnx", before=scaled))

    def test_two_maps_that_fit_alike(self, tmp_path: Path) -> None:
        twice = ["pred_score", "anomaly_map", "anomaly_map"]
        path = save_model(tmp_path / "m.onnx", outputs=twice, names=["s", "one", "two"])
        with pytest.raises(ConfigError, match=r"several of its outputs may be what map_output means: 0: one.*1: two"):
            vision_onnx(path)
        assert_is_brightness(vision_onnx(path, map_output="two").predict(IMAGES), IMAGES, SIZE_HW)

    def test_every_cut_of_the_file(self, tmp_path: Path) -> None:
        whole = save_model(tmp_path / "m.onnx").read_bytes()
        for length in range(1, len(whole), 37):
            (tmp_path / "cut.onnx").write_bytes(whole[:length])
            with pytest.raises(ConfigError, match=r"cut\.onnx'"):
                vision_onnx(tmp_path / "cut.onnx")

    def test_external_data_that_is_missing_or_cut(self, tmp_path: Path) -> None:
        path = save_model(tmp_path / "m.onnx", external="m.data")
        data = (tmp_path / "m.data").read_bytes()
        (tmp_path / "m.data").write_bytes(data[:-1])
        with pytest.raises(ConfigError, match=rf"'m.data' has {len(data) - 1} bytes, and the model needs {len(data)}"):
            vision_onnx(path)
        (tmp_path / "m.data").unlink()
        with pytest.raises(ConfigError, match=r"keeps weights in a file of its own.*m\.data.*No such file"):
            vision_onnx(path)

    @pytest.mark.parametrize("location", ["../m.data", "a/../../m.data", "/etc/hostname", "", "*/_ORT_MEM_ADDR_/*"])
    def test_external_data_outside_of_the_folder(self, location: str, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        path = save_model(tmp_path / "model" / "m.onnx", external="m.data")
        (path.parent / "m.data").rename(tmp_path / "m.data")
        point_elsewhere(path, location)
        with pytest.raises(ConfigError, match="in the folder of the model or below it"):
            vision_onnx(path)

    @pytest.mark.parametrize("named", ["{folder}/m.onnx", "file://{folder}/m.onnx", "m.onnx"])
    @pytest.mark.parametrize("link", ["m.data", "sub"])
    def test_links_that_lead_out_of_the_folder(self, link: str, named: str, tmp_path: Path) -> None:
        folder, beside = tmp_path / "model", tmp_path / "model-2"
        folder.mkdir()
        beside.mkdir()
        path = save_model(folder / "m.onnx", external="m.data")
        (folder / "m.data").rename(beside / "m.data")
        if link == "sub":
            point_elsewhere(path, "sub/m.data")
        (folder / link).symlink_to(beside if link == "sub" else beside / "m.data")
        with pytest.raises(
            ConfigError, match=r"a link to '.*model-2/m\.data'; .* in the folder of the model or below it"
        ):
            opened("vision_onnx", named.format(folder=folder), ModelFiles(str(folder)))

    def test_links_within_the_folder(self, tmp_path: Path) -> None:
        path = save_model(tmp_path / "m.onnx", external="m.data")
        (tmp_path / "sub").mkdir()
        (tmp_path / "m.data").rename(tmp_path / "sub" / "a blob")
        (tmp_path / "m.data").symlink_to("sub/a blob")
        (tmp_path / "link").symlink_to(tmp_path)
        (tmp_path / "models").mkdir()
        path.rename(tmp_path / "models" / "kept elsewhere")
        path.symlink_to("models/kept elsewhere")
        for place in (path, tmp_path / "link" / "m.onnx"):
            assert_is_brightness(vision_onnx(place).predict(IMAGES), IMAGES, SIZE_HW)
        relative = opened("vision_onnx", "m.onnx", ModelFiles(str(tmp_path)))
        assert_is_brightness(relative.predict(IMAGES), IMAGES, SIZE_HW)

    def test_a_cache_of_links_into_one_folder(self, tmp_path: Path) -> None:
        blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
        blobs.mkdir()
        snapshot.mkdir(parents=True)
        save_model(blobs / "0a", external="m.data")
        (blobs / "m.data").rename(blobs / "0b")
        for name, blob in (("m.onnx", "0a"), ("m.data", "0b")):
            (snapshot / name).symlink_to(f"../../blobs/{blob}")
        assert_is_brightness(vision_onnx(snapshot / "m.onnx").predict(IMAGES), IMAGES, SIZE_HW)

    def test_a_state_without_its_external_data(self, full: Path) -> None:
        detector = vision_onnx(full)
        state = dict(detector.state())
        model = {"model": state["model"]}
        for faulty, reason in (
            ({}, "must hold the bytes"),
            (model, "external data model.onnx.data"),
            ({**state, "external/model.onnx.data": state["external/model.onnx.data"][:-1]}, "cut short"),
            ({**state, "model": state["model"][:-9]}, "no whole ONNX model"),
            ({**state, "model": state["model"].astype(np.float32)}, "uint8"),
        ):
            with pytest.raises(ConfigError, match=reason):
                detector.with_state(faulty)


class TestImages:
    @pytest.fixture
    def logarithm(self, tmp_path: Path) -> Detector[Any]:
        """A model whose map is not finite where a pixel is black."""
        before = [helper.make_node("Log", ["images"], ["pixels"])]
        return vision_onnx(save_model(tmp_path / "m.onnx", before=before))

    def test_a_map_that_is_not_finite_is_an_error_of_the_image(self, logarithm: Detector[Any]) -> None:
        bright, black = (np.full((*SIZE_HW, 3), level, np.uint8) for level in (200, 200))
        black[3, 4] = 0
        with pytest.raises(InputError, match="1 of 320 values of the model's anomaly map are NaN or infinite"):
            logarithm.predict([bright, black])
        assert np.isfinite(logarithm.predict([bright]).maps[0]).all()

    @pytest.mark.parametrize("device", ["cuda", "cuda:99"])
    def test_a_device_that_is_not_there_is_said_where_it_runs(self, device: str, full: Path) -> None:
        if device == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime is built for CUDA")
        detector = vision_onnx(full, device=device)
        assert detector.color == "rgb"
        with pytest.raises(InputError, match=f"the device is {device}, which is not there where this chunk runs"):
            detector.predict(IMAGES)
