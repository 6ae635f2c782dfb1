"""Which mode torch is in for a detector, and what is missing for all of it, on the device that is there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pyimgano_dask.detectors.amp import device_of, missing_for_amp, mixed_precision
from pyimgano_dask.detectors.registry import detector_types
from tests.dataflow.doubles import ReportsInferenceMode


def test_the_device_is_the_detectors_argument() -> None:
    assert device_of(ReportsInferenceMode.create(device="cuda:1")) == "cuda:1"
    assert device_of(ReportsInferenceMode.create()) is None
    assert {device_of(kind.create()) for kind in detector_types().values()} == {None}


@pytest.mark.parametrize("device", [None, "cuda", "cuda:0", "cpu"])
def test_inference_mode_on_every_device_and_autocast_on_cuda_only(device: str | None) -> None:
    torch = pytest.importorskip("torch")
    on_cuda = torch.cuda.is_available() and device != "cpu"
    with mixed_precision(device):
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cuda") == on_cuda
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cuda")
    missing = missing_for_amp(device)
    if on_cuda:
        assert missing is None
    else:
        assert missing is not None
        assert ("CUDA is not available" in missing) != torch.cuda.is_available()


def test_autocast_computes_in_half_precision_on_a_gpu() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    ones = torch.ones(8, 8, device="cuda")
    with mixed_precision("cuda"):
        assert (ones @ ones).dtype == torch.float16
    with mixed_precision("cpu"):
        assert (ones @ ones).dtype == torch.float32


def test_torch_is_loaded_only_when_it_is_asked_for() -> None:
    code = "import sys; from pyimgano_dask.detectors import amp, registry; registry.detector_types()"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"
