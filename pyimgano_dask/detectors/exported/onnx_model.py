"""ONNX models, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.detectors.base import State
from pyimgano_dask.detectors.exported.detector import MODEL, NAMED_BY, ExportedModelDetector
from pyimgano_dask.detectors.exported.external_data import DamagedProtobufError, check_links, external_files
from pyimgano_dask.detectors.exported.formats import ONNX, check_format
from pyimgano_dask.detectors.exported.inputs import UNKNOWN_SHAPE, ModelInput
from pyimgano_dask.detectors.exported.outputs import Output, in_kind
from pyimgano_dask.detectors.exported.runner import DeviceMissingError, Runner, in_words
from pyimgano_dask.detectors.extras import require
from pyimgano_dask.detectors.model_files import ModelFiles
from pyimgano_dask.detectors.registry import register
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.storage.files import local_path, resolve
from pyimgano_dask.urls import is_url

EXTERNAL = "external/"
"""In the state, before the relative path of a file that holds weights of the model."""

_DTYPES: Mapping[str, str] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
}
_KINDS: Mapping[type, str] = {list: "a sequence", dict: "a map"}
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_FATAL = 4  # what goes wrong is raised, so onnxruntime need not log it too


@register
class VisionOnnx(ExportedModelDetector):
    """The anomaly map and score of an ONNX model, with its external data if it has any."""

    name = "vision_onnx"
    summary = "Runs an ONNX model that gives an anomaly map and a score, such as anomalib exports."
    tags = ("vision", "deep", "exported", "onnx", "pixel_map")
    reference = "Open Neural Network Exchange (onnx.ai), run by ONNX Runtime."
    extra: ClassVar[str | None] = "onnx"
    model_file: ClassVar[str | None] = ".onnx"
    format = ONNX

    @classmethod
    def _read(cls, path: str, files: ModelFiles) -> State:
        what = f"{NAMED_BY}: {path!r}"
        model = files.read(path, NAMED_BY)
        check_format(model, ONNX, what)
        try:
            sizes = external_files(model)
            for location in sizes:
                _check_place(path, location, files)
        except (DamagedProtobufError, RecursionError) as error:
            raise ConfigError(f"{what} is no whole ONNX model ({error}); copy or export it again") from None
        except ConfigError as error:
            raise ConfigError(f"{what}: {error}") from None
        state = {MODEL: np.frombuffer(model, np.uint8)}
        for location, size in sizes.items():
            data = files.read(_beside(path, location), f"{NAMED_BY}: {path!r} keeps weights in a file of its own")
            _check_size(len(data), size, location, what)
            state[EXTERNAL + location] = np.frombuffer(data, np.uint8)
        return state

    @classmethod
    def _check_state(cls, state: State) -> None:
        try:
            sizes = external_files(state[MODEL].tobytes())
        except (DamagedProtobufError, RecursionError) as error:
            raise ConfigError(f"{cls.name}: the state holds no whole ONNX model ({error})") from None
        if {EXTERNAL + location for location in sizes} != set(state) - {MODEL}:
            raise ConfigError(f"{cls.name}: the state must hold the external data {', '.join(sizes) or 'of no file'}")
        for location, size in sizes.items():
            _check_size(len(state[EXTERNAL + location]), size, location, f"{cls.name}: the state")

    @classmethod
    def _pool_threads(cls) -> int:
        return cv2.getNumThreads()

    @classmethod
    def _load(cls, state: State, device: str, threads: int) -> Runner:
        return OnnxRunner(require("onnx", cls.name), state, device, threads)


class OnnxRunner(Runner):
    """A session of onnxruntime: sequential, deterministic, with `threads` threads inside each operation."""

    def __init__(self, onnxruntime: Any, state: State, device: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        options.log_severity_level = _FATAL
        external = {key.removeprefix(EXTERNAL): array for key, array in state.items() if key != MODEL}
        if external:
            options.add_external_initializers_from_files_in_memory(
                list(external), list(external.values()), [len(array) for array in external.values()]
            )
        self._session = _session(onnxruntime, state[MODEL].tobytes(), options, device)
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(repr(item.name) for item in inputs)
            raise ConfigError(f"it must take one input, the images, but takes {len(inputs)}: {names or 'none'}")
        (only,) = inputs
        self._input_name = only.name
        self._input = ModelInput(
            tuple(size if isinstance(size, int) and size > 0 else None for size in only.shape) or UNKNOWN_SHAPE,
            _DTYPES.get(only.type, only.type),
        )
        self._names = [output.name for output in self._session.get_outputs()]

    @property
    def input(self) -> ModelInput:
        return self._input

    def run(self, batch: NDArray[np.generic]) -> Sequence[Output]:
        answer = self._session.run(None, {self._input_name: batch})
        return [_output(name, values) for name, values in zip(self._names, answer, strict=True)]


def _output(name: str, value: Any) -> Output:
    if isinstance(value, np.ndarray):
        return Output(name, value)
    return Output.of_another_kind(name, _KINDS.get(type(value)) or in_kind(value))


def _session(onnxruntime: Any, model: bytes, options: Any, device: str) -> Any:
    """A session on a device; raises DeviceMissingError where onnxruntime has no such one."""

    def session(*providers: Any) -> Any:
        return onnxruntime.InferenceSession(model, options, providers=list(providers), enable_fallback=0)

    if device == "cpu":
        return session(CPU)
    if CUDA not in onnxruntime.get_available_providers():
        raise DeviceMissingError("this onnxruntime is built without CUDA; onnxruntime-gpu has it")
    number = int(device.partition(":")[2] or 0)
    # Algorithms are not timed and chosen by their speed, so that each run takes the same one.
    on_cuda = CUDA, {"device_id": number, "cudnn_conv_algo_search": "DEFAULT"}
    try:
        found = session(on_cuda, CPU)
    except Exception as error:
        raise DeviceMissingError(in_words(error)) from error
    if CUDA not in found.get_providers():
        raise DeviceMissingError("onnxruntime cannot use CUDA here")
    return found


def _beside(path: str, location: str) -> str:
    """The path of a file named relative to the model's folder."""
    inner, chain, outer = path.partition("::") if is_url(path) else (path, "", "")
    return f"{inner[: inner.rfind('/') + 1]}{location}{chain}{outer}"


def _check_place(path: str, location: str, files: ModelFiles) -> None:
    """Raise ConfigError where links lead from external data on the local disk to elsewhere."""
    model, data = (local_path(resolve(one, files.base_dir)) for one in (path, _beside(path, location)))
    if model is not None and data is not None:
        check_links(model, data, location)


def _check_size(found: int, needed: int, location: str, what: str) -> None:
    if found < needed:
        raise ConfigError(
            f"{what}: its external data {location!r} has {found} bytes, and the model needs {needed}; the file is cut "
            "short or belongs to another model, copy both again"
        )
