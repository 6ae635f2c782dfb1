"""`vision_torchscript` and `vision_torch_export` on files that torch writes."""

from __future__ import annotations

import pickle
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="TorchScript and torch.export files run on torch")

import torch

from pyimgano_dask.detectors.checkpoint import decode_detector, encode_detector
from pyimgano_dask.detectors.model_files import ModelFiles
from pyimgano_dask.detectors.registry import find_detector_type
from pyimgano_dask.errors import ConfigError, InputError
from tests.detectors.exported.answers import WEIGHTS, assert_is_brightness, assert_same, opened
from tests.detectors.exported.torch_models import (
    Brightness,
    FixedSize,
    NamedBrightness,
    NotANumber,
    TwoInputs,
    save_export,
    save_script,
    save_traced,
)
from tests.detectors.images import draw_images

SIZE_HW = (16, 20)
IMAGES = draw_images(1, "rgb")
SCRIPT, EXPORT = "vision_torchscript", "vision_torch_export"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file for each detector."""
    folder = tmp_path_factory.mktemp("models")
    return {SCRIPT: save_script(folder / "model.ts.pt"), EXPORT: save_export(folder / "model.pt2")}


def arguments_for(name: str) -> dict[str, Any]:
    """TorchScript files do not say their size."""
    return {"input_hw": SIZE_HW} if name == SCRIPT else {}


both = pytest.mark.parametrize("name", [SCRIPT, EXPORT])


class TestForms:
    @both
    def test_the_answer_is_the_models(self, name: str, files: dict[str, Path]) -> None:
        detector = opened(name, files[name], **arguments_for(name))
        assert_is_brightness(detector.predict(IMAGES), IMAGES, SIZE_HW)
        assert detector.runs_code

    def test_a_traced_module_at_the_size_that_is_usual(self, tmp_path: Path) -> None:
        detector = opened(SCRIPT, save_traced(tmp_path / "m.pt", torch.zeros(1, 3, 16, 20)))
        assert_is_brightness(detector.predict(IMAGES), IMAGES, (256, 256))

    @pytest.mark.parametrize("batch_size", [1, 2, 5])
    def test_batches_are_filled(self, batch_size: int, tmp_path: Path, files: dict[str, Path]) -> None:
        frozen = opened(EXPORT, save_export(tmp_path / "m.pt2", (batch_size, 3, 16, 20)))
        assert_is_brightness(frozen.predict(IMAGES), IMAGES, SIZE_HW)
        declared = opened(SCRIPT, files[SCRIPT], input_hw=SIZE_HW, batch_size=batch_size)
        assert_is_brightness(declared.predict(IMAGES), IMAGES, SIZE_HW)

    def test_outputs_by_name(self, tmp_path: Path) -> None:
        script = opened(SCRIPT, save_script(tmp_path / "m.pt", NamedBrightness()), input_hw=SIZE_HW)
        assert_is_brightness(script.predict(IMAGES), IMAGES, SIZE_HW)
        export = opened(EXPORT, save_export(tmp_path / "m.pt2", module=NamedBrightness()))
        assert_is_brightness(export.predict(IMAGES), IMAGES, SIZE_HW)

    def test_a_single_tensor_is_the_map(self, tmp_path: Path) -> None:
        path = save_script(tmp_path / "m.pt", FixedSize())
        with pytest.raises(ConfigError, match=r"fails on 1 image\(s\) of 256 x 256.*declare input_hw"):
            opened(SCRIPT, path)
        prediction = opened(SCRIPT, path, input_hw=[8, 8]).predict(IMAGES)
        assert [values.shape for values in prediction.maps] == [image.shape[:2] for image in IMAGES]

    @both
    def test_a_map_that_is_not_finite_is_an_error_of_the_image(self, name: str, tmp_path: Path) -> None:
        save = save_script if name == SCRIPT else save_export
        detector = opened(name, save(tmp_path / "m", module=NotANumber()), **arguments_for(name))
        black = np.zeros((*SIZE_HW, 3), np.uint8)
        with pytest.raises(InputError, match="320 of 320 values of the model's anomaly map are NaN or infinite"):
            detector.predict([IMAGES[0], black])
        assert np.isfinite(detector.predict(IMAGES[:1]).maps[0]).all()

    @both
    def test_a_device_that_is_not_there_is_said_where_it_runs(self, name: str, files: dict[str, Path]) -> None:
        detector = opened(name, files[name], device="cuda:99", **arguments_for(name))
        with pytest.raises(
            InputError, match=r"the device is cuda:99, which is not there.*torch finds \d+ CUDA devices"
        ):
            detector.predict(IMAGES)


class TestTravelling:
    @both
    def test_a_copy_needs_no_file(self, name: str, files: dict[str, Path]) -> None:
        detector = opened(name, files[name], **arguments_for(name))
        expected = detector.predict(IMAGES)
        assert_same(pickle.loads(pickle.dumps(detector)).predict(IMAGES), expected)
        data = encode_detector(detector)
        again = decode_detector(data, "here.npz")
        assert encode_detector(again) == data
        assert again.runs_code
        assert_same(again.predict(IMAGES), expected)

    @both
    def test_many_runs_give_the_same_bits(self, name: str, files: dict[str, Path]) -> None:
        detector = opened(name, files[name], **arguments_for(name))
        first = detector.predict(IMAGES)
        for _ in range(5):
            assert_same(detector.predict(IMAGES), first)

    @both
    def test_gradients_are_neither_taken_nor_needed(self, name: str, files: dict[str, Path]) -> None:
        detector = opened(name, files[name], **arguments_for(name))
        outside = detector.predict(IMAGES)
        with torch.inference_mode():
            assert_same(detector.predict(IMAGES), outside)


class TestTrust:
    @both
    def test_a_file_that_nobody_vouches_for_is_not_loaded(self, name: str, files: dict[str, Path]) -> None:
        with pytest.raises(ConfigError, match=r"can run code of its maker.*--trust-model-file.*checkpoint.sha256"):
            opened(name, files[name], ModelFiles(takes_sha256=True))
        with pytest.raises(ConfigError, match=r"--trust-model-file if you trust it$"):
            opened(name, files[name], ModelFiles())

    @both
    def test_a_known_checksum_is_enough(self, name: str, files: dict[str, Path]) -> None:
        known = ModelFiles(trusted_sha256=sha256(files[name].read_bytes()).hexdigest())
        assert opened(name, files[name], known, **arguments_for(name)).is_fitted

    def test_a_state_is_not_loaded_by_being_decoded(self, tmp_path: Path, files: dict[str, Path]) -> None:
        """It comes before trust: a program that cannot even be loaded is taken as it is."""
        detector = opened(EXPORT, files[EXPORT])
        broken = tmp_path / "broken.pt2"
        with zipfile.ZipFile(broken, "w") as archive:
            archive.writestr("m/models/model.json", "{}")
        state = {"model": np.frombuffer(broken.read_bytes(), np.uint8)}
        with pytest.raises(ConfigError, match=r"cannot be loaded as a torch\.export file"):
            detector.with_state(state).check()


class TestRefused:
    @pytest.mark.parametrize("protocol_is_old", [False, True])
    @both
    def test_a_pickled_module_is_never_unpickled(self, name: str, protocol_is_old: bool, tmp_path: Path) -> None:
        path = tmp_path / "model.pt"
        module = {"model": Explodes()}
        torch.save(module, path, _use_new_zipfile_serialization=not protocol_is_old)
        with pytest.raises(ConfigError, match=r"ExportType.TORCH.*never loaded.*ExportType.ONNX"):
            opened(name, path)

    @both
    def test_a_state_dict(self, name: str, tmp_path: Path) -> None:
        torch.save(Brightness().state_dict(), tmp_path / "weights.pt")
        with pytest.raises(ConfigError, match=r"state dict of torch, which holds weights without the model"):
            opened(name, tmp_path / "weights.pt")

    def test_a_file_for_another_detector(self, files: dict[str, Path]) -> None:
        with pytest.raises(ConfigError, match=r"is a torch.export file \(.pt2\).*use --model vision_torch_export"):
            opened(SCRIPT, files[EXPORT])
        with pytest.raises(ConfigError, match=r"is a TorchScript file.*use --model vision_torchscript"):
            opened(EXPORT, files[SCRIPT])
        with pytest.raises(ConfigError, match=r"is a TorchScript file.*use --model vision_torchscript"):
            opened("vision_onnx", files[SCRIPT])

    @both
    def test_files_that_are_cut_short(self, name: str, tmp_path: Path, files: dict[str, Path]) -> None:
        whole = files[name].read_bytes()
        for length in (4, 100, len(whole) // 2, len(whole) - 1):
            (tmp_path / "cut").write_bytes(whole[:length])
            with pytest.raises(ConfigError, match=r"cut short or damaged.*copy or export it again"):
                opened(name, tmp_path / "cut")

    @both
    def test_a_byte_that_changed(self, name: str, tmp_path: Path, files: dict[str, Path]) -> None:
        damaged = bytearray(files[name].read_bytes())
        at = damaged.index(WEIGHTS.tobytes())
        damaged[at] ^= 1
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(ConfigError, match="cut short or damaged"):
            opened(name, tmp_path / "damaged")

    def test_a_program_that_torch_cannot_read(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
            archive.writestr("m/models/model.json", "{}")
        with pytest.raises(ConfigError, match=r"cannot be loaded as a torch\.export file"):
            opened(EXPORT, tmp_path / "m.pt2")
        assert "Traceback" not in capfd.readouterr().err

    def test_two_inputs(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="forward must take one tensor, the images, but takes 2"):
            opened(SCRIPT, save_script(tmp_path / "m.pt", TwoInputs()))
        program = torch.export.export(TwoInputs(), (torch.zeros(1, 3, 8, 8), torch.zeros(1)))
        torch.export.save(program, tmp_path / "m.pt2")
        with pytest.raises(ConfigError, match="must take one input, a tensor of images, but takes 2: images, weights"):
            opened(EXPORT, tmp_path / "m.pt2")

    def test_a_size_that_the_program_does_not_take(self, files: dict[str, Path]) -> None:
        with pytest.raises(ConfigError, match="input_hw is 8 x 8, but the model takes 16 x 20"):
            opened(EXPORT, files[EXPORT], input_hw=[8, 8])

    @both
    def test_states_that_hold_something_else(self, name: str, files: dict[str, Path]) -> None:
        detector = opened(name, files[name], **arguments_for(name))
        other = files[EXPORT if name == SCRIPT else SCRIPT].read_bytes()
        model = detector.state()["model"]
        for state, reason in (
            ({"model": np.frombuffer(other, np.uint8)}, "use --model"),
            ({"model": model[:-1]}, "cut short or damaged"),
            ({"model": model, "more": model}, "the model and nothing else, got model, more"),
        ):
            with pytest.raises(ConfigError, match=reason):
                detector.with_state(state)


class Explodes:
    """Unpickling it fails the test."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was loaded",)


