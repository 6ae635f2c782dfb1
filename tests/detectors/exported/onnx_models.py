"""Small ONNX models in the forms that exporters write: the map is a weighted mean of the channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from tests.detectors.exported.answers import WEIGHTS

FULL = ("pred_score", "pred_label", "anomaly_map", "pred_mask")
RAW = ("pred_score", "anomaly_map")
OPSET = 18
EXTERNAL_OFFSET = 64


def save_model(
    path: Path,
    *,
    shape: Sequence[int | str] = (2, 3, 16, 20),
    outputs: Sequence[str] = FULL,
    names: Sequence[str] | None = None,
    dtype: int = TensorProto.FLOAT,
    external: str | None = None,
    score_axes: int = 1,
    before: Sequence[onnx.NodeProto] = (),
    n_inputs: int = 1,
    input_dtype: int | None = None,
    input_shape: Sequence[int | str] | None = None,
) -> Path:
    """Write a model. `outputs` are what it gives, `names` what it calls them, `external` the file of its weights.

    `before` are nodes from "images" to "pixels" in place of none; `score_axes` 2 makes the score (B, 1).
    `input_dtype` and `input_shape` are those of "images" where "pixels" have others.
    """
    n_channels = 1 if shape[1] == 1 else 4 if shape[1] == 4 else 3
    weights = np.resize(WEIGHTS, n_channels).reshape(1, -1, 1, 1)
    nodes = [
        *(before or [helper.make_node("Identity", ["images"], ["pixels"])]),
        helper.make_node("Conv", ["pixels", "weights"], ["anomaly_map"]),
        helper.make_node("ReduceMax", ["anomaly_map", "all_but_batch"], ["peak"], keepdims=0),
        helper.make_node("Reshape", ["peak", "score_shape"], ["pred_score"]),
        helper.make_node("Greater", ["pred_score", "half"], ["pred_label"]),
        helper.make_node("Greater", ["anomaly_map", "half"], ["pred_mask"]),
    ]
    constants: dict[str, Any] = {
        "weights": weights.astype(helper.tensor_dtype_to_np_dtype(dtype)),
        "all_but_batch": np.array([1, 2, 3]),
        "score_shape": np.array([-1, 1][:score_axes]),
        "half": np.array(0.5, helper.tensor_dtype_to_np_dtype(dtype)),
    }
    if names is not None:
        nodes += [helper.make_node("Identity", [old], [new]) for old, new in zip(outputs, names, strict=True)]
    more = [helper.make_tensor_value_info(f"more_{number}", dtype, shape) for number in range(1, n_inputs)]
    nodes += [helper.make_node("Identity", [info.name], [f"unused_{info.name}"]) for info in more]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("images", input_dtype or dtype, input_shape or shape), *more],
        [_output_info(kind, name, dtype) for kind, name in zip(outputs, names or outputs, strict=True)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    if external is not None:
        _move_weights(model, path.parent / external, external)
    path.write_bytes(model.SerializeToString())
    return path


def _move_weights(model: onnx.ModelProto, path: Path, location: str) -> None:
    """Put the tensor of the weights into a file of its own, some bytes from its beginning."""
    (weights,) = (tensor for tensor in model.graph.initializer if tensor.name == "weights")
    path.write_bytes(bytes(EXTERNAL_OFFSET) + weights.raw_data)
    set_external_data(weights, location, EXTERNAL_OFFSET, len(weights.raw_data))
    weights.ClearField("raw_data")


def _output_info(kind: str, name: str, dtype: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.BOOL if kind in ("pred_label", "pred_mask") else dtype, None)


def forget_input_shape(path: Path) -> Path:
    """Let the model in this file not say the shape of its input."""
    model = onnx.load(path, load_external_data=False)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    path.write_bytes(model.SerializeToString())
    return path


def add_sequence(path: Path, name: str, only: bool = False) -> Path:
    """Let the model in this file also give its map as a sequence; `only`: nothing else."""
    model = onnx.load(path, load_external_data=False)
    model.graph.node.append(helper.make_node("SequenceConstruct", ["anomaly_map"], [name]))
    if only:
        model.graph.ClearField("output")
    model.graph.output.append(helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None))
    path.write_bytes(model.SerializeToString())
    return path


def point_elsewhere(path: Path, location: str) -> None:
    """Let the model in this file look for its weights at `location`."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
