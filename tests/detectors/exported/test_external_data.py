"""The files that an ONNX model keeps weights in, against what the package onnx writes."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("onnx", reason="the tests make ONNX files")

from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from pyimgano_dask.detectors.exported.external_data import DamagedProtobufError, external_files
from pyimgano_dask.errors import ConfigError


def kept_at(location: str, offset: int, values: int) -> TensorProto:
    """A tensor whose values lie in a file."""
    tensor = numpy_helper.from_array(np.zeros(values, np.float32), location)
    set_external_data(tensor, location, offset, 4 * values)
    tensor.ClearField("raw_data")
    return tensor


def test_tensors_are_found_wherever_a_model_may_hold_one() -> None:
    branch = helper.make_graph([], "branch", [], [], [kept_at("in/a branch.bin", 0, 3)])
    inner = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    constant = helper.make_node("Constant", [], ["z"], value=kept_at("constant.bin", 16, 1))
    own = helper.make_function("own", "f", ["x"], ["y"], [constant], [helper.make_opsetid("", 18)])
    inside = numpy_helper.from_array(np.zeros(1000, np.float32), "inside")
    graph = helper.make_graph([inner], "g", [], [], [inside, kept_at("w.bin", 0, 2), kept_at("w.bin", 64, 5)])
    model = helper.make_model(graph, functions=[own])

    assert dict(external_files(model.SerializeToString())) == {"constant.bin": 20, "in/a branch.bin": 12, "w.bin": 84}


@given(st.binary(max_size=200))
def test_any_bytes_are_a_model_or_refused(data: bytes) -> None:
    with suppress(DamagedProtobufError, ConfigError):
        assert isinstance(external_files(data), dict)


@given(st.data())
def test_a_model_that_is_cut_inside_of_its_graph_is_refused(data: st.DataObject) -> None:
    graph = helper.make_graph([], "g", [], [], [kept_at("w.bin", 0, 2)])
    whole = helper.make_model(graph, producer_name="").SerializeToString()
    start = whole.index(graph.SerializeToString())
    cut = data.draw(st.integers(start, start + len(graph.SerializeToString()) - 1))
    with pytest.raises(DamagedProtobufError):
        external_files(whole[:cut])