class Counting(torch.nn.Module):
    """Gives one more at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return images.mean(1) + self.calls


class Dithering(torch.nn.Module):
    """Adds noise far below the steps of 8-bit images."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(1) + 1e-5 * torch.rand_like(images).mean(1)


class CountingPictures(Counting):
    """Gives one more after each batch that is not plain."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += (images.std() > 0).float()
        return images.mean(1) + self.calls


class ScaledByTheBatch(torch.nn.Module):
    """Scales by the smallest and the largest value of all images."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grey = images.mean(1)
        return (grey - grey.min()) / (grey.max() - grey.min() + 1e-3)


class AgainstTheFirst(torch.nn.Module):
    """Compares each image with the first of its batch, which is left as it is."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grey = images.mean(1)
        return torch.cat([grey[:1], grey[1:] - grey[:1]])


class Lists(torch.nn.Module):
    """Gives a number and a tuple, but no tensor."""

    def forward(self, images: torch.Tensor) -> tuple[int, tuple[torch.Tensor, torch.Tensor], None]:
        return 3, (images, images), None


def test_outputs_that_are_no_tensors_are_listed_as_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"it has 0: an int; 1: a tuple; 2: nothing \(None\); name it"):
        opened(SCRIPT, save_script(tmp_path / "m.pt", Lists()))


@pytest.mark.parametrize("module", [ScaledByTheBatch, AgainstTheFirst])
def test_a_batch_whose_images_change_each_other_is_refused(module: type[torch.nn.Module], tmp_path: Path) -> None:
    path = save_script(tmp_path / "model.pt", module())
    opened(SCRIPT, path, input_hw=SIZE_HW)
    for batch_size in (2, 4):
        reason = f"in a batch of {batch_size} it gives another answer for the same image beside other images"
        with pytest.raises(ConfigError, match=reason):
            opened(SCRIPT, path, input_hw=SIZE_HW, batch_size=batch_size)


@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_a_state_that_plain_images_leave_alone(color: str, tmp_path: Path) -> None:
    path = save_script(tmp_path / "model.pt", CountingPictures())
    with pytest.raises(ConfigError, match="another answer for the same image when it is asked again"):
        opened(SCRIPT, path, input_hw=SIZE_HW, color=color)


@pytest.mark.parametrize("module", [Counting, Dithering])
def test_a_model_that_changes_as_it_is_asked_is_refused(module: type[torch.nn.Module], tmp_path: Path) -> None:
    path = save_script(tmp_path / "model.pt", module())
    detector = find_detector_type("vision_torchscript").create(input_hw=(16, 20))
    with pytest.raises(ConfigError, match="another answer for the same image when it is asked again"):
        detector.with_model_file(str(path), ModelFiles(trusts_code=True))
